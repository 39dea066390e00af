"""Maestro for LangChain: a callback handler that prices, attributes and caps every call it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from .callbacks import MaestroCallbackHandler
    from .chat_models import RoutedChatModel
    from .embeddings import governed
    from .installation import install
except ModuleNotFoundError as error:
    if not str(error.name).startswith("langchain_core"):
        raise
    raise ImportError(
        f'maestro_langchain needs {error.name}: pip install "maestro-finops[langchain]"'
    ) from error

if TYPE_CHECKING:
    from .middleware import MaestroMiddleware

__all__ = ["MaestroCallbackHandler", "MaestroMiddleware", "RoutedChatModel", "governed", "install"]


def __getattr__(name: str) -> Any:
    # The middleware needs `langchain`; the handler runs on langchain-core alone.
    if name != "MaestroMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .middleware import MaestroMiddleware
    except ModuleNotFoundError as error:
        raise ImportError(
            f'MaestroMiddleware needs {error.name}: pip install "maestro-finops[langchain]"'
        ) from error
    return MaestroMiddleware


def __dir__() -> list[str]:
    return __all__
