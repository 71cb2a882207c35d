"""`Telemetry`: an observer that makes spans and metrics after OpenTelemetry's messaging conventions (1.44).

    request ─► create outbox ───────────┬──────────► process outbox ─► handle OrderPlaced ─► create outbox ─► ...
           └─► send outbox (links) ─ ─ ─┘ headers ┄┄┄┄ receive outbox, settle outbox (links)

`bus.observe(Telemetry())` is all the wiring. One trace leads from where a message was registered through the log to its
handlers, and on to what they emit. With the API alone no span is made, but the trace context is handed on all the same.
Providers are the application's: nothing global is set here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, cast

from message_bus.bus.abc import AsyncMessageBusABC
from message_bus.bus.context import Context
from message_bus.bus.dispatch import name_of
from message_bus.bus.middleware import AsyncCallNext, AsyncMiddleware, CallNext, Middleware
from message_bus.messages.envelope import CORRELATION_ID
from message_bus.messages.message import Message
from message_bus.observability.observer import Around, Attempt, Batch, Observer, Outcome, Part, Registration
from message_bus.observability.opentelemetry_metrics import OPERATION_TYPE, Instruments
from message_bus.observability.tracing import MOST_LINKS, Done, Inside, Tracing

if TYPE_CHECKING:
    from opentelemetry.context import Context as OpenTelemetryContext
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

OUTBOX: Final = "outbox"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGE_TYPE: Final = "message_bus.message.type"


class Telemetry(Observer):
    """Traces and metrics of a bus, its outbox and its workers. Safe to share between buses, threads and tasks.

    Without providers it uses those that the application has set globally, also if it does so later. `redact`: what error
    texts and tracebacks go through before they are recorded; values of SQL statements are left out in any case.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._tracing = Tracing(tracer_provider, redact=redact)
        self._metrics = Instruments(meter_provider)

    def middleware(self, bus: Any) -> Middleware | AsyncMiddleware:
        """Return what makes a span for each call of each handler."""
        return self._handling_async if isinstance(bus, AsyncMessageBusABC) else self._handling

    def _handling(self, message: Message, context: Context, call_next: CallNext) -> Any:
        if self._tracing.is_idle:
            return call_next()
        with self._handled(message, context, call_next):
            return call_next()

    async def _handling_async(self, message: Message, context: Context, call_next: AsyncCallNext) -> Any:
        if self._tracing.is_idle:
            return await call_next()
        with self._handled(message, context, call_next):
            return await call_next()

    def _handled(self, message: Message, context: Context, call_next: CallNext | AsyncCallNext) -> Inside:
        name = name_of(message)
        attributes = {MESSAGE_TYPE: name, "message_bus.handler": call_next.handler_name}
        # where no span is current, as the envelope tells; it is not made for that elsewhere
        is_traced = self._tracing.current() is not None
        within = None if is_traced else self._told_by(context.get("envelope"))
        span = self._tracing.start(f"handle {name}", self._tracing.kinds.INTERNAL, attributes, context=within)
        return self._tracing.inside(span, context=within)

    def _told_by(self, thing: Any) -> OpenTelemetryContext | None:
        """The context that the headers of something tell; None if they do not."""
        context, creation = self._tracing.continued(_headers_of(thing))
        return None if creation is None else context

    def registering(self, registration: Registration) -> Around:
        """Make a span whose context goes into the headers, as the one in which the message was created."""
        if self._tracing.is_idle:
            return None
        headers = registration.headers
        # where no span is current, what it has inherited from the message in hand
        context = None if self._tracing.current() is not None else self._told_by(registration)
        attributes = {
            **_operation("create", OUTBOX),
            **_of_message(registration.id, headers),
            MESSAGE_TYPE: registration.message,
        }
        span = self._tracing.start("create outbox", self._tracing.kinds.PRODUCER, attributes, context=context)
        return self._tracing.inside(span, context=context)

    def writing(self, rows: Sequence[Any]) -> Around:
        """Make a span around the INSERT, linked to where its messages were created."""
        attributes = _operation("send", OUTBOX)

        def done(span: Span, seconds: float, error: BaseException | None) -> None:
            self._metrics.sent(attributes, len(rows), error)
            self._metrics.operated(attributes, seconds, error)

        return self._of_rows(attributes, rows, done)

    def received(self, part: Part, rows: Sequence[Any], seconds: float) -> None:
        """Make a span of the time that reading took, linked to where the messages were created."""
        attributes = _operation("receive", part.log, part)
        self._metrics.consumed(attributes, len(rows))
        self._metrics.operated(attributes, seconds)
        with self._of_rows(attributes, rows, None, at=time_ns() - int(seconds * 1e9)):
            pass

    def attempting(self, attempt: Attempt) -> Around:
        """Make a span in the trace of the message, current while its handlers run; its parent is where it was created."""
        part, row = attempt.part, attempt.row
        headers = _headers_of(row)
        around = self._tracing.current()
        context, creation = self._tracing.continued(headers)
        metric_attributes = _operation("process", part.log, part)
        span = self._tracing.start(
            f"process {part.log}",
            self._tracing.kinds.CONSUMER,
            {
                **metric_attributes,
                **_of_message(row.id, headers),
                MESSAGE_TYPE: row.message,
                "message_bus.attempt": attempt.number,
                "message_bus.outbox.wait_seconds": attempt.waited,
            },
            context=context,
            # the conventions want a link to where the message was created also if that is the parent, and to the span
            # in whose scope it is processed if that is not
            linked=(creation, around if creation is not None else None),
        )

        def done(span: Span, seconds: float, error: BaseException | None) -> None:
            if attempt.passed_over:
                span.set_attribute("message_bus.passed_over", True)
            self._metrics.processed(metric_attributes, seconds, error)

        return self._tracing.inside(span, context=context, done=done, outermost=True)

    def recording(self, batch: Batch) -> Around:
        """Make a span around the commit, linked to the messages with what is recorded of each."""
        attributes = _operation("settle", batch.part.log, batch.part)

        def done(span: Span, seconds: float, error: BaseException | None) -> None:
            self._metrics.operated(attributes, seconds, error)

        return self._of_rows(attributes, batch.outcomes, done)

    def _of_rows(
        self, attributes: dict[str, Any], each_of: Sequence[Any], done: Done | None, *, at: int | None = None
    ) -> Inside:
        """A span about several messages (rows, or Outcomes of rows), linked to where they were created.

        It belongs to the span that is current; if none is, to the trace of the messages, if all are of one.
        """
        tracing, kind = self._tracing, self._tracing.kinds.CLIENT
        name = f"{attributes['messaging.operation.name']} {attributes['messaging.destination.name']}"
        if tracing.is_idle:
            return tracing.inside(tracing.start(name, kind, attributes), done=done)
        rows = [each.row if isinstance(each, Outcome) else each for each in each_of]
        context = None
        if tracing.current() is None and _are_of_one_trace(rows):
            context = self._told_by(rows[0])
        more: dict[str, Any] = {"messaging.batch.message_count": len(rows)}
        if len(rows) == 1:
            more |= _of_message(getattr(rows[0], "id", None), _headers_of(rows[0]))
        span = tracing.start(name, kind, {**attributes, **more}, context=context, at=at)
        if span.is_recording():
            for each in each_of[:MOST_LINKS]:
                self._link(span, each)
        return tracing.inside(span, done=done)

    def _link(self, span: Span, each: Any) -> None:
        row, verdict = (each.row, each.verdict) if isinstance(each, Outcome) else (each, None)
        creation = self._tracing.creation_of(_headers_of(row))
        if creation is None:
            return
        attributes = {MESSAGE_ID: str(row.id), MESSAGE_TYPE: row.message}
        span.add_link(
            creation, attributes if verdict is None else {**attributes, "message_bus.verdict": verdict}
        )


def _operation(name: str, log: str, part: Part | None = None) -> dict[str, Any]:
    """What spans and metrics of an operation have in common."""
    attributes = {
        "messaging.system": "message_bus",
        "messaging.operation.name": name,
        OPERATION_TYPE: name,
        "messaging.destination.name": log,
    }
    if part is not None:
        attributes["messaging.consumer.group.name"] = part.subscription
        attributes["messaging.destination.partition.id"] = str(part.partition)
    return attributes


def _of_message(id: Any, headers: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002  (the field's word)
    return {
        MESSAGE_ID: None if id is None else str(id),
        "messaging.message.conversation_id": headers.get(CORRELATION_ID),
    }


def _headers_of(row: Any) -> Mapping[str, Any]:
    """The headers of a row; none if there are none to be read: of what has killed a worker only little is known."""
    try:
        headers = row.headers
    except Exception:  # noqa: BLE001  (what others have stored there need not be an object of texts)
        return {}
    return cast("Mapping[str, Any]", headers) if isinstance(headers, Mapping) else {}


def _are_of_one_trace(rows: Sequence[Any]) -> bool:
    """Whether the trace ids in W3C headers say so."""
    return len({str(_headers_of(row).get("traceparent"))[:35] for row in rows}) == 1
