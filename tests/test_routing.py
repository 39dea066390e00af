"""The decision as a pure function: stages, order, relaxation, and what endpoints teach."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core import SLA, Endpoint, sla
from maestro_core.cachestate import CacheState, Seen, beginnings
from maestro_core.endpoints import asked, named
from maestro_core.health import Breaker, Errors, LogNormal, Prior
from maestro_core.routing import STAGES, decide
from maestro_core.types import Candidate, Decision


def candidate(name="mini", **known) -> Candidate:
    return Candidate(**{"name": name, "provider": "openai", "model": name, "cost_nanos": 1_000, **known})


def verdict(sla=None, **known) -> str:
    return decide([candidate(**known)], sla or SLA()).candidates[0].verdict


# -- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "asks", "said"),
    [
        ({}, {}, "ok"),
        ({"rule": "deny acme"}, {}, "rule:deny acme"),
        ({"lacks": ("images", "tools")}, {}, "needs:images,tools"),
        ({"input_tokens": 38_000, "context_tokens": 32_000}, {}, "context:38k>32k"),
        ({"input_tokens": 32_000, "context_tokens": 32_000}, {}, "ok"),
        ({"quality": 0.71}, {"quality_min": 0.8}, "quality:0.71<0.80"),
        ({"quality": 0.8}, {"quality_min": 0.8}, "ok"),
        ({}, {"quality_min": 0.8}, "quality:undeclared<0.80"),
        ({"health": "breaker:open 12s"}, {}, "breaker:open 12s"),
        ({"tried": "timeout"}, {}, "failed:timeout"),
        ({"budget": "need $0.03 left $0.02"}, {}, "budget:need $0.03 left $0.02"),
        ({"latency_ms_p95": 4_100, "latency_chance": 0.8}, {"latency_ms_p95": 3_000}, "sla:p95 4.1s>3.0s"),
        ({"latency_ms_p95": 2_900, "latency_chance": 0.96}, {"latency_ms_p95": 3_000}, "ok"),
        ({"latency_ms_p95": 9_000, "latency_chance": 0.1}, {}, "ok"),
        ({"ttft_ms_p95": 900, "ttft_chance": 0.5}, {"ttft_ms_p95": 500}, "sla:ttft p95 900ms>500ms"),
        ({"error_rate": 0.2, "error_rate_least": 0.1}, {"error_rate_max": 0.02}, "sla:errors 20.0%>2.0%"),
    ],
)
def test_each_stage_says_why(known, asks, said):
    assert verdict(SLA(**asks), **known) == said


def test_the_first_reason_is_the_verdict():
    wrong = {"rule": "r", "lacks": ("tools",), "health": "breaker:open 1s", "budget": "none"}
    assert verdict(SLA(quality_min=1), **wrong) == "rule:r"


def test_the_cheapest_that_qualifies_is_chosen_and_the_rest_stand_by():
    found = decide(
        [
            candidate("dear", cost_nanos=9),
            candidate("cheap", cost_nanos=2),
            candidate("middle", cost_nanos=5),
        ],
        SLA(),
    )
    assert (found.chosen, found.ranking, found.runner_up) == ("cheap", ("cheap", "middle", "dear"), "middle")
    assert found.margin_nanos == 3


def test_between_equals_the_first_declared_is_chosen():
    same = [candidate(name, cost_nanos=7) for name in ("b", "a", "c")]
    assert decide(same, SLA()).ranking == ("b", "a", "c")


def test_an_unknown_price_is_not_a_low_one():
    found = decide([candidate("unknown", cost_nanos=None), candidate("dear", cost_nanos=10**12)], SLA())
    assert found.chosen == "dear"
    assert found.margin_nanos is None


def test_a_warm_cache_is_part_of_the_price():
    """What is decided is the true cost of this call; the list price has no say."""
    warm = candidate("strong", cost_nanos=16_000, warm_tokens=30_000)
    found = decide([warm, candidate("weak", cost_nanos=30_000)], SLA())
    assert found.chosen == "strong"
    assert "30k tokens of it cached" in found.why


def test_the_sla_is_relaxed_where_nobody_meets_it_and_the_likeliest_to_is_asked():
    slow = [
        candidate("slower", cost_nanos=1, latency_ms_p95=9_000, latency_chance=0.1),
        candidate("slow", cost_nanos=5, latency_ms_p95=4_000, latency_chance=0.7),
    ]
    found = decide(slow, SLA(latency_ms_p95=3_000))
    assert (found.chosen, found.relaxed) == ("slow", ("sla",))


def test_endpoints_that_miss_the_sla_still_stand_by_for_a_failover():
    late = candidate("late", cost_nanos=1, latency_ms_p95=9_000, latency_chance=0.1)
    found = decide([late, candidate("prompt", cost_nanos=9)], SLA(latency_ms_p95=3_000))
    assert (found.ranking, found.relaxed) == (("prompt", "late"), ())


@pytest.mark.parametrize(
    "against", [{"rule": "r"}, {"lacks": ("tools",)}, {"quality": 0.5}, {"health": "breaker:open 1s"}]
)
def test_nothing_but_the_sla_is_ever_relaxed(against):
    found = decide([candidate(**{"quality": 1.0, **against})], SLA(quality_min=0.9))
    assert (found.chosen, found.ranking) == ("", ())


# -- any candidates ---------------------------------------------------------------------------------------------------

share = st.none() | st.floats(0, 1)
candidates = st.lists(
    st.builds(
        candidate,
        name=st.uuids().map(str),
        rule=st.sampled_from(["", "", "", "deny"]),
        lacks=st.sampled_from([(), (), ("tools",)]),
        quality=share,
        health=st.sampled_from(["", "", "breaker:open 3s"]),
        latency_ms_p95=st.integers(1, 10**5),
        latency_chance=share,
        error_rate_least=st.floats(0, 1),
        cost_nanos=st.none() | st.integers(0, 10**9),
        budget=st.sampled_from(["", "", "need $1 left $0"]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda each: each.name,
)
slas = st.builds(SLA, latency_ms_p95=st.none() | st.floats(1, 1e5), quality_min=share, error_rate_max=share)


@given(candidates, slas)
def test_the_chosen_one_has_nothing_against_it_and_nobody_cheaper_has_neither(found, wanted):
    decision = decide(found, wanted)
    seen = {each.name: each for each in decision.candidates}
    ok = [each for each in decision.candidates if each.verdict == "ok"]
    if ok:
        chosen = seen[decision.chosen]
        assert chosen.verdict == "ok"
        assert all(
            (each.cost_nanos is None, each.cost_nanos or 0)
            >= (chosen.cost_nanos is None, chosen.cost_nanos or 0)
            for each in ok
        )
    for name in decision.ranking:
        assert seen[name].verdict == "ok" or seen[name].verdict.startswith("sla:")
        if wanted.quality_min is not None:
            assert (seen[name].quality or 0) >= wanted.quality_min


@given(candidates, slas, st.booleans())
def test_a_decision_read_from_its_record_is_the_same_again(found, wanted, exploring):
    decision = decide(found, wanted, explore=found[-1].name if exploring else "")
    read = Decision.from_dict(json.loads(json.dumps(decision.to_dict())))
    assert read == decision
    assert decide(read.candidates, read.sla, explore=read.explore) == decision


@given(candidates, slas)
def test_every_candidate_is_judged_by_the_stages_in_their_order(found, wanted):
    for each in decide(found, wanted).candidates:
        said = [reason for stage in STAGES if (reason := stage(each, wanted))]
        assert each.verdict == (said[0] if said else "ok")


# -- what is asked ----------------------------------------------------------------------------------------------------


def test_what_is_bound_to_a_call_comes_first_then_the_block_then_the_models_own():
    own = SLA(latency_ms_p95=4_000, quality_min=0.5)
    with sla(quality_min=0.8), sla(error_rate_max=0.1):
        assert asked(own) == SLA(latency_ms_p95=4_000, quality_min=0.8, error_rate_max=0.1)
        assert asked(own, SLA(quality_min=0.9)).quality_min == 0.9
    assert asked(own) == own


@pytest.mark.parametrize(
    "wrong", [{"quality_min": 1.5}, {"error_rate_max": -0.1}, {"latency_ms_p95": 0}, {"ttft_ms_p95": -1}]
)
def test_a_number_out_of_range_is_told(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SLA(**wrong)


def test_endpoints_are_named_by_their_models_and_numbered():
    found = named([Endpoint(None), Endpoint(None, name="eu"), Endpoint(None)], ["gpt-5", "gpt-5", "gpt-5"])
    assert found == ["gpt-5", "eu", "gpt-5#2"]
    with pytest.raises(ValueError, match="two endpoints are named 'eu'"):
        named([Endpoint(None, name="eu"), Endpoint(None, name="eu")], ["a", "b"])


# -- latency ----------------------------------------------------------------------------------------------------------


def learned(samples, now_s=0.0) -> LogNormal:
    found = LogNormal()
    for sample in samples:
        found.add(sample, now_s)
    return found


def test_the_95th_percentile_is_learned():
    chance = random.Random(1)
    found = learned(chance.lognormvariate(math.log(1_000), 0.4) for _ in range(400))
    true = 1_000 * math.exp(0.4 * 1.645)
    assert found.forecast(None, 0).p95_ms == pytest.approx(true, rel=0.35)


def test_what_was_declared_holds_until_calls_say_otherwise():
    declared = Prior.of_p95(2_000)
    nothing = LogNormal().forecast(declared, 0)
    assert nothing.p95_ms == 2_000
    assert nothing.chance(2_000) == pytest.approx(0.95)
    assert learned([6_000] * 40).forecast(declared, 0).p95_ms > 4_500


def test_of_an_endpoint_that_was_never_asked_nothing_is_said():
    assert LogNormal().forecast(None, 0) is None


def test_few_calls_are_less_sure_than_many():
    few, many = (learned([800, 1_200] * n).forecast(None, 0) for n in (1, 30))
    assert few.chance(2_000) < many.chance(2_000)


def test_what_was_learned_is_forgotten_with_time():
    found = learned([1_000] * 40)
    assert found.known(0) > 20
    assert found.known(600) == pytest.approx(found.known(0) / 2)
    assert found.forecast(None, 24 * 3_600) is None


@pytest.mark.parametrize("seed", range(20))
def test_an_endpoint_that_slows_down_is_left_within_40_calls(seed):
    chance = random.Random(seed)
    found = learned(chance.lognormvariate(math.log(1_000), 0.3) for _ in range(300))
    assert found.forecast(None, 0).chance(2_400) >= 0.95
    for _ in range(40):
        found.add(2.5 * chance.lognormvariate(math.log(1_000), 0.3), 0)
        if found.forecast(None, 0).chance(2_400) < 0.95:
            return
    pytest.fail("it still counted as quick enough")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_one_failure_does_not_show_that_an_endpoint_fails_too_often():
    found = Errors()
    for _ in range(60):
        found.add(0, failed=False)
    found.add(0, failed=True)
    assert found.least(0) < 0.02
    for _ in range(3):
        found.add(0, failed=True)
    assert found.least(0) > 0.02


# -- breakers ---------------------------------------------------------------------------------------------------------

CHANCE = random.Random(0)


def tripped(now_s=0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(now_s, probe=False, chance=CHANCE)
    return breaker


def test_three_failures_in_a_row_open_a_breaker():
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(0, probe=False, chance=CHANCE)
        assert breaker.enter(0) is False
    breaker.failed(0, probe=False, chance=CHANCE)
    assert breaker.enter(0) is None
    assert breaker.says(0).startswith("breaker:open")


def test_half_of_the_calls_failing_opens_it_too():
    breaker = Breaker()
    for _ in range(20):
        breaker.failed(0, probe=False, chance=CHANCE)
        breaker.succeeded(0, probe=False)
    assert breaker.says(0).startswith("breaker:open")


def test_one_probe_decides_whether_it_closes():
    breaker = tripped()
    at_s = breaker.opens_at_s(0)
    assert breaker.enter(at_s) is True
    assert breaker.enter(at_s) is None
    assert breaker.says(at_s) == "breaker:probing"
    breaker.succeeded(at_s, probe=True)
    assert breaker.enter(at_s) is False


def test_each_failed_probe_keeps_it_open_for_longer():
    breaker, now_s, spans = tripped(), 0.0, []
    for _ in range(4):
        spans.append(breaker.opens_at_s(now_s) - now_s)
        now_s = breaker.opens_at_s(now_s)
        assert breaker.enter(now_s) is True
        breaker.failed(now_s, probe=True, chance=CHANCE)
    assert spans == sorted(spans)
    assert spans[-1] > 4 * spans[0]


def test_an_endpoint_that_stands_alone_is_asked_again_sooner():
    breaker, now_s = tripped(), 0.0
    for _ in range(6):
        now_s = breaker.opens_at_s(now_s)
        assert breaker.enter(now_s) is True
        breaker.failed(now_s, probe=True, chance=CHANCE, alone=True)
        assert breaker.opens_at_s(now_s) - now_s <= 6


def test_an_answer_to_a_call_from_before_does_not_close_it():
    breaker = tripped()
    breaker.succeeded(1, probe=False)
    assert breaker.enter(1) is None


def test_a_probe_that_is_given_up_makes_room_for_another():
    breaker = tripped()
    at_s = breaker.opens_at_s(0)
    assert breaker.enter(at_s) is True
    breaker.leave(probe=True)
    assert breaker.enter(at_s) is True


def test_retry_after_is_kept_to_the_second_and_is_no_failure():
    breaker = Breaker()
    breaker.pause(12.0)
    assert breaker.says(0) == "breaker:rate limited 12s"
    assert breaker.enter(11.99) is None
    assert breaker.enter(12.0) is True
    assert (breaker.row, breaker.trips) == (0, 0)


def test_after_a_pause_one_call_goes_first():
    breaker = Breaker()
    breaker.pause(12.0)
    assert [breaker.enter(12.0) for _ in range(3)] == [True, None, None]
    assert breaker.says(12.1) == "breaker:probing"
    assert breaker.limited, "it is worth waiting for"
    assert breaker.opens_at_s(12.1) == 12.1, "a probe may end at any moment"
    breaker.succeeded(12.2, probe=True)
    assert [breaker.enter(12.2) for _ in range(3)] == [False] * 3


def test_a_probe_that_is_refused_pauses_it_anew():
    breaker = Breaker()
    for end_s in (12.0, 20.0, 30.0):
        breaker.pause(end_s)
        assert breaker.enter(end_s - 0.1) is None
        assert breaker.enter(end_s) is True
        assert breaker.enter(end_s) is None


def test_a_probe_that_is_not_refused_at_once_was_let_in():
    """Its answer may take minutes; those who wait for it need not."""
    breaker = Breaker()
    breaker.pause(12.0)
    assert breaker.enter(12.0) is True
    assert breaker.enter(13.9) is None
    assert [breaker.enter(14.0) for _ in range(3)] == [False] * 3
    breaker.succeeded(90.0, probe=True)
    assert breaker.enter(90.0) is False


def test_where_others_serve_the_calls_a_probe_after_a_pause_has_as_long_as_its_answer_takes():
    breaker = Breaker()
    breaker.pause(12.0)
    assert breaker.enter(12.0, let_in_s=8.0) is True
    assert [breaker.enter(each) for each in (14.0, 19.9)] == [None, None]
    assert breaker.enter(20.0) is False


def test_a_probe_after_a_pause_that_is_given_up_makes_room_for_another():
    breaker = Breaker()
    breaker.pause(12.0)
    assert breaker.enter(12.0) is True
    breaker.leave(probe=True)
    assert [breaker.enter(50.0) for _ in range(2)] == [True, None]


def test_a_probe_after_a_pause_that_fails_otherwise_is_one_failure():
    breaker = Breaker()
    breaker.pause(12.0)
    for now_s in (12.0, 13.0):
        assert breaker.enter(now_s) is True
        breaker.failed(now_s, probe=True, chance=CHANCE)
        assert breaker.limited
    assert breaker.enter(14.0) is True
    breaker.failed(14.0, probe=True, chance=CHANCE)
    assert breaker.says(14.0).startswith("breaker:open"), "three in a row"


def test_a_pause_that_was_asked_for_since_outlasts_the_answer_to_a_probe():
    breaker = Breaker()
    breaker.pause(12.0)
    assert breaker.enter(12.0) is True
    breaker.pause(15.0)  # a call from before was refused
    breaker.succeeded(12.5, probe=True)
    assert breaker.enter(14.9) is None
    assert [breaker.enter(15.0) for _ in range(2)] == [True, None]


def test_an_answer_to_a_call_from_before_does_not_end_a_pause():
    breaker = Breaker()
    breaker.pause(12.0)
    breaker.succeeded(12.5, probe=False)
    assert [breaker.enter(13.0) for _ in range(2)] == [True, None]


def test_a_pause_of_an_open_breaker_needs_one_probe_for_both():
    breaker = tripped()
    breaker.pause(60.0)
    assert not breaker.limited
    assert [breaker.enter(60.0) for _ in range(2)] == [True, None]
    breaker.succeeded(61.0, probe=True)
    assert [breaker.enter(61.0) for _ in range(2)] == [False] * 2


def test_rejected_credentials_keep_it_open_for_good():
    breaker = Breaker()
    breaker.shut(math.inf)
    assert breaker.says(10**9) == "breaker:open until its credentials change"


# -- caches -----------------------------------------------------------------------------------------------------------


def said(*texts):
    return [{"role": "user", "content": text} for text in texts]


def read(tokens, *, read_tokens=0, written_tokens=0, implicit=True) -> Seen:
    return Seen(
        input_tokens=tokens,
        read_tokens=read_tokens,
        written_tokens=written_tokens,
        implicit=implicit,
        ttl_s=300,
    )


def test_the_beginning_of_a_conversation_is_warm_where_it_was_served():
    state = CacheState()
    state.learn("a", beginnings((), said("one")), read(10_000), now_s=0)
    longer = beginnings((), said("one", "two", "three"))
    assert state.expected(["a", "b"], longer, 1) == {"a": 9_000}  # not quite sure that it is still there
    assert state.expected(["a"], longer, 301) == {}
    assert state.expected(["a"], beginnings((), said("other")), 1) == {}
    assert state.expected(["a"], beginnings(["a tool"], said("one")), 1) == {}


def test_a_short_prompt_is_not_kept_and_neither_is_one_without_a_mark():
    state = CacheState()
    chain = beginnings((), said("one"))
    state.learn("a", chain, read(500), now_s=0)
    state.learn("b", chain, read(10_000, implicit=False), now_s=0)
    state.learn("c", chain, read(10_000, written_tokens=8_000, implicit=False), now_s=0)
    assert state.expected(["a", "b", "c"], chain, 1) == {"c": 7_200}


def test_replies_correct_what_is_expected_of_a_cache():
    state = CacheState()
    for turn in range(1, 30):
        chain = beginnings((), said(*map(str, range(turn))))
        state.learn("lost", chain, read(10_000), now_s=turn)
        state.learn("kept", chain, read(10_000, read_tokens=10_000), now_s=turn)
    found = state.expected(["lost", "kept"], chain, 30)
    assert found["lost"] < 2_000
    assert found["kept"] > 9_700


@given(st.lists(st.text(), max_size=6), st.lists(st.text(), max_size=6))
def test_only_a_shared_beginning_is_warm(first, second):
    state = CacheState()
    state.learn("a", beginnings((), said(*first)), read(5_000), now_s=0)
    found = state.expected(["a"], beginnings((), said(*second)), 1)
    assert bool(found) == (bool(first) and second[: len(first)] == first)


def test_candidates_keep_what_they_were_told():
    """A verdict of another time has no say."""
    stale = replace(candidate(), verdict="breaker:open 5s")
    assert decide([stale], SLA()).candidates[0].verdict == "ok"
