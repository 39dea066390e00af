"""Metrics as a reader gets them: money to the nano-dollar, whatever the sampler says, in few series."""

from __future__ import annotations

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from maestro_core import Cap, CapExceeded, Maestro, attribution
from maestro_core.money import to_usd
from maestro_core.telemetry import guard
from maestro_core.testing import Reply
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler, RoutedChatModel


class Read:
    """What the reader has now: metric -> [(attributes, value or histogram point)]."""

    def __init__(self, reader):
        self._reader = reader

    def __getitem__(self, name):
        data = self._reader.get_metrics_data()
        return [
            (dict(point.attributes), getattr(point, "value", point))
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name):
        return sum(value for _, value in self[name])


@pytest.fixture
def read(monkeypatch):
    """The user's own meter provider."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", provider)
    assert metrics.get_meter_provider() is provider
    yield Read(reader)
    provider.shutdown()


def ask(agent, maestro, team="growth"):
    with attribution(team=team, feature="search", customer="acme"):
        agent.invoke({"messages": [("user", "go")]}, config={"callbacks": [MaestroCallbackHandler(maestro)]})


def test_the_cost_counters_are_the_bill(read, researcher, provider, make_maestro):
    maestro = make_maestro()
    ask(researcher, maestro)
    ask(researcher, maestro, team="sales")
    for name in ("maestro.cost.usd", "maestro.cost.agent.usd"):
        assert to_usd(round(read.total(name) * 1e9)) == provider.bill == maestro.report(since="all").total
    assert {labels["maestro.team"] for labels, _ in read["maestro.cost.usd"]} == {"growth", "sales"}
    (first, _), *_ = read["maestro.cost.usd"]
    assert first["gen_ai.provider.name"] == "openai"
    assert first["maestro.cost.source"] == "local"
    assert {labels["gen_ai.agent.name"] for labels, _ in read["maestro.cost.agent.usd"]} == {"researcher"}


def test_no_metric_names_a_customer_or_a_run(read, researcher, make_maestro):
    ask(researcher, make_maestro(caps=[Cap("1", per="run")]))
    for name in (
        "maestro.cost.usd",
        "maestro.cost.agent.usd",
        "gen_ai.client.token.usage",
        "maestro.cap.used_ratio",
    ):
        assert read[name]
        for labels, _ in read[name]:
            assert not {"maestro.customer", "maestro.run", "gen_ai.conversation.id"} & labels.keys()
            assert "acme" not in str(labels)


def test_money_is_right_when_one_trace_in_ten_is_sampled(
    read, researcher, provider, make_maestro, monkeypatch
):
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=TraceIdRatioBased(0.1), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    maestro = make_maestro()
    for _ in range(12):
        ask(researcher, maestro)
    seen = sum(s.attributes.get("maestro.cost.nano_usd", 0) for s in exporter.get_finished_spans())
    assert seen < provider.bill_nanos  # twelve traces of twelve would be one chance in 10^12
    assert round(read.total("maestro.cost.usd") * 1e9) == provider.bill_nanos


def test_tokens_and_durations(read, researcher, make_maestro):
    ask(researcher, make_maestro())
    tokens = {labels["gen_ai.token.type"]: point for labels, point in read["gen_ai.client.token.usage"]}
    assert (tokens["input"].sum, tokens["output"].sum) == (2_200, 140)
    ((labels, point),) = read["gen_ai.client.operation.duration"]
    assert point.count == 2
    assert labels["gen_ai.operation.name"] == "chat"
    assert point.explicit_bounds[:3] == (0.01, 0.02, 0.04)


def test_a_stream_has_a_time_to_its_first_chunk(read, openai, make_maestro):
    handler = MaestroCallbackHandler(make_maestro())
    list(openai().stream("hello", config={"callbacks": [handler]}))
    ((_, point),) = read["gen_ai.client.operation.time_to_first_chunk"]
    assert point.count == 1


def test_a_failed_call_has_a_duration_with_its_error(read, provider, openai, make_maestro):
    provider.reply = Reply(status=503)
    with pytest.raises(Exception, match="503"):
        openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    ((labels, _),) = read["gen_ai.client.operation.duration"]
    assert labels["error.type"] == "OpenAIAPIError"
    assert not read["maestro.cost.usd"]


def test_newer_names_are_one_switch_away(read, openai, make_maestro, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")
    openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    assert read["gen_ai.client.inference.duration"]
    assert not read["gen_ai.client.operation.duration"]


def test_refusals_and_headroom(read, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.01"), Cap("5", per="team")])
    maestro.call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=100)
    with pytest.raises(CapExceeded):
        openai(max_tokens=10_000).invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    openai(max_tokens=100).invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    ((labels, count),) = read["maestro.refusals"]
    assert (labels["maestro.reason"], labels["maestro.cap"], count) == ("ceiling", "$0.01", 1)
    headroom = {labels["maestro.cap"]: value for labels, value in read["maestro.cap.headroom.usd"]}
    assert headroom.keys() == {"$0.01", "$5.00 per team"}
    assert 0 < headroom["$0.01"] < 0.01


def test_caps_of_one_customer_each_name_none_of_them(read, openai, make_maestro):
    plans = [
        Cap(limit, where={"customer": name}, every="day")
        for name, limit in (("acme", "0.01"), ("zeta", "0.01"))
    ]
    maestro = make_maestro(caps=[*plans, Cap("5", where={"team": "growth"})])
    with attribution(customer="acme", team="growth"), pytest.raises(CapExceeded):
        openai(max_tokens=10_000).invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    with attribution(customer="zeta", team="growth"):
        openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    ((labels, _),) = read["maestro.refusals"]
    assert labels["maestro.cap"] == "$0.01 where customer=* every day"
    headroom = {labels["maestro.cap"]: value for labels, value in read["maestro.cap.headroom.usd"]}
    assert headroom.keys() == {"$0.01 where customer=* every day", "$5.00 where team=growth"}
    assert headroom["$0.01 where customer=* every day"] < 0.01  # of the customer that is nearest to it


def test_too_many_teams_fold_without_losing_a_cent(read, make_maestro):
    maestro = make_maestro()
    for i in range(1_100):
        with attribution(team=f"team-{i}"):
            reservation = maestro.reserve(
                Call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=10)
            )
            maestro.settle(reservation, {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
    points = read["maestro.cost.usd"]
    assert len(points) <= 1_001
    assert to_usd(round(sum(value for _, value in points) * 1e9)) == maestro.report(since="all").total
    assert any(labels["maestro.team"] == "(other)" for labels, _ in points)


def test_a_late_truth_that_is_lower_is_a_correction(read, make_maestro):
    maestro = make_maestro()
    reservation = maestro.reserve(
        Call(provider="openai", model="gpt-5-mini", input="x" * 1_000, max_output_tokens=1_000)
    )
    maestro.presume([reservation.key])
    maestro.settle(reservation, {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
    net = read.total("maestro.cost.usd") - read.total("maestro.cost.corrections.usd")
    assert to_usd(round(net * 1e9)) == maestro.report(since="all").total


def test_decisions_and_failovers(read, provider, openai, make_maestro):
    provider.reply = lambda request: (
        Reply(status=500) if request.model == "gpt-5-nano" else Reply(text="fine")
    )
    endpoints = [openai(model="gpt-5-nano"), openai(model="gpt-5-mini")]
    RoutedChatModel(endpoints=endpoints, maestro=make_maestro()).invoke("hello")
    assert [(labels["maestro.endpoint"], count) for labels, count in read["maestro.decisions"]] == [
        ("gpt-5-mini", 1)
    ]
    ((labels, count),) = read["maestro.failovers"]
    assert (labels["maestro.endpoint"], labels["maestro.reason"], count) == ("gpt-5-nano", "server_error", 1)


def test_two_maestros_add_up(read, researcher, provider, make_maestro):
    ask(researcher, make_maestro())
    ask(researcher, make_maestro())
    assert round(read.total("maestro.cost.usd") * 1e9) == provider.bill_nanos


def test_a_broken_meter_provider_stops_nothing(openai, make_maestro, monkeypatch, caplog):
    class Broken(MeterProvider):
        def get_meter(self, *args, **kwargs):
            raise RuntimeError("no meters today")

    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", Broken())
    monkeypatch.setattr(guard, "_told", set())
    maestro = make_maestro()
    openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert maestro.report(since="all").total > 0
    assert "telemetry failed" in caplog.text


def test_an_instance_that_is_gone_is_not_kept_alive(read, make_maestro):
    import gc
    import weakref

    maestro = Maestro(ledger="memory:", caps=[Cap("1")])
    with maestro.call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=10):
        pass
    gone = weakref.ref(maestro)
    maestro.close()
    del maestro
    gc.collect()
    assert gone() is None
    assert read["maestro.cap.headroom.usd"] == []
