"""What type checkers say about buses: handlers must fit their message; results have types. Checked, never run."""


# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any, assert_type

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context
from message_bus.bus.outcome import Failure, Outcome
from message_bus.bus.sync_bus import MessageBus
from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
from message_bus.core import AsyncMessageBusABC, MessageBusABC
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Command, Event, Message
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.repositories.outbox import AsyncOutBoxRepoABC, OutBoxRepoABC


class PlaceOrder(Command):
    order_id: int


class OrderPlaced(Event):
    order_id: int


class Place(CommandHandlerABC):
    def handle(self, cmd: PlaceOrder, context: dict[str, Any], *args: Any, **kwargs: Any) -> int:
        self.emmit_message(OrderPlaced(cmd.order_id))
        assert_type(self.emitted_messages, list[Message])
        return cmd.order_id


class AsyncPlace(AsyncCommandHandlerABC):
    async def handle(self, cmd: PlaceOrder, context: Context, *args: Any, **kwargs: Any) -> int:
        self.emit_message(OrderPlaced(cmd.order_id))
        return cmd.order_id


class Placed(EventHandlerABC):
    def _handle(self, event: OrderPlaced, context: Context, *args: Any, **kwargs: Any) -> None:
        assert_type(context.envelope, Envelope)
        assert_type(context.attempt, int)


class AsyncPlaced(AsyncEventHandlerABC):
    async def _handle(self, event: OrderPlaced, context: Context, *args: Any, **kwargs: Any) -> None: ...


class Duck:
    def handle(self, event: OrderPlaced) -> None: ...


class Sends(OutboxHandlerABC):
    def _handle(self, outbox_message: Any, context: dict[str, Any], *args: Any, **kwargs: Any) -> None: ...


class Repo(OutBoxRepoABC):
    def get_model(self) -> type[object]:
        return object

    def _add(self, outbox_message: object) -> None: ...

    def list_unprocessed(self) -> list[object]:
        return []

    def save(self) -> None: ...


class AsyncRepo(AsyncOutBoxRepoABC):
    def get_model(self) -> type[object]:
        return object

    def _add(self, outbox_message: object) -> None: ...

    async def list_unprocessed(self) -> list[object]:
        return []


def placed(event: OrderPlaced) -> int:
    return event.order_id


def placed_in_context(event: OrderPlaced, context: Context, *args: Any, **kwargs: Any) -> None: ...


async def placed_async(event: OrderPlaced) -> None: ...


def place_with(command: PlaceOrder, context: Context, extra: int) -> None: ...


def place_keyword(command: PlaceOrder, *, context: Context) -> None: ...


def _sync(bus: MessageBusABC) -> MessageBusABC:
    return bus


def _async(bus: AsyncMessageBusABC) -> AsyncMessageBusABC:
    return bus


def wire() -> None:
    bus = MessageBus({OrderPlaced: [Placed(), placed]}, {PlaceOrder: Place()}, on_event_error="raise")
    bus.set_command_handler(PlaceOrder, Place())
    bus.set_command_handler(PlaceOrder, lambda command: command.order_id)
    bus.set_command_handler(PlaceOrder, lambda command, context: command.order_id)
    bus.set_command_handler(PlaceOrder, place_with)
    bus.set_command_handler(PlaceOrder, place_keyword)
    bus.set_event_handlers(
        OrderPlaced, [Placed(), Duck(), placed, placed_in_context, lambda event: event.order_id]
    )
    bus.set_outbox_handlers([Sends()])
    assert_type(_sync(bus).handle(PlaceOrder(1)), list[Any])
    assert_type(bus.handle(PlaceOrder(1), 1, context={"a": 1}, b=2), list[dict[str, Any]])
    assert_type(bus.dispatch(PlaceOrder(1)), Outcome)
    assert_type(bus.dispatch(PlaceOrder(1)).failures, tuple[Failure, ...])
    assert_type(bus.batch_handle([PlaceOrder(1), OrderPlaced(1)]), list[dict[str, Any]])
    assert_type(bus.deliver(OrderPlaced(1), Context()), int)
    MessageBus.register_outbox_message(Repo(), PlaceOrder(1), meta={"a": 1})


async def wire_async() -> None:
    bus = AsyncMessageBus()
    bus.set_command_handler(PlaceOrder, AsyncPlace())
    bus.set_event_handlers(OrderPlaced, [AsyncPlaced(), Placed(), placed, placed_async])
    assert_type(await _async(bus).handle(PlaceOrder(1)), list[Any])
    assert_type(await bus.dispatch(PlaceOrder(1)), Outcome)
    assert_type(await bus.batch_handle([PlaceOrder(1)]), list[list[Any]])
    assert_type(
        await bus.batch_handle([PlaceOrder(1)], 2, return_exceptions=True), list[list[Any] | BaseException]
    )
    bus.register_outbox_message(AsyncRepo(), PlaceOrder(1))


def must_fail(bus: MessageBus) -> None:
    bus.set_command_handler(OrderPlaced, Place())  # type: ignore[type-var]
    bus.set_event_handlers(PlaceOrder, [Placed()])  # type: ignore[type-var]
    bus.set_command_handler(PlaceOrder, placed)  # type: ignore[arg-type]
    bus.set_event_handlers(OrderPlaced, [5])  # type: ignore[list-item]
    bus.handle("PlaceOrder")  # type: ignore[arg-type]
    MessageBus(on_event_error="ignore")  # type: ignore[arg-type]
    OutBoxRepoABC()  # type: ignore[abstract]
