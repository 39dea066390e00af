"""Who pays for a call: what is known of that from the process, the context, plugins and the call itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .attribution import MOST_DIMENSIONS, cleaned, current, environment_defaults
from .errors import MaestroError
from .types import UNATTRIBUTED, Attribution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pluggy import PluginManager

    from .settings import Settings
    from .types import Call

__all__ = ["Payers"]

_log = logging.getLogger("maestro")


class Payers:
    """Completes the attribution of calls, and sees to the dimensions that are required.

    Args:
        settings: Which dimensions are required, and which ones caps look at.
        plugins: Those that know more of a call, e.g. its customer from the request context.
    """

    def __init__(self, settings: Settings, plugins: PluginManager) -> None:
        self._settings = settings
        self._plugins = plugins
        self._defaults = environment_defaults()
        self._warned: set[str] = set()

    def attributed(self, call: Call) -> Call:
        """Return the call with everything that is known of whom it is for."""
        own = call.attribution
        merged: dict[str, str] = dict(self._defaults)
        hook = self._plugins.hook.maestro_attribution
        for found in hook(call=call) if hook.get_hookimpls() else ():
            merged.update(cleaned(found, check_names=True))
        merged |= current()
        merged |= cleaned(own.dimensions)
        if len(merged) > MOST_DIMENSIONS:
            merged = self._fewer(merged)
        if merged == own.dimensions:  # as doors that know the run tree have it already
            return call
        return replace(call, attribution=Attribution(merged, own.path))

    def check_required(self, call: Call) -> None:
        """See that the call has every dimension that is required.

        Raises:
            MaestroError: If it has not, and `require_mode` does not say that a warning is enough.
        """
        required = self._settings.require
        if not required:
            return
        missing = [d for d in required if call.attribution.value(d) == UNATTRIBUTED]
        if not missing:
            return
        names = ", ".join(missing)
        if self._settings.require_mode == "warn":
            self._warn_once(f"calls without {names} are counted as {UNATTRIBUTED}")
            return
        raise MaestroError(
            f"this call has no {names}, which is required; wrap it in attribution({missing[0]}=...)"
        )

    def _fewer(self, dimensions: Mapping[str, str]) -> dict[str, str]:
        # Refusing would stop a call for a label. What caps look at stays: without it a call would pass them by.
        self._warn_once(f"a call has {len(dimensions)} dimensions; {MOST_DIMENSIONS} are kept")
        needed = {"run", *self._settings.require}
        for cap in self._settings.caps:
            needed.update(cap.per, dict(cap.where))
        kept = sorted(dimensions, key=lambda name: name not in needed)[:MOST_DIMENSIONS]
        return {name: dimensions[name] for name in kept}

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)
