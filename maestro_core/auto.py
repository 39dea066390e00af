"""`MAESTRO_AUTO=1`: governs an application that is not edited.

A line in `maestro_auto.pth` calls `watch` when the interpreter starts, if the variable is set. Nothing is imported
then; the frameworks' adapters come in when the application has imported its framework and runs it for the first time.
"""

from __future__ import annotations

import sys
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import ContextVar
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["watch"]

# Where LangChain keeps the hooks that it asks for handlers whenever it configures a run.
_LANGCHAIN = "langchain_core.tracers.context"
# Where LlamaIndex keeps the managers that every model tells of its calls.
_LLAMAINDEX = "llama_index.core.callbacks.base"


def watch() -> None:
    """Install Maestro's handlers into LangChain and LlamaIndex as soon as those are imported."""
    for name, hook in _HOOKS.items():
        if name in sys.modules:
            hook(sys.modules[name])
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder):
    """Finds the modules to be hooked as they would have been found, and adds a step to their loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _HOOKS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, plain: Loader) -> None:
        self._plain = plain

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._plain.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._plain.exec_module(module)
        _HOOKS[module.__name__](module)

    def __getattr__(self, name: str) -> Any:
        if name == "_plain":
            raise AttributeError(name)
        return getattr(self._plain, name)  # get_source and the like, for tracebacks


class _FirstRun:
    """Looks to LangChain like a context variable without a value; installs the handler when it is first asked.

    By then all imports are done, which at the time of the hook they are not. What `install` adds to LangChain's list
    of hooks meanwhile is asked next, so that the first run is seen, too.
    """

    def get(self) -> None:
        # By name: the core does not import its adapters.
        adapter = import_module("maestro_langchain.installation")
        if not adapter.installed():
            adapter.install()


def _hook_langchain(context: ModuleType) -> None:
    context.register_configure_hook(cast("ContextVar[Any]", _FirstRun()), inheritable=False)


def _hook_llamaindex(base: ModuleType) -> None:
    # The first manager belongs to the first model, and that is made before anything runs.
    manager = base.CallbackManager
    plain = manager.__init__

    @wraps(plain)
    def init(self: object, *args: Any, **kwargs: Any) -> None:
        if not _is_loading("llama_index.core"):
            manager.__init__ = plain
            adapter = import_module("maestro_llamaindex.installation")
            if not adapter.installed():
                adapter.install()
        plain(self, *args, **kwargs)

    manager.__init__ = init


def _is_loading(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


_HOOKS = {_LANGCHAIN: _hook_langchain, _LLAMAINDEX: _hook_llamaindex}
