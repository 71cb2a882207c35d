"""Spans of OpenTelemetry as this package uses them: current inside a block, errors recorded without values, links bounded.

Knows OpenTelemetry's API and nothing of buses and logs: what spans there are, `opentelemetry.py` and `jaeger.py` say,
which are the callers. The API is imported when a `Tracing` is made, so that importing this module loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import message_bus
from message_bus.delivery.verdicts import Redact, error_text, traceback_text
from message_bus.messages.envelope import CAUSATION_ID, CORRELATION_ID

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, SpanKind, TracerProvider

SCOPE: Final = "message_bus"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that names and attributes follow."""

MOST_LINKS: Final = 128  # what the SDK keeps by default
LONGEST_HEADER: Final = 8192  # characters: what W3C allows for baggage, the longest of them
_NOT_OF_A_TRACE: Final = (CORRELATION_ID, CAUSATION_ID)  # what every message has

Done = Callable[["Span", float, BaseException | None], None]
"""What is called when a span ends: with it, how long it took in seconds, and what was raised."""


class Tracing:
    """A tracer with our name, version and schema; by default of whatever provider the application has set or will set.

    `redact`: what error texts and tracebacks go through before they are recorded.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, redact: Redact | None = None
    ) -> None:
        from opentelemetry import baggage, context, propagate, trace

        self._context, self._propagate, self._trace = context, propagate, trace
        self._provider = tracer_provider
        self._redact = redact
        self._is_live = False
        self.kinds: type[SpanKind] = trace.SpanKind
        self._tracer = trace.get_tracer(
            SCOPE, message_bus.__version__, tracer_provider=tracer_provider, schema_url=SCHEMA_URL
        )
        self._has_event = context.create_key("message_bus-error-is-recorded-further-out")
        self._make: type[Context] = context.Context
        self._nothing: Context = context.Context()
        self._without_baggage: Context = baggage.clear(self._nothing)

    @property
    def is_idle(self) -> bool:
        """Whether nobody has set a provider, so that no span can be recorded. One that is set stays."""
        if self._is_live:
            return False
        provider = self._trace.get_tracer_provider() if self._provider is None else self._provider
        # types compared, not isinstance: these are ABCs, and a bus asks for each handler
        self._is_live = type(provider) not in (
            self._trace.ProxyTracerProvider,
            self._trace.NoOpTracerProvider,
        )
        return not self._is_live

    def current(self) -> SpanContext | None:
        """The context of the span that is current here; None if there is none."""
        return self._valid(None)

    def _valid(self, context: Context | None) -> SpanContext | None:
        found = self._trace.get_current_span(context).get_span_context()
        return found if found.is_valid else None

    def creation_of(self, headers: Mapping[str, Any]) -> SpanContext | None:
        """The context in which a message with these headers was created; None if they do not tell."""
        read = self._read(headers)
        return self._valid(read) if read else None

    def continued(self, headers: Mapping[str, Any]) -> tuple[Context, SpanContext | None]:
        """The context in which a message with these headers is handled, and the one in which it was created.

        Trace and baggage are the message's; what else is current here stays. A message without a trace belongs to the
        one that is current.
        """
        read = self._read(headers)
        context = self._make({**self._context.get_current(), **self._without_baggage, **read})
        return context, self._valid(read) if read else None

    def _read(self, headers: Mapping[str, Any]) -> Context:
        """What the propagator makes of headers. They may come from anywhere: nothing in them raises."""
        carrier = {
            name: value
            for name, value in headers.items()
            if name not in _NOT_OF_A_TRACE and isinstance(value, str) and len(value) <= LONGEST_HEADER
        }
        if not carrier:
            return self._nothing
        try:
            return self._propagate.extract(carrier, self._nothing)
        except Exception:  # noqa: BLE001  (a propagator of the application's)
            return self._nothing

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        *,
        context: Context | None = None,
        linked: Iterable[SpanContext | None] = (),
        at: int | None = None,
    ) -> Span:
        """Start a span; in `context`, or else in the current one. `linked`: other spans; None is left out.

        `at`: when it began, in nanoseconds.
        """
        link = self._trace.Link
        return self._tracer.start_span(
            name,
            context=context,
            kind=kind,
            attributes={key: value for key, value in attributes.items() if value is not None},
            links=[link(each) for each in linked if each is not None],
            start_time=at,
        )

    def inside(
        self, span: Span, *, context: Context | None = None, done: Done | None = None, outermost: bool = False
    ) -> Inside:
        """A block in which the span, and else `context`, is current; it ends the span and calls `done` just before.

        `outermost`: an error is recorded here with its traceback, and not in the spans of blocks inside of this one.
        """
        if outermost:
            context = self._context.set_value(self._has_event, True, context)
        return Inside(self, span, self._trace.set_span_in_context(span, context), done)

    def enter(self, context: Context) -> Any:
        """Make a context current; returns what `leave` wants."""
        return self._context.attach(context)

    def leave(self, token: Any) -> None:
        """Make current what was before."""
        self._context.detach(token)

    def fail(self, span: Span, error: BaseException) -> None:
        """Record an error: its type, its text and its traceback, as they are stored: without values of SQL statements."""
        if not span.is_recording():
            return
        span.set_attribute("error.type", type_of(error))
        text = error_text(error, redact=self._redact)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, text))
        if self._context.get_value(self._has_event):
            return
        span.add_event(
            "exception",
            {
                "exception.type": type_of(error),
                "exception.message": text,
                "exception.stacktrace": traceback_text(error, redact=self._redact),
            },
        )


class Inside(AbstractContextManager["Span"], AbstractAsyncContextManager["Span"]):
    """A block in which a span is current, `with` or `async with`. One use."""

    __slots__ = ("_began_at", "_context", "_done", "_token", "_tracing", "span")

    def __init__(self, tracing: Tracing, span: Span, context: Context, done: Done | None) -> None:
        self.span = span
        self._tracing = tracing
        self._context = context
        self._done = done
        self._began_at = perf_counter()

    def __enter__(self) -> Span:
        self._token = self._tracing.enter(self._context)
        return self.span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._began_at
        self._tracing.leave(self._token)
        try:
            if error is not None:
                self._tracing.fail(self.span, error)
            if self._done is not None:
                self._done(self.span, seconds, error)
        finally:
            self.span.end()

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def type_of(error: BaseException) -> str:
    """What `error.type` says: the class, with its module unless it is a builtin one."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
