"""The context of a dispatch: what handlers are given besides the message, and where their emissions go.

Each `handle` has a `Context` of its own, shared by the cascade of that call and nobody else; which one is in hand is
kept in a ContextVar, so threads and tasks never see each other's. The buses enter and leave it; handlers only use it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from message_bus.bus.dispatch import Attempt, Cascade, Emission, name_of
from message_bus.errors import DispatchEnded, NotAMessage, QueryNotSendable, WiringError
from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Command, Event, Message, Query


class Context(dict[str, Any]):
    """A dict with the bus's own context and the caller's, and what belongs to the message in hand.

    Behind the outbox it has `db_session`, `outbox`, `envelope` and `attempt`, in concurrent mode `sessions` in place of
    `db_session`. Inside a `handle()` the envelope is made when it is first asked for, by `.envelope`, `["envelope"]`
    or `.get("envelope")`; it is not among the keys.

    What handlers emit is handled later in the same call; if the context has an `outbox`, it is registered there
    instead, as soon as the handler that emitted it has succeeded.
    """

    # The message in hand; a Cascade as soon as somebody asked for more; None when the dispatch has ended.
    # Unset in a context that was made by hand. (One slot: this is the hottest path of the package.)
    __slots__ = ("_state",)
    _state: Message | Cascade | None

    @property
    def db_session(self) -> Any:
        """The session whose commit covers this message, or whatever the application put here; None if nothing."""
        return dict.get(self, "db_session")

    @property
    def sessions(self) -> Any:
        """The session factory (concurrent mode); None if there is none."""
        return dict.get(self, "sessions")

    @property
    def outbox(self) -> Any:
        """Where emitted messages are registered; None: they are handled in the same call."""
        return dict.get(self, "outbox")

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return cast(int, dict.get(self, "attempt", 1))

    @property
    def envelope(self) -> Envelope:
        """The envelope of the message in hand: id, headers, correlation.

        Raises: WiringError if no message is in hand.
        """
        try:
            return cast(Envelope, self["envelope"])
        except KeyError:
            raise WiringError(
                "no message is in hand (read the envelope while a handler runs, and keep what you need of it)"
            ) from None

    @property
    def emitted_messages(self) -> list[Message]:
        """What all handlers of this dispatch have emitted so far."""
        cascade = cascade_of(self)
        return [] if cascade is None else cascade.emitted()

    def emit(self, message: Message) -> None:
        """Emit a message: it is handled after this one, or goes to the outbox.

        Raises: DispatchEnded if the dispatch is over; NotAMessage.
        """
        emit(self, message)

    def __missing__(self, key: str) -> Any:
        if key == "envelope" and (cascade := cascade_of(self)) is not None:
            with _making:
                envelope = cascade.envelope()
            if envelope is not None:
                return envelope
        raise KeyError(key)

    if not TYPE_CHECKING:

        def get(self, key, default=None):
            """Return what dict returns; "envelope" is made if it is not there yet."""
            if key == "envelope":
                try:
                    return self[key]
                except KeyError:
                    return default
            return dict.get(self, key, default)


_making = threading.RLock()
"""Held while a dispatch gets its queue or an envelope: threads that a handler has started may ask at the same time."""

current_context: ContextVar[Context | None] = ContextVar("message_bus.current_context", default=None)
"""The context of the dispatch in hand."""

current_attempt: ContextVar[Attempt | None] = ContextVar("message_bus.current_attempt", default=None)
"""The call of a handler by a middleware that is in hand; what it emits is dropped if it fails."""

_EDGE = Context()
"""Stands in `current_context` inside `correlate`: a dispatch that meets it reads the correlation id at its start."""
_EDGE._state = None

_correlation_id: ContextVar[str | None] = ContextVar("message_bus.correlation_id", default=None)


@contextmanager
def correlate(correlation_id: str) -> Iterator[None]:
    """Give what is handled or registered inside this correlation id, e.g. that of a web request.

    What is emitted while a message is in hand keeps the correlation of that message.
    """
    token = _correlation_id.set(correlation_id)
    edge = current_context.set(_EDGE) if current_context.get() is None else None
    try:
        yield
    finally:
        _correlation_id.reset(token)
        if edge is not None:
            current_context.reset(edge)


def correlation_id() -> str | None:
    """The id that `correlate` has set here."""
    return _correlation_id.get()


def in_hand() -> Envelope | None:
    """The envelope of the message that is being handled right now, here; None outside of a dispatch."""
    context = current_context.get()
    return None if context is None or cascade_of(context) is None else context.get("envelope")


def _dispatch_in_hand() -> Context | None:
    context = current_context.get()
    return None if context is _EDGE else context


def cascade_of(context: Context) -> Cascade | None:
    """The queue of the dispatch that `context` belongs to; None if that has ended. Made when first asked for."""
    try:
        state = context._state
    except AttributeError:  # made by hand, e.g. in the unit test of a handler
        state = context._state = Cascade(None)
    if state is None or type(state) is Cascade:
        return state
    with _making:
        if context._state is state:
            root = Emission(cast(Message, state), envelope=dict.get(context, "envelope"))
            context._state = Cascade(root)
        return cast(Cascade, context._state)


def emit(context: Context, message: Message, emitter: object = None) -> None:
    """Emit `message` into the dispatch that `context` belongs to."""
    refuse_unsendable(message)
    cascade = cascade_of(context)
    if cascade is None:
        raise DispatchEnded(name_of(message))
    cascade.emit(message, emitter, current_attempt.get())


def refuse_non_message(message: object) -> None:
    """Raise NotAMessage unless `message` is a Command, an Event or a Query."""
    if not isinstance(message, Command | Event | Query):
        if isinstance(message, type) and issubclass(message, Command | Event | Query):
            raise NotAMessage(
                message, f"is a class, not a message (give an instance: {message.__name__}(...))"
            )
        raise NotAMessage(message)


def refuse_unsendable(message: object) -> None:
    """Raise unless `message` can be handled later: NotAMessage, or QueryNotSendable for a query."""
    refuse_non_message(message)
    if isinstance(message, Query):
        raise QueryNotSendable(name_of(message))


class Emitting:
    """What command and event handlers have in common: they may emit messages while they handle one.

    Works without `__init__` having run. One handler may be used by many threads and tasks at once: what it emits
    belongs to the dispatch in hand. Outside of any dispatch (in a unit test that calls the handler itself) emissions
    are collected on the instance.
    """

    def emit_message(self, message: Message) -> None:
        """Emit a message: it is handled after the one in hand, or goes to the outbox; dropped if this handler fails.

        Raises: DispatchEnded if a task that outlived its dispatch emits; NotAMessage.
        """
        context = _dispatch_in_hand()
        if context is not None:
            emit(context, message, self)
        else:
            refuse_unsendable(message)
            self._emitted_by_hand().append(message)

    def emmit_message(self, message: Message) -> None:
        """Emit a message, as `emit_message` does (the ancestor's spelling)."""
        self.emit_message(message)

    @property
    def emitted_messages(self) -> list[Message]:
        """What this handler has emitted so far in the dispatch in hand."""
        context = _dispatch_in_hand()
        if context is None:
            return list(self._emitted_by_hand())
        cascade = cascade_of(context)
        return [] if cascade is None else cascade.emitted(self)

    def _emitted_by_hand(self) -> list[Message]:
        emitted: list[Message] = self.__dict__.setdefault("_emitted_outside", [])
        return emitted
