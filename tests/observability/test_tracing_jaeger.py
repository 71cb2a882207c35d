"""The tracing of Orchestrix: its names and calls, over OTLP; and what is refused because Jaeger has it no more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, DEFAULT_ON
from opentelemetry.trace import StatusCode

from message_bus import JaegerTracer, SettingsError, Telemetry, TracingConfig, get_tracer, init_tracing
from message_bus.observability import jaeger
from message_bus.observability.jaeger import _sampler_of
from tests.observability.spans import Recorded, parent, span_id, told

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recorded() -> Recorded:
    """An SDK in memory."""
    return Recorded()


@pytest.fixture
def tracer(recorded: Recorded) -> JaegerTracer:
    """A tracer that records there."""
    return JaegerTracer(recorded.provider)


def test_the_names_are_in_both_places() -> None:
    """`message_bus.observability.jaeger`, as Orchestrix had it, and `message_bus`."""
    assert (jaeger.JaegerTracer, jaeger.TracingConfig) == (JaegerTracer, TracingConfig)
    assert (jaeger.init_tracing, jaeger.get_tracer) == (init_tracing, get_tracer)


def test_spans_inside_each_other(tracer: JaegerTracer, recorded: Recorded) -> None:
    """Each kind by its name, with what it is about; what is set inside goes to the innermost."""
    with tracer.span("checkout", {"shop.region": "north", "empty": None}) as outer:
        with tracer.span_command("CreateOrder", "ORD-001"):
            tracer.set_attribute("shop.total", 42)
            with tracer.span_event("OrderCreated", 7, "ORD-001"):
                tracer.add_event("saved", {"version": 1})
        with tracer.span_saga("Shipping", "S-1"):
            pass
        assert tracer.get_trace_id() == f"{outer.get_span_context().trace_id:032x}"
    assert tracer.get_trace_id() is None
    checkout, command = recorded.one("checkout"), recorded.one("command CreateOrder")
    event, saga = recorded.one("event OrderCreated"), recorded.one("saga Shipping")
    assert told(checkout) == {"shop.region": "north"}
    assert told(command) == {
        "message_bus.message.type": "CreateOrder",
        "message_bus.aggregate.id": "ORD-001",
        "shop.total": 42,
    }
    assert told(event) == {
        "message_bus.message.type": "OrderCreated",
        "messaging.message.id": "7",
        "message_bus.aggregate.id": "ORD-001",
    }
    assert told(saga) == {"message_bus.saga.type": "Shipping", "message_bus.saga.id": "S-1"}
    assert [each.name for each in event.events] == ["saved"]
    assert (parent(command), parent(event), parent(saga)) == (
        span_id(checkout), span_id(command), span_id(checkout),
    )  # fmt: skip


async def test_spans_of_asyncio(tracer: JaegerTracer, recorded: Recorded) -> None:
    """The same four with `async with`."""
    async with (
        tracer.async_span("checkout"),
        tracer.async_span_command("CreateOrder", "ORD-001"),
        tracer.async_span_event("OrderCreated", 7, "ORD-001"),
        tracer.async_span_saga("Shipping", "S-1"),
    ):
        assert tracer.get_trace_id() is not None
    spans = recorded.spans()
    assert [span.name for span in spans] == [
        "checkout", "command CreateOrder", "event OrderCreated", "saga Shipping",
    ]  # fmt: skip
    assert [parent(span) for span in spans] == [None, *map(span_id, spans[:-1])]


def test_an_error_leaves_and_is_recorded(tracer: JaegerTracer, recorded: Recorded) -> None:
    """With status, type and one event."""
    with pytest.raises(ValueError, match="no"), tracer.span("checkout"):
        raise ValueError("no")
    span = recorded.one("checkout")
    assert (span.status.status_code, told(span)) == (StatusCode.ERROR, {"error.type": "ValueError"})
    assert [each.name for each in span.events] == ["exception"]


def test_without_a_provider_its_spans_go_nowhere() -> None:
    """And nobody is made to use one: only init_tracing sets what is global."""
    tracer = get_tracer()
    with tracer.span("checkout"):
        tracer.set_attribute("a", 1)
        tracer.add_event("b")
        assert tracer.get_trace_id() is None
    Telemetry()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"


@pytest.mark.parametrize(
    ("options", "endpoint"),
    [
        ({}, None),
        ({"jaeger_agent_port": 6832}, None),
        ({"jaeger_agent_host": "jaeger"}, "http://jaeger:4318/v1/traces"),
        ({"jaeger_agent_host": "::1"}, "http://[::1]:4318/v1/traces"),
        ({"jaeger_agent_port": 4318}, "http://localhost:4318/v1/traces"),
        ({"jaeger_agent_host": "10.0.0.7", "jaeger_agent_port": 9999}, "http://10.0.0.7:9999/v1/traces"),
    ],
)
def test_where_spans_go(options: dict[str, Any], endpoint: str | None) -> None:
    """The agent's host and port become those of the OTLP receiver; the defaults leave it to the environment."""
    assert TracingConfig("shop", **options).endpoint == endpoint


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"service_name": ""}, "service_name"),
        ({"jaeger_agent_port": 14268}, "Thrift over HTTP"),
        ({"jaeger_agent_port": 4317}, "OTLP over gRPC"),
        ({"jaeger_agent_port": 0}, "must be a port"),
        ({"jaeger_agent_port": "6831"}, "must be a port"),
        ({"jaeger_agent_host": "jaeger/x"}, "name or address of a host"),
        ({"jaeger_agent_host": "user@jaeger"}, "name or address of a host"),
        ({"jaeger_sampler_type": "ratelimiting"}, "'ratelimiting' is not offered"),
        ({"jaeger_sampler_param": 0.5}, "must be 0 or 1"),
        ({"jaeger_sampler_type": "probabilistic", "jaeger_sampler_param": 2}, "from 0 to 1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], problem: str) -> None:
    """What Jaeger has no more, and what was never right, with the remedy."""
    with pytest.raises(SettingsError, match=problem):
        TracingConfig(**{"service_name": "shop", **options})


def test_all_problems_at_once() -> None:
    """One error names them all."""
    with pytest.raises(SettingsError) as caught:
        TracingConfig("", jaeger_agent_port=14250, jaeger_sampler_type="remote")
    assert len(caught.value.problems) == 3


def test_samplers() -> None:
    """All, none, or a share; what comes from elsewhere is decided there."""
    assert _sampler_of(TracingConfig("shop")) is DEFAULT_ON
    assert _sampler_of(TracingConfig("shop", jaeger_sampler_param=0)) is DEFAULT_OFF
    share = TracingConfig("shop", jaeger_sampler_type="probabilistic", jaeger_sampler_param=0.25)
    assert "TraceIdRatioBased{0.25}" in _sampler_of(share).get_description()


def test_init_tracing_wants_one_of_two() -> None:
    """A configuration or a name."""
    with pytest.raises(SettingsError, match="one of them"):
        init_tracing()
    with pytest.raises(SettingsError, match="one of them"):
        init_tracing(TracingConfig("shop"), service_name="shop")


# --- in processes of their own: what is global can be set only once ------------------------------------------------


class Collector:
    """Takes spans over OTLP/HTTP, as Jaeger does."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        taken = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Take one request."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def spans(self) -> list[tuple[str, str]]:
        """(service, name) of each span that has arrived."""
        return [
            (attribute.value.string_value, span.name)
            for _, request in self.requests
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that listens."""
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, without what the environment says about OpenTelemetry."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, cwd=ROOT, env={**clean, **environment}, timeout=60,
    )  # fmt: skip


def test_the_example_of_the_seed(collector: Collector) -> None:
    """Word for word, with the address in the environment; what was recorded is sent when the process ends."""
    code = """
from message_bus import InMemoryEventStore, Event
from message_bus.observability.jaeger import (
    JaegerTracer, TracingConfig, init_tracing, get_tracer,
)

class OrderCreated(Event):
    order_id: str

store = InMemoryEventStore()
[event] = store.save("ORD-000", [OrderCreated(order_id="ORD-000")])

tracer = init_tracing(service_name="my-service")
with tracer.span_command("CreateOrder", "ORD-001"):
    pass
with tracer.span_event("OrderCreated", event.id, "ORD-001"):
    store.save("ORD-001", [OrderCreated(order_id="ORD-001")])
    trace_id = get_tracer().get_trace_id()
assert store.load_by_trace(trace_id) == [OrderCreated(order_id="ORD-001")]
"""
    done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    assert (done.returncode, done.stderr) == (0, "")
    assert collector.requests[0][0] == "/v1/traces"
    assert collector.spans() == [
        ("my-service", "command CreateOrder"),
        ("my-service", "event OrderCreated"),
    ]


def test_a_configuration_and_what_a_bus_does(collector: Collector) -> None:
    """Host and port of the configuration; `Telemetry()` uses what was set up; a second set-up is refused."""
    code = f"""
from message_bus import Command, MessageBus, Telemetry, TracingConfig, WiringError, init_tracing

class Pay(Command):
    n: int

bus = MessageBus(command_handlers={{Pay: lambda command: None}})
bus.observe(Telemetry())
init_tracing(TracingConfig("shop", "127.0.0.1", {collector.port}))
bus.handle(Pay(n=1))
try:
    init_tracing(service_name="another")
except WiringError as error:
    print(error)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "has a global tracer provider already" in done.stdout
    assert collector.spans() == [("shop", "handle Pay")]


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_extra(missing: str) -> None:
    """The error names it; the rest of the package, `Telemetry` and `get_tracer` too, needs the API only."""
    code = f"""
import sys

class Missing:
    def find_spec(self, name, *rest):
        if (name + ".").startswith("{missing}."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from message_bus import Command, MessageBus, Telemetry, WiringError, get_tracer, init_tracing

class Pay(Command):
    n: int

bus = MessageBus(command_handlers={{Pay: lambda command: command.n}})
bus.observe(Telemetry())
with get_tracer().span("checkout"):
    assert bus.ask(Pay(n=3)) == 3
try:
    init_tracing(service_name="shop")
except WiringError as error:
    print(error)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install 'sqlalchemy-message-bus[otel]'" in done.stdout
    assert f"{missing} is missing" in done.stdout or f"{missing}." in done.stdout
