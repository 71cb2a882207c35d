"""The middleware of `PrometheusMetrics`: it times every call of a handler, and fails none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

from message_bus.messages.definition import definition_of
from message_bus.messages.message import Command, Event
from message_bus.observability.prometheus.instruments import Instruments
from message_bus.observability.prometheus.tracking import ERROR, SUCCESS

logger: Final = logging.getLogger("message_bus.observability")


class Calls:
    """Times calls of handlers into these instruments. Safe for threads and tasks."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._found: dict[tuple[type[Any], str, str], tuple[Sequence[Any], Sequence[Any]]] = {}

    def around(self, message: Any, context: Any, call_next: Any) -> Any:
        """Middleware for a MessageBus."""
        begun = perf_counter()
        try:
            result = call_next()
        except BaseException:
            self._handled(message, call_next, perf_counter() - begun, ERROR)
            raise
        self._handled(message, call_next, perf_counter() - begun, SUCCESS)
        return result

    async def around_async(self, message: Any, context: Any, call_next: Any) -> Any:
        """Middleware for an AsyncMessageBus."""
        begun = perf_counter()
        try:
            result = await call_next()
        except BaseException:
            self._handled(message, call_next, perf_counter() - begun, ERROR)
            raise
        self._handled(message, call_next, perf_counter() - begun, SUCCESS)
        return result

    def _handled(self, message: Any, call_next: Any, seconds: float, status: str) -> None:
        try:
            key = (type(message), call_next.handler_name, status)
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = self._series_of(*key)
            durations, counters = found
            for each in durations:
                each.observe(seconds)
            for each in counters:
                each.inc()
        except Exception:  # what measures a handler must not fail it
            logger.exception("a call of a handler could not be measured; the message is not touched by it")

    def _series_of(self, cls: type[Any], handler: str, status: str) -> tuple[Sequence[Any], Sequence[Any]]:
        """What times and what counts a call; looked up once, since each look costs as much as counting."""
        name = definition_of(cls).name
        duration = self._instruments.handler_duration_seconds.labels(name, handler, status)
        if issubclass(cls, Event):
            seconds = self._instruments.events_processing_seconds.labels(name)
            return (duration, seconds), (self._instruments.events_total.labels(name, status),)
        if issubclass(cls, Command):
            seconds = self._instruments.commands_latency_seconds.labels(name)
            return (duration, seconds), (self._instruments.commands_total.labels(name, status),)
        return (duration,), ()
