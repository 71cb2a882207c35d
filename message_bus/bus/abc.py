"""The two contracts of a bus. Depend on these where a bus is taken as an argument; derive to wrap or replace one.

`MessageBus` and `AsyncMessageBus` are the package's own; what the two colours share is `AnyBusABC`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from message_bus.errors import NotAMessage, SettingsError
from message_bus.messages.finishing import OBJECT_GIVEN
from message_bus.messages.message import Command, Event, Message, Query
from message_bus.repositories.registering import register

if TYPE_CHECKING:
    from message_bus.bus.calling import EventHandlers, Handler
    from message_bus.delivery.report import OutboxReport

LEASE = timedelta(seconds=30)
"""How long a worker may be silent before another one takes its place, unless told otherwise."""

C = TypeVar("C", bound=Command)
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Message)
F = TypeVar("F", bound=Callable[..., Any])

_EXAMPLES: dict[type[Message], str] = {Command: "PlaceOrder", Event: "OrderPlaced", Query: "GetOrder"}


class AnyBusABC(ABC):
    """What every bus has, whatever its colour: handlers, and the way into an outbox."""

    context: dict[str, Any]
    """What every dispatch of this bus finds in its context, unless the call says otherwise."""

    @abstractmethod
    def set_command_handler(self, command_type: type[C], handler: Handler[C]) -> None:
        """Let `handler` handle this command, in place of the one before."""

    @abstractmethod
    def get_command_handler(self, command_type: type[Command]) -> Any:
        """Return the handler of a command as it was registered; None if there is none."""

    @abstractmethod
    def set_event_handlers(self, event_type: type[E], handlers: EventHandlers[E]) -> None:
        """Let `handlers` handle this event, in this order, in place of those before."""

    @abstractmethod
    def get_event_handlers(self, event_type: type[Event]) -> list[Any]:
        """Return the handlers of an event as they were registered; changing the list changes nothing."""

    @abstractmethod
    def set_outbox_handlers(self, handlers: Sequence[Any]) -> None:
        """Let `handlers` work on what comes out of the outbox, each as a subscription of its own."""

    def subscribe(self, message_type: type[M], handler: Handler[M]) -> None:
        """Let `handler` handle this message: an event behind the handlers that it has already, a command as its only one.

        A dispatch in hand keeps the handlers it began with.

        Raises: SettingsError if a command or query has a handler already; as `set_event_handlers`.
        """
        class_given(message_type)
        if issubclass(message_type, Event):
            self.set_event_handlers(message_type, [*self.get_event_handlers(message_type), handler])
        elif issubclass(message_type, Command):
            if self.get_command_handler(message_type) is not None:
                raise only_one_handler("command", message_type)
            self.set_command_handler(message_type, handler)
        else:
            raise NotAMessage(message_type)

    def command_handler(self, command_type: type[Command]) -> Callable[[F], F]:
        """Register the decorated function for a command: `@bus.command_handler(PlaceOrder)`.

        Raises: as `subscribe`.
        """
        return self._subscriber("command_handler", Command, command_type)

    def event_handler(self, *event_types: type[Event]) -> Callable[[F], F]:
        """Register the decorated function for events, behind their other handlers: `@bus.event_handler(OrderPlaced)`.

        Raises: as `subscribe`.
        """
        return self._subscriber("event_handler", Event, *event_types)

    def _subscriber(
        self, decorator: str, kind: type[Message], *message_types: type[Message]
    ) -> Callable[[F], F]:
        if not message_types:
            raise SettingsError(decorator, [f"needs a message type (@bus.{decorator}({kind.__name__}Class))"])
        for message_type in message_types:
            if not isinstance(message_type, type | Message) and callable(message_type):
                problem = f"is not a message (write @bus.{decorator}({_EXAMPLES[kind]}))"
                raise NotAMessage(message_type, problem)
            refuse_other_kind(message_type, kind)

        def register(handler: F) -> F:
            for message_type in message_types:
                self.subscribe(message_type, handler)
            return handler

        return register

    @classmethod
    def register_outbox_message(
        cls,
        outbox_repo: Any,
        message: Message,
        id: Any = None,  # noqa: A002  (the ancestor's word)
        meta: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        delay: timedelta | None = None,
    ) -> Any:
        """Register a message in an outbox, in the caller's transaction; return the row.

        The row exists if and only if that transaction commits (G1). `outbox_repo`: a repository, Session, AsyncSession,
        scoped_session or Connection. `id`: default a new UUIDv7. `key`: messages of one key are handled in order (G3);
        default what the class says. `delay`: from commit, by the database's clock. Inside a handler the row inherits
        correlation and causation from the message in hand.

        Raises: InvalidMessage, InvalidOutboxMessage, NotAMessage, QueryNotSendable; nothing is registered then.
        """
        return register(outbox_repo, message, id=id, meta=meta, key=key, delay=delay)


class MessageBusABC(AnyBusABC):
    """A bus whose methods return when the work is done."""

    @abstractmethod
    def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle a message and all that its handlers emit."""

    def publish(self, message: Message) -> None:
        """Handle a message, and do not ask what came of it. Raises: as `handle`."""
        self.handle(message)

    @abstractmethod
    def batch_handle(
        self, messages: Iterable[Message], *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle messages one after another."""

    @abstractmethod
    def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Deliver what is in the outbox."""


class AsyncMessageBusABC(AnyBusABC):
    """A bus whose methods are awaited."""

    @abstractmethod
    async def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle a message and all that its handlers emit."""

    async def publish(self, message: Message) -> None:
        """Handle a message, and do not ask what came of it. Raises: as `handle`."""
        await self.handle(message)

    @abstractmethod
    async def batch_handle(
        self,
        messages: Iterable[Message],
        max_concurrency: int = 5,
        *,
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Handle messages, some of them at a time."""

    @abstractmethod
    async def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Deliver what is in the outbox."""


def refuse_other_kind(message_type: object, kind: type[Message]) -> None:
    """Raise unless `message_type` is a class of that kind: NotAMessage, SettingsError."""
    given = class_given(message_type)
    if not issubclass(given, Message):
        raise NotAMessage(message_type)
    if not issubclass(given, kind):
        problem = f"is not a{'n' if kind is Event else ''} {kind.__name__} (derive it from message_bus.{kind.__name__})"
        raise SettingsError(f"message type {given.__name__!r}", [problem])


def class_given(message_type: object) -> type:
    """Return `message_type` if it is a class. Raises: NotAMessage, which names the mistake where it is a message."""
    if isinstance(message_type, type):
        return message_type
    raise NotAMessage(message_type, OBJECT_GIVEN if isinstance(message_type, Message) else None)


def only_one_handler(kind: str, message_type: type[Message]) -> SettingsError:
    """The error for a second handler of a message that has exactly one."""
    return SettingsError(
        f"{kind} {message_type.__name__!r}",
        [f"has a handler already, and only one can answer (replace it with bus.set_{kind}_handler())"],
    )
