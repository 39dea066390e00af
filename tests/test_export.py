"""Delivery over OTLP with providers of our own: what arrives, what is lost, and that a dead backend stops nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from receiver import GrpcReceiver, HttpReceiver, value

from maestro_core import Cap, CapExceeded, attribution, hookimpl
from maestro_core.telemetry import export
from maestro_core.testing import Reply
from maestro_core.types import Attribution
from maestro_langchain import MaestroCallbackHandler


@pytest.fixture
def ask(researcher):
    """Run an agent that calls its model twice and its tool once."""

    def run(maestro):
        with attribution(team="growth"):
            researcher.invoke(
                {"messages": [("user", "go")]}, config={"callbacks": [MaestroCallbackHandler(maestro)]}
            )

    return run


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_and_metrics_arrive(ask, provider, make_maestro, monkeypatch, protocol):
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        maestro = make_maestro()
        ask(maestro)
        maestro.close()
    by_name = {span.name: span for span in receiver.spans}
    assert sorted(span.name for span in receiver.spans) == [
        "chat gpt-5-mini", "chat gpt-5-mini", "execute_tool search", "invoke_agent researcher",
    ]  # fmt: skip
    agent = by_name["invoke_agent researcher"]
    for name in ("chat gpt-5-mini", "execute_tool search"):
        assert (by_name[name].trace_id, by_name[name].parent_span_id) == (agent.trace_id, agent.span_id)
    costs = [value(span, "maestro.cost.nano_usd") for span in receiver.spans]
    assert sum(filter(None, costs)) == provider.bill_nanos > 0
    assert round(value(agent, "maestro.run.cost.usd") * 1e9) == provider.bill_nanos
    points = receiver.metrics["maestro.cost.usd"].sum.data_points
    assert round(sum(point.as_double for point in points) * 1e9) == provider.bill_nanos
    assert receiver.metrics["gen_ai.client.operation.duration"].histogram.data_points[0].count == 2


def test_nothing_is_drawn_once_it_is_closed(make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        telemetry = make_maestro().telemetry
        before = telemetry.start("execute_tool", "search", Attribution(), parent=None)
        before.end()
        telemetry.close()
        assert telemetry.start("execute_tool", "search", Attribution(), parent=None) is None
    assert [span.name for span in receiver.spans] == ["execute_tool search"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_events_are_sent_as_logs_where_logs_are_asked_for(openai, make_maestro, monkeypatch, protocol):
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        for asked in ("", "otlp"):
            monkeypatch.setenv("OTEL_LOGS_EXPORTER", asked)
            maestro = make_maestro(caps=[Cap("0.000001")])
            with pytest.raises(CapExceeded):
                openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
            maestro.close()
    assert len(receiver.spans) == 2
    (event,) = receiver.logs
    assert (event.event_name, event.span_id) == ("maestro.refusal", receiver.spans[1].span_id)
    assert value(event, "maestro.cap") == "$0.000001"


def test_each_signal_may_have_its_own_endpoint(ask, make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
        maestro = make_maestro()
        ask(maestro)
        maestro.close()
    assert len(receiver.spans) == 4
    assert receiver.metrics == {}


def test_the_last_export_says_where_caps_stood(ask, make_maestro, monkeypatch, caplog):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        maestro = make_maestro(caps=[Cap("2", per="team")])
        ask(maestro)
        spent = maestro.report(since="all").total
        maestro.close()  # closes the ledger, then reads the metrics once more
    (point,) = receiver.metrics["maestro.cap.headroom.usd"].gauge.data_points
    assert point.as_double == pytest.approx(float(2 - spent))
    assert not caplog.records


def test_a_signal_that_nobody_takes_can_be_switched_off(ask, make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        maestro = make_maestro()
        ask(maestro)
        maestro.close()
    assert len(receiver.spans) == 4
    assert receiver.metrics == {}


def test_the_sdk_can_be_switched_off(ask, make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        maestro = make_maestro()
        ask(maestro)
        maestro.close()
    assert (receiver.spans, receiver.metrics) == ([], {})


class Stuck(SpanExporter):
    """A backend that does not answer until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.arrived = 0

    def export(self, spans):
        self.go.wait(30)
        self.arrived += len(spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def stuck(monkeypatch):
    exporter = Stuck()
    monkeypatch.setattr(export, "_span_exporter", lambda: exporter)
    yield exporter
    exporter.go.set()


def burst(delivery, count):
    provider = export.trace_provider(delivery)
    tracer = provider.get_tracer("test")
    for _ in range(count):
        tracer.start_span("chat").end()
    return provider


def test_a_burst_of_100_000_spans_waits_for_a_slow_backend(stuck):
    delivery = export.Delivery()
    provider = burst(delivery, 100_000)
    stuck.go.set()
    provider.shutdown()
    assert (delivery.ended, delivery.lost, stuck.arrived) == (100_000, 0, 100_000)


def test_what_does_not_fit_is_counted(stuck, monkeypatch):
    monkeypatch.setattr(export, "_QUEUE", 4_096)
    delivery = export.Delivery()
    provider = burst(delivery, 20_000)
    stuck.go.set()
    provider.shutdown()
    assert delivery.ended == 20_000
    assert 0 < delivery.lost == 20_000 - stuck.arrived


@pytest.mark.parametrize("how", ["refused", "errors", "hangs"])
def test_a_backend_that_is_down_loses_no_record(ask, provider, make_maestro, monkeypatch, caplog, how):
    with HttpReceiver(
        status=503 if how == "errors" else 200, delay_s=60 if how == "hangs" else 0
    ) as receiver:
        endpoint = "http://127.0.0.1:9" if how == "refused" else receiver.url
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        maestro = make_maestro()
        ask(maestro)
        assert maestro.report("team", since="all").total == provider.bill > 0
        caplog.set_level(logging.WARNING, logger="maestro")
        maestro.close()  # returns although nothing was taken; the exporter alone would retry for half a minute
    assert "4 of 4 spans were not delivered" in caplog.text


def test_what_is_pending_is_waited_for_together(openai, provider, make_maestro, monkeypatch):
    """Alerts, the watch and exporters have their time at the end of a process side by side, not one after the other."""
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")  # they are sent at the end only
        arrived, delivering = [], threading.Event()

        class Slow:
            @hookimpl
            def maestro_alert(self, alert):
                delivering.set()
                arrived.append(receiver.arrived.wait(4))  # alerts are waited for five seconds

        maestro = make_maestro()
        maestro.plugins.register(Slow())
        provider.reply = Reply(input_tokens=1_000_000)  # an overrun
        openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
        assert delivering.wait(30)
        maestro.close()
    assert arrived == [True]


def told_nanos(metrics):
    return sum(round(point.as_double * 1e9) for point in metrics["maestro.cost.usd"].sum.data_points)


def test_an_alert_of_the_last_moment_is_told(make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
        maestro = make_maestro()
        maestro.telemetry.leave()  # as closing does before it looks at caps once more
        assert maestro.telemetry.events.emit("maestro.alert", {})
        maestro.close()
    assert [record.event_name for record in receiver.logs] == ["maestro.alert"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_what_a_child_spends_is_told_once_and_as_its_own(ask, provider, make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        maestro = make_maestro()
        ask(maestro)
        spent_nanos = provider.bill_nanos
        maestro.telemetry._own_meters.force_flush()
        assert receiver.processes
        child = os.fork()
        if child == 0:
            try:
                ask(maestro)
                maestro.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        maestro.close()
    parent, child = (
        told_nanos(of) for of in receiver.processes.values()
    )  # in the order of their first words
    assert (parent, child) == (spent_nanos, provider.bill_nanos - spent_nanos)
    assert child > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_delivers_its_own_spans(ask, make_maestro, monkeypatch):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        maestro = make_maestro()
        ask(maestro)
        child = os.fork()
        if child == 0:
            try:
                with maestro.call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=10):
                    pass
                span = maestro.telemetry._tracer().start_span("from the child")
                span.end()
                maestro.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        maestro.close()
    names = [span.name for span in receiver.spans]
    assert names.count("from the child") == 1
    assert names.count("invoke_agent researcher") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_a_forked_child_answers_for_itself(ask, provider, make_maestro, monkeypatch, caplog, capfd, how):
    """Its spans arrive, its totals are its own, and it does not miss what its parent delivers."""
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        maestro = make_maestro()
        ask(maestro)
        once = provider.bill_nanos
        ask(maestro)

        def work():
            logging.getLogger("maestro").addHandler(logging.StreamHandler())  # to the parent's capfd
            ask(maestro)

        if how == "multiprocessing":  # which ends it without atexit
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join(60)
            assert child.exitcode == 0
        elif (child := os.fork()) == 0:
            try:
                work()
                maestro.close()
            finally:
                os._exit(0)
        else:
            os.waitpid(child, 0)
        maestro.close()
    assert [span.name for span in receiver.spans].count("invoke_agent researcher") == 3
    assert sorted(told_nanos(of) for of in receiver.processes.values()) == [once, 2 * once]
    assert provider.bill_nanos == 3 * once
    assert "not delivered" not in caplog.text + capfd.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_reader_that_a_child_inherits_says_nothing(monkeypatch, protocol):
    with GrpcReceiver() if protocol == "grpc" else HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        provider = export.metrics_provider()
        provider.get_meter("app").create_counter("calls").add(1)
        child = os.fork()
        if child == 0:
            try:
                provider.force_flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not receiver.processes
        provider.shutdown()
    assert [list(metrics) for metrics in receiver.processes.values()] == [["calls"]]


@pytest.mark.parametrize("exporter", ["console", "none"])
def test_another_exporter_that_is_asked_for_is_not_ours(ask, make_maestro, monkeypatch, exporter):
    with HttpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp," + exporter)
        maestro = make_maestro()
        ask(maestro)
        maestro.close()
    assert not receiver.spans
    assert bool(receiver.metrics)
