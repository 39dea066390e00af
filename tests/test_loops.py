"""Agents that go round in circles are found within five repeats; agents that only repeat themselves are left alone."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.tools import ToolException, tool

from maestro_core import CapExceeded
from maestro_core.clock import SystemClock
from maestro_core.loops import Guard, outcome
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

ASK = {"messages": [("user", "Find out what batteries cost.")]}
BOSS = ("run", (("agent", "boss"),))


def play(turns, polling=()):
    """Play turns, each a list of (tool, arguments, result[, failed]) that run at once; yield what is found in each."""
    guard = Guard(SystemClock(), polling)
    for number, calls in enumerate(turns):
        found = [guard.ask(BOSS, 2 * number)]
        for _ in calls:
            guard.begin(BOSS)
        for name, arguments, result, *failed in calls:
            found.append(
                guard.end(BOSS, name, guard.asked(arguments), result, failed=bool(failed and failed[0]))
            )
        yield next((loop for loop in found if loop), None)


def one(name, arguments, result, failed=False):  # noqa: FBT002 - reads as the tuple it makes
    return [(name, arguments, result, failed)]


def words(n):
    """Return text that is new for each number, without being so in its digits alone."""
    names = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew"]
    return f"the {names[n % 12]} {names[n // 12 % 12]} grows"


A = ("read", {"path": "a"}, "contents of a")
B = ("read", {"path": "b"}, "contents of b")
C = ("list", {"of": "c"}, "nothing but c")

# Each is the n-th turn of an agent that is stuck.
STUCK = {
    "same call, same result": lambda n: one("search", {"query": "x"}, "no results"),
    "same call without arguments": lambda n: one("status", {}, "pending"),
    "same call, keys in another order": lambda n: one(
        "search", dict(sorted({"q": "x", "lang": "en"}.items(), reverse=n % 2)), "no results"
    ),
    "same call, a new time of day": lambda n: one("search", {"query": "x"}, f"12:{n:02}:07 no results"),
    "same call, a counter": lambda n: one("search", {"query": "x"}, f"no results, {n} documents read"),
    "same call, a new id": lambda n: one("submit", {}, f"rejected (request {n:08x}ab)"),
    "ping-pong": lambda n: [(A, B)[n % 2]],
    "round of three": lambda n: [(A, B, C)[n % 3]],
    "other words, same result": lambda n: one("search", {"query": words(n)}, "no results"),
    "other words, same structure": lambda n: one("search", {"query": words(n)}, {"hits": [], "total": 0}),
    "same error, other arguments": lambda n: one("book", {"seat": n}, "ValueError: no such flight", True),
    "a new error each time": lambda n: one("fetch", {"url": words(n)}, f"Error: {words(n)}", True),
    "errors that the tool returns as text": lambda n: one(
        "fetch", {"url": words(n)}, f"Error {n}: timed out"
    ),
    "errors of different tools": lambda n: one(f"tool{n % 4}", {"n": n}, f"TypeError: {n}", True),
    "several calls at once, again and again": lambda n: [A, B],
    "the same change again": lambda n: one("write", {"path": "a", "text": "x"}, "ok"),
    "past the end of the pages": lambda n: one("page", {"number": n}, {"items": []}),
    "a nonce in the arguments": lambda n: one("search", {"query": "x", "nonce": words(n)}, "no results"),
}

# Each is the n-th turn of an agent that gets on.
WELL = {
    "polling with a declared tool": lambda n: one("wait_for_job", {"job": "j"}, "pending"),
    "pages": lambda n: one("page", {"number": n}, f"items {10 * n} to {10 * n + 9}"),
    "pages by cursor": lambda n: one("page", {"cursor": words(n)}, {"items": [n], "next": words(n + 1)}),
    "pages of a tool that remembers": lambda n: one("next_page", {}, f"items {10 * n} to {10 * n + 9}"),
    "many calls at once": lambda n: [("fetch", {"url": i}, "404") for i in range(20)] if n == 0 else [],
    "many equal calls at once": lambda n: [A] * 20 if n == 0 else [],
    "writing many files": lambda n: one("write", {"path": words(n)}, "ok"),
    "sending many messages": lambda n: one("send", {"to": n}, {"status": "sent"}),
    "edit and test": lambda n: one("test", {}, "3 failed") if n % 2 else one("edit", {"text": words(n)}, "ok"),
    "one search, many readings": lambda n: one("read", {"path": words(n)}, f"about {words(n)}"),
    "retries that succeed": lambda n: one("fetch", {"url": n // 4}, words(n), n % 4 != 3),
    "a few empty answers between others": lambda n: one("search", {"q": words(n)}, words(n) if n % 4 == 0 else "none"),
    "many tools, each empty": lambda n: one(f"list_{words(n)}", {}, "[]"),
    "reading again after long": lambda n: one("read", {"path": n % 13}, f"contents of {words(n % 13)}"),
    "numbers of different things": lambda n: one("price", {"ticker": words(n)}, f"{100 + n}.5"),
    "no tools at all": lambda n: [],
}  # fmt: skip


@pytest.mark.parametrize("shape", STUCK)
def test_a_stuck_agent_is_found_within_five_repeats(shape):
    found = list(play(STUCK[shape](n) for n in range(12)))
    first = next((number for number, loop in enumerate(found, 1) if loop), None)
    period = 3 if shape == "round of three" else 2 if shape == "ping-pong" else 1
    assert first is not None
    assert first <= period + 4


@pytest.mark.parametrize("shape", WELL)
def test_an_agent_that_gets_on_is_left_alone(shape):
    assert list(play((WELL[shape](n) for n in range(60)), polling=["wait_for_job"])) == [None] * 60


def test_undeclared_polling_is_found():
    found = list(play(WELL["polling with a declared tool"](n) for n in range(6)))
    assert [loop is not None for loop in found] == [False] * 4 + [True, False]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("same call, same result", ("repeat", "search", 5)),
        ("ping-pong", ("cycle", "read", 5)),
        ("other words, same result", ("same_result", "search", 5)),
        ("a new error each time", ("errors", "fetch", 5)),
    ],
)
def test_a_loop_says_what_it_is(shape, expected):
    loop = next(loop for loop in play(STUCK[shape](n) for n in range(12)) if loop)
    assert (loop.shape, loop.tool, loop.turns) == expected


def test_a_mixture_is_no_progress():
    turns = [[A], [B], [A, B], [B], one("read", {"path": "b", "again": True}, "contents of b"), [A], [B]]
    assert [loop.shape for loop in play(turns) if loop] == ["no_progress"]


def test_the_same_words_that_are_new_each_time_are_given_longer():
    found = list(play(one("ask", {"who": "oracle"}, words(n)) for n in range(12)))
    assert [number for number, loop in enumerate(found, 1) if loop] == [10]


def test_after_progress_the_count_begins_anew():
    stuck = [STUCK["same call, same result"](n) for n in range(4)]
    assert list(play([*stuck, one("search", {"query": "y"}, words(1)), *stuck[:3]])) == [None] * 8


def test_a_loop_that_goes_on_is_found_again_after_five_more_turns():
    found = list(play(STUCK["same call, same result"](n) for n in range(15)))
    assert [number for number, loop in enumerate(found, 1) if loop] == [5, 10, 15]


def test_a_model_that_repeats_itself_while_its_context_grows_is_found():
    guard = Guard(SystemClock())
    found = []
    for n in range(8):
        found.append(guard.ask(BOSS, 2 + 2 * n))
        reply = {"content": [{"type": "text", "text": "Let me check.", "id": f"msg_{n}"}], "tool_calls": []}
        guard.say(BOSS, 2 + 2 * n, reply)
    assert [loop and loop.tool for loop in found] == [None] * 5 + ["", None, None]


def test_a_model_that_answers_many_questions_alike_is_left_alone():
    guard = Guard(SystemClock())
    for _ in range(20):
        assert guard.ask(BOSS, 2) is None  # a batch: the context does not grow
        guard.say(BOSS, 2, {"content": "positive"})


def test_two_agents_do_not_mix():
    guard = Guard(SystemClock())
    for n, i in itertools.product(range(4), range(10)):
        scope = (i, ())
        guard.ask(scope, n)
        guard.begin(scope)
        assert guard.end(scope, "read", guard.asked({"path": "a"}), "a", failed=False) is None


def test_a_tool_that_is_still_under_way_may_bring_something_new():
    guard = Guard(SystemClock())
    for n in range(4):
        guard.ask(BOSS, n)
        guard.begin(BOSS)
        guard.end(BOSS, "read", 7, "a", failed=False)
    guard.ask(BOSS, 5)
    guard.begin(BOSS)
    guard.begin(BOSS)
    assert guard.end(BOSS, "read", 7, "a", failed=False) is None
    assert guard.end(BOSS, "read", 8, words(3), failed=False) is None


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(), lambda inner: st.lists(inner)))
def test_equal_results_have_equal_outcomes(value):
    copy = json.loads(json.dumps(value))
    assert outcome(value) == outcome(copy)


@pytest.mark.parametrize("value", [{1: 1, "a": 2}, object(), b"bytes", "\ud800", "x" * 100_000])
def test_anything_has_a_fingerprint(value):
    assert outcome(value) == outcome(value)


def test_only_hashes_are_kept():
    guard = Guard(SystemClock())
    asked = guard.asked({"password": "hunter2"})
    guard.begin(BOSS)
    guard.end(BOSS, "login", asked, "hunter2 is right", failed=False)
    guard.say(BOSS, 1, {"content": "hunter2"})
    track = guard._tracks[BOSS]
    assert "hunter2" not in repr([getattr(track, name) for name in track.__slots__])


# -- a real agent, over real HTTP -------------------------------------------------------------------------------------


@tool
def search(query: str) -> str:
    """Search."""
    return "nothing found"


@tool
def broken(query: str) -> str:
    """Search, and fail."""
    raise ToolException(f"no connection for {query}")


broken.handle_tool_error = True


def stuck(name="search"):
    """Make a rule by which the model always asks for the same tool, in other words."""
    return lambda request: Reply(
        tool_calls=[(name, {"query": f"{words(request.number)}"})], input_tokens=1_000, output_tokens=50
    )


def agent_of(maestro, model, how, tools=(search, broken)):
    middleware = [MaestroMiddleware(maestro)] if how == "middleware" else []
    agent = create_agent(model, list(tools), middleware=middleware, name="boss")
    callbacks = [MaestroCallbackHandler(maestro)] if how != "middleware" else []
    return agent, {"recursion_limit": 40, "callbacks": callbacks}


def told(maestro, kind="loop"):
    assert maestro.alerts.flush()
    return [note.body for note in maestro.ledger.notes("alert") if note.body["kind"] == kind]


@pytest.mark.parametrize("how", ["handler", "middleware"])
@pytest.mark.parametrize("name", ["search", "broken"])
async def test_a_stuck_agent_is_alerted_once(how, name, provider, openai, make_maestro):
    maestro = make_maestro()
    provider.reply = [*[stuck(name)(request) for request in map(_numbered, range(12))], "I give up."]
    agent, config = agent_of(maestro, openai(), how)
    await agent.ainvoke(ASK, config)
    (alert,) = told(maestro)
    assert (alert["tool"], alert["model"]) == (name, "gpt-5-mini")
    assert alert["run_id"] in alert["scope"]
    assert maestro.report("run", since="all").rows[0].key == {"run": alert["run_id"]}
    assert "agent boss" in alert["text"]
    assert alert["stop"].startswith("Cap(")
    assert 0 < float(alert["excess_usd"]) < float(alert["projected_usd"])
    assert len(provider.requests) == 13  # an alert stops nothing


@pytest.mark.parametrize("how", ["handler", "middleware"])
@pytest.mark.parametrize("name", ["search", "broken"])
def test_a_stuck_agent_is_halted(how, name, provider, openai, make_maestro):
    maestro = make_maestro(on_loop="halt")
    provider.reply = stuck(name)
    agent, config = agent_of(maestro, openai(), how)
    with pytest.raises(CapExceeded, match="halted \\(loop\\): agent boss") as refused:
        agent.invoke(ASK, config)
    assert refused.value.reason == "latched"
    assert len(provider.requests) <= 8
    assert refused.value.spent * 1_000_000_000 == provider.bill_nanos
    assert len(told(maestro)) == 1


def test_a_halted_run_goes_on_when_a_person_says_so(provider, openai, make_maestro):
    maestro = make_maestro(on_loop="halt")
    provider.reply = stuck()
    agent, config = agent_of(maestro, openai(), "middleware")
    with pytest.raises(CapExceeded) as refused:
        agent.invoke(ASK, config)
    run = refused.value.attribution.dimensions["run"]
    call = {"provider": "openai", "model": "gpt-5-mini", "max_output_tokens": 10}
    from maestro_core import attribution

    with attribution(run=run):
        with pytest.raises(CapExceeded, match="halted"), maestro.call(**call):
            raise AssertionError
        maestro.resume(run, by="ana", reason="it was right after all")
        with maestro.call(**call):
            pass
    with attribution(run="another"), maestro.call(**call):
        pass


def test_the_middleware_ends_a_halted_agent_as_it_ends_one_at_a_cap(provider, openai, make_maestro):
    maestro = make_maestro(on_loop="halt")
    provider.reply = stuck()
    agent = create_agent(openai(), [search], middleware=[MaestroMiddleware(maestro, exit_behavior="end")])
    answer = agent.invoke(ASK)["messages"][-1]
    assert answer.text.startswith("Stopped: halted (loop)")


def test_off_is_off(provider, openai, make_maestro):
    maestro = make_maestro(on_loop="off")
    provider.reply = [*[Reply(tool_calls=[("search", {"query": "x"})])] * 12, "I give up."]
    agent, config = agent_of(maestro, openai(), "handler")
    agent.invoke(ASK, config)
    assert told(maestro) == []


@pytest.mark.parametrize("how", ["handler", "middleware"])
def test_a_busy_agent_is_left_alone(how, provider, openai, make_maestro):
    """Ten calls: equal ones at once, pages, and a tool that was declared as polling."""

    @tool
    def page(number: int) -> str:
        """Read a page."""
        return words(number)

    @tool
    def job() -> str:
        """Ask for a job's state."""
        return "pending"

    maestro = make_maestro(polling_tools=["job"], on_loop="halt")
    provider.reply = [
        Reply(tool_calls=[("search", {"query": "x"})] * 8),
        *[Reply(tool_calls=[("page", {"number": n})]) for n in range(3)],
        *[Reply(tool_calls=[("job", {})])] * 6,
        "Done.",
    ]
    agent, config = agent_of(maestro, openai(), how, [search, page, job])
    assert agent.invoke(ASK, config)["messages"][-1].text == "Done."
    assert told(maestro) == []


@pytest.mark.parametrize("how", ["handler", "middleware"])
def test_each_turn_of_a_conversation_is_judged_by_itself(how, provider, openai, make_maestro):
    maestro = make_maestro(on_loop="halt")
    agent, config = agent_of(maestro, openai(), how)
    from maestro_core import attribution

    with attribution(run="a whole evening"):
        for _ in range(8):
            provider.reply = [Reply(tool_calls=[("search", {"query": "x"})]), "Nothing."]
            agent.invoke(ASK, config)
    assert told(maestro) == []


def _numbered(number):
    from datetime import UTC, datetime

    from maestro_core.testing import Request

    return Request(number=number, path="", protocol="chat", at=datetime.now(UTC))
