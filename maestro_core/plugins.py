"""Loading plugins (pluggy, entry-point group `maestro`) and calling observers so that they can do no harm."""

from __future__ import annotations

import logging
from typing import Any

import pluggy

from . import hookspecs

__all__ = ["load", "observe"]

_log = logging.getLogger("maestro")


def load() -> pluggy.PluginManager:
    """Return a plugin manager with every installed plugin; one that fails to load is logged and left out."""
    manager = pluggy.PluginManager("maestro")
    manager.add_hookspecs(hookspecs)
    for distribution, plugin_name, error in _load_each(manager):
        _log.warning("plugin %s of %s was not loaded: %s", plugin_name, distribution, error)
    return manager


def _load_each(manager: pluggy.PluginManager) -> list[tuple[str, str, Exception]]:
    from importlib.metadata import entry_points

    failed = []
    for point in entry_points(group="maestro"):
        try:
            manager.register(point.load(), name=point.name)
            manager.check_pending()  # a misspelled hook would otherwise never be called, and nobody told
        except Exception as error:  # noqa: BLE001 - a broken plugin must not stop the agent
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            failed.append((point.dist.name if point.dist else "?", point.name, error))
    return failed


def observe(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> None:
    """Call an observer hook of every plugin, one at a time; log what they raise."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:  # noqa: BLE001 - another's code, after the money is safe
            _log.exception("plugin %s failed in %s; the record is safe", implementation.plugin_name, hook)
