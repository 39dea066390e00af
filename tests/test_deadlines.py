"""An endpoint that keeps silent is left in time, where another one may serve the call; the bill is the witness."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

from maestro_core import SLA
from maestro_core.deadlines import TIMES, awithin, deadline_s, within
from maestro_core.routing import decide
from maestro_core.testing import Reply
from maestro_core.types import Candidate
from maestro_langchain import RoutedChatModel

# Its threefold is less than the least that is granted: the tests are short.
PROMPT = SLA(latency_ms_p95=300)
MODES = ["invoke", "ainvoke", "stream", "astream"]


@pytest.fixture
def routed(west, east, make_maestro):
    """A model whose clients wait for ten minutes."""

    def make(sla=PROMPT, **kwargs):
        cheap = ChatOpenAI(model="gpt-5-nano", base_url=west.openai_url, api_key="none", max_tokens=100)
        dear = ChatAnthropic(
            model="claude-sonnet-5", base_url=east.anthropic_url, api_key="none", max_tokens=100
        )
        return RoutedChatModel(endpoints=[cheap, dear], sla=sla, maestro=make_maestro(**kwargs))

    return make


async def run(model, mode):
    if mode == "invoke":
        return await asyncio.to_thread(model.invoke, "Hello")
    if mode == "ainvoke":
        return await model.ainvoke("Hello")
    if mode == "stream":
        chunks = await asyncio.to_thread(lambda: list(model.stream("Hello")))
    else:
        chunks = [chunk async for chunk in model.astream("Hello")]
    return sum(chunks[1:], start=chunks[0])


def counted_nanos(model):
    return sum(each.cost_nanos for each in model.maestro.ledger.sums(()))


@pytest.mark.parametrize("mode", MODES)
async def test_who_hangs_is_left_and_counted_at_its_hold(mode, routed, west, east):
    west.reply, model = Reply(text="late", hang_s=math.inf), routed()
    async with asyncio.timeout(30):
        answer = await run(model, mode)
    assert answer.text == "fine"
    (failed,) = answer.response_metadata["maestro"]["attempts"]
    assert (failed["endpoint"], failed["failed"], failed["error"]) == (
        "gpt-5-nano",
        "timeout",
        "TimeoutError",
    )
    assert len(west.requests) == len(east.requests) == 1
    ledger = model.maestro.ledger
    assert all(hold.state == "presumed" for hold in ledger.holds())
    assert ledger.check() == []
    held = 100 * 400  # nano-dollars: the output limit at gpt-5-nano's 0.40 dollars per million
    assert counted_nanos(model) >= held + east.bill_nanos > west.bill_nanos + east.bill_nanos


def test_an_answer_that_comes_after_all_corrects_what_was_presumed(routed, west, east):
    west.reply, model = Reply(text="late", input_tokens=30, output_tokens=3, hang_s=2), routed()
    assert model.invoke("Hello").text == "fine"
    west.wait_idle()
    truth, until = west.bill_nanos + east.bill_nanos, time.monotonic() + 20
    while counted_nanos(model) != truth and time.monotonic() < until:
        time.sleep(0.02)
    assert counted_nanos(model) == truth
    assert model.maestro.ledger.holds() == []


@pytest.mark.parametrize("mode", MODES)
async def test_the_last_that_may_serve_the_call_has_all_its_time(mode, routed, west, east):
    west.reply, east.reply = Reply(status=500), Reply(text="slow but sure", delay_s=1.5)
    answer = await run(routed(), mode)
    assert answer.text == "slow but sure"


@pytest.mark.parametrize("mode", ["stream", "astream"])
async def test_a_stream_is_only_limited_until_its_first_token(mode, routed, west, east):
    west.reply = Reply(text="four score and seven years ago", chunks=4, chunk_delay_s=0.6)
    answer = await run(routed(), mode)
    assert (answer.text, east.requests) == ("four score and seven years ago", [])


@pytest.mark.parametrize("mode", MODES)
async def test_without_an_sla_on_latency_nobody_is_hurried(mode, routed, west, east):
    west.reply = Reply(text="in its own time", delay_s=1.5)
    assert (await run(routed(SLA(error_rate_max=0.5)), mode)).text == "in its own time"
    assert east.requests == []


# -- the rule ---------------------------------------------------------------------------------------------------------


def candidates(**seen):
    return [
        Candidate(name=name, provider="openai", model=name, cost_nanos=cost, **seen.get(name, {}))
        for cost, name in enumerate(("cheap", "dear"))
    ]


def limit_s(sla, *, streamed=False, probe=False, only=None, **seen):
    chosen = [each for each in candidates(**seen) if only in {None, each.name}]
    return deadline_s(decide(chosen, sla), streamed=streamed, probe=probe)


def test_it_is_three_times_what_was_promised():
    sla = SLA(latency_ms_p95=4_000, ttft_ms_p95=1_000)
    assert TIMES == 3
    assert limit_s(sla) == 12
    assert limit_s(sla, streamed=True) == 3
    assert limit_s(SLA(latency_ms_p95=4_000), streamed=True) == 12
    assert limit_s(SLA(ttft_ms_p95=1_000)) is None
    assert limit_s(SLA(latency_ms_p95=100)) == 1
    assert limit_s(sla, only="cheap") is None


def test_a_probe_has_half_of_that():
    assert limit_s(SLA(latency_ms_p95=4_000), probe=True) == TIMES / 2 * 4


def test_who_is_slow_as_ever_has_three_times_that():
    slow = {"latency_ms_p95": 9_000.0, "latency_chance": 0.1}
    assert limit_s(SLA(latency_ms_p95=4_000), cheap=slow, dear=slow) == 27


def test_without_an_sla_only_a_probe_is_limited():
    seen = {"latency_ms_p95": 2_000.0, "ttft_ms_p95": 500.0}
    assert limit_s(SLA(), cheap=seen) is None
    assert limit_s(SLA(), cheap=seen, probe=True) == 3
    assert limit_s(SLA(), cheap=seen, probe=True, streamed=True) == 1, "at least"
    assert limit_s(SLA(), dear=seen, probe=True) == 3, "of one that was never answered, what the others take"
    assert limit_s(SLA(), probe=True) is None


async def test_errors_of_the_work_come_as_they_are():
    def fails():
        raise TimeoutError("its own")

    async def afails():
        fails()

    with pytest.raises(TimeoutError, match="its own"):
        within(5, fails)
    with pytest.raises(TimeoutError, match="its own"):
        await awithin(5, afails())
    assert within(None, threading.current_thread) is threading.current_thread()
    assert within(5, threading.current_thread).daemon
