"""OTLP receivers on loopback, over HTTP and gRPC, that decode what they get with the protocol's own protobufs."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

__all__ = ["GrpcReceiver", "HttpReceiver", "value"]


class _Kept:
    """What arrived."""

    def __init__(self):
        self.spans = []
        self.metrics = {}
        self.processes = {}  # the latest metrics of each, by its id
        self.arrived = threading.Event()  # metrics have
        self.logs = []

    def keep_spans(self, request):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def keep_metrics(self, request):
        for resource in request.resource_metrics:
            name = next(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.instance.id"
            )
            for scope in resource.scope_metrics:
                found = {metric.name: metric for metric in scope.metrics}
                self.metrics |= found
                self.processes.setdefault(name, {}).update(found)
        self.arrived.set()

    def keep_logs(self, request):
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                self.logs.extend(scope.log_records)


class HttpReceiver(_Kept):
    """Takes `/v1/traces`, `/v1/metrics` and `/v1/logs`; answers `status`, after `delay_s`."""

    def __init__(self, *, status=200, delay_s=0.0):
        super().__init__()
        self._gate = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver._gate.wait(delay_s)
                if status == 200 and self.path == "/v1/traces":
                    receiver.keep_spans(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                elif status == 200 and self.path == "/v1/metrics":
                    receiver.keep_metrics(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
                elif status == 200 and self.path == "/v1/logs":
                    receiver.keep_logs(logs_service_pb2.ExportLogsServiceRequest.FromString(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._gate.set()
        self._server.shutdown()
        self._server.server_close()


class GrpcReceiver(_Kept):
    """Takes traces, metrics and logs over gRPC."""

    def __init__(self):
        super().__init__()
        self._server = grpc.server(ThreadPoolExecutor(2))
        receiver = self

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):  # noqa: N802 - the protocol names it
                receiver.keep_spans(request)
                return trace_service_pb2.ExportTraceServiceResponse()

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request, context):  # noqa: N802 - the protocol names it
                receiver.keep_metrics(request)
                return metrics_service_pb2.ExportMetricsServiceResponse()

        class Logs(logs_service_pb2_grpc.LogsServiceServicer):
            def Export(self, request, context):  # noqa: N802 - the protocol names it
                receiver.keep_logs(request)
                return logs_service_pb2.ExportLogsServiceResponse()

        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), self._server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()


def value(span, key):
    """Return an attribute of a span as it was sent, or None."""
    for attribute in span.attributes:
        if attribute.key == key:
            return getattr(attribute.value, attribute.value.WhichOneof("value"))
    return None
