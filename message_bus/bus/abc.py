"""The two contracts of a bus. Depend on these where a bus is taken as an argument; derive to wrap or replace one.

`MessageBus` and `AsyncMessageBus` are the package's own; what the two colours share is `AnyBusABC`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from message_bus.messages.message import Command, Event, Message
from message_bus.repositories.registering import register

if TYPE_CHECKING:
    from message_bus.bus.calling import EventHandlers, Handler
    from message_bus.delivery.report import OutboxReport

C = TypeVar("C", bound=Command)
E = TypeVar("E", bound=Event)


class AnyBusABC(ABC):
    """What every bus has, whatever its colour: handlers, and the way into an outbox."""

    context: dict[str, Any]
    """What every dispatch of this bus finds in its context, unless the call says otherwise."""

    @abstractmethod
    def set_command_handler(self, command_type: type[C], handler: Handler[C]) -> None:
        """Let `handler` handle this command, in place of the one before."""

    @abstractmethod
    def get_command_handler(self, command_type: type[Command]) -> Any:
        """The handler of a command as it was registered; None if there is none."""

    @abstractmethod
    def set_event_handlers(self, event_type: type[E], handlers: EventHandlers[E]) -> None:
        """Let `handlers` handle this event, in this order, in place of those before."""

    @abstractmethod
    def get_event_handlers(self, event_type: type[Event]) -> list[Any]:
        """The handlers of an event as they were registered; changing the list changes nothing."""

    @abstractmethod
    def set_outbox_handlers(self, handlers: Sequence[Any]) -> None:
        """Let `handlers` work on what comes out of the outbox, each as a subscription of its own."""

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

        Raises: InvalidMessage, InvalidOutboxMessage, NotAMessage; nothing is registered then.
        """
        return register(outbox_repo, message, id=id, meta=meta, key=key, delay=delay)


class MessageBusABC(AnyBusABC):
    """A bus whose methods return when the work is done."""

    @abstractmethod
    def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle a message and all that its handlers emit."""

    @abstractmethod
    def batch_handle(
        self, messages: Iterable[Message], *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle messages one after another."""

    @abstractmethod
    def process_outbox(
        self, outbox_repo: Any, *, limit: int | None = None, only: Collection[str] | None = None
    ) -> OutboxReport:
        """Deliver what is in the outbox."""


class AsyncMessageBusABC(AnyBusABC):
    """A bus whose methods are awaited."""

    @abstractmethod
    async def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle a message and all that its handlers emit."""

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
        self, outbox_repo: Any, *, limit: int | None = None, only: Collection[str] | None = None
    ) -> OutboxReport:
        """Deliver what is in the outbox."""
