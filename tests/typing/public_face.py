"""What type checkers make of the public face, imported as users import it. Never run: checked by mypy and pyright."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from message_bus import (
    AsyncCallNext,
    AsyncDeadLetters,
    AsyncInMemoryOutBoxRepo,
    AsyncMessageBus,
    AsyncMessageBusABC,
    AsyncMiddleware,
    AsyncSQLAlchemyOutBoxRepo,
    CallNext,
    Command,
    CommandHandler,
    Context,
    DeadLetter,
    DeadLetterReport,
    DeadLetters,
    DispatchOutboxHandler,
    Event,
    ExponentialBackoff,
    FixedDelay,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    InMemoryOutBox,
    InMemoryOutBoxRepo,
    MessageBus,
    MessageBusABC,
    MessageBusTables,
    Middleware,
    Module,
    NoRetry,
    OutboxMessage,
    OutboxReport,
    Query,
    RetryPolicy,
    SQLAlchemyOutBoxRepo,
    Subscription,
    ValidationError,
    correlate,
    in_thread,
    validate_in_range,
    validate_max_length,
    validate_min_length,
    validate_non_negative,
    validate_not_empty,
    validate_one_of,
    validate_positive,
)
from message_bus.admin import DeadLetters as DeadLettersOfAdmin
from message_bus.outbox_handlers import DispatchOutboxHandler as DispatchOfTheRoom
from message_bus.testing import (
    AsyncBusContract,
    AsyncDryRunMessageBus,
    AsyncOutboxContract,
    BusContract,
    Capabilities,
    DryRunMessageBus,
    OutboxContract,
    Recorder,
    drain,
)

# --- messages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrderView:
    order_id: int
    total: float


class PlaceOrder(Command):
    order_id: int
    quantity: int = 1
    currency: str = "EUR"

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_not_empty(self.currency, "currency")
        validate_positive(self.order_id, "order_id")
        validate_non_negative(self.quantity, "quantity")
        validate_min_length(self.currency, 3, "currency")
        validate_max_length(self.currency, 3, "currency")
        validate_in_range(self.quantity, 0, 99, "quantity")
        validate_one_of(self.currency, {"EUR", "USD"}, "currency")
        if self.order_id == self.quantity:
            raise ValidationError("order_id and quantity are the same")


class OrderPlaced(Event):
    order_id: int


class OrderShipped(Event):
    order_id: int


class GetOrder(Query[OrderView]):
    order_id: int
    with_lines: bool = False


@dataclass(frozen=True, kw_only=True)
class FindOrders(Query[list[OrderView]]):
    customer: str


class CountOrders(Query):
    """The answer is left open, without a complaint of the strict."""

    customer: str


class FindOrder(Query[OrderView | None], frozen=True):
    order_id: int


assert_type(GetOrder(1).order_id, int)
assert_type(GetOrder(order_id=1, with_lines=True), GetOrder)
assert_type(FindOrders(customer="x").customer, str)
assert_type(GetOrder.deserialize({}), GetOrder)
assert_type(ValidationError("x").field, str | None)
assert_type(ValidationError("x", "y").message, str)

# --- asking -----------------------------------------------------------------------------------------------------


def ask(bus: MessageBus, in_memory: InMemoryMessageBus) -> None:
    assert_type(bus.ask(GetOrder(1)), OrderView)
    assert_type(bus.ask(GetOrder(1), context={"user": 1}).total, float)
    assert_type(bus.ask(FindOrders(customer="x")), list[OrderView])
    assert_type(bus.ask(FindOrder(1)), OrderView | None)
    assert_type(bus.ask(CountOrders("x")), Any)
    assert_type(bus.ask(PlaceOrder(1)), Any)
    assert_type(in_memory.ask(GetOrder(1)), OrderView)
    assert_type(bus.handle(GetOrder(1)), list[dict[str, Any]])


async def ask_async(bus: AsyncMessageBus, in_memory: InMemoryAsyncMessageBus) -> None:
    assert_type(await bus.ask(GetOrder(1)), OrderView)
    assert_type(await bus.ask(FindOrders(customer="x")), list[OrderView])
    assert_type(await bus.ask(CountOrders("x")), Any)
    assert_type(await bus.ask(PlaceOrder(1)), Any)
    assert_type(await in_memory.ask(GetOrder(1)), OrderView)
    assert_type(await bus.handle(GetOrder(1)), list[Any])


T = TypeVar("T")


def ask_twice(bus: MessageBus, query: Query[T]) -> tuple[T, T]:
    """A function over any query keeps the type of the answer."""
    return bus.ask(query), bus.ask(query)


assert_type(ask_twice(MessageBus(), GetOrder(1)), tuple[OrderView, OrderView])


# --- handlers ---------------------------------------------------------------------------------------------------


class Place(CommandHandler[PlaceOrder]):
    def __init__(self, bus: MessageBus, store: object) -> None:
        self.bus = bus
        self.store = store

    def handle(self, command: PlaceOrder) -> int:
        self.emit_message(OrderPlaced(command.order_id))
        return command.order_id


class PlaceInContext(CommandHandler[PlaceOrder]):
    def handle(self, command: PlaceOrder, context: Context) -> None:
        assert_type(context.attempt, int)


class PlaceAsync(CommandHandler[PlaceOrder]):
    async def handle(self, command: PlaceOrder) -> int:
        return command.order_id


class PlaceWithMore(CommandHandler[PlaceOrder]):
    def handle(self, command: PlaceOrder, *args: Any, context: Context, **kwargs: Any) -> None: ...


class Answer(CommandHandler[GetOrder]):
    def handle(self, command: GetOrder) -> OrderView:
        return OrderView(command.order_id, 0.0)


def get_order(query: GetOrder) -> OrderView:
    return OrderView(query.order_id, 0.0)


async def get_order_async(query: GetOrder, context: Context) -> OrderView:
    return OrderView(query.order_id, 0.0)


def on_placed(event: OrderPlaced) -> None: ...


def on_any(event: OrderPlaced | OrderShipped, context: dict[str, Any]) -> int:
    return event.order_id


async def on_placed_async(event: OrderPlaced) -> None: ...


def subscribe(bus: MessageBusABC) -> None:
    bus.subscribe(OrderPlaced, on_placed)
    bus.subscribe(OrderPlaced, on_any)
    bus.subscribe(OrderPlaced, lambda event: event.order_id)
    bus.subscribe(OrderPlaced, lambda event, context: event.order_id)
    bus.subscribe(PlaceOrder, Place(MessageBus(), {}))
    bus.subscribe(PlaceOrder, PlaceInContext())
    bus.subscribe(PlaceOrder, PlaceWithMore())
    bus.subscribe(GetOrder, get_order)
    bus.subscribe(GetOrder, Answer())
    bus.publish(OrderPlaced(1))


def set_query_handler(bus: MessageBus) -> None:
    bus.set_query_handler(GetOrder, get_order)
    bus.set_query_handler(GetOrder, Answer())
    bus.set_query_handler(GetOrder, lambda query: OrderView(query.order_id, 0.0))
    bus.set_query_handler(CountOrders, lambda query: len(query.customer))
    assert_type(bus.get_query_handler(GetOrder), Any)


async def subscribe_async(bus: AsyncMessageBusABC) -> None:
    bus.subscribe(OrderPlaced, on_placed)
    bus.subscribe(OrderPlaced, on_placed_async)
    bus.subscribe(OrderPlaced, in_thread(on_placed))
    bus.subscribe(PlaceOrder, PlaceAsync())
    bus.subscribe(PlaceOrder, in_thread(PlaceInContext()))
    bus.subscribe(GetOrder, get_order_async)
    await bus.publish(OrderPlaced(1))


# --- decorators keep what they decorate -------------------------------------------------------------------------

bus = MessageBus()
async_bus = AsyncMessageBus()


@bus.command_handler(PlaceOrder)
def place(command: PlaceOrder, context: Context) -> int:
    return command.order_id


@bus.event_handler(OrderPlaced)
def log_placed(event: OrderPlaced) -> None: ...


@bus.event_handler(OrderPlaced, OrderShipped)
def log_both(event: OrderPlaced | OrderShipped) -> str:
    return str(event.order_id)


@bus.query_handler(GetOrder)
def answer(query: GetOrder, *, verbose: bool = False) -> OrderView:
    return OrderView(query.order_id, 0.0)


@async_bus.command_handler(PlaceOrder)
async def place_async(command: PlaceOrder) -> int:
    return command.order_id


@async_bus.query_handler(GetOrder)
async def answer_async(query: GetOrder) -> OrderView:
    return OrderView(query.order_id, 0.0)


async def decorated() -> None:
    assert_type(place(PlaceOrder(1), Context()), int)
    assert_type(log_both(OrderShipped(1)), str)
    assert_type(answer(GetOrder(1), verbose=True), OrderView)
    assert_type(await place_async(PlaceOrder(1)), int)
    assert_type(await answer_async(GetOrder(1)), OrderView)
    log_placed(OrderPlaced(1))


# --- middleware -------------------------------------------------------------------------------------------------


def passing(message: Any, context: Context, call_next: CallNext) -> Any:
    assert_type(call_next.handler_name, str)
    return call_next(message, context)


def short(message: Any, context: dict[str, Any], call_next: Callable[..., Any]) -> Any:
    return call_next()


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, message: Any, context: Context, call_next: CallNext) -> Any:
        self.calls += 1
        return call_next(context=context)


async def passing_async(message: Any, context: Context, call_next: AsyncCallNext) -> Any:
    return await call_next(message, context)


async def short_async(message: Any, context: Context, call_next: Callable[..., Awaitable[Any]]) -> Any:
    return await call_next()


first: Middleware = passing
first_async: AsyncMiddleware = passing_async

MessageBus(middleware=[passing, short, Counting(), first])
MessageBus(middleware=[lambda message, context, call_next: call_next()])
AsyncMessageBus(middleware=[passing_async, short_async, first_async])
InMemoryMessageBus(middleware=[passing])
InMemoryAsyncMessageBus({OrderPlaced: [on_placed_async]}, middleware=[passing_async])
bus.add_middleware(passing)
bus.add_middleware(Counting())
async_bus.add_middleware(passing_async)

# --- handlers at once: also in variables, whose keys are only some of the types ----------------------------------

event_handlers = {OrderPlaced: [on_placed]}
command_handlers = {PlaceOrder: place}
MessageBus(event_handlers, command_handlers)
InMemoryMessageBus(event_handlers, command_handlers)
AsyncMessageBus(event_handlers, command_handlers)
MessageBus(
    {OrderPlaced: [on_placed, log_both], OrderShipped: [log_both]}, {PlaceOrder: place}, max_cascade=10
)
MessageBus({}, {})

# --- wiring -----------------------------------------------------------------------------------------------------


class OrderModule(Module):
    def register(self, bus: MessageBus, store: dict[int, OrderView]) -> None:
        bus.subscribe(PlaceOrder, Place(bus, store))


OrderModule().register(bus, {})
placing_in_thread: Callable[[PlaceOrder, Context], Coroutine[Any, Any, int]] = in_thread(place)
assert_type(in_thread(PlaceInContext()), Callable[..., Coroutine[Any, Any, Any]])
async_bus.subscribe(OrderPlaced, in_thread(lambda event: event.order_id))
async_bus.set_event_handlers(OrderPlaced, [in_thread(on_any), in_thread(Counting())])
context_manager: AbstractContextManager[None] = correlate("request-1")
with correlate("request-1"):
    bus.publish(PlaceOrder(1))


async def publish_async() -> None:
    with correlate("request-1"):
        await async_bus.publish(PlaceOrder(1))
        await InMemoryAsyncMessageBus().publish(OrderPlaced(1))


# --- outbox: repositories, subscriptions, dead letters ----------------------------------------------------------


def sync_outbox(session: Session, scoped: scoped_session[Session]) -> None:
    repo = SQLAlchemyOutBoxRepo(session, tables=MessageBusTables(schema="x"))
    SQLAlchemyOutBoxRepo(scoped)
    assert_type(repo.get(UUID(int=1)), OutboxMessage | None)
    assert_type(repo.list_unprocessed(limit=5), list[OutboxMessage])
    memory = InMemoryOutBoxRepo(InMemoryOutBox())
    assert_type(memory.list_unprocessed(), list[OutboxMessage])
    for outbox in (repo, memory, session, scoped):
        bus.register_outbox_message(outbox, PlaceOrder(1), key="1", delay=timedelta(seconds=5))
        assert_type(bus.process_outbox(outbox, limit=1, only=["dispatch"]), OutboxReport)
    assert_type(bus.process_outbox(session).subscriptions["dispatch"].delivered, int)


async def async_outbox(session: AsyncSession, connection: AsyncConnection) -> None:
    repo = AsyncSQLAlchemyOutBoxRepo(session)
    AsyncSQLAlchemyOutBoxRepo(connection)
    assert_type(await repo.get("x"), OutboxMessage | None)
    assert_type(await repo.list_unprocessed(), list[OutboxMessage])
    memory = AsyncInMemoryOutBoxRepo()
    assert_type(await memory.get("x"), OutboxMessage | None)
    await memory.save()
    assert_type(await async_bus.process_outbox(repo), OutboxReport)


def subscriptions() -> None:
    Subscription()
    Subscription(
        name="mails",
        mode="concurrent",
        start=datetime.now(UTC),
        types=[OrderPlaced, PlaceOrder],
        messages_per_commit=1,
        commit_within=timedelta(seconds=1),
        fetch_size=100,
        partitions=4,
        concurrency=8,
        max_attempts=3,
        backoff=ExponentialBackoff(initial_delay=0.5),
        unavailable_on=(ConnectionError, TimeoutError),
        on_dead_letter="hold",
        handler_timeout=None,
    )
    Subscription(start="beginning")
    Subscription(start="now")
    Subscription(start=5)
    policies: list[RetryPolicy] = [NoRetry(), FixedDelay(1), ExponentialBackoff()]
    assert_type(policies[0].delay(1), timedelta | None)
    handler = DispatchOutboxHandler(
        handlers={OrderPlaced: [on_placed]}, subscription=Subscription(name="mails", backoff=NoRetry())
    )
    assert_type(DispatchOfTheRoom(bus), DispatchOutboxHandler)
    bus.set_outbox_handlers([handler])


def dead_letters(session: Session) -> None:
    letters = DeadLetters(session, tables=MessageBusTables())
    assert_type(DeadLettersOfAdmin(session), DeadLetters)
    assert_type(letters.list(subscription="dispatch", limit=10), list[DeadLetter])
    found = letters.get(UUID(int=1))
    assert_type(found, DeadLetter | None)
    if found is not None:
        assert_type(found.error, str | None)
        assert_type(found.attempts, int)
        assert_type(letters.replay(letters=[found]), DeadLetterReport)
    assert_type(letters.replay(everything=True), DeadLetterReport)
    assert_type(letters.discard(ids=[UUID(int=1)]).count, int)


async def dead_letters_async(session: AsyncSession) -> None:
    letters = AsyncDeadLetters(session)
    assert_type(await letters.list(), list[DeadLetter])
    assert_type(await letters.get("x"), DeadLetter | None)
    assert_type(await letters.replay(everything=True, dry_run=True), DeadLetterReport)
    assert_type(await letters.discard(subscription="dispatch"), DeadLetterReport)


# --- help for tests ---------------------------------------------------------------------------------------------


class TestMyOutbox(OutboxContract):
    capabilities = Capabilities(delays=False, ids="integer")


class TestMyAsyncOutbox(AsyncOutboxContract):
    capabilities = Capabilities(concurrent_writers=False)


class TestMyBus(BusContract):
    capabilities = Capabilities(middleware=False)


class TestMyAsyncBus(AsyncBusContract):
    capabilities = Capabilities(outbox=False)


def recording(session: Session) -> None:
    recorder = Recorder(result=1)
    recording_bus = MessageBus({OrderPlaced: [recorder]}, {PlaceOrder: Recorder(error=ValueError)})
    recording_bus.add_middleware(recorder.middleware)
    recording_bus.subscribe(OrderShipped, recorder)
    assert_type(recorder.of(OrderPlaced), list[OrderPlaced])
    assert_type(drain(recording_bus, session), OutboxReport)
    dry = DryRunMessageBus({OrderPlaced: [on_placed]}, middleware=[passing])
    dry.subscribe(PlaceOrder, place)
    dry.handle(OrderPlaced(1))
    assert_type(dry.would_handle[0].handlers, tuple[Any, ...])


async def recording_async(session: AsyncSession) -> None:
    recorder = Recorder()
    recording_bus = AsyncMessageBus({OrderPlaced: [recorder]})
    recording_bus.add_middleware(recorder.async_middleware)
    assert_type(await drain(recording_bus, session), OutboxReport)
    dry = AsyncDryRunMessageBus()
    await dry.publish(OrderPlaced(1))
