"""The four metrics that OpenTelemetry's messaging conventions (1.44) name, and what each is counted with.

    sent ──► messaging.client.sent.messages, messaging.client.operation.duration (send)
    received ──► messaging.client.consumed.messages, messaging.client.operation.duration (receive)
    attempted ──► messaging.process.duration      recorded ──► messaging.client.operation.duration (settle)

Attributes are names of logs, subscriptions and error classes, and numbers of partitions: never ids or keys. Called by
`opentelemetry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import message_bus
from message_bus.observability.tracing import SCHEMA_URL, SCOPE, type_of

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds: where the conventions want the buckets of durations to end."""

OPERATION_TYPE: Final = "messaging.operation.type"


class Instruments:
    """The instruments of one meter provider; by default of whatever the application has set or will set."""

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter(
            SCOPE, message_bus.__version__, meter_provider=meter_provider, schema_url=SCHEMA_URL
        )
        self._operations = meter.create_histogram(
            "messaging.client.operation.duration",
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._processing = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="Duration of processing operation.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            unit="{message}",
            description="Number of messages that were delivered to the application.",
        )

    def operated(
        self, attributes: Mapping[str, Any], seconds: float, error: BaseException | None = None
    ) -> None:
        """A send, a receive or a settle has ended."""
        self._operations.record(seconds, _with_error(attributes, error))

    def processed(
        self, attributes: Mapping[str, Any], seconds: float, error: BaseException | None = None
    ) -> None:
        """An attempt at a message has ended."""
        self._processing.record(seconds, _without_type(attributes, error))

    def sent(self, attributes: Mapping[str, Any], count: int, error: BaseException | None = None) -> None:
        """So many messages were written into the outbox, or were not because of `error`."""
        self._sent.add(count, _without_type(attributes, error))

    def consumed(self, attributes: Mapping[str, Any], count: int) -> None:
        """So many messages were read from a log."""
        self._consumed.add(count, _without_type(attributes, None))


def _with_error(attributes: Mapping[str, Any], error: BaseException | None) -> Mapping[str, Any]:
    return attributes if error is None else {**attributes, "error.type": type_of(error)}


def _without_type(attributes: Mapping[str, Any], error: BaseException | None) -> Mapping[str, Any]:
    """The conventions give the type of the operation to spans and to the duration of operations only."""
    return _with_error({key: value for key, value in attributes.items() if key != OPERATION_TYPE}, error)
