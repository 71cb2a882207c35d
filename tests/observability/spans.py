"""What OpenTelemetry's SDK has recorded in memory, and what tests ask of it."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from message_bus import Telemetry


class Recorded:
    """An application's SDK with exporters in memory; `telemetry` observes with it."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracer_provider=self.provider, meter_provider=self.meters)
        self.web = self.provider.get_tracer("web")

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """The spans that have ended, in the order in which they began; only those of this name."""
        found = [each for each in self._exporter.get_finished_spans() if name in (None, each.name)]
        return sorted(found, key=lambda each: each.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        [found] = self.spans(name)
        return found

    def forget(self) -> None:
        """Begin anew."""
        self._exporter.clear()

    def metrics(self) -> dict[str, Any]:
        """What the metrics are now, by name."""
        data = self._reader.get_metrics_data()
        scopes = (
            [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        )
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """The data points of a metric by operation, subscription and error type; counts of histograms, values of others."""
        keys = ("messaging.operation.name", "messaging.consumer.group.name", "error.type")
        return {
            tuple(point.attributes.get(key) for key in keys): getattr(point, "count", None) or point.value
            for point in self.metrics()[name].data.data_points
        }


def span_id(span: ReadableSpan) -> int:
    """Its id."""
    return span.get_span_context().span_id  # type: ignore[no-any-return]


def trace_id(span: ReadableSpan) -> int:
    """The id of its trace."""
    return span.get_span_context().trace_id  # type: ignore[no-any-return]


def parent(span: ReadableSpan) -> int | None:
    """The id of its parent."""
    return None if span.parent is None else span.parent.span_id


def linked(span: ReadableSpan) -> list[int]:
    """The ids of the spans that it is linked to."""
    return [link.context.span_id for link in span.links]


def told(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})
