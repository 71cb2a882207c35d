"""The trace that a message belongs to, in its headers: W3C trace context and baggage, put there at registration.

Whoever does not use OpenTelemetry pays one look into `sys.modules`. With it, whatever propagator the application has set
writes the headers; by default `traceparent`, `tracestate` and `baggage`. A message that is registered where no span is
current keeps the trace that it has inherited from the one in hand. Called by the write path and by the event stores.
"""

from __future__ import annotations

import logging
import sys

from message_bus.messages.envelope import BAGGAGE, TRACE_HEADERS, Envelope, child_headers

logger = logging.getLogger("message_bus.observability")


def add_trace_context(headers: dict[str, str]) -> None:
    """Put the trace context that is current here in place of an inherited one, if the application uses OpenTelemetry.

    A propagator that fails is logged: the message goes without.
    """
    if "opentelemetry.trace" not in sys.modules:
        return
    current: dict[str, str] = {}
    try:
        from opentelemetry import propagate

        propagate.inject(current)
    except Exception as error:
        logger.warning(
            "the trace context could not be written (%s); the message goes without",
            type(error).__name__,
            exc_info=error,
        )
        return
    if current.keys() - {BAGGAGE}:
        for name in TRACE_HEADERS:
            headers.pop(name, None)
    headers.update(current)


def inherited_headers(parent: Envelope | None) -> dict[str, str]:
    """The headers of what is made here, while `parent` is in hand: its correlation, and the trace that is current."""
    headers = child_headers(parent)
    add_trace_context(headers)
    return headers
