"""Measurements wait until somebody reads them: none is lost, none counted twice, and none piles up."""

from __future__ import annotations

import os
import threading

import pytest
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.trace import TracerProvider

from maestro_core.telemetry import guard, pending
from maestro_core.telemetry.instruments import instruments
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler

DURATION, COST = "gen_ai.client.operation.duration", "maestro.cost.usd"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DELTA = dict.fromkeys((Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA)


@pytest.fixture
def provide(monkeypatch):
    """Set the user's meter provider."""
    made = []

    def provide(*readers, **options):
        made.append(MeterProvider(readers, shutdown_on_exit=False, **options))
        monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", made[-1])
        return made[-1]

    yield provide
    for each in made:
        each.shutdown()


def points(data, name):
    """Return the data points of a metric in what a reader gave."""
    return [
        point
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def counted(data):
    """Return how many calls a reader was told the durations of."""
    return sum(point.count for point in points(data, DURATION))


def spent_nanos(data):
    return round(sum(point.value for point in points(data, COST)) * 1e9)


@pytest.fixture
def ask(openai, make_maestro):
    """Make one call through the whole path, of a Maestro that stays."""
    model, maestro = openai(), make_maestro()
    handler = MaestroCallbackHandler(maestro)

    def ask():
        model.invoke("hello", config={"callbacks": [handler]})

    ask.maestro = maestro
    return ask


def call_many(maestro, count):
    """Reserve and settle without a provider, and tell how long it took, as an adapter does."""
    for _ in range(count):
        call = Call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=10)
        record = maestro.settle(maestro.reserve(call), USAGE)
        maestro.telemetry.metrics.operated("chat", call, 0.5, record=record)


def test_every_reader_gets_everything_once(provide, ask, provider):
    delta, total = InMemoryMetricReader(DELTA), InMemoryMetricReader()
    provide(delta, total)
    ask()
    first = delta.get_metrics_data()
    assert counted(first) == counted(total.get_metrics_data()) == 1
    ask()
    ask()
    both = total.get_metrics_data()
    second = delta.get_metrics_data()
    assert (counted(both), counted(second)) == (3, 2)
    assert spent_nanos(both) == spent_nanos(first) + spent_nanos(second) == provider.bill_nanos
    assert counted(delta.get_metrics_data()) == 0
    assert counted(total.get_metrics_data()) == 3


def test_calls_in_threads_are_counted_while_others_read(provide, ask, provider, monkeypatch):
    monkeypatch.setattr(pending, "_MOST", 6)  # so that calls record, too
    monkeypatch.setattr(pending, "_AT_ONCE", 3)
    delta, total = InMemoryMetricReader(DELTA), InMemoryMetricReader()
    provide(delta, total)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(delta.get_metrics_data())
            total.get_metrics_data()

    reader = threading.Thread(target=read)
    callers = [threading.Thread(target=lambda: [ask() for _ in range(15)]) for _ in range(4)]
    for thread in (reader, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    reader.join()
    seen.append(delta.get_metrics_data())
    last = total.get_metrics_data()
    assert counted(last) == sum(counted(each) for each in seen) == 60
    assert spent_nanos(last) == provider.bill_nanos


def test_a_reader_waits_for_what_a_call_is_recording(monkeypatch):
    monkeypatch.setattr(pending, "_MOST", 3)
    recording, go_on, recorded = threading.Event(), threading.Event(), []

    def take(what):
        recording.set()
        go_on.wait(5)
        recorded.append(what)

    due = pending.Pending(take)
    for number in range(3):
        due.add(number)
    caller = threading.Thread(target=due.add, args=(3,))
    caller.start()
    assert recording.wait(5)
    threading.Timer(0.05, go_on.set).start()
    due.record()
    assert recorded == [0, 1, 2, 3]
    caller.join()


def test_what_nobody_reads_does_not_pile_up(provide, make_maestro, monkeypatch):
    monkeypatch.setattr(pending, "_MOST", 100)
    monkeypatch.setattr(pending, "_AT_ONCE", 30)
    reader = InMemoryMetricReader()
    to = instruments(provide(reader))
    maestro = make_maestro()
    call_many(maestro, 200)
    assert 0 < len(to.pending._due) <= 100
    data = reader.get_metrics_data()
    assert not to.pending._due
    assert counted(data) == 200
    assert spent_nanos(data) == round(maestro.report(since="all").total * 10**9)


@pytest.mark.parametrize("how", ["no provider", "one that does nothing", "switched off"])
def test_where_nobody_can_read_nothing_is_kept(provide, ask, monkeypatch, how):
    if how == "one that does nothing":
        monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", NoOpMeterProvider())
    if how == "switched off":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        provide()
    monkeypatch.setattr(pending.Pending, "add", lambda *_: pytest.fail("it is kept"))
    monkeypatch.setattr(guard, "_told", set())
    ask()
    assert not guard._told


def test_a_provider_that_comes_later_hears_what_follows(provide, ask):
    ask()
    reader = InMemoryMetricReader()
    provide(reader)
    assert counted(reader.get_metrics_data()) == 0
    ask()
    assert counted(reader.get_metrics_data()) == 1


def test_views_that_drop_our_gauges_and_sums_lose_no_duration(provide, ask):
    reader = InMemoryMetricReader()
    provide(reader, views=[View(instrument_name="maestro.*", aggregation=DropAggregation())])
    ask()
    data = reader.get_metrics_data()
    assert points(data, COST) == []
    assert counted(data) == 1


class Kept(MetricExporter):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.batches.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        pass


@pytest.mark.parametrize("how", ["force_flush", "shutdown"])
def test_the_last_calls_leave_with_the_provider(provide, ask, how):
    exporter = Kept()
    provider = provide(PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000))
    ask()
    ask()
    assert not exporter.batches
    getattr(provider, how)()
    assert counted(exporter.batches[-1]) == 2
    if how == "shutdown":
        provider.shutdown = lambda: None  # the SDK warns of a second one


def test_an_exemplar_is_the_calls_own_span_whoever_reads(provide, ask, monkeypatch):
    tracers = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    reader = InMemoryMetricReader()
    provide(reader)
    with tracers.get_tracer("user").start_as_current_span("the request") as around:
        ask()
    with tracers.get_tracer("user").start_as_current_span("the reader"):
        data = reader.get_metrics_data()
    found = [each for point in points(data, DURATION) for each in point.exemplars]
    assert {each.trace_id for each in found} == {around.get_span_context().trace_id}
    assert around.get_span_context().span_id not in {each.span_id for each in found}
    tracers.shutdown()


def test_without_a_span_of_ours_the_users_is_the_exemplar(provide, openai, make_maestro, monkeypatch):
    tracers = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    reader = InMemoryMetricReader()
    provide(reader)
    handler = MaestroCallbackHandler(make_maestro(spans="off"))
    with tracers.get_tracer("user").start_as_current_span("the request") as around:
        openai().invoke("hello", config={"callbacks": [handler]})
    (point,) = points(reader.get_metrics_data(), DURATION)
    assert [each.span_id for each in point.exemplars] == [around.get_span_context().span_id]
    tracers.shutdown()


def test_one_that_cannot_be_recorded_costs_no_other(provide, ask, caplog, monkeypatch):
    monkeypatch.setattr(guard, "_told", set())
    reader = InMemoryMetricReader()
    to = instruments(provide(reader))
    ask()
    to.pending.add("no such call")
    ask()
    assert counted(reader.get_metrics_data()) == 2
    assert "telemetry failed" in caplog.text


def test_what_was_said_does_not_wait_with_it(provide, ask):
    to = instruments(provide(InMemoryMetricReader()))
    ask()
    (due,) = to.pending._due
    assert {type(part).__name__ for part in due} <= {"str", "int", "float", "NoneType", "SpanContext"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_record_what_its_parent_will(provide, make_maestro):
    reader = InMemoryMetricReader()
    to = instruments(provide(reader))
    maestro = make_maestro()
    call_many(maestro, 3)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before = counted(reader.get_metrics_data())
            call = Call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=10)
            maestro.telemetry.metrics.operated("chat", call, 0.5)
            code = 10 + 2 * before + counted(reader.get_metrics_data())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    assert len(to.pending._due) == 3
    assert counted(reader.get_metrics_data()) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("temporality", [None, DELTA], ids=["sums", "differences"])
def test_a_forked_child_tells_what_it_spends_and_no_more(provide, make_maestro, temporality):
    reader = InMemoryMetricReader(preferred_temporality=temporality)
    provide(reader)
    maestro = make_maestro()

    def spend():
        with maestro.call(provider="openai", model="gpt-5-mini", max_output_tokens=10):
            pass

    spend()
    spend()
    twice = spent_nanos(reader.get_metrics_data())
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            spend()
            os.write(write, str(spent_nanos(reader.get_metrics_data())).encode())
        finally:
            os._exit(0)
    os.wait()
    assert int(os.read(read, 99)) == twice // 2 > 0
    os.close(read)
    os.close(write)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_records_leaves_the_child_free():
    recording, go_on = threading.Event(), threading.Event()
    due = pending.Pending(lambda _: (recording.set(), go_on.wait(5)))
    due.add("a call")
    recorder = threading.Thread(target=due.record)
    recorder.start()
    assert recording.wait(5)
    threading.Timer(0.05, go_on.set).start()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if due._lock.acquire(timeout=5) else 1)
    recorder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
