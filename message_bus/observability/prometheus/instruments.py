"""The instruments of `PrometheusMetrics`: what each is called, what it counts, under which labels. Decides nothing.

They live in a registry of prometheus_client, which is imported when the first ones are made. Whoever asks the same registry
for them again gets the same ones, so several instances add up. Labels are names of the code: types, handlers,
subscriptions; never ids, keys, or anything else that comes with a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from message_bus.errors import SettingsError
from message_bus.observability.prometheus.config import MetricConfig

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_T = TypeVar("_T")

_CALLS: Final = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300)  # fmt: skip
_WAITS: Final = (
    .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600, 21_600,
    86_400,
)  # fmt: skip
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)


# fmt: off
class Instruments:
    """Every instrument as an attribute, under its name without namespace and subsystem.

    Raises: SettingsError if the registry has something else under one of their names.
    """

    def __init__(self, config: MetricConfig) -> None:
        make = _Maker(config)
        self.registry = make.registry
        self._make_handling(make)
        self._make_outbox(make)
        self._make_workers(make)
        self._make_state(make)
        self._make_event_sourcing(make)

    def _make_handling(self, make: _Maker) -> None:
        self.events_total = make.counter(
            "events_total", "Calls of event handlers, by how they ended.", "event_type", "status"
        )
        self.events_processing_seconds = make.histogram(
            "events_processing_seconds", "Duration of calls of event handlers.", _CALLS, "event_type"
        )
        self.commands_total = make.counter(
            "commands_total", "Calls of command handlers, by how they ended.", "command_type", "status"
        )
        self.commands_latency_seconds = make.histogram(
            "commands_latency_seconds", "Duration of calls of command handlers.", _CALLS, "command_type"
        )
        self.handler_duration_seconds = make.histogram(
            "handler_duration_seconds", "Duration of calls of handlers: of commands, events and queries.",
            _CALLS, "type", "handler", "status",
        )

    def _make_outbox(self, make: _Maker) -> None:
        self.messages_registered_total = make.counter(
            "messages_registered_total",
            "Messages written to the outbox or the schedule, just before their transaction commits.",
            "type",
        )
        what = ("subscription", "type")
        self.messages_delivered_total = make.counter(
            "messages_delivered_total", "Messages whose handlers succeeded, once that is committed.", *what
        )
        self.messages_passed_over_total = make.counter(
            "messages_passed_over_total", "Messages of a known type that had no handler.", *what
        )
        self.messages_failed_total = make.counter(
            "messages_failed_total",
            "Attempts that failed or asked to be repeated, those that made a dead letter included.",
            *what,
        )
        self.messages_retried_total = make.counter(
            "messages_retried_total", "Attempts that were not the first one at their message.", *what
        )
        self.messages_dead_total = make.counter(
            "messages_dead_total", "Messages that became dead letters.", *what
        )
        self.messages_held_total = make.counter(
            "messages_held_total", "Messages held back untried, because an earlier one of their key has failed.",
            *what,
        )
        self.delivery_delay_seconds = make.histogram(
            "delivery_delay_seconds",
            "From the writing of a message to the start of the attempt that delivered it, by the clock of the database.",
            _WAITS, *what,
        )
        self.messages_promoted_total = make.counter(
            "messages_promoted_total", "Delayed messages that were due and entered the outbox."
        )
        self.messages_pruned_total = make.counter(
            "messages_pruned_total", "Old messages removed from the outbox."
        )

    def _make_workers(self, make: _Maker) -> None:
        self.batch_messages = make.histogram(
            "batch_messages", "Messages recorded by one commit.", _SIZES, "subscription"
        )
        self.batch_duration_seconds = make.histogram(
            "batch_duration_seconds", "From the begin of a batch to the end of its commit.", _CALLS, "subscription"
        )
        self.lease_changes_total = make.counter(
            "lease_changes_total",
            "Leases of partitions claimed, taken over from a worker that was silent, lost to another one, or released.",
            "subscription", "change",
        )
        self.wake_ups_total = make.counter(
            "wake_ups_total",
            "Ends of a wait for work: a commit of this process, a notification, a poll that found something, a timer.",
            "subscription", "cause",
        )
        self.outages_total = make.counter(
            "outages_total", "Times that something a subscription needs went out of reach.", "subscription"
        )
        self.partitions_out_of_reach = make.gauge(
            "partitions_out_of_reach", "Partitions, worked on here, that wait for something out of reach.",
            "subscription", multiprocess_mode="livesum",
        )

    def _make_state(self, make: _Maker) -> None:
        """What a relay reads from the database. All have labels: without a relay there is no series that claims zero."""
        where = ("subscription", "partition")
        self.lag_messages = make.gauge(
            "lag_messages", "Messages behind the checkpoint, whatever their type.", *where
        )
        self.lag_seconds = make.gauge(
            "lag_seconds", "Age of the first message behind the checkpoint.", *where
        )
        self.undelivered_messages = make.gauge(
            "undelivered_messages", "Messages that failed and wait for their next attempt, that are held, or dead.",
            *where, "state",
        )
        self.watermark_age_seconds = make.gauge(
            "watermark_age_seconds", "For how long an open transaction has held back the readers of a log.", "log"
        )
        self.outbox_rows = make.gauge(
            "outbox_rows", "Positions from the oldest row of the outbox to the newest, delivered or not.", "log"
        )
        self.outbox_oldest_age_seconds = make.gauge(
            "outbox_oldest_age_seconds", "Age of the oldest row of the outbox, delivered or not.", "log"
        )
        self.scheduled_messages = make.gauge(
            "scheduled_messages", "Messages in the schedule: all that are delayed, and those of them that are due.",
            "state",
        )
        self.state_read_timestamp_seconds = make.gauge(
            "state_read_timestamp_seconds", "When a relay of this process last read the state of its logs.", "log"
        )

    def _make_event_sourcing(self, make: _Maker) -> None:
        self.aggregates_loaded_total = make.counter(
            "aggregates_loaded_total", "Aggregates loaded by a repository.", "aggregate_type"
        )
        self.aggregates_load_time_seconds = make.histogram(
            "aggregates_load_time_seconds", "Duration of loading an aggregate, also of one that is not there.",
            _CALLS, "aggregate_type",
        )
        self.aggregates_in_memory = make.gauge(
            "aggregates_in_memory", "Loaded aggregates that are still in use.",
            "aggregate_type", multiprocess_mode="livesum",
        )
        self.storage_operations_total = make.counter(
            "storage_operations_total", "Operations of event stores, by how they ended.", "operation_type", "status"
        )
        self.storage_operation_seconds = make.histogram(
            "storage_operation_seconds", "Duration of operations of event stores.", _CALLS, "operation_type"
        )
        self.projection_events_behind = make.gauge(
            "projection_events_behind", "Messages of its log that a projection has not read yet.", "projection_name"
        )
        self.projection_update_seconds = make.histogram(
            "projection_update_seconds", "From the begin of a batch of a projection to the end of its commit.",
            _CALLS, "projection_name",
        )
        self.saga_executions_total = make.counter(
            "saga_executions_total", "Sagas run to their end, or broken off by an error.", "saga_type", "status"
        )
        self.saga_duration_seconds = make.histogram(
            "saga_duration_seconds", "From the start of a saga, or its resumption, to its end.", _CALLS, "saga_type"
        )
# fmt: on


class _Silent:
    """Stands in for a histogram that was not wanted."""

    def labels(self, *values: object, **named: object) -> _Silent:
        """Whatever the labels: this."""
        return self

    def observe(self, amount: float) -> None:
        """Forget it."""

    def time(self) -> AbstractContextManager[None]:
        """Measure nothing."""
        return nullcontext()


class _Maker:
    """Makes instruments in one registry, or finds those that are there."""

    def __init__(self, config: MetricConfig) -> None:
        from prometheus_client import REGISTRY

        self.registry: CollectorRegistry = REGISTRY if config.registry is None else config.registry
        self._config = config

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        from prometheus_client import Counter

        return self._made(Counter, name, text, labels)

    def gauge(self, name: str, text: str, *labels: str, multiprocess_mode: str = "mostrecent") -> Gauge:
        from prometheus_client import Gauge

        return self._made(Gauge, name, text, labels, multiprocess_mode=multiprocess_mode)

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        if not self._config.enable_summary_metrics:
            return cast("Histogram", _Silent())
        from prometheus_client import Histogram

        return self._made(Histogram, name, text, labels, buckets=buckets)

    def _made(self, kind: type[_T], name: str, text: str, labels: tuple[str, ...], **options: Any) -> _T:
        config = self._config
        make: Any = kind
        try:
            made: _T = make(
                name,
                text,
                labels,
                namespace=config.namespace,
                subsystem=config.subsystem,
                registry=self.registry,
                **options,
            )
        except ValueError:  # taken, it says; by one of ours?
            full_name = "_".join(part for part in (config.namespace, config.subsystem, name) if part)
            there = getattr(self.registry, "_names_to_collectors", {}).get(full_name)
            if type(there) is not kind or getattr(there, "_labelnames", None) != labels:
                raise SettingsError(
                    "PrometheusMetrics",
                    [
                        (
                            f"the registry has something else under {full_name!r} (give MetricConfig another namespace, or a "
                            "registry of its own)"
                        )
                    ],
                ) from None
            return there
        return made
