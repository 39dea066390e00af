"""The public names as a type checker sees them. Checked by mypy, never run."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, assert_type

from maestro_core import (
    Budget,
    Cap,
    CapExceeded,
    Maestro,
    MaestroError,
    PriceNotFound,
    Usage,
    attribution,
    hookimpl,
    price,
)
from maestro_core.settings import Settings
from maestro_core.types import Call, CapStatus, Cost, Record, Report, Reservation, Tree
from maestro_langchain import MaestroCallbackHandler

__all__: list[str] = []


def declare() -> None:
    """Caps and budgets take dollars as text, Decimal or int, never as float."""
    caps = [Cap("0.50", per="run"), Cap(Decimal(20), per=("customer", "model"), every="day", alert_at=0.8)]
    caps.append(Cap(3000, where={"team": "growth"}, every="month", alert_at=(0.5, 0.8)))
    budget = Budget("500", per="feature", every="month")
    Cap(0.5)  # type: ignore[arg-type]
    Cap("5", every="daily")  # type: ignore[arg-type]
    Cap("5", "run")  # type: ignore[call-arg]
    Budget("5", wher={"team": "growth"})  # type: ignore[call-arg]
    assert_type(caps[0].limit, Decimal)
    assert_type(budget.limit_nanos, int)
    maestro = Maestro(caps=caps, budgets=[budget], ledger="sqlite:///maestro.db")
    assert_type(maestro.settings, Settings)
    assert_type(Maestro.default(), Maestro)


def attribute() -> None:
    """Any keyword is a dimension; values are text or ints."""
    with attribution(team="growth", customer=42, user=None) as block:
        assert_type(block, attribution)
    attribution(team=0.5)  # type: ignore[arg-type]


async def attribute_asynchronously() -> None:
    """`async with` is the same."""
    async with attribution(team="growth") as block:
        assert_type(block, attribution)


def spend(maestro: Maestro, response: object) -> None:
    """The three verbs, and the context manager over them."""
    call = Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=800)
    Call("openai", "gpt-5-mini")  # type: ignore[call-arg]
    reservation = maestro.reserve(call)
    assert_type(reservation, Reservation)
    assert_type(reservation.held_nanos, int)
    record = maestro.settle(reservation, Usage(input_tokens=12, output_tokens=3))
    assert_type(record, Record)
    assert_type(record.cost, Decimal)
    assert_type(record.run, str | None)
    maestro.release(reservation, "refused connection")
    with maestro.call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=800) as opened:
        assert_type(opened.settle(response), Record)
        assert_type(opened.record, Record | None)


async def spend_asynchronously(maestro: Maestro) -> None:
    """The verbs with an `a` in front."""
    reservation = await maestro.areserve(Call(provider="openai", model="gpt-5-mini"))
    assert_type(await maestro.asettle(reservation, None), Record)
    await maestro.arelease(reservation, "HTTP 429")
    async with maestro.call(provider="openai", model="gpt-5-mini") as opened:
        assert_type(opened.settle({"usage": {}}), Record)


def ask(maestro: Maestro) -> None:
    """Reports, caps and trees."""
    report = maestro.report(
        by=("team", "model"), since="24h", until=datetime.now(UTC), where={"team": "growth"}
    )
    assert_type(report, Report)
    assert_type(report.total, Decimal)
    assert_type(report.rows[0].cost, Decimal)
    assert_type(report.rows[0].calls, int)
    assert_type(report.to_dicts(), list[dict[str, Any]])
    maestro.report(by="team", since=24)  # type: ignore[arg-type]
    status = maestro.status()
    assert_type(status, list[CapStatus])
    assert_type(status[0].resets_at, datetime | None)
    assert_type(maestro.tree("run-1"), Tree)
    maestro.close()


def prices() -> None:
    """A price is exact, and a pure function of its arguments."""
    usage = Usage(input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000)
    cost = price("openai", "gpt-5-mini", usage, at=datetime.now(UTC), tier="batch")
    assert_type(cost, Cost)
    assert_type(cost.usd, Decimal)
    assert_type(cost.nanos, int)
    assert_type(usage.cache_read_tokens, int)
    assert_type(usage + usage, Usage)
    assert_type(Usage.parse("openai", {"usage": {}}, api="chat"), Usage)


def errors(error: CapExceeded, missing: PriceNotFound) -> None:
    """Every number of a refusal is an attribute."""
    assert_type(error.needed, Decimal)
    assert_type(error.headroom, Decimal)
    assert_type(error.resets_at, datetime | None)
    assert_type(error.cap, Cap)
    assert_type(missing.closest, tuple[str, ...])
    base: list[MaestroError] = [error, missing]
    lookup: LookupError = missing
    assert_type((base, lookup), tuple[list[MaestroError], LookupError])


def attach(maestro: Maestro) -> None:
    """The LangChain handler, with and without an instance of one's own."""
    handler = MaestroCallbackHandler(maestro)
    assert_type(handler.maestro, Maestro)
    MaestroCallbackHandler()
    MaestroCallbackHandler("maestro.db")  # type: ignore[arg-type]


class Plugin:
    """Hook implementations keep their types."""

    @hookimpl
    def maestro_estimate(self, call: Call) -> Usage | None:
        """Bound every call alike."""
        return Usage(input_tokens=100, output_tokens=call.max_output_tokens)


assert_type(Plugin().maestro_estimate(Call(provider="openai", model="gpt-5-mini")), Usage | None)
