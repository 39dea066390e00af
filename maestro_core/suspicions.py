"""From what detectors find to what people are told: one alert for one incident, however many series show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clock import from_micros
from .contributors import contributors
from .incidents import cap_line
from .money import format_usd, to_usd
from .types import Alert, Attribution

if TYPE_CHECKING:
    from .alerts import Alerts
    from .anomaly import Finding
    from .routes import AlertSettings
    from .types import Ledger

__all__ = ["Suspicions"]

_MINUTE_US = 60_000_000
# Two series show the same incident if it began about then, and costs about as much.
_SAME_MINUTES = 90
_SAME_TIMES = 2
_WORDS = {
    "spike": "spends far more than usual",
    "leak": "spends a little more than usual, for long",
    "recovered": "is back to what is usual",
}


@dataclass(slots=True)
class _Incident:
    series: str
    kind: str
    since_minute: int
    excess_nanos: int
    told: bool
    seen: int  # minute


class Suspicions:
    """Decides which findings are told.

    Args:
        settings: For how long a scope is not told of again.
        ledger: Who spent most.
        alerts: Where they are told.
    """

    def __init__(self, settings: AlertSettings, ledger: Ledger, alerts: Alerts) -> None:
        self._cooldown = settings.cooldown_s / 60
        self._ledger = ledger
        self._alerts = alerts
        self._open: dict[str, _Incident] = {}
        self._ended: dict[str, float] = {}

    def add(self, series: str, finding: Finding) -> None:
        """Take in a finding; of those of one minute, the one that people are best told of comes first."""
        now = self._ledger.now_us() // _MINUTE_US
        if finding.kind == "recovered":
            incident = self._open.pop(series, None)
            self._ended[series] = now
            if incident is None or incident.told:
                self._tell(series, finding)
            return
        before = self._open.get(series)
        worse = before is not None and before.kind == "leak" and finding.kind == "spike"
        if before and before.told and not worse and now - before.seen <= self._cooldown:
            before.seen = now  # a detector that says so every minute says it once
            return
        quiet = now < self._ended.get(series, float("-inf")) + self._cooldown
        told = not quiet and not self._known(series, finding)
        ends = told or (worse and before is not None and before.told)
        self._open[series] = _Incident(
            series, finding.kind, finding.since_minute, finding.excess_nanos, ends, now
        )
        if told:
            self._tell(series, finding)

    def _known(self, series: str, finding: Finding) -> bool:
        for other in self._open.values():
            near = abs(other.since_minute - finding.since_minute) <= _SAME_MINUTES
            small, large = sorted((other.excess_nanos, finding.excess_nanos))
            if near and other.told and other.series != series and large <= _SAME_TIMES * max(small, 1):
                return True
        return False

    def _tell(self, series: str, finding: Finding) -> None:
        self._alerts.report(lambda: self._alert(series, finding))

    def _alert(self, series: str, finding: Finding) -> Alert:
        dimension, _, value = series.partition("=")
        where = {dimension: value} if value else {}
        most = contributors(self._ledger, where, finding.since_minute * _MINUTE_US)
        since = from_micros(finding.since_minute * _MINUTE_US)
        over = finding.kind == "recovered"
        stop = cap_line(2 * finding.usual_pace_nanos, where=where, every="hour")
        said = _WORDS.get(finding.kind, f"is not as usual ({finding.kind})")
        pace = f"{format_usd(finding.pace_nanos)} an hour instead of {format_usd(finding.usual_pace_nanos)}"
        who = ", ".join(
            f"{name} {found}" for name, found in zip(most._fields, most, strict=True) if found is not None
        )
        cost = f"{format_usd(finding.excess_nanos)} beyond the usual since {since:%Y-%m-%d %H:%M} UTC"
        return Alert(
            kind=finding.kind,
            scope=series,
            since=since,
            excess_usd=to_usd(finding.excess_nanos),
            projected_usd=None if over else to_usd(24 * finding.pace_nanos),
            run_id=most.run,
            model=most.model,
            tool=most.tool,
            stop="" if over else stop,
            text=f"{finding.kind}: {series} {said}: {cost}"
            + (
                "" if over else f", {pace} now; most by {who or 'nobody in particular'}; {stop} would stop it"
            ),
            key=f"{finding.kind} {series} {finding.since_minute}",
            attribution=Attribution(where),
        )
