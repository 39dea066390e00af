"""Replay an hour of production traffic, 28,185 requests of two services, through Maestro's caps and ledger.

No model is called and no money is spent: each request is reserved at its arrival and settled with the tokens that it
really used, so that thousands of holds overlap as they did. One team's daily cap is generous, the other's runs out
near the end. Afterwards the bill is computed a second time, in exact fractions and without Maestro, and has to equal
the ledger's total to the nano-dollar.

    python examples/02_replay_production_trace.py [--limit 500] [--ledger sqlite:///replay.db]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from maestro_core import Cap, CapExceeded, Maestro, Usage, attribution, hookimpl
from maestro_core.types import Call, Reservation, new_key

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = Path(__file__).parent / "data"
TEAMS = {"azure_llm_trace_code.csv.gz": "coding", "azure_llm_trace_conv.csv.gz": "chat"}
PROVIDERS = {"gpt-5-mini": "openai", "claude-sonnet-5": "anthropic"}

# US dollars per million tokens (input, output) as the providers publish them; what Maestro has to agree with.
PUBLISHED = {"gpt-5-mini": ("0.25", "2.00"), "claude-sonnet-5": ("2.00", "10.00")}
PRICED_AT = datetime(2026, 11, 23, tzinfo=UTC)

MAX_OUTPUT_TOKENS = 2_048  # the limit that every request carries; the longest answer of the trace has 1,899
SECONDS_PER_TOKEN = 0.03  # how long an answer takes, so that calls overlap
CODE_REVIEW_TOKENS = 40  # longer answers of the coding service are reviews, the others completions
LONG_CHAT_TOKENS = 1_200  # longer chats are research, the others support


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the trace, and whom it is for."""

    arrived: datetime
    team: str
    feature: str
    customer: str
    model: str
    input_tokens: int
    output_tokens: int

    @property
    def bill(self) -> Fraction:
        """What the provider charges for it, in US dollars."""
        input_rate, output_rate = PUBLISHED[self.model]
        return (
            self.input_tokens * Fraction(input_rate) + self.output_tokens * Fraction(output_rate)
        ) / 1_000_000


def read(file: str, team: str) -> Iterable[Request]:
    """Yield a trace's requests. Feature, customer and model follow from the row, the same in every run."""
    with gzip.open(DATA / file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            sent, answered = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            if team == "coding":
                feature = "review" if answered > CODE_REVIEW_TOKENS else "completion"
            else:
                feature = "research" if sent > LONG_CHAT_TOKENS else "support"
            yield Request(
                arrived=datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC),
                team=team,
                feature=feature,
                customer=f"customer-{zlib.crc32(row['TIMESTAMP'].encode()) % 20:02}",
                model="claude-sonnet-5" if feature in {"review", "research"} else "gpt-5-mini",
                input_tokens=sent,
                output_tokens=answered,
            )


class RecordedTokens:
    """A plugin: a request's input is known exactly, so nothing has to be measured."""

    @hookimpl
    def maestro_estimate(self, call: Call) -> Usage | None:
        """Bound a call by the tokens of its recorded request."""
        if not isinstance(call.input, Request):
            return None
        return Usage(input_tokens=call.input.input_tokens, output_tokens=call.max_output_tokens)


class Replay:
    """Sends requests through a Maestro in the order of their arrival, and settles each when its answer is there."""

    def __init__(self, maestro: Maestro) -> None:
        self.maestro = maestro
        self.run = new_key()
        self.bill = Fraction(0)
        self.admitted = 0
        self.most_in_flight = 0
        self.refused: Counter[tuple[str, str]] = Counter()
        self._in_flight: list[tuple[datetime, int, Request, Reservation]] = []
        self._order = count()

    def send(self, request: Request) -> None:
        """Settle what has been answered by now, then reserve for one more request."""
        self.settle_until(request.arrived)
        call = Call(
            provider=PROVIDERS[request.model],
            model=request.model,
            input=request,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            at=PRICED_AT,
        )
        owner = attribution(
            run=self.run, team=request.team, feature=request.feature, customer=request.customer
        )
        try:
            with owner:
                reservation = self.maestro.reserve(call)
        except CapExceeded as error:
            self.refused[request.team, error.reason] += 1
            return
        answered = request.arrived + timedelta(seconds=SECONDS_PER_TOKEN * request.output_tokens)
        heapq.heappush(self._in_flight, (answered, next(self._order), request, reservation))
        self.admitted += 1
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))

    def settle_until(self, now: datetime) -> None:
        """Settle every call whose answer has arrived."""
        while self._in_flight and self._in_flight[0][0] <= now:
            _, _, request, reservation = heapq.heappop(self._in_flight)
            used = Usage(input_tokens=request.input_tokens, output_tokens=request.output_tokens)
            self.maestro.settle(reservation, used)
            self.bill += request.bill


def caps_for(requests: list[Request]) -> list[Cap]:
    """Return a generous cap for coding, and one for chat that lasts for 97 % of what chat would spend without it."""
    wanted = dict.fromkeys(TEAMS.values(), Fraction(0))
    for request in requests:
        wanted[request.team] += request.bill
    shares = {"coding": Fraction(3), "chat": Fraction(97, 100)}
    return [
        Cap(f"{float(wanted[team] * share):.2f}", where={"team": team}, every="day")
        for team, share in shares.items()
    ]


def replay(requests: list[Request], ledger: str, console: Console) -> bool:
    """Replay the requests, print what happened, and return whether ledger and caps agree with the bill."""
    maestro = Maestro(ledger=ledger, caps=caps_for(requests), budgets=[], require=[])
    maestro.plugins.register(RecordedTokens())
    run = Replay(maestro)
    began = time.perf_counter()
    for request in track(requests, "replaying", console=console):
        run.send(request)
    run.settle_until(datetime.max.replace(tzinfo=UTC))
    seconds = time.perf_counter() - began
    tell(run, console)
    console.print(
        f"{run.admitted:,} of {len(requests):,} requests admitted, at most {run.most_in_flight:,} in flight\n"
        f"{len(requests) / seconds:,.0f} requests per second, each reserved and settled in {ledger}"
    )
    agrees = reconcile(run, console)
    maestro.close()
    return agrees


def tell(run: Replay, console: Console) -> None:
    """Print who spent what, and what each cap refused."""
    for by in ("team", ("team", "model")):
        report = run.maestro.report(by=by, since="all", where={"run": run.run})
        console.print(f"\n{report}")
    console.print()
    for status in run.maestro.status():
        team = dict(status.cap.where)["team"]
        refused = {reason: n for (whose, reason), n in sorted(run.refused.items()) if whose == team}
        why = ", ".join(f"{n:,} as {reason}" for reason, n in refused.items()) or "none"
        console.print(f"cap {status.cap}: spent ${status.spent:.2f}; refused calls: {why}")


def reconcile(run: Replay, console: Console) -> bool:
    """Compare the ledger with the bill, exactly, and every cap with what was spent under it."""
    total = run.maestro.report(by="team", since="all", where={"run": run.run}).total
    agrees = Fraction(total) == run.bill
    verdict = "reconciles with" if agrees else "DIFFERS FROM"
    console.print(f"ledger ${total:f} {verdict} the bill ${float(run.bill):.9f}, to the nano-dollar")
    passed = [str(status.cap) for status in run.maestro.status() if status.spent > status.limit]
    console.print(f"caps passed: {', '.join(passed) or 'none'}")
    return agrees and not passed


def main() -> int:
    """Read the arguments and the traces, and replay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="replay only the first N requests")
    parser.add_argument("--ledger", help="a ledger URL; a temporary SQLite file if left out")
    arguments = parser.parse_args()
    requests = [request for file, team in TEAMS.items() for request in read(file, team)]
    requests.sort(key=lambda request: request.arrived)
    with tempfile.TemporaryDirectory() as folder:
        ledger = arguments.ledger or f"sqlite:///{folder}/replay.db"
        agrees = replay(requests[: arguments.limit], ledger, Console(highlight=False, soft_wrap=True))
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
