"""Metrics for Prometheus: `bus.observe(PrometheusMetrics())` counts and times what the bus and its workers do.

    bus, write path, engine, relay ──observer.py──► PrometheusMetrics ──► instruments in a registry ──► /metrics
    your own code ─────────track_...()─────────────►┘

What each instrument means is said in `instruments.py` and in docs/how-to/metrics.md. It serves nothing itself: give
`generate_exposition(metrics.get_prometheus_registry())` to your web framework, or let `message-bus relay --metrics-port` do it.
prometheus_client is imported with the first instance.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Final

from message_bus.bus.abc import AsyncMessageBusABC
from message_bus.messages.definition import definition_of
from message_bus.messages.registry import Registry
from message_bus.observability.observer import (
    Around,
    Attempt,
    Batch,
    Cause,
    Gauges,
    LeaseChange,
    Observer,
    Part,
    SagaRun,
    Verdict,
)
from message_bus.observability.prometheus.calls import Calls
from message_bus.observability.prometheus.config import MetricConfig, MetricOperationType
from message_bus.observability.prometheus.series import Followed, Living
from message_bus.observability.prometheus.tracking import ERROR, Tracking

UNKNOWN: Final = "unknown"
"""The label of a message type that nobody here has registered: its name comes from a row, and could be anything."""
_OPERATIONS: Final = {"save": MetricOperationType.APPEND.value}
_CHANGES: Final[tuple[LeaseChange, ...]] = ("claimed", "taken over", "lost", "released")


class PrometheusMetrics(Tracking, Observer):
    """Counts and times what the buses do that it observes: `bus.observe(PrometheusMetrics())`.

    Several may share a registry: they add up. One instance, or one namespace or subsystem, per set of tables: what is read
    from the database carries no name of it. Safe for threads and tasks.

    Raises: SettingsError if its registry has something else under one of the names.
    """

    wants_gauges = True

    def __init__(self, config: MetricConfig | None = None) -> None:
        self.config = MetricConfig() if config is None else config
        super().__init__(self.config)
        self._registries: list[Registry] = []
        self._names: dict[str, str] = {}
        self._calls = Calls(self)
        self._projections: set[str] = set()
        self._out: set[Part] = set()
        self._lag = Followed(self.lag_messages)
        self._lag_seconds = Followed(self.lag_seconds)
        self._undelivered = Followed(self.undelivered_messages)
        self._behind = Followed(self.projection_events_behind)
        self._watermarks = Followed(self.watermark_age_seconds)
        self._in_memory = Living(self.aggregates_in_memory)
        self._counters: dict[Verdict, tuple[Any, ...]] = {
            "delivered": (self.messages_delivered_total,),
            "passed over": (self.messages_passed_over_total,),
            "held": (self.messages_held_total,),
            "retrying": (self.messages_failed_total,),
            "dead": (self.messages_failed_total, self.messages_dead_total),
        }

    # --- handlers

    def middleware(self, bus: Any) -> Any:
        """Return what times the calls of this bus's handlers."""
        self._registries.append(bus.registry)
        return self._calls.around_async if isinstance(bus, AsyncMessageBusABC) else self._calls.around

    # --- the way of a message

    def writing(self, rows: Sequence[Any]) -> Around:
        """Count messages as registered, once they are inserted."""
        return _Timed(lambda _, fine: self._written(rows) if fine else None)

    def _written(self, rows: Sequence[Any]) -> None:
        for name, number in Counter(row.message for row in rows).items():  # from classes of this process
            self.messages_registered_total.labels(name).inc(number)

    def attempting(self, attempt: Attempt) -> Around:
        """Count a retry, and how long the message has waited if it succeeds."""
        if attempt.number > 1:
            part, name = attempt.part, self._name_of(attempt.part, attempt.row.message)
            self.messages_retried_total.labels(part.subscription, name).inc()
        return _Attempting(self, attempt)

    def _delivered(self, attempt: Attempt) -> None:
        if attempt.waited is not None and not attempt.passed_over:
            part, name = attempt.part, self._name_of(attempt.part, attempt.row.message)
            self.delivery_delay_seconds.labels(part.subscription, name).observe(attempt.waited)

    def recording(self, batch: Batch) -> Around:
        """Count what became of messages, once it is committed."""
        return _Timed(lambda seconds, fine: self._recorded(batch, seconds) if fine else None)

    def _recorded(self, batch: Batch, committing: float) -> None:
        part = batch.part
        seconds = batch.seconds + committing
        found: Counter[tuple[str, Verdict]] = Counter(
            (each.row.message, each.verdict) for each in batch.outcomes
        )
        for (message, verdict), number in found.items():
            name = self._name_of(part, message)
            for counter in self._counters[verdict]:
                counter.labels(part.subscription, name).inc(number)
        self.batch_messages.labels(part.subscription).observe(len(batch.outcomes))
        self.batch_duration_seconds.labels(part.subscription).observe(seconds)
        if part.subscription in self._projections:
            self.projection_update_seconds.labels(part.subscription).observe(seconds)

    def _name_of(self, part: Part, name: str) -> str:
        """The label for a type that a row names: the name that its class has now; "unknown" if no class is known."""
        found = self._names.get(name)
        if found is None:
            registries = [*self._registries, getattr(part.handler, "registry", None)]
            known = next((each for each in registries if isinstance(each, Registry) and name in each), None)
            cls = None if known is None else known.get(name)
            if cls is None:
                return UNKNOWN  # not remembered: it may be registered later, and others may be invented
            found = self._names[name] = definition_of(cls).name
        return found

    # --- workers

    def leased(self, part: Part, change: LeaseChange) -> None:
        """Count a change of a lease."""
        for each in _CHANGES:  # what shows up only when it has happened is no increase to Prometheus
            changes = self.lease_changes_total.labels(part.subscription, each.replace(" ", "_"))
            if each == change:
                changes.inc()
        if change in ("claimed", "taken over"):
            self.outages_total.labels(part.subscription)
            self.partitions_out_of_reach.labels(part.subscription)
            if _is_projection(part.handler):
                self._projections.add(part.subscription)
        else:
            self._note_out(part, False)

    def woken(self, part: Part, cause: Cause) -> None:
        """Count the end of a wait."""
        self.wake_ups_total.labels(part.subscription, cause).inc()

    def out_of_reach(self, part: Part, is_out: bool) -> None:
        """Count an outage, and note whether it lasts."""
        if is_out:
            self.outages_total.labels(part.subscription).inc()
        self._note_out(part, is_out)

    def _note_out(self, part: Part, is_out: bool) -> None:
        if is_out != (part in self._out):  # each partition is told of by one thread, or task
            (self._out.add if is_out else self._out.discard)(part)
            self.partitions_out_of_reach.labels(part.subscription).inc(1 if is_out else -1)

    def housekept(self, promoted: int, pruned: int) -> None:
        """Count what the housekeeper has moved."""
        self.messages_promoted_total.inc(promoted)
        self.messages_pruned_total.inc(pruned)

    def measured(self, gauges: Gauges) -> None:
        """Show the state of the logs; what is not there any more is not shown any more."""
        lag: dict[tuple[str, ...], float] = {}
        lag_seconds: dict[tuple[str, ...], float] = {}
        undelivered: dict[tuple[str, ...], float] = {}
        behind: Counter[tuple[str, ...]] = Counter()
        for each in gauges.partitions:
            where = (each.part.subscription, str(each.part.partition))
            if each.lag is not None:
                lag[where] = each.lag
                lag_seconds[where] = each.lag_seconds or 0.0
                if each.part.subscription in self._projections:
                    behind[each.part.subscription,] += each.lag
            for state in ("retrying", "held", "dead"):
                undelivered[*where, state] = getattr(each, state)
        self._lag.show(lag)
        self._lag_seconds.show(lag_seconds)
        self._undelivered.show(undelivered)
        self._behind.show(behind)
        self._watermarks.show({(log,): age for log, age in gauges.watermark_age.items()})
        self.outbox_rows.labels("outbox").set(gauges.outbox_rows)
        self.outbox_oldest_age_seconds.labels("outbox").set(gauges.outbox_oldest_seconds)
        self.scheduled_messages.labels("delayed").set(gauges.delayed)
        self.scheduled_messages.labels("due").set(gauges.due)
        for log in gauges.watermark_age:
            self.state_read_timestamp_seconds.labels(log).set(time.time())

    # --- event sourcing

    def loading(self, aggregate_type: str) -> Around:
        """Time the loading of an aggregate, and count it."""
        return self.track_aggregate_load(aggregate_type)

    def loaded(self, aggregate: Any) -> None:
        """Count an aggregate for as long as it is in use."""
        cls = type(aggregate)
        self._in_memory.add(getattr(cls, "aggregate_type", cls.__name__), aggregate)

    def storing(self, operation: str) -> Around:
        """Count and time an operation of an event store."""
        return self.track_storage_operation(_OPERATIONS.get(operation, operation))

    def saga(self, run: SagaRun) -> Around:
        """Count and time a run that a saga ends with; one that was only looked at, or goes on later, is none."""
        return _Timed(lambda seconds, fine: self._saga_ended(run, seconds, fine=fine))

    def _saga_ended(self, run: SagaRun, seconds: float, *, fine: bool) -> None:
        status = run.status if fine else ERROR
        if status is not None:
            self.saga_executions_total.labels(run.saga_type, status).inc()
            self.saga_duration_seconds.labels(run.saga_type).observe(seconds)


class _Attempting:
    """Around one attempt; there are many of them."""

    __slots__ = ("_attempt", "_metrics")

    def __init__(self, metrics: PrometheusMetrics, attempt: Attempt) -> None:
        self._metrics = metrics
        self._attempt = attempt

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._metrics._delivered(self._attempt)


class _Timed:
    """Around something: says afterwards how many seconds it took, and whether it went well."""

    __slots__ = ("_begun", "_tell")

    def __init__(self, tell: Callable[[float, bool], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        self._begun = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tell(perf_counter() - self._begun, kind is None)


def _is_projection(handler: Any) -> bool:
    from message_bus.eventsourcing.projections.projection import Projection

    return isinstance(handler, Projection)


__all__ = ["MetricConfig", "MetricOperationType", "PrometheusMetrics"]
