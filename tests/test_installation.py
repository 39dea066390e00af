"""One line, or one environment variable, governs a whole application that runs real LangChain over real HTTP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, CapExceeded, attribution
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, install, installation

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing is installed before or after a test."""
    monkeypatch.setattr(installation._everywhere, "handler", None)
    monkeypatch.setattr(installation._everywhere, "given", None)


def settled(maestro) -> int:
    return sum(record.kind == "settled" for record in maestro.ledger.records())


def assert_exact(maestro, provider, calls):
    provider.wait_idle()
    assert len(provider.requests) == settled(maestro) == calls
    assert maestro.ledger.holds() == []
    assert sum(s.cost_nanos for s in maestro.ledger.sums(())) == provider.bill_nanos


async def test_every_way_to_call_a_model_is_seen(provider, openai, make_maestro):
    maestro = make_maestro()
    install(maestro)
    model = openai()
    model.invoke("q")
    await model.ainvoke("q")
    list(model.stream("q"))
    [chunk async for chunk in model.astream("q")]
    model.batch(["q", "q"])
    assert_exact(maestro, provider, 6)


def test_raw_threads_and_generators_consumed_later_are_seen(provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    model = openai()
    with attribution(team="growth"):
        late = model.stream("q")
    install(maestro)
    threads = [threading.Thread(target=model.invoke, args=("q",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    list(late)
    assert_exact(maestro, provider, 4)


@pytest.mark.parametrize("times", [1, 3])
def test_installing_again_and_attaching_handlers_counts_a_call_once(provider, openai, make_maestro, times):
    maestro = make_maestro(caps=[Cap("1")])
    for _ in range(times):
        install(maestro)
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    openai(callbacks=[MaestroCallbackHandler(maestro)]).invoke("q", config)
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro)])
    agent.invoke({"messages": [("user", "q")]}, config)
    assert_exact(maestro, provider, 2)


def test_the_run_tree_is_followed(provider, openai, make_maestro):
    maestro = make_maestro()
    install(maestro)
    agent = create_agent(openai(), [], name="researcher")
    agent.invoke({"messages": [("user", "q")]})
    (row,) = maestro.report("agent", since="all").rows
    assert row.key == {"agent": "researcher"}


def test_a_model_in_a_tools_own_thread_is_stopped_by_the_cap(provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0")])
    install(maestro)
    raised = []

    @tool
    def think() -> str:
        """Think."""

        def work():
            try:
                openai().invoke("q")
            except CapExceeded as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return "done"

    assert think.invoke({}) == "done"
    assert len(raised) == 1
    assert provider.requests == []


def test_another_maestro_takes_over(provider, openai, make_maestro):
    first, second = make_maestro(), make_maestro()
    install(first)
    open_stream = openai().stream("q")
    next(open_stream)
    install(second)
    openai().invoke("q")
    list(open_stream)
    assert (settled(first), settled(second)) == (1, 1)
    assert first.ledger.holds() == second.ledger.holds() == []


def test_two_event_loops_share_it(provider, openai, make_maestro):
    maestro = make_maestro()
    install(maestro)
    for _ in range(2):
        asyncio.run(openai().ainvoke("q"))
    assert_exact(maestro, provider, 2)


# -- MAESTRO_AUTO -----------------------------------------------------------------------------------------------------

AGENT = """
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

agent = create_agent(ChatOpenAI(model="gpt-5-mini", max_tokens=100, max_retries=0), [], name="researcher")
for _ in range(20):
    agent.invoke({"messages": [("user", "Hello")]})
"""
BARE = """
import threading
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="gpt-5-mini", max_tokens=100, max_retries=0)
model.invoke("Hello")
thread = threading.Thread(target=model.invoke, args=("Hello",))
thread.start()
thread.join()
"""


@pytest.fixture
def application(tmp_path, provider):
    """Run an application in a folder of its own; it talks to the stand-in."""

    def start(*command, **environment):
        env = {
            **os.environ,
            "OPENAI_BASE_URL": provider.openai_url,
            "OPENAI_API_KEY": "none",
            **environment,
        }
        words = [sys.executable, *command]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    def run(text, **environment):
        (tmp_path / "app.py").write_text(text, encoding="utf-8")
        return start("app.py", **environment)

    run.command = start
    return run


def test_an_unedited_application_appears_in_the_report(application, provider):
    done = application(BARE, MAESTRO_AUTO="1", MAESTRO_ATTRIBUTION="team=growth")
    assert done.returncode == 0, done.stderr
    assert len(provider.requests) == 2
    shown = application.command("-m", "maestro_core.cli", "report", "--by", "team", "--json").stdout
    assert '"growth"' in shown
    assert f'"{provider.bill}"' in shown


def test_an_unedited_application_obeys_the_caps_of_its_folder(application, provider, tmp_path):
    (tmp_path / "maestro.toml").write_text('[[caps]]\nlimit = "0.003"\nper = "agent"\n', encoding="utf-8")
    done = application(AGENT, MAESTRO_AUTO="1")
    assert "cap exceeded (spent): agent=researcher" in done.stderr
    assert done.returncode == 1
    assert 1 < len(provider.requests) < 20
    assert 0 < provider.bill_nanos <= 3_000_000


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_without_the_variable_nothing_happens(application, provider, tmp_path, value):
    assert application(BARE, MAESTRO_AUTO=value).returncode == 0
    assert len(provider.requests) == 2
    assert not (tmp_path / "maestro.db").exists()


def test_an_installation_of_the_applications_own_comes_first(application, tmp_path):
    own = "import maestro_langchain, maestro_core\n"
    own += "maestro_langchain.install(maestro_core.Maestro(ledger='sqlite:///own.db'))\n"
    assert application(own + BARE, MAESTRO_AUTO="1").returncode == 0
    assert (tmp_path / "own.db").exists()
    assert not (tmp_path / "maestro.db").exists()


def test_a_wrong_setting_stops_the_application_before_it_spends(application, provider, tmp_path):
    (tmp_path / "maestro.toml").write_text("capz = 1\n", encoding="utf-8")
    done = application(BARE, MAESTRO_AUTO="1")
    assert done.returncode == 1
    assert "unknown setting 'capz'" in done.stderr
    assert provider.requests == []


@pytest.mark.parametrize("value", [None, "1"])
def test_the_start_of_other_programs_stays_light(application, value):
    environment = {} if value is None else {"MAESTRO_AUTO": value}
    done = application(
        "import sys; print('langchain_core' in sys.modules, 'pydantic' in sys.modules)", **environment
    )
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == ""


def test_the_interpreter_runs_one_line():
    lines = (ROOT / "maestro_auto.pth").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import os; os.environ.get(")
