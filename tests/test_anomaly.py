"""Spend that is not as usual is found in minutes, once, by one of all processes; the usual is left alone."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import time
from datetime import UTC, datetime

import pytest

from maestro_core import hookimpl
from maestro_core.alerts import Alerts
from maestro_core.anomaly import Burn, Finding, Series
from maestro_core.clock import to_micros
from maestro_core.errors import LedgerUnavailable
from maestro_core.ledger import open_ledger
from maestro_core.plugins import load
from maestro_core.routes import AlertSettings
from maestro_core.types import Attribution, Hold, Settlement, new_key
from maestro_core.watch import Watch

USD = 1_000_000_000
DAY = 1_440
MONDAY = to_micros(datetime(2026, 11, 2, tzinfo=UTC)) // 60_000_000
USUAL = 0.01 * USD


def usual(minute, chance):
    """Return a minute of an office's spend: a hump by day, little by night, less on weekends, and noise."""
    hour, day = minute % DAY / 60, minute // DAY % 7
    level = 0.2 + math.exp(-(((hour - 14) / 4) ** 2))
    return USUAL * level * (0.4 if day in (2, 3) else 1) * chance.uniform(0.6, 1.4)


@pytest.fixture(scope="module")
def habits():
    """The state of a series after two weeks and eleven hours."""
    chance, series = random.Random(1), Series(MONDAY)
    found = [series.add(usual(minute, chance)) for minute in range(MONDAY, MONDAY + 14 * DAY + 660)]
    assert [one for one in found if one] == []
    return json.dumps(series.dump())


def grown(habits, **settings):
    series = Series(0, **settings)
    series.load(json.loads(habits))
    return series


def first(series, spend, minutes):
    """Return the first finding, and after how many minutes it came."""
    chance = random.Random(2)
    for n in range(minutes):
        found = series.add(spend(usual(series.minute, chance), n))
        if found:
            return found, n + 1
    return None, minutes


# -- one series -------------------------------------------------------------------------------------------------------


def test_the_usual_is_left_alone(habits):
    assert first(grown(habits), lambda normal, n: normal, 7 * DAY)[0] is None


@pytest.mark.parametrize(("times", "within"), [(10, 3), (5, 6), (3, 30)])
def test_a_multiple_of_the_usual_is_a_spike(habits, times, within):
    found, minutes = first(grown(habits), lambda normal, n: times * normal, 60)
    assert found.kind == "spike"
    assert minutes <= within
    assert found.excess_nanos > found.usual_nanos
    assert found.pace_nanos > 2 * found.usual_pace_nanos


def test_a_spike_is_told_while_a_leak_goes_on(habits):
    series, chance, kinds = grown(habits), random.Random(2), []
    for n in range(DAY):
        found = series.add(usual(series.minute, chance) * (10 if n > DAY - 60 else 1.5))
        kinds += [found.kind] if found else []
    assert kinds == ["leak", "spike"]


def test_working_days_do_not_hide_what_a_weekend_spends():
    chance, series = random.Random(1), Series(MONDAY)

    def shop(minute):  # next to nothing at night and on weekends
        return usual(minute, chance) * (0.1 if minute // DAY % 7 in (2, 3) else 1)

    for minute in range(MONDAY, MONDAY + 19 * DAY + 600):
        found = series.add(shop(minute))
        assert found is None
    found, minutes = first(series, lambda normal, n: 0.4 * normal, 240)
    assert found.kind == "spike"
    assert minutes < 60


@pytest.mark.parametrize("minutes", [60, 20])
def test_rare_calls_are_no_spikes(minutes):
    chance, series = random.Random(4), Series(MONDAY)
    found = []
    for _ in range(28 * DAY):
        one = series.add(USD * chance.choice((0.5, 1, 2)) if chance.random() < 1 / minutes else 0)
        found += [one] if one and one.kind == "spike" else []
    assert len(found) <= 3  # in four weeks
    burst = [series.add(2 * USD) for _ in range(20)]  # a call every minute
    assert [one.kind for one in burst if one] == ["spike"]


def test_a_slow_leak_is_found_within_a_day(habits):
    found, _ = first(grown(habits), lambda normal, n: 1.5 * normal, DAY)
    assert found.kind == "leak"
    assert found.excess_nanos == pytest.approx(found.usual_nanos / 2, rel=0.3)


def test_cents_wake_nobody(habits):
    poor = grown(habits, least_nanos=10 * USD)
    assert first(poor, lambda normal, n: 10 * normal, 20)[0] is None
    found, _ = first(poor, lambda normal, n: 10 * normal, 600)
    assert found.excess_nanos > 10 * USD


def test_an_incident_is_told_once_and_ends(habits):
    series, chance, kinds = grown(habits), random.Random(2), []
    for n in range(600):
        found = series.add(usual(series.minute, chance) * (10 if n < 120 else 1))
        kinds += [(found.kind, n)] if found else []
    assert [kind for kind, _ in kinds] == ["spike", "recovered"]
    assert 120 < kinds[1][1] < 300


def test_a_runaway_is_not_learned_and_a_new_usual_is(habits):
    series, chance = grown(habits), random.Random(2)
    before = series.level
    for _ in range(2 * 60):
        series.add(10 * usual(series.minute, chance))
    assert series.level < 1.1 * before
    kinds = [found.kind for _ in range(21 * DAY) if (found := series.add(10 * usual(series.minute, chance)))]
    assert kinds == ["recovered"]
    assert first(series, lambda normal, n: 10 * normal, DAY)[0] is None


def test_what_was_learned_survives_a_restart(habits):
    series = grown(habits)
    other = Series(0)
    other.load(json.loads(json.dumps(series.dump())))
    assert first(series, lambda normal, n: 4 * normal, 60) == first(other, lambda normal, n: 4 * normal, 60)


def test_the_state_does_not_grow(habits):
    series = grown(habits)
    first(series, lambda normal, n: normal, 3 * DAY)
    assert len(json.dumps(series.dump())) < 2 * len(habits)


def test_what_another_release_learned_is_taken_up_as_far_as_it_goes(habits):
    state = json.loads(habits)
    del state["form"], state["spread"]
    series = Series(0)
    series.load(state)
    assert series.grown
    assert first(series, lambda normal, n: normal, DAY)[0] is None
    assert first(series, lambda normal, n: 10 * normal, 10)[0].kind == "spike"


@pytest.mark.parametrize("span", [15, 60])
def test_the_past_is_learned_from_totals(span):
    chance, series = random.Random(1), Series(MONDAY)
    now = MONDAY + 14 * DAY
    for minute in range(MONDAY, now, span):
        series.learn(minute, span, sum(usual(minute + n, chance) for n in range(span)), 10 * span)
    assert series.minute == now
    kept = series.dump()
    series.learn(now - 60, 60, 10**15, 1)  # seen already
    assert series.dump() == kept
    other = Series(0)
    other.load(kept)
    assert first(other, lambda normal, n: normal, 5 * DAY)[0] is None
    assert first(series, lambda normal, n: 10 * normal, 10)[0].kind == "spike"


# -- many series ------------------------------------------------------------------------------------------------------


def test_a_new_series_is_compared_with_its_like(habits):
    burn = Burn()
    for n in range(4):
        burn.load(f"team={n}", json.loads(habits))
    at = json.loads(habits)["minute"]
    assert [burn.observe("team=new", at + n, round(2 * USUAL)) for n in range(600)] == [None] * 600
    assert [burn.observe("customer=new", at + n, round(200 * USUAL)) for n in range(600)] == [None] * 600
    found = [burn.observe("team=mad", at + n, round(100 * USUAL)) for n in range(120)]
    assert [one.kind for one in found if one] == ["spike"]


def test_silence_is_gone_through(habits):
    burn = Burn()
    burn.load("team=a", json.loads(habits))
    at = json.loads(habits)["minute"]
    assert burn.observe("team=a", at + 30, 0) is None
    assert burn.observe("team=a", at + 10, 10**12) is None  # time does not go back
    assert burn.observe("team=a", at + 31, 10**12).kind == "spike"
    assert burn.alarmed() == ["team=a"]


# -- a ledger ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, minute):
        self.minute = minute

    def now_us(self):
        return self.minute * 60_000_000


@pytest.fixture
def clock(habits):
    return Clock(json.loads(habits)["minute"])


@pytest.fixture(params=["memory:", "sqlite"])
def ledger(request, tmp_path, clock):
    url = request.param if request.param == "memory:" else f"sqlite:///{tmp_path}/ledger.db"
    ledger = open_ledger(url, clock=clock)
    yield ledger
    ledger.close()


def spend(ledger, nanos, **dimensions):
    key = new_key()
    ledger.reserve(Hold(key, 0, "openai", "gpt-5", Attribution({"run": "r1", **dimensions})))
    ledger.settle(key, Settlement(cost_nanos=round(nanos)))


class Watched:
    """A ledger with a watch, whose clock is driven by hand."""

    def __init__(self, ledger, clock, habits=None, detectors=(), **settings):
        self.ledger, self.clock = ledger, clock
        settings = AlertSettings(log=False, min_usd="0.01", **settings)
        self.alerts = Alerts(settings, ledger, load())
        for series in ("everything", "team=growth", "model=gpt-5") if habits else ():
            key, state = f"learned burn {series}", json.loads(habits)
            ledger.keep(key, "learned", {"detector": "burn", "series": series, "state": state})
        self.watch = Watch(settings, ledger, self.alerts, detectors)

    def minute(self, times=1.0, **dimensions):
        nanos = times * usual(self.clock.minute, random.Random(self.clock.minute))
        if nanos:
            spend(self.ledger, nanos, **{"team": "growth", **dimensions})
        self.clock.minute += 1
        return self.watch.look()

    def told(self):
        assert self.alerts.flush()
        return [note.body for note in self.ledger.notes("alert")]


def test_from_a_runaway_in_the_ledger_to_one_alert(ledger, clock, habits):
    watched = Watched(ledger, clock, habits, cooldown_s=7_200)
    for _ in range(20):
        assert watched.minute()
    assert watched.told() == []
    for _ in range(10):
        watched.minute(10)
    (alert,) = watched.told()  # though the team, the model and everything show it
    assert alert["kind"] == "spike"
    assert (alert["run_id"], alert["model"]) == ("r1", "gpt-5")
    assert alert["stop"].startswith("Cap(")
    assert float(alert["excess_usd"]) > 0.01
    for _ in range(110):
        watched.minute()
    assert [alert["kind"] for alert in watched.told()] == ["spike", "recovered"]
    for _ in range(10):
        watched.minute(10)  # within the cooldown
    assert len(watched.told()) == 2


def test_a_leak_that_gets_worse_is_told_again(ledger, clock, habits):
    watched = Watched(ledger, clock, habits)
    while not (told := watched.told()):
        watched.minute(1.5)
    for _ in range(10):
        watched.minute(10)
    assert [alert["kind"] for alert in watched.told()] == [told[0]["kind"], "spike"] == ["leak", "spike"]
    for _ in range(600):
        watched.minute()
    assert watched.told()[-1]["kind"] == "recovered"


def test_a_call_that_settles_late_is_seen(ledger, clock, habits):
    watched = Watched(ledger, clock, habits)
    for _ in range(5):
        watched.minute()
    key = new_key()
    ledger.reserve(Hold(key, 0, "openai", "gpt-5", Attribution({"team": "growth"})))
    for _ in range(30):
        watched.minute()
    ledger.settle(key, Settlement(cost_nanos=round(300 * USUAL)))
    watched.minute()
    assert [alert["kind"] for alert in watched.told()] == ["spike"]


def test_of_several_processes_one_watches_and_another_takes_over(ledger, clock, habits):
    first = Watched(ledger, clock, habits)
    second = Watched(ledger, clock)
    for _ in range(5):
        assert first.minute()
        assert not second.watch.look()
    clock.minute += 3  # the first has died
    assert second.watch.look()
    assert not first.watch.look()
    for _ in range(10):
        second.minute(10)
    assert [alert["kind"] for alert in second.told()] == ["spike"]


def test_whoever_leaves_hands_over_what_it_has_learned(ledger, clock, habits):
    first = Watched(ledger, clock, habits)
    for _ in range(5):
        first.minute()
    first.watch.close()
    second = Watched(ledger, clock)
    assert second.watch.look()
    learned = {note.body["series"]: note.body["state"]["minute"] for note in ledger.notes("learned")}
    assert set(learned) == {"everything", "team=growth", "model=gpt-5"}
    assert set(learned.values()) == {clock.minute}
    for _ in range(10):
        second.minute(10)
    assert len(second.told()) == 1


def test_a_gap_is_no_spike(ledger, clock, habits):
    watched = Watched(ledger, clock, habits)
    watched.minute()
    for _ in range(40):
        spend(ledger, usual(clock.minute, random.Random(clock.minute)), team="growth")
        clock.minute += 1
    watched.watch.look()
    assert watched.told() == []


def backdate(ledger, clock, minutes, **dimensions):
    """Spend as usual for a while, which nobody watches: a call every five minutes."""
    chance = random.Random(3)
    for _ in range(0, minutes, 5):
        nanos = sum(usual(clock.minute + n, chance) for n in range(5))
        spend(ledger, nanos, team="growth", **dimensions)
        clock.minute += 5


@pytest.mark.parametrize("few", [100_000, 0])
def test_a_watch_begins_with_what_the_ledger_knows(ledger, clock, monkeypatch, few):
    monkeypatch.setattr("maestro_core.history._FEW_CALLS", few)
    backdate(ledger, clock, 8 * DAY)
    watched = Watched(ledger, clock)
    for _ in range(30):
        watched.minute()
    assert watched.told() == []
    for _ in range(20):
        watched.minute(10)
    (alert,) = watched.told()
    assert alert["kind"] == "spike"
    watched.watch.close()
    assert {"everything", "team=growth", "model=gpt-5"} == {
        note.body["series"] for note in ledger.notes("learned")
    }


def test_what_nobody_watched_is_learned_by_whoever_comes_next(ledger, clock, habits):
    first = Watched(ledger, clock, habits)
    first.minute()
    first.watch.close()
    backdate(ledger, clock, 2 * DAY, customer="new")
    second = Watched(ledger, clock)
    assert second.watch.look()
    watched = second.watch._burn._series
    assert {series.minute for series in watched.values()} == {clock.minute}
    assert watched["customer=new"].level == pytest.approx(watched["team=growth"].level, rel=0.5)
    assert watched["team=growth"].grown
    assert not watched["customer=new"].grown


def test_learning_of_the_past_can_be_broken_off(ledger, clock):
    backdate(ledger, clock, 2 * DAY)
    broken = Watched(ledger, clock)
    broken.watch._closing.set()
    assert not broken.watch.look()
    broken.watch.close()
    other = Watched(ledger, clock)
    assert other.watch.look()  # it is not kept waiting, and learns all of it
    assert other.watch._burn._series["team=growth"]._base.steps == 2 * DAY // 15


def test_detectors_of_plugins(ledger, clock, caplog):
    class Greedy:
        name = "greedy"

        def __init__(self):
            self.learned = {}

        def observe(self, series, minute, spent_nanos):
            self.learned[series] = self.learned.get(series, 0) + spent_nanos
            if series == "team=growth" and self.learned[series] > USD:
                return Finding("greed", minute, self.learned[series], 0, 0, 0)
            return None

        def dump(self, series):
            return {"sum": self.learned[series]} if series in self.learned else {}

        def load(self, series, state):
            self.learned[series] = state["sum"]

    class Broken(Greedy):
        name = "broken"

        def observe(self, series, minute, spent_nanos):
            raise RuntimeError("broken")

    greedy = Greedy()
    watched = Watched(ledger, clock, detectors=[Broken(), greedy])
    watched.minute()
    for _ in range(200):
        watched.minute()
    (alert,) = watched.told()
    assert (alert["kind"], alert["scope"]) == ("greed", "team=growth")
    assert "detector broken failed over" in caplog.text
    watched.watch.close()
    again = Greedy()
    Watched(ledger, clock, detectors=[again]).watch.look()
    assert again.learned == greedy.learned


def test_plugins_add_detectors(make_maestro, monkeypatch):
    class Plugin:
        @hookimpl
        def maestro_detectors(self):
            return [Burn()]

    from maestro_core import plugins

    load = plugins.load

    def with_plugin():
        manager = load()
        manager.register(Plugin())
        return manager

    monkeypatch.setattr(plugins, "load", with_plugin)
    assert len(make_maestro().watch._detectors) == 2
    assert make_maestro(alerts={"detect": False}).watch is None


def test_a_watch_that_cannot_read_goes_on(make_maestro, monkeypatch, caplog):
    monkeypatch.setattr("maestro_core.watch._EVERY_S", 0.01)
    maestro = make_maestro()

    def broken(*_, **__):
        raise LedgerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(maestro.ledger, "notes", broken)
        with maestro.call(provider="openai", model="gpt-5-mini", input="hi", max_output_tokens=10):
            pass
        until = time.monotonic() + 20
        while "spend is not watched for now: gone" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
    while not maestro.ledger.notes("watch") and time.monotonic() < until:
        time.sleep(0.01)
    assert maestro.ledger.notes("watch")
    assert "spend is not watched for now: gone" in caplog.text


def _watch(path, minute, barrier):
    ledger = open_ledger(f"sqlite:///{path}", clock=Clock(minute))
    settings = AlertSettings(log=False)
    watch = Watch(settings, ledger, Alerts(settings, ledger, load()))
    barrier.wait()
    won = watch.look()
    barrier.wait()
    ledger.close()
    raise SystemExit(10 + won)


def test_of_processes_that_begin_at_once_one_watches(tmp_path, clock):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_watch, args=(tmp_path / "ledger.db", clock.minute, barrier)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(worker.exitcode for worker in workers) == [10, 10, 11]
