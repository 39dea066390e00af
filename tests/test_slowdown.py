"""What a router does when an endpoint becomes slow: simulated over a few seeds (`make drill` runs many), and over HTTP."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI

from maestro_core import SLA
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import RoutedChatModel

SEEDS = 10


@pytest.fixture(scope="module")
def drill():
    spec = spec_from_file_location("slowdown_drill", Path(__file__).parent / "drills/slowdown.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def runs(drill):
    return [drill.simulate(seed) for seed in range(SEEDS)]


def test_a_slow_endpoint_is_left_within_forty_calls(drill, runs):
    assert drill.percentile([run.calls_until_diverted for run in runs], 0.9) <= 40


def test_the_sla_is_missed_by_few_calls_before_and_after(runs):
    assert max(run.missed_before for run in runs) <= 0.05
    assert max(run.missed_after for run in runs) <= 0.05


def test_the_dearest_is_never_chosen_while_a_cheaper_one_meets_the_sla(runs):
    assert [run.dear for run in runs] == [0] * SEEDS


def test_the_slow_one_is_tried_again_and_taken_back_when_it_is_well(drill):
    simulation = drill.Simulation(seed=1)
    for _ in range(drill.BEFORE):
        assert simulation.call()[0] == "cheap"
    simulation.median_ms["cheap"] *= drill.FACTOR
    during = [simulation.call() for _ in range(drill.AFTER)]
    asked = sum(chosen == "cheap" for chosen, *_ in during[60:])
    assert 1 <= asked <= drill.AFTER / 50, "at most one call in fifty looks whether it still is"
    simulation.median_ms["cheap"] = drill.USUAL_MS["cheap"]
    after = [simulation.call()[0] for _ in range(4 * drill.AFTER)]
    simulation.maestro.close()
    assert set(after[-20:]) == {"cheap"}


def test_without_an_sla_nobody_cares(drill):
    simulation = drill.Simulation(seed=2)
    simulation.ask = drill.Ask(input="How do batteries age?", max_output_tokens=200)
    simulation.median_ms["cheap"] *= 10
    assert {simulation.call()[0] for _ in range(100)} == {"cheap"}
    simulation.maestro.close()


class Provider:
    """A stand-in whose answers take as long as it says, on the router's clock."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __call__(self, request):
        self.clock.advance(self.seconds)
        return Reply(text="fine", input_tokens=40, output_tokens=20)


def test_a_slow_endpoint_over_http_is_left_for_the_next_cheapest(make_maestro, fake_clock):
    with ExitStack() as stack:
        latencies = {"gpt-5-nano": 0.8, "gpt-5-mini": 0.9, "gpt-5": 0.5}
        answers = {model: Provider(fake_clock, seconds) for model, seconds in latencies.items()}
        providers = [
            stack.enter_context(FakeProvider(answers[model], keep_alive=False)) for model in latencies
        ]
        endpoints = [
            ChatOpenAI(model=model, base_url=provider.openai_url, api_key="none", max_tokens=50)
            for model, provider in zip(latencies, providers, strict=True)
        ]
        model = RoutedChatModel(endpoints=endpoints, sla=SLA(latency_ms_p95=3_000), maestro=make_maestro())

        def chosen():
            return model.invoke("Hello").response_metadata["maestro"]["chosen"]

        chosen()  # makes the router
        model._router.now_s = lambda: fake_clock.now_us() / 1e6
        model.maestro.learned.health.clear()  # what was learned on the other clock
        assert {chosen() for _ in range(8)} == {"gpt-5-nano"}
        answers["gpt-5-nano"].seconds *= 5
        after = [chosen() for _ in range(20)]
        assert after[0] == "gpt-5-nano"
        assert after[-1] == "gpt-5-mini"
        assert after == sorted(after, key=list(latencies).index), "it does not go back and forth"
        assert len(providers[2].requests) == 0, "never the dearest while a cheaper one meets the SLA"
        bills = sum(provider.bill_nanos for provider in providers)
        assert sum(each.cost_nanos for each in model.maestro.ledger.sums(())) == bills
