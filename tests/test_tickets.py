"""Waiters of several processes on one ledger stand in one line."""

import re
import threading
from contextlib import closing
from dataclasses import replace
from random import Random

import pytest

from maestro_core import Cap, CapExceeded, Maestro, Usage
from maestro_core.ledger import open_ledger
from maestro_core.testing import FakeClock
from maestro_core.types import (
    Attribution,
    Call,
    Fit,
    Held,
    Hold,
    Ledger,
    Meter,
    Refused,
    Settlement,
    SharedLedger,
    Ticket,
    new_key,
)
from maestro_core.waiting import Desk, Line, Place, turns

EVERYTHING, TEAM = Meter(), Meter(("team",))
GROWTH = Attribution({"team": "growth"})
LIMIT = 100


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path, clock, monkeypatch):
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"
    with closing(open_ledger(url, clock=clock)) as ledger:
        if request.param == "sqlite":
            monkeypatch.setattr(ledger, "_since_boot_us", clock.now_us)
        yield ledger


def hold(amount, process="a", *, waits=True, inside=False, key=None, limits=((EVERYTHING, LIMIT),), fit=None):
    ticket = Ticket(process, waits=waits, inside=inside) if process else None
    return Hold(key or new_key(), amount, "openai", "m", GROWTH, limits, fit, ticket)


def free(ledger, key):
    ledger.settle(key, Settlement(cost_nanos=0))


@pytest.fixture
def full(ledger):
    """A ledger whose money is held, by one call of 60 and one of 40."""
    ledger.reserve(hold(60, "other", key="sixty"))
    ledger.reserve(hold(40, "other", key="forty"))
    return ledger


def test_a_later_caller_gets_only_what_is_left_beyond_an_older_ticket(full):
    older, younger, small = hold(50, "a"), hold(20, "b"), hold(10, "b")
    assert isinstance(full.reserve(older), Refused)
    free(full, "sixty")
    refused = full.reserve(younger)
    assert isinstance(refused, Refused)
    assert not refused.spent
    assert (refused.bucket.held, refused.promised_nanos) == (40, 50)
    assert isinstance(full.reserve(small), Held), "60 are free, 50 are set aside"
    assert isinstance(full.reserve(older), Held)
    free(full, "forty")
    assert isinstance(full.reserve(younger), Held), "a ticket that was served is set aside no more"
    assert full.check() == []


def test_an_older_ticket_is_not_blocked_by_a_younger_one(full):
    older, younger = hold(60, "a"), hold(60, "b")
    full.reserve(older)
    full.reserve(younger)
    free(full, "sixty")
    assert isinstance(full.reserve(younger), Refused)
    assert isinstance(full.reserve(older), Held)


def test_a_ticket_keeps_its_place_however_often_it_is_shown(full, clock):
    older, younger = hold(60, "a"), hold(60, "b")
    for _ in range(5):
        full.reserve(older)
        full.reserve(younger)
        clock.advance(0.7)
    free(full, "sixty")
    assert isinstance(full.reserve(younger), Refused)
    assert isinstance(full.reserve(older), Held)


def test_a_ticket_unseen_for_a_second_is_ignored_and_loses_its_place(full, clock):
    dead, alive = hold(60, "a"), hold(60, "b")
    full.reserve(dead)
    clock.advance(0.5)
    full.reserve(alive)
    clock.advance(0.6)
    assert isinstance(full.reserve(dead), Refused), "it lives again, but last in line"
    free(full, "sixty")
    assert isinstance(full.reserve(dead), Refused)
    assert isinstance(full.reserve(alive), Held)


def test_a_ticket_that_was_withdrawn_is_gone(full):
    gone = hold(60, "a")
    full.reserve(gone)
    full.withdraw(gone.key)
    full.withdraw(gone.key)
    full.withdraw("never seen")
    free(full, "sixty")
    assert isinstance(full.reserve(hold(60, "b")), Held)


def test_giving_up_takes_the_ticket_back(full):
    impatient = hold(60, "a")
    full.reserve(impatient)
    full.reserve(replace(impatient, ticket=Ticket("a", waits=False)))
    free(full, "sixty")
    assert isinstance(full.reserve(hold(60, "b")), Held)


def test_a_caller_that_learns_that_money_is_spent_leaves_nothing_behind(full):
    large = hold(60, "a")
    full.reserve(large)
    full.settle("forty", Settlement(cost_nanos=41))
    assert full.reserve(large).spent
    free(full, "sixty")
    assert isinstance(full.reserve(hold(59, "b")), Held)


def test_waiters_of_one_process_do_not_block_each_other(full):
    full.reserve(hold(60, "a"))  # the process has a line of its own, which decides
    free(full, "sixty")
    assert isinstance(full.reserve(hold(60, "a")), Held)


def test_a_caller_that_cannot_wait_leaves_alone_what_is_set_aside(full):
    waiter = hold(60, "a")
    full.reserve(waiter)
    free(full, "sixty")
    for process in ("a", "b"):
        refused = full.reserve(hold(10, process, waits=False))
        assert isinstance(refused, Refused)
        assert not refused.spent
    assert isinstance(full.reserve(waiter), Held)


def test_a_call_inside_an_open_one_goes_before_all_others(full):
    older, inside = hold(60, "a"), hold(60, "b", inside=True)
    full.reserve(older)
    full.reserve(inside)
    free(full, "sixty")
    assert isinstance(full.reserve(older), Refused)
    assert isinstance(full.reserve(inside), Held)


def test_who_asks_without_a_ticket_asks_as_before(full):
    full.reserve(hold(60, "a"))
    free(full, "sixty")
    assert isinstance(full.reserve(hold(60, None)), Held)


def test_a_ticket_stands_at_one_bucket_only(ledger):
    teams = ((TEAM, 50), (EVERYTHING, LIMIT))
    ledger.declare([TEAM, EVERYTHING])
    ledger.reserve(hold(50, "other", limits=teams))
    ledger.reserve(hold(10, "a", limits=teams))  # lacks room in its team
    elsewhere = replace(hold(50, "b", limits=teams), attribution=Attribution({"team": "sales"}))
    assert isinstance(ledger.reserve(elsewhere), Held)


def test_a_fitted_call_leaves_room_for_older_ones_and_wants_its_comfort(full):
    fit = Fit(fixed_nanos=10, ceiling_nanos=80, comfort_nanos=30, least_nanos=5)
    older = hold(90, "a", fit=fit)
    full.reserve(older)
    free(full, "sixty")
    assert isinstance(full.reserve(hold(21, "b")), Refused)
    assert full.reserve(hold(20, "b")).amount_nanos == 20
    assert full.reserve(older).amount_nanos == 40


def test_what_is_set_aside_counts_as_held_for_one_that_takes_the_rest(ledger):
    ledger.reserve(hold(60, "other", key="sixty"))
    ledger.reserve(hold(60, "a"))
    free(ledger, "sixty")
    fit = Fit(fixed_nanos=10, ceiling_nanos=80, comfort_nanos=60, least_nanos=5)
    assert isinstance(ledger.reserve(hold(90, "b", fit=fit, key="b")), Refused), (
        "it waits instead of being cut"
    )
    rest = ledger.reserve(hold(90, "b", fit=replace(fit, rest=True), waits=False, key="b"))
    assert rest.amount_nanos == 40


def test_repeating_a_reserve_that_was_admitted_holds_once(full):
    free(full, "sixty")
    admitted = hold(60, "a")
    first = full.reserve(admitted)
    assert full.reserve(admitted) == first


# -- sharing what becomes scarce --------------------------------------------------------------------------------------


@pytest.fixture
def file_ledger(tmp_path, clock, monkeypatch):
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db", clock=clock)) as ledger:
        monkeypatch.setattr(ledger, "_since_boot_us", clock.now_us)
        yield ledger


def more(amount, holds, meter=EVERYTHING, **kwargs):
    asked = hold(amount, limits=((meter, LIMIT),), **kwargs)
    name = meter.id, tuple(GROWTH.dimensions.get(dimension, "(unattributed)") for dimension in meter.per)
    return replace(asked, ticket=replace(asked.ticket, holds={name: holds}))


def test_a_process_that_has_much_stands_in_line_before_it_takes_more(file_ledger, clock):
    assert isinstance(file_ledger.reserve(more(20, 0)), Held)
    greedy = more(20, 20)  # a quarter of what is free
    refused = file_ledger.reserve(greedy)
    assert isinstance(refused, Refused)
    assert not refused.spent
    assert isinstance(file_ledger.reserve(hold(20, "b")), Held), "who comes in the meantime is served"
    assert refused.turn_us == 500_000 * 20 // 100
    clock.advance(0.07)
    later = file_ledger.reserve(greedy)
    assert isinstance(later, Refused)
    assert later.turn_us == 500_000 * 20 // 80 - 70_000, "the more it has of what is free, the longer"
    clock.advance(later.turn_us / 1e6)
    assert isinstance(file_ledger.reserve(greedy), Held), "nobody else wants it"


def test_one_that_has_little_or_cannot_wait_or_is_inside_takes_it_at_once(file_ledger):
    file_ledger.reserve(hold(11, "a"))
    assert isinstance(file_ledger.reserve(more(5, 11)), Held)
    assert isinstance(file_ledger.reserve(more(5, 16, waits=False)), Held)
    assert isinstance(file_ledger.reserve(more(5, 21, inside=True)), Held)
    assert isinstance(file_ledger.reserve(more(5, 26)), Refused)


def test_nobody_else_is_expected_at_a_run(file_ledger):
    run = Meter(("run",))
    file_ledger.reserve(hold(50, "a", limits=((run, LIMIT),)))
    assert isinstance(file_ledger.reserve(more(20, 50, run)), Held)


def test_one_that_has_long_been_alone_waits_for_nobody(file_ledger, clock, tmp_path):
    file_ledger.reserve(hold(50, "a"))
    clock.advance(4)
    assert isinstance(file_ledger.reserve(more(10, 50)), Held)
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as other:
        other.settle(other.reserve(hold(1, "b")).key, Settlement(cost_nanos=0))
    assert isinstance(file_ledger.reserve(more(10, 60)), Refused)
    clock.advance(601)
    assert isinstance(file_ledger.reserve(more(10, 60)), Held)


def test_the_line_knows_what_its_process_holds():
    now = [0.0]
    line, name, other = Line(lambda: now[0]), ("all", ()), ("team", ("growth",))
    line.opened("a", 5, frozenset({name}), Place(1, 1))
    line.opened("b", 7, frozenset({name, other}), Place(1, 2))
    assert ticket(line, name, other).holds == {name: 12, other: 7}
    line.closed("b")
    line.closed("b")
    assert ticket(line, name).holds == {name: 12}, "it took it just now"
    now[0] = 1.0
    assert ticket(line, name, other).holds == {name: 5}
    assert ticket(line, name, waits=False).holds == {}


def ticket(line, *names, waits=True):
    with line.asking(frozenset(names), 3, waits=waits, inside=False) as own:
        return own


def test_threads_that_ask_at_the_same_time_have_one_ticket_between_them(ledger):
    line, withdrawn, told = Line(lambda: 0.0), [], []
    name = EVERYTHING.id, ()
    ledger.reserve(hold(LIMIT, "all of it"))

    def asks(key, meanwhile=lambda: None):
        def attempt(rest, own):
            told.append((key, dict(own.holds)))
            meanwhile()
            return ledger.reserve(replace(hold(5, key), ticket=own))

        desk = Desk(attempt, withdraw=lambda: withdrawn.append(key), wanted_nanos=5)
        return turns(
            line, frozenset({name}), desk, wake=lambda: None, now_s=lambda: 0.0, until_s=9.0, chance=Random(1)
        )

    second = asks("second")
    first = asks("first", meanwhile=lambda: next(second))
    pause_s = next(first)
    assert told == [("first", {}), ("second", {name: 5})], "what the first is about to take counts already"
    assert withdrawn == ["first"], "the second stood in line before it"
    assert pause_s > 1, "it is woken when it is its turn"
    second.close()
    first.close()


# -- two processes: two ledgers on one file ---------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return f"sqlite:///{tmp_path}/shared.db"


def test_another_process_is_noticed_by_its_writes(file):
    with closing(open_ledger(file)) as one, closing(open_ledger(file)) as other:
        before = one.changed()
        assert one.changed() == before
        other.reserve(hold(10, "b", key="k"))
        after = one.changed()
        assert after != before
        with one._database.reading:  # a long report
            assert len({one.changed(), one.changed(), after}) == 3
        assert one.changed() == after


def test_the_dead_leave_a_row_that_the_next_waiter_sweeps(file, clock, monkeypatch):
    with closing(open_ledger(file)) as ledger:
        monkeypatch.setattr(ledger, "_since_boot_us", clock.now_us)
        ledger.reserve(hold(100, "other"))
        ledger.reserve(hold(50, "dead"))
        clock.advance(2)
        ledger.reserve(hold(50, "a"))
        with ledger._database.reading as connection:
            assert connection.execute("SELECT process FROM tickets").fetchall() == [("a",)]


def call(tokens=1_000):
    return Call(provider="openai", model="gpt-4o-mini", input="x" * 100, max_output_tokens=tokens)


CAPS = [Cap("0.001")]  # one call of 1,000 tokens, not two


@pytest.fixture
def two(file):
    with (
        closing(Maestro(ledger=file, caps=CAPS, wait_s=20)) as one,
        closing(Maestro(ledger=file, caps=CAPS, wait_s=20)) as other,
    ):
        yield one, other


def in_thread(work):
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(work()))
    thread.start()
    return thread, outcome


def refusal(work):
    try:
        return work()
    except CapExceeded as error:
        return error


def until_waiting(maestro):
    while not maestro.admission.line._waiters:
        threading.Event().wait(0.01)


def tickets(maestro):
    with maestro.ledger._database.reading as connection:
        return connection.execute("SELECT count(*) FROM tickets").fetchone()[0]


def test_a_waiter_notices_what_another_process_sets_free(two):
    one, other = two
    first = one.doors.reserve(call(), fits=False)
    thread, outcome = in_thread(lambda: other.doors.reserve(call(), fits=False))
    until_waiting(other)
    one.settle(first, Usage(input_tokens=10, output_tokens=10))
    thread.join(15)
    assert outcome[0].held_nanos
    assert tickets(one) == 0


def test_a_call_that_cannot_wait_is_told_who_goes_before(two):
    one, other = two
    first = one.doors.reserve(call(), fits=False)
    thread, outcome = in_thread(lambda: other.doors.reserve(call(1_600), fits=False))
    until_waiting(other)
    while not tickets(one):
        threading.Event().wait(0.01)
    elsewhere, refused = in_thread(lambda: refusal(lambda: one.reserve(call(100))))
    elsewhere.join(15)
    assert refused[0].reason == "held"
    assert re.search(r"\(held\).* \+ \$0.0009\d+ for calls that wait already \+ this call", str(refused[0]))
    one.release(
        one.reserve(call(100)), "test"
    )  # inside the call that holds the money, it goes before all others
    one.settle(first, Usage(input_tokens=10, output_tokens=10))
    thread.join(15)
    assert outcome[0].held_nanos


def test_only_the_first_in_line_asks_the_ledger(two, monkeypatch):
    one, other = two
    first = one.doors.reserve(call(), fits=False)
    asked = []
    reserve = other.ledger.reserve
    monkeypatch.setattr(other.ledger, "reserve", lambda hold: asked.append(hold.key) or reserve(hold))
    threads = [in_thread(lambda: other.doors.reserve(call(), fits=False))[0] for _ in range(3)]
    while len(other.admission.line._waiters) < 3:
        threading.Event().wait(0.01)
    del asked[:]
    while len(asked) < 4:
        threading.Event().wait(0.01)
    assert len(set(asked)) == 1
    held = first
    for _ in threads:  # each in its turn; what the others hold is theirs to settle
        holder = one if held is first else other
        holder.settle(held, Usage(input_tokens=1, output_tokens=1))
        while not (open_ := other.ledger.holds()):
            threading.Event().wait(0.01)
        held = replace(first, key=open_[0].key)
    other.settle(held, Usage(input_tokens=1, output_tokens=1))
    for thread in threads:
        thread.join(15)


def test_one_that_gives_up_or_is_interrupted_takes_its_ticket_back(two):
    one, other = two
    one.doors.reserve(call(), fits=False)
    request = other.admission.prepare(call(), fits=False)
    steps = other.doors._steps(request, lambda: None, may_wait=True)
    pauses = iter(steps)
    next(pauses)
    assert tickets(one) == 1
    steps.close()
    assert tickets(one) == 0


class Plain:
    """A ledger of a plugin that knows nothing of tickets: the verbs of `Ledger`, no more."""

    def __init__(self, inner):
        self._inner = inner
        self.url = "plain:"

    def __getattr__(self, name):
        if name in ("changed", "withdraw") or name not in dir(Ledger):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_a_plugin_s_ledger_without_tickets_still_works(two, file):
    one, other = two
    with closing(open_ledger(file)) as inner:
        plain = Plain(inner)
        assert not isinstance(plain, SharedLedger)
        assert isinstance(inner, SharedLedger)
        other.admission.shared, other.admission._ledger = None, plain
        first = one.doors.reserve(call(), fits=False)
        thread, outcome = in_thread(lambda: other.doors.reserve(call(), fits=False))
        until_waiting(other)
        one.settle(first, Usage(input_tokens=10, output_tokens=10))
        thread.join(15)
        assert outcome[0].held_nanos


def test_who_waited_inside_an_open_call_for_another_process_is_told_that_it_may_have_been_in_vain(tmp_path):
    settings = {"caps": [Cap("0.001")], "ledger": f"sqlite:///{tmp_path}/ledger.db", "wait_s": 0.2}
    with closing(Maestro(**settings)) as one, closing(Maestro(**settings)) as other:
        other.reserve(priced(200))
        with pytest.raises(CapExceeded) as plain:
            one.doors.reserve(priced(400), fits=False)
        one.reserve(priced(200))
        with pytest.raises(CapExceeded) as nested:
            one.doors.reserve(priced(200), fits=False)
    assert plain.value.reason == nested.value.reason == "held"
    assert "inside an open call" not in str(plain.value)
    assert "inside an open call" in str(nested.value)


def priced(tokens):
    return Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=tokens)
