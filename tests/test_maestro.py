"""The core without a framework: three verbs, questions, and what happens when something around it fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anthropic
import httpx2
import openai as openai_sdk
import pytest

from maestro_core import Cap, CapExceeded, Maestro, MaestroError, Usage, attribution, hookimpl
from maestro_core.errors import LedgerUnavailable, ReservationClosed, SettingsError
from maestro_core.testing import Reply
from maestro_core.types import Call

CALL = {"provider": "openai", "model": "gpt-5-mini", "input": "x" * 4_000, "max_output_tokens": 100}
USAGE = Usage(input_tokens=1_000, output_tokens=100)  # 1,000 x $0.25/M + 100 x $2/M
COST = Decimal("0.00045")


def test_a_call_holds_and_settles(make_maestro):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    with attribution(run="r1", team="growth"), maestro.call(**CALL) as call:
        (status,) = maestro.status()
        assert status.held == Decimal(call.reservation.held_nanos) / 10**9 > 0
        record = call.settle(USAGE)
    assert record.cost == COST
    (status,) = maestro.status()
    assert (status.spent, status.held, status.bucket) == (COST, 0, "run=r1")
    assert status.headroom == 1 - COST
    assert maestro.report("team", since="all").rows[0].key == {"team": "growth"}


async def test_a_call_works_in_async_code(make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    async with maestro.call(**CALL) as call:
        await maestro.asettle(call.reservation, USAGE)
    reservation = await maestro.areserve(Call(**CALL))
    await maestro.arelease(reservation, "not sent")
    assert maestro.report("team", since="all").total == COST
    assert maestro.ledger.holds() == []


def test_real_clients_settle_with_their_own_usage(provider, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = Reply(
        text="fine", input_tokens=1_000, output_tokens=90, cache_read_tokens=500, reasoning_tokens=20
    )
    messages = [{"role": "user", "content": "hello"}]
    with openai_sdk.OpenAI(base_url=provider.openai_url, api_key="none", max_retries=0) as client:
        with maestro.call(**CALL) as call:
            done = client.chat.completions.create(
                model="gpt-5-mini", messages=messages, max_completion_tokens=100
            )
            call.settle(done.usage)
        with maestro.call(**CALL) as call:
            call.settle(
                client.responses.create(model="gpt-5-mini", input="hello", max_output_tokens=100).usage
            )
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="none", max_retries=0) as client:
        name = "claude-sonnet-5"
        with maestro.call(provider="anthropic", model=name, input=messages, max_output_tokens=100) as call:
            call.settle(client.messages.create(model=name, messages=messages, max_tokens=100).usage)
    assert maestro.report("model", since="all").total == provider.bill
    assert len(provider.requests) == 3


def test_left_without_settling_it_counts_at_the_hold(make_maestro):
    maestro = make_maestro()
    with pytest.raises(httpx2.ReadTimeout), maestro.call(**CALL) as call:
        raise httpx2.ReadTimeout("no answer")
    assert call.record.estimated_nanos == call.record.cost_nanos == call.reservation.held_nanos > 0
    report = maestro.report("team", since="all")
    assert report.rows[0].estimated == report.total > 0


def test_settling_is_idempotent_and_refuses_another_truth(make_maestro):
    maestro = make_maestro()
    reservation = maestro.reserve(Call(**CALL))
    first = maestro.settle(reservation, USAGE)
    assert maestro.settle(reservation, USAGE) == first
    with pytest.raises(ReservationClosed):
        maestro.settle(reservation, Usage(input_tokens=1, output_tokens=1))
    with pytest.raises(ReservationClosed):
        maestro.release(reservation, "too late")
    assert maestro.report("team", since="all").total == COST


@pytest.mark.parametrize("since", ["all", "24h", "7d", "30m", "hour", "day", "week", "month"])
def test_since_takes_what_people_write(since, make_maestro):
    maestro = make_maestro()
    with maestro.call(**CALL) as call:
        call.settle(USAGE)
    assert maestro.report("model", since=since).total == COST


def test_since_and_until_are_instants(make_maestro):
    maestro = make_maestro()
    with maestro.call(**CALL) as call:
        call.settle(USAGE)
    now = datetime.now(UTC)
    assert maestro.report("model", since=now - timedelta(minutes=1)).total == COST
    assert maestro.report("model", since=now + timedelta(minutes=1)).total == 0
    assert maestro.report("model", since="all", until=now - timedelta(minutes=1)).total == 0
    for naive in (datetime(2026, 11, 23), "2026-11-23T00:00:00"):  # noqa: DTZ001 - the bad input
        with pytest.raises(ValueError, match="has no time zone; use"):
            maestro.report("model", since=naive)
    with pytest.raises(ValueError, match="names no time; use"):
        maestro.report("model", since="yesterday")
    with pytest.raises(ValueError, match="since=24 is no time; use"):
        maestro.report("model", since=24)
    with pytest.raises(ValueError, match="until=2h is before since=1h"):
        maestro.report("model", since="1h", until="2h")


def test_where_selects_rows(make_maestro):
    maestro = make_maestro()
    for team in ("growth", "core"):
        with attribution(team=team), maestro.call(**CALL) as call:
            call.settle(USAGE)
    assert maestro.report("model", since="all", where={"team": "growth"}).total == COST
    assert maestro.report(("team", "model"), since="all").total == 2 * COST


def test_caps_combine_where_per_and_every(make_maestro):
    maestro = make_maestro(caps=[Cap("0.002", per="customer", where={"team": "growth"}, every="day")])
    with attribution(team="growth", customer="acme"), pytest.raises(CapExceeded) as caught:
        for _ in range(9):
            with maestro.call(**CALL) as call:
                call.settle(USAGE)
    assert caught.value.bucket == "customer=acme where team=growth every day"
    for other in ({"team": "core", "customer": "acme"}, {"team": "growth", "customer": "globex"}):
        with attribution(**other), maestro.call(**CALL) as call:
            call.settle(USAGE)


def test_a_refusal_is_held_or_spent(make_maestro):
    maestro = make_maestro(caps=[Cap("0.003")])  # two holds of $0.00122
    first = maestro.reserve(Call(**CALL))
    second = maestro.reserve(Call(**CALL))
    with pytest.raises(CapExceeded) as caught:
        maestro.reserve(Call(**CALL))
    assert caught.value.reason == "held"
    maestro.settle(first, USAGE)
    maestro.release(second, "not sent")
    with pytest.raises(CapExceeded) as caught:
        for _ in range(9):
            maestro.settle(maestro.reserve(Call(**CALL)), USAGE)
    assert caught.value.reason == "spent"


def test_exactly_what_fits_is_admitted_across_threads(make_maestro):
    maestro = make_maestro()
    one = maestro.reserve(Call(**CALL)).held_nanos
    capped = make_maestro(caps=[Cap(str(Decimal(10 * one) / 10**9))])
    gate = threading.Barrier(32)

    def attempt(_):
        gate.wait()
        try:
            return capped.reserve(Call(**CALL))
        except CapExceeded:
            return None

    with ThreadPoolExecutor(32) as pool:
        admitted = [r for r in pool.map(attempt, range(64)) if r]
    assert len(admitted) == 10


def test_required_dimensions(make_maestro):
    maestro = make_maestro(require=["team"])
    with pytest.raises(MaestroError, match=r"has no team, which is required; wrap it in attribution\(team="):
        maestro.reserve(Call(**CALL))
    with attribution(team="growth"):
        maestro.reserve(Call(**CALL))
    assert make_maestro(require=["team"], require_mode="warn").reserve(Call(**CALL))


def test_a_cap_that_nothing_can_pass_refuses_without_a_request(make_maestro):
    maestro = make_maestro(caps=[Cap(0)])
    with pytest.raises(CapExceeded, match="Its input alone does not fit") as caught:
        maestro.reserve(Call(**CALL))
    assert caught.value.reason == "ceiling"


def test_old_holds_are_presumed_spent_and_corrected_late(make_maestro):
    maestro = make_maestro(caps=[Cap("1")], hold_ttl_s=0.01)
    reservation = maestro.reserve(Call(**CALL))
    threading.Event().wait(0.05)
    (status,) = maestro.status()
    assert status.presumed == Decimal(reservation.held_nanos) / 10**9
    maestro.settle(reservation, USAGE)
    (status,) = maestro.status()
    assert (status.spent, status.presumed) == (COST, 0)
    assert maestro.report("team", since="all").total == COST
    assert maestro.ledger.check() == []


class Outage:
    """The store of a real ledger, gone for a while."""

    def __init__(self, ledger, monkeypatch):
        self.down = False
        for verb in ("reserve", "settle"):
            monkeypatch.setattr(ledger, verb, self._guard(getattr(ledger, verb)))

    def _guard(self, verb):
        def call(*args, **kwargs):
            if self.down:
                raise LedgerUnavailable("the disk is gone")
            return verb(*args, **kwargs)

        return call


def test_an_outage_refuses_capped_calls_and_loses_no_record(make_maestro, monkeypatch):
    maestro = make_maestro(caps=[Cap("1", where={"team": "growth"})])
    outage = Outage(maestro.ledger, monkeypatch)
    early = maestro.reserve(Call(**CALL))
    outage.down = True
    with attribution(team="growth"), pytest.raises(LedgerUnavailable):
        maestro.reserve(Call(**CALL))
    with maestro.call(**CALL) as call:  # no cap applies: it goes, and is written down later
        call.settle(USAGE)
    maestro.settle(early, USAGE)
    outage.down = False
    assert maestro.report("team", since="all").total == 2 * COST
    assert maestro.ledger.holds() == []


def test_an_allowance_bridges_an_outage(make_maestro, monkeypatch):
    maestro = make_maestro(caps=[Cap("1")], on_ledger_error={"allow_usd": "0.0026"})
    outage = Outage(maestro.ledger, monkeypatch)
    outage.down = True
    reservations = []
    with pytest.raises(LedgerUnavailable):
        for _ in range(9):
            reservations.append(maestro.reserve(Call(**CALL)))  # noqa: PERF401 - until it raises
    assert len(reservations) == 2
    for reservation in reservations:
        maestro.settle(reservation, USAGE)
    outage.down = False
    assert maestro.report("team", since="all").total == len(reservations) * COST


def test_observers_can_do_no_harm(make_maestro):
    seen = []

    class Broken:
        @hookimpl
        def maestro_settled(self, record):
            raise RuntimeError("broken observer")

    class Fine:
        @hookimpl
        def maestro_settled(self, record):
            seen.append(record.cost)

    maestro = make_maestro()
    maestro.plugins.register(Fine())
    maestro.plugins.register(Broken())
    with maestro.call(**CALL) as call:
        call.settle(USAGE)
    assert seen == [COST]


def test_the_default_is_one_and_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MAESTRO_LEDGER", "memory:")
    monkeypatch.setattr(Maestro, "_default", None)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: Maestro.default(), range(8)))
    assert len(found) == 1
    assert found.pop().settings.ledger == "memory:"
    Maestro.default().close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ledgr": "memory:"}, "unknown setting 'ledgr'; did you mean 'ledger'?"),
        ({"ledger": "mysql://x"}, "mysql"),
        ({"caps": [Cap("1"), Cap("2")]}, "about the same calls"),
        ({"caps": [{"limit": 0.5}]}, "in quotes"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, message):
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")) as caught:
        Maestro(**settings)
    assert "\n" not in str(caught.value)


def test_an_exit_without_close_loses_nothing(tmp_path):
    script = textwrap.dedent("""
        from maestro_core import Maestro, Usage
        maestro = Maestro(ledger="sqlite:///left.db")
        with maestro.call(provider="openai", model="gpt-5-mini", input="x" * 4_000, max_output_tokens=100) as call:
            call.settle(Usage(input_tokens=1_000, output_tokens=100))
    """)
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True)
    maestro = Maestro(ledger=f"sqlite:///{tmp_path}/left.db")
    assert maestro.report("model", since="all").total == COST
    maestro.close()


def test_attribution_defaults_come_from_the_environment(make_maestro, monkeypatch):
    monkeypatch.setenv("MAESTRO_ATTRIBUTION", "team=growth,environment=prod")
    maestro = make_maestro()
    with attribution(team="core"), maestro.call(**CALL) as call:
        call.settle(USAGE)
    assert call.record.attribution.dimensions == {"team": "core", "environment": "prod"}


async def test_tasks_keep_their_own_attribution(make_maestro):
    maestro = make_maestro()

    async def work(team):
        with attribution(team=team):
            await asyncio.sleep(0)
            async with maestro.call(**CALL) as call:
                await asyncio.to_thread(call.settle, USAGE)

    await asyncio.gather(*(work(f"team-{i % 3}") for i in range(9)))
    assert {row.key["team"]: row.calls for row in maestro.report("team", since="all").rows} == {
        "team-0": 3, "team-1": 3, "team-2": 3,
    }  # fmt: skip
