"""Buses that run no handler: they check the wiring and say what would have been handled, and by whom.

registering   as on the real bus
handling      noted in `would_handle`; no handler, no middleware, no result
the outbox    not processed: there is nothing that could be done without changing the database
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from message_bus.bus.abc import LEASE
from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context, refuse_non_message
from message_bus.bus.dispatch import name_of
from message_bus.bus.outcome import Outcome
from message_bus.bus.sync_bus import MessageBus
from message_bus.bus.wired import WiredBus, refuse_ask
from message_bus.errors import HandlerNotFound, WiringError
from message_bus.messages.message import Command, Event, Message, Query

if TYPE_CHECKING:
    from message_bus.delivery.report import OutboxReport


@dataclass(frozen=True, slots=True)
class WouldHandle:
    """A message, and the handlers that a real bus would have run, as they were registered."""

    message: Message
    handlers: tuple[Any, ...]


class DryRunMessageBus(MessageBus):
    """A MessageBus that runs no handler: `would_handle` lists what it was given, with the handlers that would have run.

    Registering is checked as ever. `handle` and `batch_handle` return `[]`, `ask` returns None, `dispatch` an empty
    Outcome; a command or query without handler raises HandlerNotFound. Nothing is emitted, so nothing follows.

    `register_outbox_message` works as ever, in the caller's transaction; `process_outbox` raises WiringError and touches
    nothing. Safe for threads, as a MessageBus.
    """

    def __init__(
        self,
        event_handlers: Mapping[type[Event], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[Command], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(event_handlers, command_handlers, **options)
        self.would_handle: list[WouldHandle] = []

    def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Note the message. Raises: HandlerNotFound, NotAMessage."""
        self.would_handle.append(_what(self, message))
        return []

    def dispatch(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Outcome:
        """Note the message. Raises: HandlerNotFound, NotAMessage."""
        self.would_handle.append(_what(self, message))
        return Outcome([])

    def ask(self, query: Message, *, context: Mapping[str, Any] | None = None) -> Any:
        """Note the query; the answer is None. Raises: HandlerNotFound, NotAMessage; WiringError for an event."""
        refuse_ask(query)
        self.would_handle.append(_what(self, query))

    def deliver(self, message: Message, context: Context) -> int:
        """Refuse: the message would count as delivered. Raises: WiringError."""
        _refuse_outbox(self)

    def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Refuse: what was processed would not come back. Raises: WiringError."""
        _refuse_outbox(self)


class AsyncDryRunMessageBus(AsyncMessageBus):
    """An AsyncMessageBus that runs no handler. What DryRunMessageBus says, holds here; `batch_handle` returns `[[], ...]`."""

    def __init__(
        self,
        event_handlers: Mapping[type[Event], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[Command], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(event_handlers, command_handlers, **options)
        self.would_handle: list[WouldHandle] = []

    async def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Note the message. Raises: HandlerNotFound, NotAMessage."""
        self.would_handle.append(_what(self, message))
        return []

    async def dispatch(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Outcome:
        """Note the message. Raises: HandlerNotFound, NotAMessage."""
        self.would_handle.append(_what(self, message))
        return Outcome([])

    async def ask(self, query: Message, *, context: Mapping[str, Any] | None = None) -> Any:
        """Note the query; the answer is None. Raises: HandlerNotFound, NotAMessage; WiringError for an event."""
        refuse_ask(query)
        self.would_handle.append(_what(self, query))

    async def deliver(self, message: Message, context: Context) -> int:
        """Refuse: the message would count as delivered. Raises: WiringError."""
        _refuse_outbox(self)

    async def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Refuse: what was processed would not come back. Raises: WiringError."""
        _refuse_outbox(self)


def _what(bus: WiredBus[Any], message: Message) -> WouldHandle:
    refuse_non_message(message)
    if isinstance(message, Event):
        return WouldHandle(message, tuple(bus.get_event_handlers(type(message))))
    if isinstance(message, Query):
        kind, handler = "query", bus.get_query_handler(type(message))
    else:
        assert isinstance(message, Command)
        kind, handler = "command", bus.get_command_handler(type(message))
    if handler is None:
        raise HandlerNotFound(name_of(message), kind)
    return WouldHandle(message, (handler,))


def _refuse_outbox(bus: object) -> NoReturn:
    raise WiringError(
        f"{type(bus).__name__} runs no handler, so it processes no outbox: the messages would be lost "
        "(see what waits with repo.list_unprocessed())"
    )
