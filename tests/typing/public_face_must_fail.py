"""What type checkers must refuse of the public face. An error that disappears leaves an unused ignore, which is reported."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from message_bus import (
    AsyncCallNext,
    AsyncDeadLetters,
    AsyncMessageBus,
    AsyncSQLAlchemyOutBoxRepo,
    CallNext,
    Command,
    CommandHandler,
    CommandHandlerABC,
    Context,
    DeadLetters,
    Event,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    MessageBus,
    Module,
    Query,
    SQLAlchemyOutBoxRepo,
    Subscription,
    ValidationError,
    correlate,
    in_thread,
    validate_min_length,
    validate_one_of,
    validate_positive,
)


class PlaceOrder(Command):
    order_id: int


class OrderPlaced(Event):
    order_id: int


class GetOrder(Query[int]):
    order_id: int


def get_order(query: GetOrder) -> int:
    return query.order_id


def on_placed(event: OrderPlaced) -> None: ...


def wrong_order(context: Context, call_next: Any) -> Any: ...


def not_async(message: Any, context: Context, call_next: CallNext) -> int:
    call_next(5)  # type: ignore[arg-type]
    return 1


async def forgets_to_await(message: Any, context: Context, call_next: AsyncCallNext) -> None:
    call_next(message, context)  # type: ignore[unused-coroutine]


class Place(CommandHandler[PlaceOrder]):
    def handle(self, command: PlaceOrder) -> int:
        return command.order_id


class NoHandle(CommandHandler[PlaceOrder]): ...


class NoRegister(Module): ...


CommandHandler[int]  # type: ignore[type-var]
NoHandle()  # type: ignore[abstract]
NoRegister()  # type: ignore[abstract]
CommandHandlerABC()  # type: ignore[abstract]
GetOrder()  # type: ignore[call-arg]
GetOrder("1")  # type: ignore[arg-type]


def asking(bus: MessageBus) -> None:
    len(bus.ask(GetOrder(1)))  # type: ignore[arg-type]
    bus.ask(OrderPlaced(1))  # type: ignore[call-overload]
    bus.ask(GetOrder)  # type: ignore[call-overload]
    bus.set_query_handler(PlaceOrder, get_order)  # type: ignore[arg-type, type-var]
    bus.set_query_handler(GetOrder, on_placed)  # type: ignore[arg-type]
    bus.query_handler(OrderPlaced)  # type: ignore[arg-type]
    bus.set_command_handler(GetOrder, get_order)  # type: ignore[type-var]
    bus.set_event_handlers(GetOrder, [get_order])  # type: ignore[type-var]


async def asking_async(bus: AsyncMessageBus) -> None:
    len(await bus.ask(GetOrder(1)))  # type: ignore[arg-type]
    await bus.ask(OrderPlaced(1))  # type: ignore[call-overload]
    bus.publish(OrderPlaced(1))  # type: ignore[unused-coroutine]
    bus.handle(OrderPlaced(1))  # type: ignore[unused-coroutine]


def subscribing(bus: MessageBus) -> None:
    MessageBus({PlaceOrder: [Place()]})  # type: ignore[type-var]
    MessageBus(command_handlers={OrderPlaced: on_placed})  # type: ignore[type-var]
    MessageBus(command_handlers=Place())  # type: ignore[arg-type]
    bus.subscribe(OrderPlaced, get_order)  # type: ignore[arg-type]
    bus.subscribe(OrderPlaced, 5)  # type: ignore[arg-type]
    bus.subscribe("OrderPlaced", on_placed)  # type: ignore[arg-type]
    bus.subscribe(int, on_placed)  # type: ignore[arg-type, type-var]
    bus.publish("OrderPlaced")  # type: ignore[arg-type]
    bus.publish(OrderPlaced)  # type: ignore[arg-type]
    InMemoryMessageBus(on_event_error="raise")  # type: ignore[call-arg]


def in_threads(bus: AsyncMessageBus) -> None:
    bus.subscribe(OrderPlaced, in_thread(get_order))  # type: ignore[arg-type]
    in_thread(5)  # type: ignore[call-overload]


def decorating(bus: MessageBus) -> None:
    bus.command_handler(OrderPlaced)  # type: ignore[arg-type]
    bus.event_handler(PlaceOrder)  # type: ignore[arg-type]
    bus.event_handler(OrderPlaced, PlaceOrder)  # type: ignore[arg-type]
    bus.command_handler(PlaceOrder)(5)  # type: ignore[type-var]
    bus.command_handler(PlaceOrder)(on_placed)("x")  # type: ignore[arg-type]


def middleware(bus: MessageBus) -> None:
    MessageBus(middleware=[wrong_order])  # type: ignore[list-item]
    AsyncMessageBus(middleware=[not_async])  # type: ignore[list-item]
    InMemoryAsyncMessageBus(middleware=[not_async])  # type: ignore[list-item]
    MessageBus(middleware=wrong_order)  # type: ignore[arg-type]
    bus.add_middleware(wrong_order)  # type: ignore[arg-type]
    bus.add_middleware("log")  # type: ignore[arg-type]


def outbox(bus: MessageBus, session: Session, async_session: AsyncSession) -> None:
    SQLAlchemyOutBoxRepo(async_session)  # type: ignore[arg-type]
    AsyncSQLAlchemyOutBoxRepo(session)  # type: ignore[arg-type]
    DeadLetters(async_session)  # type: ignore[arg-type]
    AsyncDeadLetters(session)  # type: ignore[arg-type]
    DeadLetters(session, None)  # type: ignore[arg-type, call-arg]
    DeadLetters(session).list("dispatch")  # type: ignore[call-arg]
    bus.register_outbox_message(session, "PlaceOrder")  # type: ignore[arg-type]
    bus.register_outbox_message(session, PlaceOrder(1), delay=5)  # type: ignore[arg-type]
    bus.process_outbox(session, 5)  # type: ignore[call-arg]


def settings() -> None:
    Subscription("mails")  # type: ignore[call-arg]
    Subscription(start="end")  # type: ignore[arg-type]
    Subscription(mode="parallel")  # type: ignore[arg-type]
    Subscription(on_dead_letter="stop")  # type: ignore[arg-type]
    Subscription(backoff=5)  # type: ignore[arg-type]
    Subscription(handler_timeout=5)  # type: ignore[arg-type]
    Subscription(nmae="x")  # type: ignore[call-arg]
    Subscription(types=[int])  # type: ignore[list-item]
    Subscription().name = "x"  # type: ignore[misc]


def validating() -> None:
    ValidationError()  # type: ignore[call-arg]
    validate_positive(1)  # type: ignore[call-arg]
    validate_min_length("x", "3", "name")  # type: ignore[arg-type]
    validate_one_of("x", 5, "name")  # type: ignore[arg-type]
    with correlate():  # type: ignore[call-arg]
        pass
