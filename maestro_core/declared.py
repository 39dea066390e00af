"""The caps that are declared, in settings or by plugins, and which of them apply to a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .caps import matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pluggy import PluginManager

    from .settings import Settings
    from .types import Call, Cap, Ledger, Meter

__all__ = ["Declared"]


class Declared:
    """The caps of one Maestro, each with its meter; the ledger counts for every meter before a cap is looked at.

    Args:
        settings: The caps and budgets, and the time zone of their windows.
        plugins: Those that have caps for a call, e.g. from a plan table.
        ledger: What counts.
    """

    def __init__(self, settings: Settings, plugins: PluginManager, ledger: Ledger) -> None:
        self._plugins = plugins
        self._ledger = ledger
        self._time_zone = settings.time_zone
        self._caps: tuple[tuple[Cap, Meter], ...] = tuple(
            (cap, cap.meter(self._time_zone)) for cap in settings.caps
        )
        self._counted: set[Meter] = set()
        self._conditional = any(meter.where for _, meter in self._caps)
        self.announced = False
        self._count([limit.meter(self._time_zone) for limit in (*settings.caps, *settings.budgets)])

    def caps_for(self, call: Call) -> tuple[tuple[Cap, Meter], ...]:
        """Return the caps that apply to a call, whose attribution is complete."""
        hook, pairs = self._plugins.hook.maestro_caps, self._caps
        if hook.get_hookimpls():
            added = [cap for found in hook(call=call) for cap in found]
            extra = [(cap, cap.meter(self._time_zone)) for cap in added]
            self._count([meter for _, meter in extra])
            pairs = (*pairs, *extra)
        elif not self._conditional:
            return pairs
        return tuple(
            [
                pair
                for pair in pairs
                if not pair[1].where or matches(pair[1], call.attribution, call.provider, call.model)
            ]
        )

    def announce(self) -> None:
        """Tell the other processes at the ledger, once, which limits this one enforces."""
        if self.announced:
            return
        if announce := getattr(self._ledger, "announce", None):
            announce([(meter, cap.limit_nanos) for cap, meter in self._caps])
        self.announced = True

    def _count(self, meters: Sequence[Meter]) -> None:
        new = [meter for meter in meters if meter not in self._counted]
        if new:
            self._ledger.declare(new)
            self._counted.update(new)
