"""What becomes of the things that go wrong: each is told to people once, with what it costs and what would stop it.

Registered as a plugin of the core's own: it sees records and refusals after the money is safe, and can stop nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING

from . import refusal
from .clock import from_micros
from .errors import CapExceeded
from .hookspecs import hookimpl
from .money import format_usd, to_usd
from .types import Alert

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from .admission import Admission
    from .alerts import Alerts
    from .errors import MaestroError
    from .loops import Loop, Scope
    from .settings import Settings
    from .thresholds import Thresholds
    from .types import Attribution, Call, Ledger, Record
    from .watch import Watch

__all__ = ["Incidents", "cap_line"]

_DAY_S = 86_400

_SHAPES = {
    "repeat": "called {tool} {turns} times with the same arguments",
    "cycle": "went round the same calls for {turns} turns, last {tool}",
    "same_result": "got the same result from {tool} {turns} times, whatever it asked",
    "errors": "failed {turns} times in a row, last with {tool}",
    "no_progress": "got nothing new from its tools for {turns} turns, last {tool}",
}
_TALKS = "gave the same answer {turns} times while its context grew"


class Incidents:
    """Turns loops, refusals and overruns into alerts.

    Args:
        settings: What happens on a loop.
        ledger: Where the costs are read.
        alerts: Where alerts are handed over.
        admission: Where runs are halted.
        thresholds: What watches caps and budgets.
        watch: What looks for spikes and leaks; None if this process does not.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ledger: Ledger,
        alerts: Alerts,
        admission: Admission,
        thresholds: Thresholds,
        watch: Watch | None,
    ) -> None:
        self._halts = settings.on_loop == "halt"
        self._ledger = ledger
        self._alerts = alerts
        self._admission = admission
        self._thresholds = thresholds
        self._watch = watch

    def looped(self, loop: Loop, scope: Scope, where: Attribution) -> None:
        """An agent goes round in circles: tell, and halt its run if `on_loop` says so."""
        run = where.dimensions.get("run")
        halts = self._halts and run is not None
        incident = _Looping(self._ledger, loop, scope, where, halts)
        if halts and run is not None:
            error = refusal.halted(incident.what, run, where, spent_nanos=incident.spent())
            self._admission.halt(run, error)
        self._alerts.report(incident.alert)

    @hookimpl
    def maestro_refused(self, call: Call, error: MaestroError) -> None:
        """A cap refuses, because its money is spent."""
        if isinstance(error, CapExceeded) and error.reason == "spent":
            self._alerts.report(lambda: _refused(call, error, from_micros(self._ledger.now_us())))

    @hookimpl
    def maestro_settled(self, record: Record) -> None:
        """A call has ended; it may have cost more than was held, and filled a cap or a budget."""
        self._thresholds.touch()
        if self._watch is not None:
            self._watch.start()
        if record.overrun:
            self._alerts.report(lambda: _overrun(record))


@dataclass(frozen=True, slots=True)
class _Looping:
    ledger: Ledger
    loop: Loop
    scope: Scope
    where: Attribution
    halted: bool

    @property
    def what(self) -> str:
        """Who does what, e.g. `agent boss called search 5 times with the same arguments`."""
        loop, agent = self.loop, self._agent()
        said = (_SHAPES[loop.shape] if loop.tool else _TALKS).format(tool=loop.tool, turns=loop.turns)
        return f"{f'agent {agent}' if agent else 'an agent'} {said}"

    def spent(self, since_us: int = 0) -> int:
        """Return what the run has cost since, in nano-dollars."""
        run = self.where.dimensions.get("run")
        if run is None:
            return 0
        return sum(record.cost_nanos for record in self.ledger.records(run=run, since_us=since_us))

    def alert(self) -> Alert:
        loop, run = self.loop, self.where.dimensions.get("run")
        spent = self.spent(loop.since_us)
        elapsed_s = max(1, (self.ledger.now_us() - loop.since_us) // 1_000_000)
        projected = spent * _DAY_S // elapsed_s
        stop = cap_line(self.spent(), per="run")
        end = "; its run is halted" if self.halted else f'; {stop} or on_loop = "halt" would stop it'
        agent = self._agent()
        scope = ", ".join(
            part for part in (f"run={run}" if run else "", f"agent={agent}" if agent else "") if part
        )
        return Alert(
            kind="loop",
            scope=scope or "an agent",
            since=from_micros(loop.since_us),
            excess_usd=to_usd(spent),
            projected_usd=to_usd(projected),
            run_id=run,
            model=loop.model or None,
            tool=loop.tool or None,
            stop='on_loop = "halt"' if self.halted else stop,
            text=f"loop: {self.what} (run {run}): {format_usd(spent)} so far,"
            f" {format_usd(projected)} in 24 h at this pace{end}",
            key=f"loop {run} {self.scope[0]} {agent}",
            attribution=self.where,
        )

    def _agent(self) -> str | None:
        names = [name for kind, name in self.where.path if kind == "agent"]
        return names[-1] if names else None


def cap_line(
    nanos: int, *, per: str = "", where: Mapping[str, str] | None = None, every: str | None = None
) -> str:
    """Return the line that declares a cap of about this much: rounded up to two digits, at least a cent."""
    amount = to_usd(max(nanos, 10_000_000))
    rounded = amount.quantize(Decimal(1).scaleb(amount.adjusted() - 1), rounding=ROUND_UP).normalize()
    parts = [
        f'"{rounded:f}"',
        f'per="{per}"' if per else "",
        f"where={json.dumps(where, ensure_ascii=False)}" if where else "",
    ]
    parts.append(f'every="{every}"' if every else "")
    return f"Cap({', '.join(part for part in parts if part)})"


def _refused(call: Call, error: CapExceeded, now: datetime) -> Alert:
    window = f" {error.resets_at:%Y-%m-%dT%H}" if error.resets_at else ""
    return Alert(
        kind="refused",
        scope=error.bucket,
        since=now,
        excess_usd=max(Decimal(0), error.spent + error.presumed + error.needed - error.cap.limit),
        projected_usd=None,
        run_id=call.attribution.dimensions.get("run"),
        model=call.model,
        tool=next((name for kind, name in reversed(call.attribution.path) if kind == "tool"), None),
        stop=f"Cap({error.cap}) has stopped it",
        text=f"refused: {error}",
        key=f"refused {error.bucket}{window}",
        attribution=error.attribution,
    )


def _overrun(record: Record) -> Alert:
    over = record.cost_nanos - record.held_nanos
    hour = record.at.replace(minute=0, second=0, microsecond=0)
    return Alert(
        kind="overrun",
        scope=f"model={record.model}",
        since=record.at,
        excess_usd=to_usd(over),
        projected_usd=None,
        run_id=record.run,
        model=record.model,
        tool=next((name for kind, name in reversed(record.attribution.path) if kind == "tool"), None),
        stop="",
        text=f"overrun: a call of {record.model} cost {format_usd(record.cost_nanos)}, {format_usd(over)} more than was"
        " held; its caps refuse from now on as spent",
        key=f"overrun {record.provider} {record.model} {hour:%Y-%m-%dT%H}",
        attribution=record.attribution,
    )
