"""The whole error tree: one base, three families.

`WiringError`: the application is put together wrongly; fix the code or the set-up, retrying is useless.
`DeliveryError`: a message could not be delivered; the subscription turns it into a verdict (retry, dead letter, back-off).
`ConflictError`: somebody else was faster; load again and repeat.

Every error survives pickling with its attributes. Texts hold names of types and fields, never values of a payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID


def _rebuild(cls: type[MessageBusError], args: tuple[Any, ...], state: dict[str, Any]) -> MessageBusError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class MessageBusError(Exception):
    """The base of every error that this package raises on its own account."""

    __module__ = "message_bus"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:
            cls.__module__ = "message_bus"

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the text and the attributes, so that constructors are free to take what they need."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


# --- wrong wiring: fix the code -------------------------------------------------------------------------------


class WiringError(MessageBusError):
    """The application is put together wrongly: fix the code or the set-up."""


class SettingsError(WiringError, ValueError):
    """Options that do not fit; `problems` lists all of them at once."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        super().__init__(f"{subject}: {'; '.join(problems)}")
        self.subject = subject
        self.problems = tuple(problems)


class HandlerNotFound(WiringError, KeyError, AssertionError):
    """A command or query has no handler. (Also a KeyError and an AssertionError, which users of the ancestor catch.)"""

    def __init__(self, message_name: str, kind: str = "command") -> None:
        super().__init__(
            f"no handler for {kind} {message_name!r} (register one with bus.set_{kind}_handler())"
        )
        self.message_name = message_name


class NotAMessage(WiringError, TypeError):
    """Something that is neither a Command nor an Event nor a Query was given where a message is wanted."""

    def __init__(self, given: object, problem: str | None = None) -> None:
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        super().__init__(
            f"{name!r} "
            + (
                problem
                or "is not a message (derive it from message_bus.Command, message_bus.Event or message_bus.Query)"
            )
        )
        self.given_type = name


class QueryNotSendable(WiringError, TypeError):
    """A query was emitted or put into an outbox, where nobody would get its answer."""

    def __init__(self, message_name: str) -> None:
        super().__init__(
            f"query {message_name!r} cannot be emitted or stored: nobody would get its answer (ask it: bus.ask(query))"
        )
        self.message_name = message_name


class AsyncHandlerOnSyncBus(WiringError, TypeError):
    """A coroutine function was registered on a bus that cannot await it."""

    def __init__(self, handler_name: str) -> None:
        super().__init__(
            f"handler {handler_name!r} is async, but MessageBus runs no event loop (register it on an AsyncMessageBus)"
        )
        self.handler_name = handler_name


class CascadeLimitExceeded(WiringError, RecursionError):
    """Handlers emitted more messages in one dispatch than `max_cascade` allows: most likely they feed each other."""

    def __init__(self, limit: int, message_name: str) -> None:
        super().__init__(
            f"more than {limit} messages in one dispatch, the last a {message_name!r} "
            "(break the circle of emissions, or raise max_cascade)"
        )
        self.limit = limit
        self.message_name = message_name


class DispatchEnded(WiringError):
    """A task that outlived its handler emitted a message after the dispatch had ended."""

    def __init__(self, message_name: str) -> None:
        super().__init__(
            f"{message_name!r} was emitted after its dispatch had ended (emit before the handler returns, "
            "or await the task inside the handler)"
        )
        self.message_name = message_name


class MessageDefinitionError(WiringError, TypeError):
    """A message class cannot be encoded: `field` (if one is to blame) has a type that no codec knows."""

    def __init__(self, message_name: str, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"message class {message_name!r}: {reason}")
        self.message_name = message_name
        self.field = field


class InvalidMessage(WiringError, ValueError):
    """A message cannot be registered: its content does not fit its class, or is too large."""

    def __init__(self, message_name: str, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"message {message_name!r}: {reason}")
        self.message_name = message_name
        self.field = field


class ValidationError(WiringError, ValueError):
    """A message was made with a value that its class refuses: raised in `__post_init__`, by the validators or by you.

    `message` says what is expected. It reaches logs and dead letters, so it must not hold the value.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message if field is None else f"{field}: {message}")
        self.message = message
        self.field = field


class InvalidOutboxMessage(WiringError, ValueError):
    """An outbox row cannot be added: a field is missing or does not fit."""


class DuplicateEvent(WiringError, ValueError):
    """An event has an id that is stored already: nothing of the call was saved, the transaction is usable."""

    def __init__(self, aggregate_id: str, event_id: UUID | None) -> None:
        which = "one of the event ids" if event_id is None else f"event id '{event_id}'"
        super().__init__(
            f"aggregate {aggregate_id!r}: {which} is stored already (give events without an Envelope to get new ids)"
        )
        self.aggregate_id = aggregate_id
        self.event_id = event_id


class UnflushedWork(WiringError):
    """`process_outbox` was given a session with work that it would commit by accident."""


class UnwrittenMessages(WiringError):
    """A transaction was about to commit without the messages registered in it: it was stopped, nothing was committed."""


class SchemaError(WiringError):
    """The database's tables are not the ones this version needs; `differences` names each."""

    def __init__(self, differences: Sequence[str]) -> None:
        lines = "\n  - ".join(differences)
        super().__init__(
            f"the database schema differs (run `message-bus db upgrade`, or migrate your own metadata):\n  - {lines}"
        )
        self.differences = tuple(differences)


class UnsupportedDatabase(WiringError):
    """The database, or the way it is connected to, cannot keep the guarantees."""


class PositionBehind(WiringError):
    """The log's sequence is behind a checkpoint (a restore, TRUNCATE RESTART IDENTITY, setval): messages would be lost."""

    def __init__(self, log: str, sequence: int, checkpoint: int, remedy: str) -> None:
        super().__init__(
            f"log {log!r}: its sequence stands at {sequence}, but a checkpoint at {checkpoint} ({remedy})"
        )
        self.log = log
        self.sequence = sequence
        self.checkpoint = checkpoint


class EventNotHandled(WiringError, TypeError):
    """An aggregate was given an event that it has no handler for, and that it does not ignore on purpose."""

    def __init__(
        self, aggregate_type: str, event_name: str, expected: str, similar: str | None = None
    ) -> None:
        meant = "" if similar is None else f"did you mean {similar!r} to be it? "
        super().__init__(
            f"aggregate {aggregate_type!r} has no handler for event {event_name!r} ({meant}define "
            f"{expected}(self, event), mark a method with @when({event_name}), or list the event in `ignores`)"
        )
        self.aggregate_type = aggregate_type
        self.event_name = event_name


class InvalidSnapshot(WiringError, ValueError):
    """The state of an aggregate cannot be stored in a snapshot, or a stored one does not fit the class any more."""

    def __init__(self, aggregate_type: str, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"snapshot of {aggregate_type!r}: {reason}")
        self.aggregate_type = aggregate_type
        self.field = field


# --- neither: the caller asked for what is not there -----------------------------------------------------------


class AggregateNotFound(MessageBusError, LookupError, ValueError):
    """An aggregate was loaded that has no events. (A LookupError and a ValueError, which users of the ancestor catch.)"""

    def __init__(self, aggregate_type: str, aggregate_id: str) -> None:
        super().__init__(
            f"there is no {aggregate_type!r} with the id {aggregate_id!r} (make a new one, apply its first event, save it)"
        )
        self.aggregate_type = aggregate_type
        self.aggregate_id = aggregate_id


class SagaNotFound(MessageBusError, LookupError):
    """A saga was to be gone on with that was never started under this id."""

    def __init__(self, name: str, saga_id: str) -> None:
        super().__init__(
            f"there is no saga {name!r} with the id {saga_id!r} (start it: saga.run(sessions, saga_id, arguments))"
        )
        self.name = name
        self.saga_id = saga_id


class SagaChanged(WiringError):
    """A saga that was started cannot go on: its steps or its arguments are not those it was started with."""

    def __init__(self, name: str, saga_id: str, reason: str) -> None:
        super().__init__(f"saga {name!r}, id {saga_id!r}: {reason}")
        self.name = name
        self.saga_id = saga_id
        self.reason = reason


# --- failed delivery: the subscription decides ----------------------------------------------------------------


class DeliveryError(MessageBusError):
    """A message was not delivered; the subscription that met this decides what happens next."""


class RetryLater(DeliveryError):
    """Raised by a handler: not now. With `delay`, not before that time has passed; else after the usual back-off."""

    def __init__(self, delay: timedelta | float | None = None, reason: str = "") -> None:
        if isinstance(delay, int | float):
            delay = timedelta(seconds=delay)
        super().__init__(reason or "the handler asks for a later attempt")
        self.delay = delay
        self.reason = reason


class Reject(DeliveryError):
    """Raised by a handler: never. The message becomes a dead letter at once."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "rejected by the handler")
        self.reason = reason


class Unavailable(DeliveryError):
    """What a handler needs cannot be reached. Burns no attempt; the whole subscription backs off (G8)."""


class ProjectionNotReady(Unavailable):
    """A projection cannot handle events now: its tables are of another version, or not there. It waits, idle (G8)."""

    def __init__(self, projection: str, problem: str) -> None:
        super().__init__(f"projection {projection!r} waits: {problem}")
        self.projection = projection
        self.problem = problem


class UnknownMessageType(DeliveryError):
    """A row names a message type that the bus does not know (yet: in a rolling deploy an old worker meets new types).

    `version`: that of the row, if the name is known and the class is older than that; else None.
    """

    def __init__(self, message_name: str, *, version: int | None = None, known: int | None = None) -> None:
        super().__init__(
            f"unknown message type {message_name!r} (register its class: bus.register_messages(...), "
            "bus.set_event_handlers() or bus.set_command_handler())"
            if version is None
            else _written_by_newer(message_name, version, known)
        )
        self.message_name = message_name
        self.version = version


class MessageDecodeError(DeliveryError, ValueError):
    """A stored payload does not fit its message class; `field` names the place where that is known."""

    def __init__(self, message_name: str, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"cannot decode {message_name!r}: {reason}")
        self.message_name = message_name
        self.field = field


class InvalidCloudEvent(DeliveryError, ValueError):
    """Something from outside is no CloudEvent that can be taken in; `attribute` names what is wrong, None: the whole of it.

    Nobody here can mend it and another attempt ends the same way: tell the sender.
    """

    def __init__(self, attribute: str | None, reason: str) -> None:
        what = "" if attribute is None else f"attribute {attribute!r} "
        super().__init__(f"invalid CloudEvent: {what}{reason}")
        self.attribute = attribute
        self.reason = reason


class UnknownEventType(UnknownMessageType):
    """A stored event has a type whose class the store does not know, or knows in an older version only."""

    def __init__(self, message_name: str, *, version: int | None = None, known: int | None = None) -> None:
        super().__init__(message_name, version=version, known=known)
        if version is None:
            self.args = (
                (
                    f"unknown event type {message_name!r} (import the module of its class before loading, or register it "
                    "in the Registry that the store is given as registry=)"
                ),
            )


class SessionOwnedBySubscription(DeliveryError):
    """A handler called commit, rollback or close on the session it was given: the subscription commits it."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation}() on the session of a subscription (just return: it is committed together with the "
            "checkpoint; raise an error to roll it back; for a transaction of your own open another session)"
        )
        self.operation = operation


# --- concurrency: reload and retry ----------------------------------------------------------------------------


class ConflictError(MessageBusError):
    """Somebody else was faster: nothing was changed, load again and repeat."""


class LeaseLost(ConflictError):
    """This worker's lease on a subscription was taken over: what it had in hand was rolled back (G6)."""

    def __init__(self, subscription: str, partition: int = 0) -> None:
        super().__init__(
            f"the lease on subscription {subscription!r} partition {partition} was lost; the batch in hand was rolled back "
            "(another worker goes on; make handlers shorter than the lease, or the lease longer)"
        )
        self.subscription = subscription
        self.partition = partition


class ConcurrencyError(ConflictError):
    """A stream was not at the expected version: somebody else has appended to it, or deleted it (G12).

    `actual_version` is None where it could not be seen (REPEATABLE READ): then the transaction must be rolled back.
    """

    def __init__(self, aggregate_id: str, expected_version: int | None, actual_version: int | None) -> None:
        expected = "" if expected_version is None else f" was expected at version {expected_version}, but"
        seen = (
            " was changed by another transaction"
            if actual_version is None
            else f" is at version {actual_version}"
        )
        remedy = "roll back, load it again" if actual_version is None else "load it again"
        super().__init__(f"aggregate {aggregate_id!r}{expected}{seen} ({remedy} and repeat)")
        self.aggregate_id = aggregate_id
        self.expected_version = expected_version
        self.actual_version = actual_version


class RebuildRefused(ConflictError):
    """A projection cannot be rebuilt or swapped as things stand; `problems` says why. Nothing was changed."""

    def __init__(self, projection: str, problems: Sequence[str]) -> None:
        super().__init__(f"projection {projection!r}: {'; '.join(problems)}")
        self.projection = projection
        self.problems = tuple(problems)


def _written_by_newer(message_name: str, version: int, known: int | None) -> str:
    here = "an older one" if known is None else f"version {known}"
    return (
        f"{message_name!r} was written in version {version}, by a newer process: the class here has {here} (deploy the newer "
        "program here, too)"
    )


def names_of(values: Mapping[str, Any] | Sequence[str]) -> str:
    """The names in a mapping or sequence, quoted and sorted, for an error text."""
    return ", ".join(repr(name) for name in sorted(values))
