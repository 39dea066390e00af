"""The contract that every ledger keeps."""

import itertools
import threading
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from clocks import Clock

from maestro_core.clock import to_micros
from maestro_core.errors import LedgerUnavailable, ReservationClosed, SettingsError
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Cap, Held, Hold, Meter, Refused, Settlement, new_key

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOON = to_micros(datetime(2026, 11, 23, 12, tzinfo=UTC))
USD = 1_000_000_000

ACME = Attribution({"team": "growth", "customer": "acme", "run": "r1"}, (("agent", "boss"),))
DEEP = Attribution(
    {"team": "growth", "customer": "acme", "run": "r1"},
    (("agent", "boss"), ("tool", "delegate"), ("agent", "researcher")),
)
EVERYTHING = Meter()
CUSTOMER = Meter(("customer",))
CUSTOMER_DAILY = Meter(("customer",), (), "day")
AGENT = Meter(("agent",))


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path, clock):
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"
    ledger = open_ledger(url, clock=clock)
    yield ledger
    ledger.close()


def hold(amount=USD, *limits, attribution=ACME, provider="openai", model="gpt-5", key=None):
    return Hold(key or new_key(), amount, provider, model, attribution, limits)


def paid(cost, **more):
    return Settlement(cost_nanos=cost, **more)


def spend(ledger, cost, attribution=ACME, model="gpt-5", **more):
    held = ledger.reserve(hold(cost, attribution=attribution, model=model))
    return ledger.settle(held.key, paid(cost, **more))


def counters(ledger, meter):
    return {b.values: (b.spent, b.held, b.presumed) for b in ledger.buckets(meter)}


# --- reserve


def test_money_is_held_in_every_bucket(ledger):
    ledger.declare([EVERYTHING, CUSTOMER, AGENT])
    held = ledger.reserve(hold(USD, attribution=DEEP, key="k"))
    assert (held.key, held.amount_nanos, held.at_us) == ("k", USD, NOON)
    assert {(b.label, b.held) for meter in (EVERYTHING, CUSTOMER) for b in ledger.buckets(meter)} == {
        ("everything", USD), ("customer=acme", USD),
    }  # fmt: skip
    assert counters(ledger, AGENT) == {("boss",): (0, USD, 0), ("researcher",): (0, USD, 0)}


def test_reserving_again_gives_the_same_answer_and_holds_once(ledger):
    request = hold(USD, (EVERYTHING, USD))
    assert ledger.reserve(request) == ledger.reserve(request)
    assert counters(ledger, EVERYTHING) == {(): (0, USD, 0)}


def test_all_buckets_or_none(ledger):
    narrow = (CUSTOMER, USD // 2)
    refused = ledger.reserve(hold(USD, (EVERYTHING, 10 * USD), narrow, (AGENT, 10 * USD)))
    assert isinstance(refused, Refused)
    assert (refused.bucket.label, refused.limit_nanos, refused.at_us) == ("customer=acme", USD // 2, NOON)
    assert refused.bucket.held == 0
    for meter in (EVERYTHING, CUSTOMER, AGENT):
        assert sum(sum(counter) for counter in counters(ledger, meter).values()) == 0
    assert ledger.holds() == []


def test_a_refusal_names_the_bucket_that_lacks_the_most(ledger):
    refused = ledger.reserve(hold(10, (EVERYTHING, 9), (CUSTOMER, 2), (AGENT, 5)))
    assert refused.bucket.label == "customer=acme"
    assert refused.limit_nanos == 2


def test_a_hold_that_just_fits_is_admitted_and_one_nano_more_is_not(ledger):
    limit = (EVERYTHING, 3 * USD)
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)
    assert isinstance(ledger.reserve(hold(2 * USD + 1, limit)), Refused)
    assert isinstance(ledger.reserve(hold(2 * USD, limit)), Held)


def test_the_lower_of_two_limits_on_one_meter_holds(ledger):
    assert isinstance(ledger.reserve(hold(5, (EVERYTHING, 9), (EVERYTHING, 4))), Refused)
    assert isinstance(ledger.reserve(hold(5, (EVERYTHING, 4), (EVERYTHING, 9))), Refused)


def test_a_rolled_up_agent_is_capped_at_every_agent_on_the_path(ledger):
    limit = (AGENT, 2 * USD)
    ledger.reserve(hold(2 * USD, limit, attribution=ACME))
    refused = ledger.reserve(hold(USD, limit, attribution=DEEP))
    assert refused.bucket.values == ("boss",)


def test_a_meter_without_a_limit_here_is_counted_and_not_enforced(ledger):
    ledger.declare([CUSTOMER])
    assert isinstance(ledger.reserve(hold(10**15)), Held)
    assert counters(ledger, CUSTOMER) == {("acme",): (0, 10**15, 0)}


def test_a_missing_dimension_is_a_bucket_capped_like_any_other(ledger):
    limit, nobody = (CUSTOMER, USD), Attribution()
    assert isinstance(ledger.reserve(hold(USD, limit, attribution=nobody)), Held)
    assert isinstance(ledger.reserve(hold(1, limit, attribution=nobody)), Refused)
    assert counters(ledger, CUSTOMER) == {("(unattributed)",): (0, USD, 0)}


def test_a_closed_key_cannot_be_reserved_again(ledger):
    first, second = hold(), hold()
    ledger.reserve(first)
    ledger.settle(first.key, paid(1))
    ledger.reserve(second)
    ledger.release(second.key, "429")
    for request in (first, second):
        with pytest.raises(ReservationClosed, match=request.key):
            ledger.reserve(request)


def test_a_refused_key_may_try_again(ledger):
    first = hold(USD, (EVERYTHING, USD))
    ledger.reserve(first)
    waiting = hold(USD, (EVERYTHING, USD))
    assert isinstance(ledger.reserve(waiting), Refused)
    ledger.refuse(waiting, {"reason": "held"})
    ledger.release(first.key, "cancelled")
    assert isinstance(ledger.reserve(waiting), Held)


# --- settle and release


def test_settling_replaces_the_hold_by_the_truth(ledger, clock):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(USD))
    clock.now += 5
    record = ledger.settle(
        held.key,
        paid(
            400, usage={"input_tokens": 10, "output_tokens": 4}, sheet_nanos=500, price_id="p", price_book="b",
            unpriced=("audio",), model="gpt-5-2026", detail={"latency_ms": 12},
        ),
    )  # fmt: skip
    assert (record.kind, record.cost_nanos, record.held_nanos, record.calls) == ("settled", 400, USD, 1)
    assert (to_micros(record.at), to_micros(record.written_at)) == (NOON, NOON + 5)
    assert record.detail == {"latency_ms": 12, "served_model": "gpt-5-2026"}
    assert (record.model, record.run, record.attribution) == ("gpt-5", "r1", ACME)
    assert not record.overrun
    assert list(ledger.records()) == [record]
    assert counters(ledger, CUSTOMER) == {("acme",): (400, 0, 0)}
    assert ledger.holds() == []


def test_settling_twice_counts_once_and_returns_the_first_record(ledger):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold())
    first = ledger.settle(held.key, paid(400, usage={"input_tokens": 3}))
    assert ledger.settle(held.key, paid(400)) == first
    assert counters(ledger, CUSTOMER) == {("acme",): (400, 0, 0)}
    assert len(list(ledger.records())) == 1


def test_settling_at_another_cost_is_a_conflict(ledger):
    held = ledger.reserve(hold())
    ledger.settle(held.key, paid(400))
    with pytest.raises(ReservationClosed, match="settled at 400 nano-dollars, not at 401"):
        ledger.settle(held.key, paid(401))


def test_a_cost_above_the_hold_is_posted_marked_and_blocks_the_bucket(ledger):
    limit = (CUSTOMER, 10)
    held = ledger.reserve(hold(10, limit))
    assert ledger.settle(held.key, paid(17)).overrun
    assert counters(ledger, CUSTOMER) == {("acme",): (17, 0, 0)}
    assert isinstance(ledger.reserve(hold(0, limit)), Refused)


def test_releasing_gives_the_money_back_and_is_journalled(ledger):
    limit = (CUSTOMER, USD)
    held = ledger.reserve(hold(USD, limit))
    record = ledger.release(held.key, "HTTP 429")
    assert (record.kind, record.cost_nanos, record.calls) == ("released", 0, 0)
    assert record.detail == {"reason": "HTTP 429"}
    assert ledger.release(held.key, "again") == record
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)


def test_released_is_not_settled_nor_the_other_way_round(ledger):
    released, settled = ledger.reserve(hold()), ledger.reserve(hold())
    ledger.release(released.key, "refused connection")
    ledger.settle(settled.key, paid(1))
    with pytest.raises(ReservationClosed, match="was released"):
        ledger.settle(released.key, paid(0))
    with pytest.raises(ReservationClosed, match="was settled"):
        ledger.release(settled.key, "")


def test_unknown_keys(ledger):
    with pytest.raises(ReservationClosed, match="unknown"):
        ledger.settle("nobody", paid(1))
    with pytest.raises(ReservationClosed, match="unknown"):
        ledger.release("nobody", "")


def test_refusals_are_journalled_once_and_cost_nothing(ledger):
    request = hold(7)
    record = ledger.refuse(request, {"reason": "spent"})
    assert (record.kind, record.calls, record.cost_nanos) == ("refused", 0, 0)
    assert record.detail == {"needed_nanos": 7, "reason": "spent"}
    assert ledger.refuse(request, {"reason": "spent"}) == record
    assert list(ledger.records()) == [record]
    assert ledger.sums(("team",)) == []


# --- presume and correct


def test_stale_holds_are_presumed_spent(ledger, clock):
    ledger.declare([CUSTOMER])
    old = ledger.reserve(hold(USD))
    clock.now += HOUR_US
    young = ledger.reserve(hold(USD))
    [record] = ledger.presume(older_than_us=clock.now)
    assert (record.kind, record.key, record.cost_nanos, record.calls) == ("presumed", old.key, USD, 1)
    assert record.estimated_nanos == USD
    assert counters(ledger, CUSTOMER) == {("acme",): (0, USD, USD)}
    assert [(h.key, h.state) for h in ledger.holds()] == [(old.key, "presumed"), (young.key, "held")]
    assert ledger.presume(older_than_us=clock.now) == []


@pytest.mark.parametrize("truth", [0, USD // 3, USD, 2 * USD])
def test_a_late_truth_corrects_what_was_presumed(ledger, truth):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(USD))
    ledger.presume(older_than_us=NOON + 1)
    record = ledger.settle(held.key, paid(truth, usage={"input_tokens": 9}))
    assert (record.kind, record.cost_nanos, record.calls) == ("corrected", truth - USD, 0)
    assert record.overrun == (truth > USD)
    assert counters(ledger, CUSTOMER) == {("acme",): (truth, 0, 0)}
    assert ledger.settle(held.key, paid(truth)) == record
    with pytest.raises(ReservationClosed, match=f"settled at {truth} "):
        ledger.settle(held.key, paid(truth + 1))
    [row] = ledger.sums(())
    assert (row.cost_nanos, row.calls, row.input_tokens, row.estimated_nanos) == (truth, 1, 9, 0)
    assert ledger.check() == []


def test_releasing_what_was_presumed_takes_it_all_back(ledger):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(USD))
    ledger.presume(older_than_us=NOON + 1)
    record = ledger.release(held.key, "never sent")
    assert ledger.release(held.key, "never sent") == record
    assert counters(ledger, CUSTOMER) == {("acme",): (0, 0, 0)}
    [row] = ledger.sums(())
    assert (row.cost_nanos, row.calls, row.estimated_nanos) == (0, 0, 0)
    assert ledger.check() == []


def test_reserving_a_presumed_key_again_holds_nothing_new(ledger):
    ledger.declare([CUSTOMER])
    request = hold(USD)
    ledger.reserve(request)
    ledger.presume(older_than_us=NOON + 1)
    assert ledger.reserve(request).amount_nanos == USD
    assert counters(ledger, CUSTOMER) == {("acme",): (0, 0, USD)}


def test_a_presumed_call_without_a_hold_is_unpriced_until_its_truth_is_known(ledger):
    held = ledger.reserve(hold(0))
    ledger.presume(older_than_us=NOON + 1)
    assert ledger.sums(())[0].unpriced_calls == 1
    ledger.settle(held.key, paid(5))
    assert ledger.sums(())[0].unpriced_calls == 0


# --- windows and time


def test_a_new_day_has_a_new_bucket(ledger, clock):
    limit = (CUSTOMER_DAILY, USD)
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)
    clock.now += 12 * HOUR_US - 1
    assert isinstance(ledger.reserve(hold(1, limit)), Refused)
    clock.now += 1
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)
    [bucket] = ledger.buckets(CUSTOMER_DAILY)
    assert (bucket.window.start_us, bucket.held) == (clock.now, USD)


def test_a_call_belongs_to_the_window_in_which_it_was_reserved(ledger, clock):
    limit = (CUSTOMER_DAILY, USD)
    yesterday = ledger.reserve(hold(USD, limit))
    clock.now += 24 * HOUR_US
    ledger.settle(yesterday.key, paid(USD))
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)
    assert [r.cost_nanos for r in ledger.records(until_us=NOON + 1)] == [USD]
    assert ledger.sums((), since_us=clock.now)[0].cost_nanos == 0
    assert ledger.check() == []


def test_a_clock_that_steps_back_reopens_no_window(ledger, clock):
    limit = (CUSTOMER_DAILY, USD)
    clock.now += 24 * HOUR_US
    latest = clock.now
    assert isinstance(ledger.reserve(hold(USD, limit)), Held)
    clock.now = NOON
    assert ledger.now_us() == latest
    refused = ledger.reserve(hold(1, limit))
    assert isinstance(refused, Refused)
    assert refused.at_us == latest


def test_windows_follow_the_meters_time_zone(ledger, clock):
    berlin = Meter((), (), "day", "Europe/Berlin")
    ledger.declare([berlin])
    clock.now = NOON + 11 * HOUR_US  # midnight in Berlin
    ledger.reserve(hold(1))
    (bucket,) = ledger.buckets(berlin)
    assert (bucket.held, bucket.window.start_us) == (1, clock.now)


# --- meters


def test_a_new_meter_starts_with_this_windows_records_and_open_holds(ledger, clock):
    spend(ledger, 1)  # yesterday
    clock.now += 12 * HOUR_US
    spend(ledger, 10)
    spend(ledger, 20, attribution=Attribution({"customer": "beta"}))
    ledger.reserve(hold(100))
    ledger.reserve(hold(1000))
    lost = ledger.reserve(hold(10_000))
    ledger.presume(older_than_us=clock.now)
    clock.now += 1
    [*_] = ledger.presume(older_than_us=clock.now)
    late = ledger.reserve(hold(5))
    ledger.declare([CUSTOMER_DAILY, CUSTOMER])
    assert counters(ledger, CUSTOMER_DAILY) == {("acme",): (10, 5, 11_100), ("beta",): (20, 0, 0)}
    assert counters(ledger, CUSTOMER) == {("acme",): (11, 5, 11_100), ("beta",): (20, 0, 0)}
    ledger.settle(lost.key, paid(7))
    ledger.settle(late.key, paid(5))
    assert counters(ledger, CUSTOMER_DAILY) == {("acme",): (22, 0, 1100), ("beta",): (20, 0, 0)}
    assert ledger.check() == []


def test_a_limit_on_a_meter_nobody_declared_counts_what_was_spent_before(ledger):
    spend(ledger, USD)
    assert isinstance(ledger.reserve(hold(1, (CUSTOMER, USD))), Refused)


def test_a_hold_older_than_the_meters_window_is_no_part_of_it(ledger, clock):
    ledger.declare([CUSTOMER])
    yesterday = ledger.reserve(hold(USD))
    clock.now += 24 * HOUR_US
    ledger.declare([CUSTOMER_DAILY])
    ledger.settle(yesterday.key, paid(USD))
    assert counters(ledger, CUSTOMER_DAILY) == {}
    assert counters(ledger, CUSTOMER) == {("acme",): (USD, 0, 0)}
    assert ledger.check() == []


def test_declaring_again_changes_nothing(ledger):
    ledger.declare([CUSTOMER, CUSTOMER])
    spend(ledger, 5)
    ledger.declare([CUSTOMER])
    assert counters(ledger, CUSTOMER) == {("acme",): (5, 0, 0)}
    assert ledger.meters() == [CUSTOMER]


def test_meters_keep_their_identity_whatever_their_values_contain(ledger):
    odd = [
        Cap(1, where={"a": "1,b=2"}).meter("UTC"),
        Cap(1, where={"a": "1", "b": "2"}).meter("UTC"),
        Cap(1, where={"a": '"1" every day UTC'}).meter("UTC"),
    ]
    ledger.declare(odd)
    spend(ledger, 3, attribution=Attribution({"a": "1,b=2"}))
    assert [sum(b.spent for b in ledger.buckets(meter)) for meter in odd] == [3, 0, 0]
    assert ledger.meters() == odd


# --- reports


def test_records_by_time_and_run_in_the_order_written(ledger, clock):
    for i, run in enumerate(["a", "b", "a", None]):
        clock.now = NOON + i
        dimensions = {"run": run} if run else {}
        spend(ledger, i, attribution=Attribution(dimensions))
    costs = lambda **span: [r.cost_nanos for r in ledger.records(**span)]  # noqa: E731
    assert costs() == [0, 1, 2, 3]
    assert costs(run="a") == [0, 2]
    assert costs(since_us=NOON + 1, until_us=NOON + 3) == [1, 2]
    assert costs(since_us=NOON + 1, run="a") == [2]
    assert costs(since_us=NOON + 9) == []
    assert [r.seq for r in ledger.records()] == [1, 2, 3, 4]


def test_many_records_come_complete(ledger):
    for i in range(1_101):
        spend(ledger, i)
    assert [r.cost_nanos for r in ledger.records()] == list(range(1_101))


def varied_calls(ledger, clock):
    """About 60 calls over 5 hours, over teams, customers, agents, tools, models; some lost, late or released."""
    paths = [
        (),
        (("agent", "boss"),),
        DEEP.path,
        (("tool", "search"), ("agent", "x")),
    ]
    people = [
        {"team": "growth", "customer": "acme"},
        {"team": "growth"},
        {"customer": "beta", "run": "r2"},
        {},
    ]
    models = ["gpt-5", "claude"]
    for i, (path, dimensions, model) in enumerate(itertools.product(paths, people, models)):
        for repeat in range(2):
            clock.now += 331_000_000
            held = ledger.reserve(hold(100 + i, attribution=Attribution(dimensions, path), model=model))
            if (i + repeat) % 7 == 0:
                clock.now += 1
                ledger.presume(older_than_us=clock.now)
            if i % 11 == 0:
                ledger.release(held.key, "429")
            elif i % 5:
                usage = {"input_tokens": i, "output_tokens": 2 * i}
                unpriced = ("audio",) if i % 3 == 0 else ()
                ledger.settle(held.key, paid(50 + 3 * i, usage=usage, estimated_nanos=i, unpriced=unpriced))
    return clock.now


DIMENSIONS = ("team", "customer", "agent", "tool", "provider", "model", "run", "nothing")


def naive_sums(records, by):
    rows = defaultdict(lambda: [0, 0, 0, 0, 0])
    for r in records:
        special = {"provider": r.provider, "model": r.model}
        key = tuple(special.get(d) or r.attribution.value(d) for d in by)
        counts = (
            r.cost_nanos,
            r.calls,
            r.usage.get("input_tokens", 0),
            r.usage.get("output_tokens", 0),
            r.estimated_nanos,
        )
        rows[key] = [a + b for a, b in zip(rows[key], counts, strict=True)]
    return {key: row for key, row in rows.items() if any(row)}


@pytest.mark.parametrize(
    "by", [(), *itertools.combinations(DIMENSIONS, 1), *itertools.combinations(DIMENSIONS, 2)]
)
def test_rows_add_up_to_the_total_over_any_span(ledger, clock, by):
    end = varied_calls(ledger, clock)
    spans = [
        (0, None), (NOON, end + 1), (NOON + HOUR_US, NOON + 3 * HOUR_US), (NOON + HOUR_US // 3, end - HOUR_US // 7),
        (NOON + HOUR_US + 1, NOON + HOUR_US + 2_000_000_000), (end + HOUR_US, None), (NOON + 10, NOON + 10),
    ]  # fmt: skip
    for since, until in spans:
        records = list(ledger.records(since_us=since, until_us=until))
        sums = ledger.sums(by, since_us=since, until_us=until)
        found = {
            s.values: [s.cost_nanos, s.calls, s.input_tokens, s.output_tokens, s.estimated_nanos]
            for s in sums
        }
        expected = naive_sums(records, by)
        assert found == (expected if by else {(): [0] * 5} | expected)
        [total] = ledger.sums((), since_us=since, until_us=until)
        for name in (
            "cost_nanos",
            "calls",
            "input_tokens",
            "output_tokens",
            "estimated_nanos",
            "unpriced_calls",
        ):
            assert sum(getattr(s, name) for s in sums) == getattr(total, name)
        assert [s.cost_nanos for s in sums] == sorted((s.cost_nanos for s in sums), reverse=True)


@pytest.mark.parametrize(
    ("by", "where"),
    [
        (("model",), {"team": "growth"}),
        (("team",), {"model": "claude"}),
        (("team",), {"team": "(unattributed)"}),
        (("agent",), {"agent": "boss"}),
        (("customer",), {"agent": "boss", "team": "growth"}),
        ((), {"customer": "beta"}),
        ((), {"customer": "nobody"}),
        (("model",), {"run": "r2"}),
    ],
)
def test_where_keeps_the_rows_that_match(ledger, clock, by, where):
    end = varied_calls(ledger, clock)
    for span in ({}, {"since_us": NOON + HOUR_US // 2, "until_us": end - HOUR_US // 2}):
        everywhere = tuple(dict.fromkeys((*by, *where)))
        whole = [
            (dict(zip(everywhere, s.values, strict=True)), s.cost_nanos)
            for s in ledger.sums(everywhere, **span)
        ]
        expected = defaultdict(int)
        for key, cost in whole:
            if where.items() <= key.items():
                expected[tuple(key[d] for d in by)] += cost
        found = {s.values: s.cost_nanos for s in ledger.sums(by, where=where, **span)}
        assert found == (dict(expected) if by else {(): 0} | expected)


def test_counters_journal_and_holds_agree_after_all_that(ledger, clock):
    meters = [EVERYTHING, CUSTOMER, AGENT, Meter(("team", "model")), Meter(("tool",), (), "hour")]
    ledger.declare(meters)
    varied_calls(ledger, clock)
    open_holds = ledger.holds()
    [(spent, held, presumed)] = counters(ledger, EVERYTHING).values()
    assert held == sum(h.amount_nanos for h in open_holds if h.state == "held") > 0
    assert presumed == sum(h.amount_nanos for h in open_holds if h.state == "presumed") > 0
    assert spent + presumed == sum(r.cost_nanos for r in ledger.records()) == ledger.sums(())[0].cost_nanos
    assert ledger.check() == []


def test_sums_beyond_two_to_the_53_stay_exact(ledger):
    ledger.declare([CUSTOMER])
    big = 10**18
    for cost in (big, 1, big, 1, big, 1):
        spend(ledger, cost)
    assert counters(ledger, CUSTOMER) == {("acme",): (3 * big + 3, 0, 0)}
    assert ledger.sums(("customer",))[0].cost_nanos == 3 * big + 3
    assert ledger.sums(("customer", "team"))[0].cost_nanos == 3 * big + 3


# --- threads, closing, opening


def test_sixteen_threads_share_a_cap_worth_ten(ledger):
    limits = ((EVERYTHING, 10 * USD), (CUSTOMER, 10 * USD))
    admitted, start = [], threading.Barrier(16)

    def work():
        start.wait()
        for _ in range(8):
            outcome = ledger.reserve(hold(USD, *limits))
            if isinstance(outcome, Held):
                ledger.settle(outcome.key, paid(USD))
                admitted.append(outcome.key)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 10
    assert counters(ledger, EVERYTHING) == {(): (10 * USD, 0, 0)}
    assert ledger.check() == []


def test_one_key_settled_by_many_threads_counts_once(ledger):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(USD))
    records = []
    threads = [
        threading.Thread(target=lambda: records.append(ledger.settle(held.key, paid(3)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records == [records[0]] * 8
    assert counters(ledger, CUSTOMER) == {("acme",): (3, 0, 0)}


VERBS = {
    "reserve": lambda ledger: ledger.reserve(hold()),
    "settle": lambda ledger: ledger.settle("k", paid(1)),
    "correct": lambda ledger: ledger.correct("k", paid(1)),
    "release": lambda ledger: ledger.release("k", ""),
    "refuse": lambda ledger: ledger.refuse(hold(), {}),
    "presume": lambda ledger: ledger.presume(older_than_us=0),
    "declare": lambda ledger: ledger.declare([CUSTOMER]),
    "now_us": lambda ledger: ledger.now_us(),
    "meters": lambda ledger: ledger.meters(),
    "buckets": lambda ledger: ledger.buckets(EVERYTHING),
    "holds": lambda ledger: ledger.holds(),
    "records": lambda ledger: list(ledger.records()),
    "sums": lambda ledger: ledger.sums(()),
    "check": lambda ledger: ledger.check(),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_closed_ledger_says_so(ledger, verb):
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerUnavailable, match="is closed"):
        verb(ledger)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not known; use"),
        ("memory", "is not known; use"),
        ("sqlite://x.db", "is not known; use"),
        ("sqlite:///", "is not known; use"),
        ("mysql://x", "is not known; use"),
        ("redis://localhost:6379/0", "not available in this version"),
        ("postgresql://user:secret@host/db", "not available in this version"),
    ],
)
def test_an_unknown_url_names_the_forms(url, message):
    with pytest.raises(SettingsError, match=message) as caught:
        open_ledger(url)
    assert "sqlite:///maestro.db" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_check_reports_a_counter_that_is_wrong(ledger, monkeypatch):
    ledger.declare([CUSTOMER])
    spend(ledger, 5)
    if ledger.url == "memory:":
        next(iter(ledger._buckets.values()))[1][0] += 1
    else:
        with ledger._database.writing as connection:
            connection.execute("UPDATE buckets SET spent_nanos = 6")
    [line] = ledger.check()
    assert "customer" in line
    assert "spent is 6 nano-dollars, journal and holds say 5" in line


def test_the_owner_of_a_hold_is_this_process(ledger):
    ledger.reserve(hold())
    ledger.reserve(replace(hold(), key="other"))
    assert len({h.owner for h in ledger.holds()}) == 1


# --- correct


def test_a_correction_adds_the_difference_everywhere(ledger):
    ledger.declare([EVERYTHING, CUSTOMER_DAILY, AGENT])
    settled = spend(ledger, 5 * USD, DEEP, usage={"input_tokens": 7}, price_id="old")
    more = ledger.correct(settled.key, paid(6 * USD, price_id="new", price_book="book 2", sheet_nanos=9))
    assert (more.kind, more.cost_nanos, more.calls, dict(more.usage)) == ("corrected", USD, 0, {})
    assert (more.price_id, more.price_book, more.sheet_nanos) == ("new", "book 2", 9)
    assert (more.at, more.model, more.attribution, more.held_nanos) == (settled.at, "gpt-5", DEEP, 5 * USD)
    assert more.overrun
    less = ledger.correct(settled.key, paid(2 * USD))
    assert (less.cost_nanos, less.overrun) == (-4 * USD, False)
    for meter in (EVERYTHING, CUSTOMER_DAILY, AGENT):
        assert set(counters(ledger, meter).values()) == {(2 * USD, 0, 0)}
    [row] = ledger.sums(("agent",))
    assert (row.cost_nanos, row.calls, row.input_tokens) == (2 * USD, 1, 7)
    assert [r.kind for r in ledger.records()] == ["settled", "corrected", "corrected"]
    assert ledger.check() == []


def test_every_row_of_a_call_is_counted_when_it_was_reserved_and_dated_when_it_was_written(ledger, clock):
    ledger.declare([CUSTOMER_DAILY])
    keys = [ledger.reserve(hold(5)).key for _ in range(3)]
    clock.now += 24 * HOUR_US
    ledger.presume(keys=keys[:1])
    clock.now += 24 * HOUR_US
    returned = [
        ledger.settle(keys[0], paid(4)),
        ledger.settle(keys[1], paid(4)),
        ledger.release(keys[2], "never sent"),
    ]
    clock.now += 24 * HOUR_US
    returned.append(ledger.correct(keys[1], paid(3)))
    rows = list(ledger.records())
    assert rows[1:] == returned
    days = [
        (row.kind, (to_micros(row.at) - NOON) // DAY_US, (to_micros(row.written_at) - NOON) // DAY_US)
        for row in rows
    ]
    assert days == [
        ("presumed", 0, 1),
        ("corrected", 0, 2),
        ("settled", 0, 2),
        ("released", 0, 2),
        ("corrected", 0, 3),
    ]
    assert ledger.sums((), until_us=NOON + DAY_US)[0].cost_nanos == 7
    assert ledger.sums((), since_us=NOON + DAY_US)[0].cost_nanos == 0
    assert ledger.check() == []


def test_correcting_to_what_is_known_writes_nothing(ledger):
    settled = spend(ledger, 5)
    assert ledger.correct(settled.key, paid(5)) == settled
    corrected = ledger.correct(settled.key, paid(4))
    assert ledger.correct(settled.key, paid(4)) == corrected
    assert len(list(ledger.records())) == 2
    assert ledger.settle(settled.key, paid(5)) == settled  # what was said first is still idempotent


@pytest.mark.parametrize("held", [0, 5])
def test_an_unpriced_call_becomes_priced_and_back(ledger, held):
    reserved = ledger.reserve(hold(held))
    ledger.settle(reserved.key, paid(held, unpriced=("*",), estimated_nanos=held))
    for truth, expected in (
        (paid(3), (3, 0, 0)),
        (paid(3, unpriced=("audio",)), (3, 0, 1)),
        (paid(8, estimated_nanos=8, unpriced=("*",)), (8, 8, 1)),
        (paid(8), (8, 0, 0)),
    ):
        ledger.correct(reserved.key, truth)
        [row] = ledger.sums(())
        assert (row.cost_nanos, row.estimated_nanos, row.unpriced_calls, row.calls) == (*expected, 1)
    assert ledger.check() == []


@pytest.mark.parametrize("held", [0, 5])
def test_a_late_truth_can_be_corrected_too(ledger, clock, held):
    reserved = ledger.reserve(hold(held))
    ledger.presume(keys=[reserved.key])
    with pytest.raises(ReservationClosed):
        ledger.correct(reserved.key, paid(1))  # it may still be settled
    late = ledger.settle(reserved.key, paid(7))
    clock.now += 30 * HOUR_US
    assert ledger.correct(reserved.key, paid(2)).cost_nanos == -5
    assert ledger.settle(reserved.key, paid(7)) == late
    [row] = ledger.sums(())
    assert (row.cost_nanos, row.calls, row.unpriced_calls) == (2, 1, 0)
    assert ledger.check() == []


def test_only_a_settled_call_can_be_corrected(ledger):
    open_, released = hold(), hold()
    for each in (open_, released):
        ledger.reserve(each)
    ledger.release(released.key, "429")
    refused = ledger.refuse(hold(), {})
    for key in ("unknown", open_.key, released.key, refused.key):
        with pytest.raises(ReservationClosed, match="not settled"):
            ledger.correct(key, paid(1))


# --- notes


def test_a_note_is_written_by_the_first(ledger, clock):
    assert ledger.keep("k", "alert", {"by": "a", "n": [1, {"x": "ü"}]})
    assert not ledger.keep("k", "alert", {"by": "b"})
    (note,) = ledger.notes("alert")
    assert (note.key, note.kind, note.body, note.revision, note.at_us) == (
        "k", "alert", {"by": "a", "n": [1, {"x": "ü"}]}, 1, NOON,
    )  # fmt: skip


def test_a_note_is_changed_by_whoever_knows_it(ledger, clock):
    assert not ledger.keep("k", "state", {"n": 0}, revision=1)
    assert ledger.keep("k", "state", {"n": 1})
    clock.now += 5
    assert ledger.keep("k", "state", {"n": 2}, revision=1)
    assert not ledger.keep("k", "state", {"n": 3}, revision=1)
    (note,) = ledger.notes("state", key="k")
    assert (note.body, note.revision, note.at_us) == ({"n": 2}, 2, NOON + 5)


def test_notes_are_found_by_kind_key_and_time(ledger, clock):
    for n in range(3):
        ledger.keep(f"k{n}", "alert", {"n": n})
        clock.now += 10
    ledger.keep("other", "state", {})
    assert [note.key for note in ledger.notes("alert")] == ["k0", "k1", "k2"]
    assert [note.key for note in ledger.notes("alert", since_us=NOON + 10)] == ["k1", "k2"]
    assert [note.key for note in ledger.notes("alert", key="k1")] == ["k1"]
    assert ledger.notes("state", key="k1") == ledger.notes("alert", key="k9") == []


def test_one_of_many_writes_a_note(ledger):
    won = []

    def write(n):
        if ledger.keep("k", "alert", {"n": n}):
            won.append(n)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (note,) = ledger.notes("alert")
    assert won == [note.body["n"]]
