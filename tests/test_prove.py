"""`maestro doctor --prove`: it notices a door that lets a call out, and a trial that would show nothing."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from maestro_core.cli import app
from maestro_core.doors import Doors
from maestro_core.maestro import Maestro
from maestro_langchain import MaestroCallbackHandler, prove


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["doctor", "--prove", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def doors(code=0):
    return {each["door"]: each["ok"] for each in json.loads(run("--json", code=code))["doors"]}


def test_every_door_holds(place):
    found = doors()
    assert len(found) == len(prove._DOORS) == 10
    assert set(found.values()) == {True}
    assert list(place.iterdir()) == []


def test_each_door_is_a_line():
    lines = run().splitlines()
    for door in prove._DOORS:
        (line,) = [each for each in lines if each.startswith(door + "  ")]
        assert "yes" in line
    assert lines[-1] == "all is well"


def test_a_persons_own_settings_do_not_decide(place):
    (place / "maestro.toml").write_text(
        'require = ["team"]\nwait_s = 1\n[[caps]]\nlimit = "0"\n',
        encoding="utf-8",
    )
    assert set(doors().values()) == {True}
    assert not (place / "maestro.db").exists()


def test_handlers_that_let_calls_out_are_found(monkeypatch):
    monkeypatch.setattr(MaestroCallbackHandler, "raise_error", False)
    found = doors(code=1)
    assert {door for door, ok in found.items() if not ok} == {
        "handler, invoke",
        "handler, ainvoke",
        "handler, stream",
        "handler, astream",
        "install(), raw thread",
    }
    assert "problem: handler, invoke: 1 request(s) left the process under a cap of $0" in run(code=1)


def test_doors_that_do_not_reserve_are_found(monkeypatch):
    def reserve(self, call, **kwargs):
        maestro = Maestro(ledger="memory:", caps=[], prices=[{"model": "*", "input": "1", "output": "1"}])
        return maestro.reserve(call)

    async def areserve(self, call, **kwargs):
        return reserve(self, call)

    monkeypatch.setattr(Doors, "reserve", reserve)
    monkeypatch.setattr(Doors, "areserve", areserve)
    found = doors(code=1)
    assert not found["middleware, invoke"]
    assert not found["governed embeddings"]
    assert found["handler, invoke"]


def test_a_call_that_never_arrives_proves_nothing(monkeypatch):
    def post(port, path, body):
        raise ConnectionError("no way out")

    monkeypatch.setattr(prove, "_post", post)
    assert set(doors(code=1).values()) == {False}


def test_another_error_than_the_caps_proves_nothing(monkeypatch):
    def broken(maestro, port):
        raise LookupError("broken")

    monkeypatch.setattr(prove, "_DOORS", {"a door": broken})
    assert doors(code=1) == {"a door": False}


def test_doors_that_are_not_installed_are_not_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain.agents", None)
    found = doors()
    assert (found["middleware, invoke"], found["handler, invoke"]) == (None, True)
    assert 'pip install "maestro-finops[langchain]"' in run()


def test_without_langchain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "maestro_langchain.prove", None)
    result = CliRunner().invoke(app, ["doctor", "--prove"])
    assert result.exit_code == 1
    assert 'pip install "maestro-finops[langchain]"' in result.stderr


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ({"langchain", "langchain-core"}, "LangChain is not installed"),
        ({"langchain"}, "MaestroMiddleware needs"),
    ],
)
def test_a_missing_extra_is_a_note_and_no_problem(monkeypatch, missing, note):
    from maestro_core.cli import _examine

    found = _examine._version
    monkeypatch.setattr(_examine, "_version", lambda name: None if name in missing else found(name))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert f"note: {note}" in result.stdout.replace("langchain is not installed: ", "")
