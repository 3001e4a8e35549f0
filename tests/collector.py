"""A collector that speaks OTLP over gRPC and HTTP on loopback and keeps what it gets."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


@dataclass(frozen=True)
class Got:
    """A span as it arrived; ids are hexadecimal, empty without a parent."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    failed: bool
    plane: str
    service: str
    attributes: dict[str, Any]


@dataclass
class Collector(service.TraceServiceServicer):
    spans: list[Got] = field(default_factory=list)
    address: str = ""

    def Export(self, request: Any, context: Any) -> Any:
        self.take(request)
        return messages.ExportTraceServiceResponse()

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            known = {item.key: _value(item.value) for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    got = Got(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        began_ns=span.start_time_unix_nano,
                        ended_ns=span.end_time_unix_nano,
                        failed=span.status.code == 2,
                        plane=scope.scope.name,
                        service=known["service.name"],
                        attributes={item.key: _value(item.value) for item in span.attributes},
                    )
                    self.spans.append(got)

    def named(self, name: str) -> Got:
        (found,) = (span for span in self.spans if span.name == name)
        return found


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait(5)


@contextmanager
def http_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(messages.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    collector.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
