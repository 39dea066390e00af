"""What lies between a simulated process and the store: a call into the same machine, or a network."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from maestro_core.errors import LedgerUnavailable, ReservationClosed

from .scheduler import Killed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .checks import Watched
    from .scheduler import Scheduler

__all__ = ["Wire"]

_ATTEMPTS = 2


class Wire:
    """A ledger as one process sees it. Before and after each verb others may act, and the process may die.

    On a network a request or its reply may be lost, and is then sent again, with the same key; a request may arrive
    twice, the second time much later. After two losses the ledger is unavailable, though the first may have arrived.

    Args:
        scheduler: Runs the tasks.
        store: The ledger that all processes share.
        losses: How likely each message is lost or comes twice; 0 for a store on the same machine.
        late: Where messages wait that come a second time.
    """

    def __init__(
        self, scheduler: Scheduler, store: Watched, *, losses: float, late: list[Callable[[], None]]
    ) -> None:
        self.url = "simulated:"
        self.alive = True
        self._scheduler = scheduler
        self._store = store
        self._losses = losses
        self._late = late

    def reserve(self, hold: Any) -> Any:
        self._scheduler.current.facts["hold"] = hold
        return self._ask(lambda: self._store.reserve(hold), f"reserve {hold.key}")

    def settle(self, key: str, settlement: Any) -> Any:
        return self._ask(lambda: self._store.settle(key, settlement), f"settle {key}")

    def release(self, key: str, reason: str) -> Any:
        return self._ask(lambda: self._store.release(key, reason), f"release {key}")

    def refuse(self, hold: Any, detail: Any) -> Any:
        return self._ask(lambda: self._store.refuse(hold, detail), f"refuse {hold.key}")

    def presume(self, *, older_than_us: int = 0, keys: Any = ()) -> Any:
        return self._ask(
            lambda: self._store.presume(older_than_us=older_than_us, keys=keys),
            f"presume {' '.join(sorted(keys))}",
        )

    def grant(self, key: str, run: str, detail: Any) -> Any:
        return self._ask(lambda: self._store.grant(key, run, detail), f"grant {run}")

    def withdraw(self, key: str) -> None:
        if self.alive:  # else this is a destructor of the dead
            self._ask(lambda: self._store.withdraw(key), f"withdraw {key}")

    def changed(self) -> int:
        self._check()
        return self._store.changed()

    def declare(self, meters: Any) -> None:
        self._store.declare(meters)

    def now_us(self) -> int:
        return self._store.now_us()

    def records(self, **span: Any) -> Iterator[Any]:
        self._check()
        return iter(list(self._store.records(**span)))

    def buckets(self, meter: Any) -> Any:
        return self._store.buckets(meter)

    def meters(self) -> Any:
        return self._store.meters()

    def holds(self) -> Any:
        return self._store.holds()

    def sums(self, by: Any, **span: Any) -> Any:
        return self._store.sums(by, **span)

    def correct(self, key: str, truth: Any) -> Any:
        return self._ask(lambda: self._store.correct(key, truth), f"correct {key}")

    def keep(self, key: str, kind: str, body: Any, *, revision: int = 0) -> bool:
        return self._store.keep(key, kind, body, revision=revision)

    def notes(self, kind: str, **which: Any) -> Any:
        return self._store.notes(kind, **which)

    def check(self) -> list[str]:
        return self._store.check()

    def close(self) -> None:
        """Processes of a simulation end, or die; the store goes on."""

    def _ask(self, verb: Callable[[], Any], what: str) -> Any:
        for _ in range(_ATTEMPTS):
            self._pass()
            chance = self._scheduler.chance.random() if self._losses else 1.0
            if chance < self._losses:
                self._scheduler.say(f"{what}: lost on its way")
                continue
            if chance < 2 * self._losses:
                self._late.append(self._again(verb, what))
            answer = verb()
            if self._scheduler.trace is not None:
                self._scheduler.say(f"{what}: {brief(answer)}")
            self._pass()
            if chance < 1 - self._losses or not self._losses:
                return answer
            self._scheduler.say(f"{what}: its answer is lost")
        raise LedgerUnavailable(f"simulated: {what} was lost")

    def _again(self, verb: Callable[[], Any], what: str) -> Callable[[], None]:
        def deliver() -> None:
            self._scheduler.say(f"{what}: arrives a second time")
            with suppress(ReservationClosed):  # nobody listens to the answer
                verb()

        return deliver

    def _pass(self) -> None:
        self._check()
        self._scheduler.switch()
        self._check()

    def _check(self) -> None:
        if not self.alive:
            raise Killed


def brief(answer: Any) -> str:
    """Return an answer in a few words."""
    kind = type(answer).__name__
    if kind == "Held":
        return f"held {answer.amount_nanos}"
    if kind == "Refused":
        bucket = answer.bucket
        why = "spent" if answer.spent else "held"
        return (
            f"refused as {why} at {bucket.label}: spent {bucket.spent} held {bucket.held} presumed {bucket.presumed}"
            f" promised {answer.promised_nanos} needed {answer.needed_nanos} limit {answer.limit_nanos}"
        )
    if kind == "Record":
        return f"{answer.kind} {answer.cost_nanos}"
    return f"{len(answer)} rows" if isinstance(answer, list) else str(answer)
