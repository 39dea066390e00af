"""Loading plugins (pluggy, entry-point group `maestro`) and calling observers so that they can do no harm."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pluggy

from . import hookspecs
from .errors import MaestroError

__all__ = ["load", "observe"]

_log = logging.getLogger("maestro")
_OBSERVERS = frozenset({"maestro_settled", "maestro_refused", "maestro_alert"})


def load(*, strict: bool = True) -> pluggy.PluginManager:
    """Return a plugin manager with every installed plugin.

    One that fails to load is logged and left out if it only observes. Any other may decide prices and caps, and calls
    that go without it would pass caps that somebody relies on; that includes one whose code cannot be seen.

    Args:
        strict: Whether to raise for these; without, they are logged and left out, too.

    Raises:
        MaestroError: For the first plugin that failed and does more than observe; it names the plugin.
    """
    manager = pluggy.PluginManager("maestro")
    manager.add_hookspecs(hookspecs)
    for failed in _load_each(manager):
        if strict and not failed.observes:
            raise MaestroError(
                f"{failed}; it may decide prices or caps, so no call goes without it: repair it, or uninstall {failed.of}"
            ) from failed.error
        _log.warning("%s", failed)
    return manager


@dataclass(frozen=True, slots=True)
class _Failed:
    name: str
    of: str
    error: Exception
    observes: bool

    def __str__(self) -> str:
        return f"plugin {self.name} of {self.of} was not loaded: {' '.join(str(self.error).split())}"


def _load_each(manager: pluggy.PluginManager) -> list[_Failed]:
    from importlib.metadata import entry_points

    failed = []
    for point in entry_points(group="maestro"):
        plugin = None
        try:
            plugin = point.load()
            manager.register(plugin, name=point.name)
            manager.check_pending()  # a misspelled hook would otherwise never be called, and nobody told
        except Exception as error:  # noqa: BLE001 - who calls decides what a broken plugin may stop
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            of = point.dist.name if point.dist else "?"
            failed.append(_Failed(point.name, of, error, _only_observes(manager, plugin)))
    return failed


def _only_observes(manager: pluggy.PluginManager, plugin: object) -> bool:
    """Return whether every hook of a plugin is an observer's; of one that could not be imported, nothing is known."""
    hooks = (
        [name for name in dir(plugin) if manager.parse_hookimpl_opts(plugin, name) is not None]
        if plugin
        else []
    )
    return bool(hooks) and _OBSERVERS.issuperset(hooks)


def observe(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> None:
    """Call an observer hook of every plugin, one at a time; log what they raise."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:  # noqa: BLE001 - another's code, after the money is safe
            _log.exception("plugin %s failed in %s; the record is safe", implementation.plugin_name, hook)
