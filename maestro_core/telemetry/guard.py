"""Telemetry that breaks is logged once for each place, and neither stops a call nor loses a record."""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["failed", "harmless"]

_log = logging.getLogger("maestro")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_told: set[str] = set()


def harmless(method: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Wrap a method so that whatever a user's exporter, processor or provider raises stays out of the call's way."""

    @wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return method(*args, **kwargs)
        except Exception:  # noqa: BLE001 - it is the purpose
            failed(method.__qualname__)
            return None

    return guarded


def failed(where: str) -> None:
    """Tell that telemetry is raising at a place; for what every call runs through, and is not wrapped."""
    if where not in _told:
        _told.add(where)
        _log.exception("telemetry failed in %s; calls and records go on", where)
