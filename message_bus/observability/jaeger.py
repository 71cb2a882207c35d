"""Tracing by hand, with the names of Orchestrix: `init_tracing` sends spans to Jaeger, `JaegerTracer` makes them.

Jaeger takes OTLP; its agent, its client libraries and their UDP protocol are gone. Host, port and sampler of a
`TracingConfig` are translated, or refused if they name what is gone. What a bus does by itself is not traced here but by
`Telemetry`, which uses what `init_tracing` has set up.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from message_bus.errors import SettingsError, WiringError
from message_bus.observability.tracing import Inside, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Span, TracerProvider

Attributes = Mapping[str, Any]

_AGENT_PORTS: Final = (6831, 6832)
_OTLP_PORT: Final = 4318
_OTHER_PROTOCOLS: Final = {4317: "OTLP over gRPC", 14250: "Jaeger's gRPC", 14268: "Jaeger's Thrift over HTTP"}


@dataclass(frozen=True)
class TracingConfig:
    """Where spans go, and how many of them.

    Host and port of Jaeger's agent become those of its OTLP receiver: `http://<host>:4318/v1/traces`. Another port than
    6831 and 6832, the agent's, is taken to speak OTLP over HTTP. As long as both have their defaults, OpenTelemetry's own
    environment variables (`OTEL_EXPORTER_OTLP_ENDPOINT` ...) decide.

    The sampler decides about new traces; one that comes from elsewhere is recorded if it was there. "const": all (1) or
    none (0); "probabilistic": this share of them.

    Raises: SettingsError.
    """

    service_name: str
    jaeger_agent_host: str = "localhost"
    jaeger_agent_port: int = 6831
    jaeger_sampler_type: str = "const"
    jaeger_sampler_param: float = 1.0

    def __post_init__(self) -> None:
        problems = [*_problems_of_address(self), *_problems_of_sampler(self)]
        if not isinstance(self.service_name, str) or not self.service_name:
            problems.insert(0, "service_name must be a text that is not empty")
        if problems:
            raise SettingsError("TracingConfig", problems)

    @property
    def endpoint(self) -> str | None:
        """The URL of the OTLP receiver; None if the environment, or else OpenTelemetry's default, decides."""
        if self.jaeger_agent_host == "localhost" and self.jaeger_agent_port in _AGENT_PORTS:
            return None
        host = f"[{self.jaeger_agent_host}]" if ":" in self.jaeger_agent_host else self.jaeger_agent_host
        port = _OTLP_PORT if self.jaeger_agent_port in _AGENT_PORTS else self.jaeger_agent_port
        return f"http://{host}:{port}/v1/traces"


class JaegerTracer:
    """Makes spans, each current inside its `with` block. Safe to share between threads and tasks.

    Without a provider it uses the one that the application has set globally. An error that leaves a block is recorded in
    its span, without values of SQL statements.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._tracing = Tracing(tracer_provider)

    def span(self, operation_name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
        """Make a span of any kind of work."""
        return self._inside(operation_name, attributes)

    def async_span(
        self, operation_name: str, attributes: Attributes | None = None
    ) -> AbstractAsyncContextManager[Span]:
        """Make a span as `span` does, for `async with`."""
        return self._inside(operation_name, attributes)

    def span_event(
        self, event_type: str, event_id: Any = None, aggregate_id: Any = None
    ) -> AbstractContextManager[Span]:
        """Make a span of the processing of an event."""
        return self._of_event(event_type, event_id, aggregate_id)

    def async_span_event(
        self, event_type: str, event_id: Any = None, aggregate_id: Any = None
    ) -> AbstractAsyncContextManager[Span]:
        """Make a span as `span_event` does, for `async with`."""
        return self._of_event(event_type, event_id, aggregate_id)

    def span_command(self, command_type: str, aggregate_id: Any = None) -> AbstractContextManager[Span]:
        """Make a span of the handling of a command."""
        return self._of_command(command_type, aggregate_id)

    def async_span_command(
        self, command_type: str, aggregate_id: Any = None
    ) -> AbstractAsyncContextManager[Span]:
        """Make a span as `span_command` does, for `async with`."""
        return self._of_command(command_type, aggregate_id)

    def span_saga(self, saga_type: str, saga_id: Any = None) -> AbstractContextManager[Span]:
        """Make a span of a run of a saga."""
        return self._of_saga(saga_type, saga_id)

    def async_span_saga(self, saga_type: str, saga_id: Any = None) -> AbstractAsyncContextManager[Span]:
        """Make a span as `span_saga` does, for `async with`."""
        return self._of_saga(saga_type, saga_id)

    def get_trace_id(self) -> str | None:
        """Return the id of the trace that is current here, 32 hexadecimal digits; None if there is none."""
        current = self._tracing.current()
        return None if current is None else self._trace.format_trace_id(current.trace_id)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute of the span that is current here."""
        self._trace.get_current_span().set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note in the span that is current here that something happened."""
        self._trace.get_current_span().add_event(name, dict(attributes or {}))

    def _of_event(self, event_type: str, event_id: Any, aggregate_id: Any) -> Inside:
        about = {
            "message_bus.message.type": event_type,
            "messaging.message.id": _text(event_id),
            "message_bus.aggregate.id": _text(aggregate_id),
        }
        return self._inside(f"event {event_type}", about)

    def _of_command(self, command_type: str, aggregate_id: Any) -> Inside:
        about = {"message_bus.message.type": command_type, "message_bus.aggregate.id": _text(aggregate_id)}
        return self._inside(f"command {command_type}", about)

    def _of_saga(self, saga_type: str, saga_id: Any) -> Inside:
        about = {"message_bus.saga.type": saga_type, "message_bus.saga.id": _text(saga_id)}
        return self._inside(f"saga {saga_type}", about)

    def _inside(self, name: str, attributes: Attributes | None) -> Inside:
        span = self._tracing.start(name, self._tracing.kinds.INTERNAL, attributes or {})
        return self._tracing.inside(span)


def init_tracing(config: TracingConfig | None = None, *, service_name: str | None = None) -> JaegerTracer:
    """Send the spans of this process to Jaeger over OTLP: `init_tracing(service_name="shop")`, once, at start-up.

    Sets OpenTelemetry's global tracer provider, for this package, for `Telemetry()`, and for every instrumentation that
    the application uses. What has not been sent when the process ends is sent then.

    Raises: SettingsError unless one of the two is given. WiringError if the extra `otel` is not installed, or if there is
    a global provider already.
    """
    if (config is None) == (service_name is None):
        raise SettingsError("init_tracing", ["wants a TracingConfig or service_name=, one of them"])
    wanted = TracingConfig(str(service_name)) if config is None else config
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise WiringError(
            "OpenTelemetry has a global tracer provider already (call init_tracing once, or leave the set-up to whoever "
            "has done it, and use get_tracer())"
        )
    provider = _provider_of(wanted)
    trace.set_tracer_provider(provider)
    return JaegerTracer(provider)


def get_tracer() -> JaegerTracer:
    """Return a tracer of the provider that is set globally, by `init_tracing` or otherwise; without one its spans go nowhere."""
    return JaegerTracer()


def _provider_of(config: TracingConfig) -> SDKTracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise WiringError(
            f"spans cannot be sent without OpenTelemetry's SDK and OTLP exporter: {error.name} is missing "
            "(pip install 'sqlalchemy-message-bus[otel]')"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": config.service_name}), sampler=_sampler_of(config)
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint)))
    return provider


def _sampler_of(config: TracingConfig) -> Sampler:
    from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, DEFAULT_ON, ParentBasedTraceIdRatio

    if config.jaeger_sampler_type == "probabilistic":
        return ParentBasedTraceIdRatio(config.jaeger_sampler_param)
    return DEFAULT_ON if config.jaeger_sampler_param else DEFAULT_OFF


def _problems_of_address(config: TracingConfig) -> list[str]:
    problems: list[str] = []
    host, port = config.jaeger_agent_host, config.jaeger_agent_port
    if not isinstance(host, str) or not host or not host.isprintable() or set(host) & set(" /?#@"):
        problems.append("jaeger_agent_host must be the name or address of a host")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        problems.append("jaeger_agent_port must be a port")
    elif port in _OTHER_PROTOCOLS:
        problems.append(
            f"jaeger_agent_port {port} is that of {_OTHER_PROTOCOLS[port]} (spans go out as OTLP over HTTP: {_OTLP_PORT})"
        )
    return problems


def _problems_of_sampler(config: TracingConfig) -> list[str]:
    kind, param = config.jaeger_sampler_type, config.jaeger_sampler_param
    if kind not in ("const", "probabilistic"):
        return [
            f"jaeger_sampler_type {kind!r} is not offered (use 'const' or 'probabilistic', or set up OpenTelemetry yourself)"
        ]
    if not isinstance(param, int | float) or not 0 <= param <= 1 or (kind == "const" and param not in (0, 1)):
        return [f"jaeger_sampler_param of {kind!r} must be {'0 or 1' if kind == 'const' else 'from 0 to 1'}"]
    return []


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
