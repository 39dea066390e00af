"""Each incident is told once, in every place that wants it, and never on a caller's time."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, CapExceeded, Maestro, attribution, hookimpl
from maestro_core.alerts import Alerts, Lane
from maestro_core.cli import main
from maestro_core.clock import from_micros
from maestro_core.errors import SettingsError
from maestro_core.ledger import open_ledger
from maestro_core.plugins import load
from maestro_core.routes import AlertSettings
from maestro_core.testing import Reply
from maestro_core.types import Alert, Attribution
from maestro_langchain import MaestroCallbackHandler

KEYS = ["kind", "scope", "since", "excess_usd", "projected_usd", "run_id", "model", "tool", "stop"]


class Hook:
    """A webhook on loopback: what it was sent, and how it answers."""

    def __init__(self):
        self.posts = []
        self.at = []
        self.headers = []
        self.answers = []
        self.delay_s = 0.0
        self.arrived = threading.Condition()

    def wait_for(self, count, timeout_s=20):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts) >= count, timeout_s)
        return self.posts


@contextmanager
def serve(hook):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, *headers = hook.answers.pop(0) if hook.answers else (200,)
            with hook.arrived:
                hook.at.append(time.monotonic())
                hook.headers.append(dict(self.headers))
                hook.posts.append(json.loads(body))
                hook.arrived.notify_all()
            time.sleep(hook.delay_s)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret-token"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hook():
    hook = Hook()
    with serve(hook) as hook.url:
        yield hook


@pytest.fixture
def ledger():
    with_close = open_ledger("memory:")
    yield with_close
    with_close.close()


def alert(key="k", kind="test", **dimensions):
    return Alert(
        kind=kind,
        scope="team=growth",
        since=from_micros(0),
        key=key,
        text=f"{kind}: something",
        attribution=Attribution(dimensions),
    )


@contextmanager
def telling(ledger, plugins=None, **settings):
    alerts = Alerts(AlertSettings(**settings), ledger, plugins or load())
    try:
        yield alerts
    finally:
        alerts.close()


def report(alerts, *found):
    for one in found:
        alerts.report(lambda one=one: one)


# -- what is told -----------------------------------------------------------------------------------------------------


@tool
def search(query: str) -> str:
    """Search."""
    return "nothing found"


def test_from_a_stuck_agent_to_the_webhook(hook, provider, openai, make_maestro, caplog):
    maestro = make_maestro(alerts={"webhook": hook.url})
    provider.reply = [*[Reply(tool_calls=[("search", {"query": "x"})])] * 9, "I give up."]
    agent = create_agent(openai(), [search], name="boss")
    config = {"recursion_limit": 40, "callbacks": [MaestroCallbackHandler(maestro)]}
    with attribution(team="growth"):
        agent.invoke({"messages": [("user", "hi")]}, config)
    (post,) = hook.wait_for(1)
    assert maestro.alerts.flush()
    assert list(post) == [*KEYS, "text"]
    assert (post["kind"], post["tool"], post["model"]) == ("loop", "search", "gpt-5-mini")
    assert post["text"].startswith("loop: agent boss called search 5 times with the same arguments")
    assert [record.message for record in caplog.records if record.message.startswith("loop:")] == [
        post["text"]
    ]
    assert len(hook.posts) == 1


def test_a_well_behaved_agent_tells_nothing(hook, provider, openai, make_maestro):
    maestro = make_maestro(alerts={"webhook": hook.url}, caps=[Cap("1", per="run")])

    @tool
    def read(page: str) -> str:
        """Read a page."""
        return f"what is on page {page}"

    pages = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    provider.reply = [*[Reply(tool_calls=[("read", {"page": page})]) for page in pages], "Done."]
    agent = create_agent(openai(), [read], name="boss")
    config = {"recursion_limit": 40, "callbacks": [MaestroCallbackHandler(maestro)]}
    agent.invoke({"messages": [("user", "hi")]}, config)
    assert len(provider.requests) == 10
    assert maestro.alerts.flush()
    assert hook.posts == []
    assert maestro.ledger.notes("alert") == []


def test_a_cap_tells_that_it_refuses_once_per_window(hook, provider, openai, make_maestro):
    maestro = make_maestro(
        alerts={"webhook": hook.url}, caps=[Cap("0.003", per="customer", every="day")], wait_s=0
    )
    model = openai(callbacks=[MaestroCallbackHandler(maestro)])
    with attribution(customer="acme"):
        for _ in range(12):
            try:
                model.invoke("How do batteries age? " * 200)
            except CapExceeded:
                continue
    (post,) = hook.wait_for(1)
    assert maestro.alerts.flush()
    assert len(hook.posts) == 1
    assert (post["kind"], post["scope"]) == ("refused", "customer=acme every day")
    assert post["text"].startswith("refused: cap exceeded (spent): customer=acme every day")


def test_a_call_above_its_hold_is_told(hook, provider, openai, make_maestro):
    maestro = make_maestro(alerts={"webhook": hook.url}, caps=[Cap("1")])
    provider.reply = Reply(text="fine", input_tokens=900_000, output_tokens=10)
    openai(callbacks=[MaestroCallbackHandler(maestro)]).invoke("hello")
    (post,) = hook.wait_for(1)
    assert (post["kind"], post["model"]) == ("overrun", "gpt-5-mini")
    assert float(post["excess_usd"]) > 0


# -- where ------------------------------------------------------------------------------------------------------------


def test_routes_by_attribution(ledger, hook):
    other = Hook()
    with serve(other) as url:
        routes = [{"where": {"team": "growth"}, "webhook": url}]
        with telling(ledger, webhook=hook.url, routes=routes) as alerts:
            report(alerts, alert("1", team="growth"), alert("2", team="sales"), alert("3"))
            assert alerts.flush()
        assert (len(other.posts), len(hook.posts)) == (1, 2)


def test_plugins_and_opentelemetry_are_told(ledger, monkeypatch):
    from opentelemetry import _logs
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter, logs = InMemoryLogRecordExporter(), LoggerProvider()
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(_logs._internal, "_LOGGER_PROVIDER", logs)
    seen = []

    class Plugin:
        @hookimpl
        def maestro_alert(self, alert):
            seen.append(alert.key)
            raise RuntimeError("broken")

    manager = load()
    manager.register(Plugin())
    with telling(ledger, manager) as alerts:
        report(alerts, alert("1", team="growth", conversation="c-1"), alert("2"))
        assert alerts.flush()
    assert seen == ["1", "2"]
    first, _ = [each.log_record for each in exporter.get_finished_logs()]
    assert first.event_name == "maestro.alert"
    assert first.attributes["maestro.team"] == "growth"
    assert first.attributes["gen_ai.conversation.id"] == "c-1"  # as on spans
    assert first.attributes["maestro.alert.kind"] == "test"
    logs.shutdown()


def test_a_log_that_is_switched_off(ledger, caplog):
    with telling(ledger, log=False) as alerts:
        report(alerts, alert())
        assert alerts.flush()
    assert caplog.records == []
    assert len(ledger.notes("alert")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"webhook": "slack"}, "is no address"),
        ({"webhook": "ftp://x/y"}, "is no address"),
        ({"webook": "http://x/y"}, "alerts.webook"),
        ({"routes": [{"where": {}, "webhook": "http://x"}]}, "routes"),
        ({"routes": [{"where": {"a b": "c"}, "webhook": "http://x"}]}, "may not contain spaces"),
        ({"min_usd": 0.5}, "min_usd"),
    ],
)
def test_malformed_settings(settings, message, make_maestro):
    with pytest.raises(SettingsError, match=message):
        make_maestro(alerts=settings)


def test_settings_from_the_environment(make_maestro, monkeypatch):
    monkeypatch.setenv("MAESTRO_ALERTS__WEBHOOK", "http://127.0.0.1:1/x")
    monkeypatch.setenv("MAESTRO_ON_LOOP", "halt")
    monkeypatch.setenv("MAESTRO_POLLING_TOOLS", "wait,job")
    settings = make_maestro().settings
    assert (settings.alerts.webhook, settings.on_loop) == ("http://127.0.0.1:1/x", "halt")
    assert settings.polling_tools == ("wait", "job")
    monkeypatch.setenv("MAESTRO_ALERTS__WEBHOK", "http://127.0.0.1:1/x")
    with pytest.raises(SettingsError, match="webhok"):
        make_maestro()


# -- once -------------------------------------------------------------------------------------------------------------


def test_an_incident_is_told_once(ledger, hook):
    with telling(ledger, webhook=hook.url) as alerts, telling(ledger, webhook=hook.url) as another:
        for _ in range(5):
            report(alerts, alert("1"))
            report(another, alert("1"), alert("2"))
        assert alerts.flush()
        assert another.flush()
    assert len(hook.posts) == 2


def _tell_all(path, url, barrier):
    ledger = open_ledger(f"sqlite:///{path}")
    with telling(ledger, webhook=url, log=False) as alerts:
        barrier.wait()
        report(alerts, *(alert(str(n)) for n in range(20)))
    ledger.close()


def test_processes_tell_an_incident_once(tmp_path, hook):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_tell_all, args=(tmp_path / "ledger.db", hook.url, barrier)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(hook.wait_for(20)) == 20


# -- never in the way -------------------------------------------------------------------------------------------------


def test_what_fails_for_a_moment_is_tried_again(ledger, hook):
    hook.answers = [(503,), (429, ("Retry-After", "0"))]
    with telling(ledger, webhook=hook.url) as alerts:
        report(alerts, alert())
        hook.wait_for(3)
        assert alerts.flush()
    assert [post["scope"] for post in hook.posts] == ["team=growth"] * 3
    assert len({headers["Idempotency-Key"] for headers in hook.headers}) == 1


def test_what_is_refused_is_not_tried_again(ledger, hook, caplog):
    hook.answers = [(400,)]
    with telling(ledger, webhook=hook.url, log=False) as alerts:
        report(alerts, alert("1"), alert("2"))
        assert alerts.flush()
    assert len(hook.posts) == 2
    (lost,) = [record.getMessage() for record in caplog.records]
    assert lost == "an alert was not delivered: 127.0.0.1 answered 400. It was: test: something"
    assert "secret" not in caplog.text


def test_a_redirect_is_not_followed(ledger, hook, caplog):
    hook.answers = [(302, ("Location", hook.url))]
    with telling(ledger, webhook=hook.url, log=False) as alerts:
        report(alerts, alert())
        assert alerts.flush()
    assert len(hook.posts) == 1
    assert "answered 302" in caplog.text


def test_a_slow_webhook_delays_neither_calls_nor_other_webhooks(hook, provider, openai, make_maestro):
    slow = Hook()
    release = threading.Event()
    with serve(slow) as url:
        slow.answers = [(200,)]
        routes = [
            {"where": {"team": "slow"}, "webhook": url},
            {"where": {"team": "quick"}, "webhook": hook.url},
        ]
        maestro = make_maestro(alerts={"routes": routes})
        slow.delay_s = 1.0
        report(maestro.alerts, alert("1", team="slow"), alert("2", team="slow"), alert("3", team="quick"))
        hook.wait_for(1)
        assert len(slow.posts) <= 1
        openai(callbacks=[MaestroCallbackHandler(maestro)]).invoke("hello")
        assert len(slow.posts) <= 2
        release.set()
        maestro.close()
        assert len(slow.posts) == 2


def test_a_webhook_that_is_not_there(ledger, caplog):
    with telling(ledger, webhook="http://127.0.0.1:9/x", log=False) as alerts:
        report(alerts, alert())
        alerts.close()
    assert "an alert was not delivered: 127.0.0.1:" in caplog.text


def test_an_incident_that_cannot_be_looked_into_harms_no_other(ledger, hook, caplog):
    with telling(ledger, webhook=hook.url) as alerts:
        alerts.report(lambda: 1 / 0)
        report(alerts, alert())
        assert alerts.flush()
    assert len(hook.posts) == 1
    assert "something could not be done" in caplog.text


def test_without_a_ledger_it_is_told_all_the_same(ledger, hook):
    ledger.close()
    with telling(ledger, webhook=hook.url) as alerts:
        report(alerts, alert())
        hook.wait_for(1)


def test_what_does_not_fit_is_lost_and_reported(caplog):
    gate, done = threading.Event(), []
    lane = Lane("test", lambda n: (gate.wait(), done.append(n)), most=3)
    lane.put(0)
    while lane._waiting:
        time.sleep(0.001)
    assert [lane.put(n) for n in range(1, 6)] == [True, True, True, False, False]
    gate.set()
    assert lane.join(time.monotonic() + 10)
    assert done == [0, 1, 2, 3]
    assert "test: 2 were lost, because more than 3 waited" in caplog.text
    assert lane.close() == 0


def test_closing_delivers_what_is_pending(hook, provider, openai, tmp_path):
    maestro = Maestro(ledger=f"sqlite:///{tmp_path}/ledger.db", alerts={"webhook": hook.url, "log": False})
    report(maestro.alerts, *(alert(str(n)) for n in range(50)))
    maestro.close()
    assert len(hook.posts) == 50


def test_closing_gives_up_in_time_and_says_so(ledger, hook, caplog, monkeypatch):
    monkeypatch.setattr("maestro_core.alerts.dispatch._CLOSE_S", 0.2)
    hook.delay_s = 1.0
    with telling(ledger, webhook=hook.url, log=False) as alerts:
        report(alerts, *(alert(str(n)) for n in range(9)))
        hook.wait_for(1)
    assert "alerts were not delivered within" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_tells_its_own_alerts(hook, tmp_path):
    maestro = Maestro(ledger=f"sqlite:///{tmp_path}/ledger.db", alerts={"webhook": hook.url, "log": False})
    report(maestro.alerts, alert("parent"))
    hook.wait_for(1)
    child = os.fork()
    if not child:
        status = 1
        try:
            report(maestro.alerts, alert("parent"), alert("child"))
            status = 0 if maestro.alerts.flush() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(hook.wait_for(2)) == 2
    maestro.close()


def test_alerts_are_kept_as_a_readable_table(tmp_path, make_maestro):
    import sqlite3

    maestro = make_maestro(ledger=f"sqlite:///{tmp_path}/ledger.db")
    report(maestro.alerts, alert("1"))
    assert maestro.alerts.flush()
    logging.getLogger("maestro").debug("done")
    connection = sqlite3.connect(tmp_path / "ledger.db")
    try:
        assert connection.execute("SELECT kind, scope, text FROM alerts").fetchall() == [
            ("test", "team=growth", "test: something")
        ]
    finally:
        connection.close()


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch, hook):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAESTRO_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("MAESTRO_ALERTS__WEBHOOK", hook.url)
    maestro = Maestro()
    report(maestro.alerts, alert("1", team="growth"), alert("2", kind="loop"))
    assert maestro.alerts.flush()
    maestro.close()
    hook.posts.clear()


def test_maestro_alerts_lists(place, capsys):
    assert main(["alerts", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [list(each) for each in found] == [KEYS, KEYS]
    assert [each["kind"] for each in found] == ["test", "loop"]
    assert main(["alerts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[21:] for line in lines] == ["test: something", "loop: something"]
    assert main(["alerts", "--since", "2030-01-01T00:00:00Z"]) == 0
    assert "no alerts since" in capsys.readouterr().err


def test_maestro_alerts_test_sends_one_to_every_place(place, hook, capsys):
    assert main(["alerts", "--test"]) == 0
    assert "webhook 127.0.0.1: delivered" in capsys.readouterr().out
    assert [post["kind"] for post in hook.posts] == ["test"]
    hook.answers = [(403,)]
    assert main(["alerts", "--test", "--json"]) == 1
    outcomes = {each["sink"]: each["error"] for each in json.loads(capsys.readouterr().out)}
    assert outcomes == {"log": "", "webhook 127.0.0.1": "127.0.0.1 answered 403"}, (
        "no logger provider takes an event"
    )


def test_maestro_watch_looks_once(place, tmp_path, hook, monkeypatch, capsys):
    monkeypatch.setenv("MAESTRO_BUDGETS", json.dumps([{"limit": "0.0001"}]))
    maestro = Maestro(budgets=[])
    with maestro.call(provider="openai", model="gpt-5-mini", input="hi", max_output_tokens=100):
        pass
    assert main(["watch", "--once"]) == 0
    assert [post["kind"] for post in hook.wait_for(1)] == ["threshold"]
    assert maestro.ledger.notes("watch")
    maestro.close()
    monkeypatch.setenv("MAESTRO_ALERTS__DETECT", "false")
    assert main(["watch", "--once"]) == 1
    assert "alerts.detect is off" in capsys.readouterr().err


def test_maestro_alerts_follows_and_maestro_watch_watches(place, tmp_path, hook):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "maestro_core.cli"]
    with (
        subprocess.Popen(
            [*command, "alerts", "--follow", "--json"], stdout=subprocess.PIPE, text=True, env=environment
        ) as follower,
        subprocess.Popen([*command, "watch"], stderr=subprocess.PIPE, text=True, env=environment) as watcher,
    ):
        try:
            assert [json.loads(follower.stdout.readline())["kind"] for _ in range(2)] == ["test", "loop"]
            assert watcher.stderr.readline().startswith("watching sqlite:///")
            maestro = Maestro()
            report(maestro.alerts, alert("3", kind="spike"))
            assert maestro.alerts.flush()
            maestro.close()
            assert json.loads(follower.stdout.readline())["kind"] == "spike"
        finally:
            for process in (follower, watcher):
                process.send_signal(signal.SIGINT)
        assert watcher.stderr.readline() == "the watch has ended\n"
        assert (follower.wait(20), watcher.wait(20)) == (0, 0)


# -- the guide --------------------------------------------------------------------------------------------------------

GUIDE = (Path(__file__).parents[1] / "docs/alerts.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[1]


def test_the_settings_of_the_guide_load(tmp_path, make_maestro):
    (tmp_path / "maestro.toml").write_text(block("toml"), encoding="utf-8")
    settings = make_maestro().settings
    assert settings.alerts.routes[0].where == {"team": "growth"}
    assert settings.budgets[0].every == "month"
    assert settings.polling_tools == ("wait_for_job",)
    for name, value in AlertSettings().model_dump().items():  # what the guide shows as a default is one
        if f"\n{name} =" in block("toml") and name != "webhook":
            assert getattr(settings.alerts, name) == value


def test_the_guide_shows_what_a_webhook_receives():
    assert list(json.loads(block("json"))) == [*KEYS, "text"]


def test_the_plugin_of_the_guide_works(ledger, capsys):
    scope = {}
    exec(block("python"), scope)  # noqa: S102 - that is the test
    manager = load()
    manager.register(scope["Pager"]())
    with telling(ledger, manager) as alerts:
        report(alerts, alert("1", kind="loop"))
        assert alerts.flush()
    assert capsys.readouterr().out.startswith("loop: something {'kind': 'loop'")
