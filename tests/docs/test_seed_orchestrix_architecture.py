# ruff: noqa: G004  (the document's code is left as it is)
"""The architecture document of Orchestrix: messages, patterns, validators, buses of one's own, middleware, queries.

Word for word, but for the imports; the messages, the handler and the stand-in for the store are those of its reference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, fields
from typing import Any, Protocol

import pytest

import message_bus
from message_bus import (
    AsyncMessageBus,
    Command,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    Message,
    MessageBus,
    MessageBusABC,
    NotAMessage,
    ValidationError,
    validate_in_range,
    validate_max_length,
    validate_min_length,
    validate_non_negative,
    validate_not_empty,
    validate_one_of,
    validate_positive,
)
from tests.docs.test_seed_orchestrix import (
    CreateOrder,
    CreateOrderHandler,
    InMemoryEventStore,
    OrderCreated,
    order,
)

# --- messages -------------------------------------------------------------------------------------------------------


def test_immutable_messages() -> None:
    """Frozen, hashable, keyword-only, equal by content."""
    command = CreateOrder(order_id="ORD-001", customer_id="CUST-123")
    with pytest.raises(AttributeError):
        command.order_id = "ORD-002"  # type: ignore[misc]
    assert {command} == {CreateOrder(order_id="ORD-001", customer_id="CUST-123")}
    with pytest.raises(TypeError):
        CreateOrder("ORD-001", "CUST-123")  # type: ignore[misc]


def test_undecorated_messages() -> None:
    """The quick reference writes its messages without a decorator."""

    class CreateUserCommand(Command):
        name: str
        email: str

    command = CreateUserCommand(name="John", email="john@example.com")
    assert [field.name for field in fields(CreateUserCommand)] == ["name", "email"]  # type: ignore[arg-type]
    assert CreateUserCommand.deserialize(command.serialize()) == command


def test_the_command_pattern() -> None:
    """A handler may be called without a bus."""
    bus, store = InMemoryMessageBus(), InMemoryEventStore()
    handler = CreateOrderHandler(bus, store)
    # Execute via handler
    handler.handle(CreateOrder(**order))
    assert store.load("ORD-001") == [OrderCreated(**order)]


def test_the_observer_pattern() -> None:
    """All who have subscribed are notified."""
    notified: list[str] = []
    bus = InMemoryMessageBus()

    def send_email(event: OrderCreated) -> None:
        notified.append("email")

    def update_inventory(event: OrderCreated) -> None:
        notified.append("inventory")

    def log_event(event: OrderCreated) -> None:
        notified.append("log")

    # Subscribe observers
    bus.subscribe(OrderCreated, send_email)
    bus.subscribe(OrderCreated, update_inventory)
    bus.subscribe(OrderCreated, log_event)

    # Notify all observers
    bus.publish(OrderCreated(**order))
    assert notified == ["email", "inventory", "log"]


def test_a_message_type_of_ones_own() -> None:
    """The document derives its `Query` from Message: written and stored as JSON, but no bus knows what to do with it."""

    @dataclass(frozen=True, kw_only=True)
    class Query(Message):
        """New message type for queries."""

    class GetOrder(Query):
        order_id: str

    query = GetOrder(order_id="ORD-001")
    assert GetOrder.deserialize(query.serialize()) == query
    with pytest.raises(NotAMessage):
        InMemoryMessageBus().publish(query)


def test_queries() -> None:
    """With the package's own `Query` the example is complete: it has a handler, and an answer."""
    from message_bus import Query

    class GetOrder(Query):
        order_id: str

    bus = InMemoryMessageBus()
    bus.subscribe(GetOrder, lambda query: {"order_id": query.order_id})
    assert bus.ask(GetOrder(order_id="ORD-001")) == {"order_id": "ORD-001"}


# --- validators -----------------------------------------------------------------------------------------------------


def test_validators_in_post_init() -> None:
    """All seven, called where the class checks itself."""

    @dataclass(frozen=True, kw_only=True)
    class AddItem(Command):
        sku: str
        name: str
        quantity: int
        discount: float = 0.0
        rating: int = 3
        size: str = "M"

        def __post_init__(self) -> None:
            validate_not_empty(self.sku, "sku")
            validate_min_length(self.name, 2, "name")
            validate_max_length(self.name, 10, "name")
            validate_positive(self.quantity, "quantity")
            validate_non_negative(self.discount, "discount")
            validate_in_range(self.rating, 1, 5, "rating")
            validate_one_of(self.size, ["S", "M", "L"], "size")

    good: dict[str, Any] = {"sku": "A", "name": "Apple", "quantity": 1}
    assert AddItem(**good).quantity == 1
    for field, wrong in (
        *(("sku", ""), ("name", "A"), ("name", "Apple pie with cream"), ("quantity", 0)),
        *(("discount", -1), ("rating", 6), ("size", "XL")),
    ):
        with pytest.raises(ValidationError) as caught:
            AddItem(**{**good, field: wrong})
        assert caught.value.field == field
        assert isinstance(caught.value, ValueError)


# --- buses of one's own ---------------------------------------------------------------------------------------------


def test_protocols_of_ones_own() -> None:
    """A class that needs no inheritance fits the document's protocol; so does every bus of this package."""

    class MessageBus(Protocol):
        """Message bus interface - no inheritance required!"""

        def subscribe(self, message_type: type[Message], handler) -> None: ...
        def publish(self, message: Message) -> None: ...

    class MyBus:  # No inheritance needed!
        def subscribe(self, message_type: type[Message], handler) -> None:
            self.handler = handler

        def publish(self, message: Message) -> None:
            self.handler(message)

    def application(bus: MessageBus) -> list[Any]:
        seen: list[Any] = []
        bus.subscribe(OrderCreated, seen.append)
        bus.publish(OrderCreated(**order))
        return seen

    # Same interface - tests pass!
    for bus in (MyBus(), InMemoryMessageBus(), message_bus.MessageBus()):
        assert application(bus) == [OrderCreated(**order)]


class RateLimitExceeded(Exception):
    """What the document's bus raises."""


class _RateLimiter:
    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def allow(self) -> bool:
        self.left -= 1
        return self.left >= 0


def test_a_rate_limited_bus() -> None:
    """The document's bus around a bus."""

    class RateLimitedBus(MessageBus):
        """Bus with rate limiting."""

        def __init__(
            self, inner_bus: MessageBus, rate_limiter: _RateLimiter
        ) -> None:  # left out in the document
            super().__init__()
            self._inner_bus, self._rate_limiter = inner_bus, rate_limiter

        def publish(self, message: Message) -> None:
            if self._rate_limiter.allow():
                self._inner_bus.publish(message)
            else:
                raise RateLimitExceeded

    orders: list[Any] = []
    inner = InMemoryMessageBus()
    inner.subscribe(CreateOrder, orders.append)
    bus = RateLimitedBus(inner, _RateLimiter(1))
    bus.publish(CreateOrder(**order))
    with pytest.raises(RateLimitExceeded):
        bus.publish(CreateOrder(**order))
    assert len(orders) == 1


async def test_a_rate_limit_as_middleware() -> None:
    """The same as a function around every handler, so that nothing gets past it; and for the async bus."""
    limiter = _RateLimiter(1)

    def limited(message, context, call_next):
        if not limiter.allow():
            raise RateLimitExceeded
        return call_next()

    async def limited_async(message, context, call_next):
        return await limited(message, context, call_next)

    orders: list[Any] = []
    bus = InMemoryMessageBus(middleware=[limited])
    bus.subscribe(CreateOrder, orders.append)
    bus.handle(CreateOrder(**order))
    with pytest.raises(RateLimitExceeded):
        bus.publish(CreateOrder(**order))
    limiter.left = 1
    async_bus = InMemoryAsyncMessageBus(middleware=[limited_async])
    async_bus.subscribe(CreateOrder, orders.append)
    await async_bus.publish(CreateOrder(**order))
    with pytest.raises(RateLimitExceeded):
        await async_bus.publish(CreateOrder(**order))
    assert len(orders) == 2


def test_a_bus_of_ones_own_that_overrides_publish() -> None:
    """The document's sketch of an implementation, as a class derived from ours."""

    class MyMessageBus(MessageBus):
        """Technical implementation of message routing."""

        def publish(self, message: Message) -> None:
            for handler in self.get_event_handlers(type(message)):  # type: ignore[arg-type]
                handler(message)

    seen: list[Any] = []
    bus: MessageBusABC = MyMessageBus()
    bus.subscribe(OrderCreated, seen.append)
    bus.publish(OrderCreated(**order))
    assert seen == [OrderCreated(**order)]


async def test_an_async_bus_of_ones_own_that_overrides_publish() -> None:
    """The document's sketch of non-blocking publishing, likewise."""

    class MyAsyncMessageBus(AsyncMessageBus):
        async def publish(self, message: Message) -> None:
            """Non-blocking event publishing."""
            handlers = self.get_event_handlers(type(message))  # type: ignore[arg-type]
            tasks = [handler(message) for handler in handlers]
            await asyncio.gather(*tasks)

    seen: list[Any] = []

    async def handler(event: OrderCreated) -> None:
        seen.append(event)

    bus = MyAsyncMessageBus()
    bus.subscribe(OrderCreated, handler)
    await bus.publish(OrderCreated(**order))
    assert seen == [OrderCreated(**order)]


# --- decorators and middleware --------------------------------------------------------------------------------------

logger = logging.getLogger("tests.docs.orchestrix")


def logged(handler):
    """Decorator for logging handlers."""

    def wrapper(message):
        logger.info(f"Handling {type(message).__name__}")
        result = handler(message)
        logger.info(f"Handled {type(message).__name__}")
        return result

    return wrapper


def test_a_decorated_handler(caplog: pytest.LogCaptureFixture) -> None:
    """What the document's decorator returns is a handler like any other."""

    @logged
    def handle_create_order(command: CreateOrder):
        return command.order_id

    bus = InMemoryMessageBus()
    bus.subscribe(CreateOrder, handle_create_order)
    with caplog.at_level(logging.INFO, logger.name):
        assert bus.ask(CreateOrder(**order)) == "ORD-001"
    assert caplog.messages == ["Handling CreateOrder", "Handled CreateOrder"]


def test_logging_as_middleware(caplog: pytest.LogCaptureFixture) -> None:
    """The same for all handlers of a bus, with a decorator that registers them."""

    def logged(message, context, call_next):
        logger.info(f"Handling {type(message).__name__}")
        result = call_next()
        logger.info(f"Handled {type(message).__name__}")
        return result

    bus = InMemoryMessageBus(middleware=[logged])

    @bus.command_handler(CreateOrder)
    def handle_create_order(command: CreateOrder):
        bus.publish(OrderCreated(**order))

    @bus.event_handler(OrderCreated)
    def note(event: OrderCreated):
        pass

    with caplog.at_level(logging.INFO, logger.name):
        bus.publish(CreateOrder(**order))
    names = ["Handling CreateOrder", "Handling OrderCreated", "Handled OrderCreated", "Handled CreateOrder"]
    assert caplog.messages == names


def test_timing_as_middleware() -> None:
    """What Orchestrix did with a metrics provider around each call: the handler's name and its time."""
    took: dict[str, float] = {}

    def timed(message: Any, context: Any, call_next: message_bus.CallNext) -> Any:
        started = time.perf_counter()
        try:
            return call_next()
        finally:
            took[call_next.handler_name] = time.perf_counter() - started

    bus = InMemoryMessageBus(middleware=[timed])
    store = InMemoryEventStore()
    bus.subscribe(CreateOrder, CreateOrderHandler(bus, store))
    bus.publish(CreateOrder(**order))
    assert took["CreateOrderHandler"] >= 0
