"""Every way to call an agent, every exit, every obstacle: the bill stays below the cap, and every request was held for.

The table of `docs/matrix.md` is what this finds. Write it anew with `MATRIX=write pytest tests/test_matrix.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, ToolRetryMiddleware
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

WAYS = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch", "tool fan-out", "sub-agents"]
SAVED = "interrupt, saved"
EXITS = ["error", "end", "wrap_up", "interrupt", SAVED]
OBSTACLES = {
    "none": "nothing in the way",
    "swallowing tool": "a tool calls the model itself and catches every exception",
    "with_retry": "`agent.with_retry()`; every fourth request fails with HTTP 500",
    "with_fallbacks": "`agent.with_fallbacks([another])`; every fourth request fails",
    "ModelRetry": "`ModelRetryMiddleware`; every fourth request fails",
    "ToolRetry": "`ToolRetryMiddleware`; every second tool call raises",
    "SDK retries": "the model's own `max_retries=2`; every fourth request fails",
}
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
# What is kept back for a last answer comes on top.
CAPS_NANOS = {"error": 800_000, "end": 800_000, "wrap_up": 1_300_000, "interrupt": 800_000, SAVED: 800_000}
ASK = {"messages": [("user", "How do batteries age?")]}
ANSWER = "This is what I know."
ENDINGS = {"error": "raises", "end": "stops", "wrap_up": "answers", "interrupt": "raises", SAVED: "pauses"}
FAILING = {"with_retry", "with_fallbacks", "ModelRetry", "SDK retries"}
TURNS = 12  # an agent that ends for another reason (its retries are used up) is asked again until the cap is reached


class Cell:
    """One agent in one combination, and what became of it."""

    def __init__(self, way, exit_behavior, obstacle, provider, model, maestro):
        self.way, self.exit, self.obstacle = way, exit_behavior, obstacle
        self.provider, self.maestro = provider, maestro
        self.model = model
        self.handler = MaestroCallbackHandler(maestro)
        self.tool_calls, self.raised = itertools.count(1), ""
        self.helper = self.agent([], name="helper") if way == "sub-agents" else None
        provider.reply = self.reply
        runnable = self.agent([self.tool()], name="boss")
        if obstacle == "with_retry":
            runnable = runnable.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
        if obstacle == "with_fallbacks":
            runnable = runnable.with_fallbacks([self.agent([self.tool()], name="deputy")])
        self.runnable = runnable

    def agent(self, tools, name):
        more = {
            "ModelRetry": [
                ModelRetryMiddleware(max_retries=2, on_failure="continue", initial_delay=0, jitter=False)
            ],
            "ToolRetry": [
                ToolRetryMiddleware(max_retries=2, on_failure="continue", initial_delay=0, jitter=False)
            ],
        }.get(self.obstacle, [])
        saved = self.exit == SAVED
        ours = MaestroMiddleware(self.maestro, exit_behavior="interrupt" if saved else self.exit)
        saver = InMemorySaver() if saved and name != "helper" else None
        return create_agent(self.model, tools, middleware=[ours, *more], name=name, checkpointer=saver)

    def tool(self):
        def work(question: str) -> str:
            """Find something out."""
            if self.obstacle == "ToolRetry" and next(self.tool_calls) % 2 == 0:
                raise ConnectionError("the network is down")
            if self.obstacle != "swallowing tool":
                return self.inner_work()
            try:
                return self.inner_work() if self.way in ("tool fan-out", "sub-agents") else self.ask_model()
            except Exception:  # noqa: BLE001 - the obstacle
                return "It did not work."

        return tool("work")(work)

    def inner_work(self):
        if self.way == "tool fan-out":
            return self.ask_model()
        if self.helper is not None:
            return self.helper.invoke(ASK)["messages"][-1].text
        return "Nothing."

    def ask_model(self):
        return self.model.invoke("How do batteries age?").text

    def reply(self, request):
        if self.obstacle in FAILING and request.number % 4 == 0:
            return Reply(status=500, retry_after=0)
        if request.tools:
            width = 3 if self.way == "tool fan-out" else 1
            return Reply(tool_calls=[("work", {"question": str(i)}) for i in range(width)], output_tokens=100)
        return Reply(text=ANSWER, output_tokens=50)

    async def once(self):
        """Ask once, in the cell's way; return what came out: results, and errors as values."""
        config = self.config(0)
        call = self.runnable
        if self.way in ("invoke", "sub-agents"):
            return [await asyncio.to_thread(call.invoke, ASK, config)]
        if self.way in ("ainvoke", "tool fan-out"):
            return [await call.ainvoke(ASK, config)]
        if self.way == "stream":
            return [
                (await asyncio.to_thread(lambda: list(call.stream(ASK, config, stream_mode="values"))))[-1]
            ]
        if self.way == "astream":
            return [[chunk async for chunk in call.astream(ASK, config, stream_mode="values")][-1]]
        configs = [self.config(thread) for thread in range(3)]
        if self.way == "batch":
            return await asyncio.to_thread(lambda: call.batch([ASK] * 3, configs, return_exceptions=True))
        return await call.abatch([ASK] * 3, configs, return_exceptions=True)

    def config(self, thread):
        saved = {"configurable": {"thread_id": str(thread)}} if self.exit == SAVED else {}
        return {"callbacks": [self.handler], "recursion_limit": 60, **saved}

    async def run(self):
        """Ask until the cap is reached; return how that showed: `raises`, `stops` or `answers`."""
        for _ in range(TURNS):
            try:
                results = await self.once()
            except Exception as error:  # noqa: BLE001 - a failure that is not ours is asked again, as a user would
                results = [error]
            ends = {end for end in map(self.ending, results) if end}
            if ends:
                return ends
        raise AssertionError(f"the cap was not reached in {TURNS} turns: {results}")

    def ending(self, result):
        if isinstance(result, CapExceeded):
            self.raised = str(result)
            return "raises"
        if isinstance(result, Exception):
            return None
        if "__interrupt__" in result:
            return "pauses"
        last = result["messages"][-1]
        if "stopped" in last.response_metadata.get("maestro", {}):
            return "stops"
        return "answers" if last.text == ANSWER and not last.tool_calls else None

    def check(self):
        self.provider.wait_idle()
        patience = time.monotonic() + 5
        while self.maestro.ledger.holds() and time.monotonic() < patience:
            time.sleep(0.01)
        ledger = self.maestro.ledger
        records = [record for record in ledger.records() if record.kind != "refused"]
        unsent = [r for r in records if r.kind == "released" and not r.detail["reason"].startswith("HTTP")]
        assert self.provider.bill_nanos <= CAPS_NANOS[self.exit]
        assert sum(record.cost_nanos for record in records) == self.provider.bill_nanos
        assert ledger.holds() == []
        assert ledger.check() == []
        assert unsent == []
        calls = len({record.key for record in records})
        if (self.way, self.obstacle) == ("tool fan-out", "SDK retries"):
            # The tools call the model through the bare handler, which cannot see the client's own retries: it held for
            # them beforehand, three bounds in one reservation.
            assert 2 <= calls <= len(self.provider.requests)
        else:
            assert calls == len(self.provider.requests) >= 3


FOUND = {}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("way", WAYS)
async def test_the_bill_stays_below_the_cap(way, exit_behavior, obstacle, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap(f"{CAPS_NANOS[exit_behavior] / 1e9:.9f}", per="run")])
    model = openai(model="gpt-4o-mini", max_tokens=300, max_retries=2 if obstacle == "SDK retries" else 0)
    cell = Cell(way, exit_behavior, obstacle, provider, model, maestro)
    with attribution(run="the only one"):  # retries and fallbacks around the agent get no fresh cap
        ends = await cell.run()
    cell.check()
    expected = ENDINGS[exit_behavior]
    also = set()
    if exit_behavior == "wrap_up" and "batch" in way:
        also = {"stops"}  # one run has one last answer
    if (exit_behavior, obstacle) == (SAVED, "ModelRetry") and "batch" in way:
        also = {"raises"}  # its second attempt goes through the handler, which cannot wait
    if way == "tool fan-out":
        also = {"raises"}  # if it is a tool's own call that is refused
    assert ends <= {expected} | also, cell.raised
    FOUND[way, exit_behavior, obstacle] = expected + ("*" if also else "")


HEAD = """# Caps hold, however an agent is called

Found by `tests/test_matrix.py`, which writes this file anew with `MATRIX=write pytest tests/test_matrix.py`.

An agent of `create_agent` with `MaestroMiddleware` works under a cap per run until the cap is reached, against a
provider that keeps the true bill over HTTP. In every cell

- the bill stays at or below the cap, and the ledger says what the bill says;
- every request that the provider saw was held for, and every hold belongs to one request;
- nothing is left held.

The word says how the agent leaves: it *raises* `CapExceeded`, *stops* with a message that says why, or *answers* once
more, without tools. `interrupt` without a checkpointer, where nobody could resume, raises; *saved*, with one, it *pauses*
for a person.

What is in the way:
"""
FOOT = """\
\\* In a batch that shares one run, one agent answers and the others stop. In a fan-out, a tool that calls the model by
itself may be refused first, and then the agent raises; with the client's own retries on, such a call is held for with
all its retries at once. What `ModelRetryMiddleware` sends again inside the door is held for by the handler, which cannot wait: while other
runs of a batch hold the rest, it is refused as *held*, and that is no question for a person.
"""


def table():
    rows = [
        "| called by | `exit_behavior` | " + " | ".join(OBSTACLES) + " |",
        "|---" * (2 + len(OBSTACLES)) + "|",
    ]
    for way, exit_behavior in itertools.product(WAYS, EXITS):
        cells = [FOUND[way, exit_behavior, obstacle].replace("*", "\\*") for obstacle in OBSTACLES]
        rows.append(f"| {way} | `{exit_behavior}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def page():
    obstacles = "\n".join(f"- **{name}**: {what}" for name, what in OBSTACLES.items())
    return f"{HEAD}\n{obstacles}\n\n{table()}\n\n{FOOT}"


def test_the_page_says_what_was_found():
    if len(FOUND) < len(WAYS) * len(EXITS) * len(OBSTACLES):
        pytest.skip("the page is compared when every cell has run")
    if os.environ.get("MATRIX") == "write":
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
