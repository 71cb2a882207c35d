"""Measuring by hand, over the same instruments: what runs outside of a bus with a `PrometheusMetrics`, or beside ours.

    with metrics.track_command_handle("CreateOrder"):
        handle_create_order(command)

What raises inside is counted under status "error" and raised. The names given become labels: take them from the code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

from message_bus.observability.prometheus.config import MetricOperationType
from message_bus.observability.prometheus.instruments import Instruments

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

SUCCESS: Final = "success"
ERROR: Final = "error"


class Tracking(Instruments):
    """The instruments, and context managers around what they measure. Safe for threads and tasks."""

    @contextmanager
    def track_event_publish(self, event_type: str = "unknown") -> Iterator[None]:
        """Count and time what handles or publishes an event."""
        with _tracked(self.events_total, self.events_processing_seconds, event_type):
            yield

    @asynccontextmanager
    async def track_async_event_publish(self, event_type: str = "unknown") -> AsyncIterator[None]:
        """Do the same for `async with`."""
        with self.track_event_publish(event_type):
            yield

    @contextmanager
    def track_command_handle(self, command_type: str = "unknown") -> Iterator[None]:
        """Count and time what handles a command."""
        with _tracked(self.commands_total, self.commands_latency_seconds, command_type):
            yield

    @asynccontextmanager
    async def track_async_command_handle(self, command_type: str = "unknown") -> AsyncIterator[None]:
        """Do the same for `async with`."""
        with self.track_command_handle(command_type):
            yield

    @contextmanager
    def track_storage_operation(
        self, operation_type: MetricOperationType | str = MetricOperationType.APPEND
    ) -> Iterator[None]:
        """Count and time an operation of a store."""
        name = operation_type.value if isinstance(operation_type, MetricOperationType) else operation_type
        with _tracked(self.storage_operations_total, self.storage_operation_seconds, name):
            yield

    @contextmanager
    def track_saga_execution(self, saga_type: str = "unknown") -> Iterator[None]:
        """Count and time a saga that is not a `Saga`; those say "completed", "compensated" or "failed" for "success"."""
        with _tracked(self.saga_executions_total, self.saga_duration_seconds, saga_type):
            yield

    @contextmanager
    def track_aggregate_load(self, aggregate_type: str = "unknown") -> Iterator[None]:
        """Time the loading of an aggregate, and count it if it succeeds; say `loaded(aggregate)` to count it in memory."""
        begun = perf_counter()
        try:
            yield
            self.aggregates_loaded_total.labels(aggregate_type).inc()
        finally:
            self.aggregates_load_time_seconds.labels(aggregate_type).observe(perf_counter() - begun)

    @contextmanager
    def track_projection_update(self, projection_name: str = "unknown") -> Iterator[None]:
        """Time an update of a read model that is not a subscribed `Projection`."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.projection_update_seconds.labels(projection_name).observe(perf_counter() - begun)

    def record_projection_lag(self, projection_name: str, events_behind: int) -> None:
        """Say how many events a read model that is not a subscribed `Projection` has not read yet."""
        self.projection_events_behind.labels(projection_name).set(events_behind)

    def get_prometheus_registry(self) -> CollectorRegistry:
        """Return the registry that the instruments are in, for `prometheus_client.generate_latest` and the like."""
        return self.registry

    @staticmethod
    def generate_exposition(registry: CollectorRegistry) -> bytes:
        """Return what a registry holds in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(registry)


@contextmanager
def _tracked(counter: Counter, seconds: Histogram, name: str) -> Iterator[None]:
    begun = perf_counter()
    status = ERROR
    try:
        yield
        status = SUCCESS
    finally:
        seconds.labels(name).observe(perf_counter() - begun)
        counter.labels(name, status).inc()
