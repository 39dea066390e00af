"""A short sample of the outage drill; `make drill` runs it at length and reports the latencies."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

CALLS = 12


@pytest.fixture(scope="module")
def drill():
    spec = spec_from_file_location("outage_drill", Path(__file__).parent / "drills/outage.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Hands:
    """A clock that the drill moves instead of waiting for a breaker."""

    def __init__(self):
        self.now_s = 1_000.0

    async def wait(self, seconds):
        self.now_s += 4 * seconds


@pytest.fixture
async def outage(drill):
    with drill.Outage(timeout_s=1.0, delay_s=0.0) as running:
        assert (await running.burst(2, stream=False)).failed == []
        hands = Hands()
        running.model._router.now_s = lambda: hands.now_s
        running.sleep = hands.wait
        running.maestro.learned.health.clear()  # what was learned on the other clock
        yield running


@pytest.mark.parametrize("name", ["answers 500", "hangs", "drops streams", "sends 429"])
async def test_nobody_notices_an_outage(drill, outage, name):
    seen = await outage.trouble(name, CALLS)
    assert seen.failed == []
    assert set(seen.meeting.chosen) == {"gpt-5-mini"}, "the cheapest that is left, not the dear third"
    assert 1 <= seen.asked_meeting <= CALLS
    assert seen.asked_open == 0, "its breaker was open, and no probe was due"
    assert set(seen.diverted[0].chosen) == {"gpt-5-mini"}
    assert seen.returned.chosen == ["gpt-5-nano"] * CALLS
    assert outage.providers[2].requests == []


@pytest.mark.parametrize("name", ["answers 500", "hangs", "drops streams", "sends 429"])
async def test_the_outage_is_in_the_books(drill, outage, name):
    await outage.trouble(name, CALLS)
    billed = outage.bill_nanos - outage.unrouted_nanos
    ledger = outage.maestro.ledger
    assert (ledger.holds(), ledger.check()) == ([], [])
    report = outage.maestro.report(by="model")
    counted = sum(each.cost_nanos for each in ledger.sums(()))
    estimated = sum(row.estimated for row in report.rows)
    if name in ("answers 500", "sends 429"):
        assert (counted, estimated) == (billed, 0)
    else:  # what a lost answer cost, nobody said: it is counted at the most it can have cost, and marked
        assert counted > billed
        assert counted - billed <= estimated * 10**9
