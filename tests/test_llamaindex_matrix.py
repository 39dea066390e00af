"""Every kind of LlamaIndex agent, every exit, every obstacle: the bill stays below the cap, every request was held for.

The table of `docs/llamaindex-matrix.md` is what this finds. Write it anew with
`MATRIX=write pytest tests/test_llamaindex_matrix.py`.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from sound import assert_sound, usd

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.exits import LAST_WORDS
from maestro_core.testing import Reply
from maestro_llamaindex import RoutedLLM, attach

pytestmark = pytest.mark.slow

KINDS = ["FunctionAgent", "ReActAgent", "AgentWorkflow", "tool fan-out", "agent in a tool", "RoutedLLM"]
EXITS = {"error": "raises", "end": "stops", "wrap_up": "answers"}
WAYS = ["chat", "stream"]
OBSTACLES = {
    "none": "nothing in the way",
    "swallowing tool": "a tool calls the model itself and catches every exception",
    "SDK retries": "the model's own `max_retries=2`; every fourth request fails with HTTP 500",
    "shared cap": "the cap is the team's, which another agent of the team spends from, too",
}
PAGE = Path(__file__).parents[1] / "docs" / "llamaindex-matrix.md"
# What is kept back for a last answer comes on top.
CAPS_NANOS = {"error": 800_000, "end": 800_000, "wrap_up": 1_300_000}
ANSWER = "This is what I know."
TURNS = 6


class Cell:
    """One agent in one combination."""

    def __init__(self, kind, obstacle, provider, llm, *, streaming):
        self.kind, self.obstacle, self.llm, self.streaming = kind, obstacle, llm, streaming
        self.helper = FunctionAgent(name="helper", tools=[], llm=llm, streaming=streaming)
        self.agent = self._agent()
        self.output, self.turns = "", itertools.count(1)
        provider.reply = self.reply

    def _agent(self):
        more = {"llm": self.llm, "streaming": self.streaming, "tools": [self.work]}
        if self.kind == "ReActAgent":
            return ReActAgent(name="boss", **more)
        if self.kind != "AgentWorkflow":
            return FunctionAgent(name="boss", **more)
        writer = FunctionAgent(name="writer", description="writes", can_handoff_to=["boss"], **more)
        boss = FunctionAgent(name="boss", description="plans", can_handoff_to=["writer"], **more)
        return AgentWorkflow(agents=[boss, writer], root_agent="boss")

    async def work(self, question: str) -> str:
        """Find something out."""
        if self.obstacle == "swallowing tool":
            try:
                return await self.inner()
            except Exception:  # noqa: BLE001 - the obstacle
                return "It did not work."
        return await self.inner() if self.kind in ("tool fan-out", "agent in a tool") else "Nothing."

    async def inner(self):
        if self.kind == "agent in a tool":
            return str(await self.helper.run(user_msg="How do batteries age?"))
        return str(await self.llm.achat([ChatMessage("How do batteries age?")]))

    def reply(self, request):
        if self.obstacle == "SDK retries" and request.number % 4 == 0:
            return Reply(status=500, retry_after=0)
        said = str(request.body["messages"][-1]["content"])
        if LAST_WORDS in said or (self.kind != "ReActAgent" and not request.tools) or said.startswith("How"):
            return Reply(text=ANSWER, output_tokens=50)
        if self.kind == "ReActAgent":
            return Reply(text='Thought: I need a tool.\nAction: work\nAction Input: {"question": "x"}')
        if self.kind == "AgentWorkflow" and next(self.turns) % 2 == 0:
            to = (
                "writer" if "writer" in str(request.tools) else "boss"
            )  # the tool names those it may hand over to
            return Reply(tool_calls=[("handoff", {"to_agent": to, "reason": "-"})], output_tokens=100)
        width = 3 if self.kind == "tool fan-out" else 1
        return Reply(tool_calls=[("work", {"question": str(i)}) for i in range(width)], output_tokens=100)

    async def run(self):
        """Ask until the cap is reached; return how that showed."""
        for _ in range(TURNS):
            try:
                output = await self.agent.run(user_msg="Go", max_iterations=300)
            except CapExceeded as error:
                self.output = str(error)
                return "raises"
            self.output = str(output)
            if self.output.startswith("Stopped: cap"):
                return "stops"
            if self.output == ANSWER:
                return "answers"
        raise AssertionError(f"the cap was not reached in {TURNS} turns: {self.output}")


def check(maestro, provider, cap_nanos):
    assert_sound(maestro, provider, cap_nanos)
    records = [record for record in maestro.ledger.records() if record.kind != "refused"]
    unsent = [r for r in records if r.kind == "released" and not r.detail["reason"].startswith("HTTP")]
    assert unsent == []
    assert len({record.key for record in records}) == len(provider.requests) >= 3


def met(cell, maestro):
    """What is in the way was."""
    records = [record for record in maestro.ledger.records() if record.kind != "refused"]
    if cell.obstacle == "SDK retries":
        assert "released" in {record.kind for record in records}
    steps = {step for record in records for step in record.attribution.path}
    if cell.obstacle == "swallowing tool" or cell.kind in ("tool fan-out", "agent in a tool"):
        assert ("tool", "work") in steps
    if cell.kind == "AgentWorkflow":
        assert {("agent", "boss"), ("agent", "writer")} <= steps


FOUND = {}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_bill_stays_below_the_cap(
    kind, exit_behavior, way, obstacle, provider, llama, make_maestro
):
    cap = CAPS_NANOS[exit_behavior]
    maestro = make_maestro(caps=[Cap(usd(cap), per="team" if obstacle == "shared cap" else "run")])
    plain = llama(max_tokens=300, max_retries=2 if obstacle == "SDK retries" else 0)
    llm = RoutedLLM(endpoints=[plain], maestro=maestro) if kind == "RoutedLLM" else plain
    cell = Cell(kind, obstacle, provider, llm, streaming=way == "stream")
    attach(cell.helper, maestro, exit_behavior=exit_behavior)
    assert attach(cell.agent, maestro, exit_behavior=exit_behavior) is cell.agent
    with attribution(team="growth"):
        if obstacle == "shared cap":
            other = attach(FunctionAgent(name="other", tools=[], llm=llm), maestro)
            await other.run(user_msg="How do batteries age?")
        with attribution(run="the only one"):
            ends = await cell.run()
    check(maestro, provider, cap)
    expected = [EXITS[exit_behavior]]
    if (exit_behavior, obstacle) == ("wrap_up", "shared cap"):
        expected = ["answers", "stops"]  # shared caps keep nothing back
    assert ends in expected, cell.output
    if ends == "answers":
        assert not provider.requests[-1].tools
    met(cell, maestro)
    FOUND[kind, exit_behavior, way, obstacle] = " or ".join(expected)


HEAD = """# Caps hold, whatever the LlamaIndex agent

Found by `tests/test_llamaindex_matrix.py`, which writes this file anew with `MATRIX=write pytest tests/test_llamaindex_matrix.py`.

An agent that `attach` governs works until its cap is reached, against a provider that keeps the true bill over HTTP. In
every cell

- the bill stays at or below the cap, and the ledger says what the bill says;
- every request that the provider saw was held for, and every hold belongs to one request;
- nothing is left held.

The word says how the agent leaves: `CapExceeded` *raises* out of `await handler`, the agent *stops* with a message that says
why, or *answers* once more, without tools. *chat* and *stream* are the agent's `streaming=False` and `True`. `AgentWorkflow`
has two agents that hand over to each other, `tool fan-out` three tools at once that call the model by themselves, `agent in a
tool` a second agent inside a tool, and `RoutedLLM` is a `FunctionAgent` on one. Of caps that are shared, `wrap_up` keeps
nothing back: there the agent answers only if there is enough left.

What is in the way:
"""


def page():
    obstacles = "\n".join(f"- **{name}**: {what}" for name, what in OBSTACLES.items())
    rows = [
        f"| agent | called by | `exit_behavior` | {' | '.join(OBSTACLES)} |",
        "|---" * (3 + len(OBSTACLES)) + "|",
    ]
    for kind, way, exit_behavior in itertools.product(KINDS, WAYS, EXITS):
        cells = [FOUND[kind, exit_behavior, way, obstacle] for obstacle in OBSTACLES]
        rows.append(f"| {kind} | {way} | `{exit_behavior}` | {' | '.join(cells)} |")
    return f"{HEAD}\n{obstacles}\n\n" + "\n".join(rows) + "\n"


def test_the_page_says_what_was_found():
    if len(FOUND) < len(KINDS) * len(EXITS) * len(WAYS) * len(OBSTACLES):
        pytest.skip("the page is compared when every cell has run")
    if os.environ.get("MATRIX") == "write":
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
