# ruff: noqa: D102  (the documents' code is left as it is)
"""The documents of Orchestrix, where they concern buses, handlers and modules; its architecture has a file of its own.

Word for word, but for the imports, which all come from `message_bus`, and for the names of the event types, which other
tests of this repository use as well; so are event stores, aggregates and snapshots, in
`test_seed_orchestrix_events.py`. What does not exist yet is listed in `NOT_YET` and in docs/migrating.md, and a test compares
the two.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import message_bus
from message_bus import (
    Command,
    CommandHandler,
    Event,
    InMemoryAsyncMessageBus,
    InMemoryEventStore,
    InMemoryMessageBus,
    MessageBus,
    MessageBusABC,
    Module,
)
from tests.docs.pages import text_of

NOT_YET: tuple[str, ...] = ()


# Messages
@dataclass(frozen=True, kw_only=True)
class CreateOrder(Command):
    order_id: str
    customer_id: str


@dataclass(frozen=True, kw_only=True)
class OrderCreated(Event, name="orchestrix.OrderCreated"):
    order_id: str
    customer_id: str


order = {"order_id": "ORD-001", "customer_id": "CUST-123"}


# --- InMemoryMessageBus: subscribe and publish ----------------------------------------------------------------------


# Handler
class CreateOrderHandler(CommandHandler[CreateOrder]):
    def __init__(self, bus, store):
        self.bus = bus
        self.store = store

    def handle(self, command: CreateOrder) -> None:
        # Create event
        event = OrderCreated(
            order_id=command.order_id,
            customer_id=command.customer_id
        )  # fmt: skip

        # Save
        self.store.save(command.order_id, [event])

        # Publish
        self.bus.publish(event)


def test_subscribe_and_publish(capsys: pytest.CaptureFixture[str]) -> None:
    """Function, class-based, lambda and method handlers; a command and an event are published."""
    bus, store = InMemoryMessageBus(), InMemoryEventStore()

    # Function handler
    def handle_order(event: OrderCreated) -> None:
        print(f"Order created: {event.order_id}")

    bus.subscribe(OrderCreated, handle_order)

    # Class-based handler
    bus.subscribe(CreateOrder, CreateOrderHandler(bus, store))

    # Lambda handler
    bus.subscribe(OrderCreated, lambda e: print(f"Order: {e.order_id}"))

    # Method handler
    class OrderService:
        def on_order_created(self, event: OrderCreated) -> None:
            self.process(event)

        def process(self, event: OrderCreated) -> None:
            print(f"Service: {event.order_id}")

    service = OrderService()
    bus.subscribe(OrderCreated, service.on_order_created)

    # Publish command
    bus.publish(CreateOrder(
        order_id="ORD-001",
        customer_id="CUST-123"
    ))  # fmt: skip
    printed = ["Order created: ORD-001", "Order: ORD-001", "Service: ORD-001"]
    assert capsys.readouterr().out.splitlines() == printed

    # Publish event
    bus.publish(OrderCreated(
        order_id="ORD-001",
        customer_id="CUST-123"
    ))  # fmt: skip
    assert capsys.readouterr().out.splitlines() == printed


def test_handlers_are_called_in_order_of_subscription() -> None:
    """Synchronously: 1, 2, 3."""
    called: list[int] = []
    bus = InMemoryMessageBus()

    def handler1(event: OrderCreated) -> None:
        called.append(1)

    def handler2(event: OrderCreated) -> None:
        called.append(2)

    def handler3(event: OrderCreated) -> None:
        called.append(3)

    bus.subscribe(OrderCreated, handler1)  # Called first
    bus.subscribe(OrderCreated, handler2)  # Called second
    bus.subscribe(OrderCreated, handler3)  # Called third

    bus.publish(OrderCreated(**order))  # Calls in order: 1, 2, 3
    assert called == [1, 2, 3]


def test_if_a_handler_raises_subsequent_handlers_are_not_called(capsys: pytest.CaptureFixture[str]) -> None:
    """The exception reaches who published, with no error handling built in."""
    bus = InMemoryMessageBus()

    def failing_handler(event):
        raise ValueError("Oops!")

    def working_handler(event):
        print("This won't be called!")

    bus.subscribe(OrderCreated, failing_handler)
    bus.subscribe(OrderCreated, working_handler)  # Never reached!

    with pytest.raises(ValueError, match="Oops!"):
        bus.publish(OrderCreated(**order))  # Raises ValueError
    assert capsys.readouterr().out == ""


def test_threads_may_share_a_bus() -> None:
    """What the document warns of as a race condition is none here."""
    orders: list[str] = []
    bus = InMemoryMessageBus()
    bus.subscribe(CreateOrder, lambda command: orders.append(command.order_id))

    def worker():
        bus.publish(CreateOrder(**order))  # No race condition

    threads = [threading.Thread(target=worker), threading.Thread(target=worker)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert orders == ["ORD-001", "ORD-001"]


def test_a_thousand_handlers() -> None:
    """The quick reference promises that they are no burden."""
    bus, called = InMemoryMessageBus(), list[int]()
    for number in range(1_000):
        bus.subscribe(OrderCreated, lambda event, number=number: called.append(number))
    bus.publish(OrderCreated(**order))
    assert called == list(range(1_000))


def test_one_line_of_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """The short example of the second document."""

    @dataclass(frozen=True, kw_only=True)
    class OrderCreated(Event, name="orchestrix.one_line"):
        order_id: str

    bus = InMemoryMessageBus()
    bus.subscribe(OrderCreated, lambda e: print(f"Order {e.order_id} created"))
    bus.publish(OrderCreated(order_id="ORD-001"))
    assert capsys.readouterr().out == "Order ORD-001 created\n"


# --- the complete example -------------------------------------------------------------------------------------------


# Module
class OrderModule(Module):
    def register(self, bus, store) -> None:
        bus.subscribe(CreateOrder, CreateOrderHandler(bus, store))
        bus.subscribe(OrderCreated, lambda e: print(f"📦 Order {e.order_id} created"))


def test_the_complete_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages, handler, module, application, execution and verification."""
    # Application
    bus = InMemoryMessageBus()
    store = InMemoryEventStore()

    module = OrderModule()
    module.register(bus, store)

    # Execute
    bus.publish(CreateOrder(order_id="ORD-001", customer_id="CUST-123"))

    # Verify
    events = store.load("ORD-001")
    assert len(events) == 1
    assert isinstance(events[0], OrderCreated)
    assert capsys.readouterr().out == "📦 Order ORD-001 created\n"


def test_a_module_of_the_application_layer() -> None:
    """Its register wires commands to handlers and events to its own methods."""

    class OrderModule(Module):
        """Application-level orchestration."""

        def register(self, bus: MessageBusABC, store: Any) -> None:
            # Wire domain to infrastructure
            bus.subscribe(CreateOrder, CreateOrderHandler(bus, store))
            bus.subscribe(OrderCreated, self._send_email)

        def _send_email(self, event: OrderCreated) -> None:
            sent.append(event)

    sent: list[OrderCreated] = []
    bus = InMemoryMessageBus()
    OrderModule().register(bus, InMemoryEventStore())
    bus.publish(CreateOrder(**order))
    assert sent == [OrderCreated(**order)]


# --- async ----------------------------------------------------------------------------------------------------------


async def test_the_async_bus(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the second document."""
    bus = InMemoryAsyncMessageBus()

    async def handle_order(event: OrderCreated) -> None:
        print(f"Order {event.order_id} created")

    bus.subscribe(OrderCreated, handle_order)
    await bus.publish(OrderCreated(**order))
    assert capsys.readouterr().out == "Order ORD-001 created\n"


class UserCreatedEvent(Event, name="orchestrix.UserCreatedEvent"):
    user_id: str
    name: str
    email: str = ""


def test_the_quick_references_async_bus(capsys: pytest.CaptureFixture[str]) -> None:
    """With asyncio.run around it, and a handler that waits."""

    async def main():
        bus = InMemoryAsyncMessageBus()

        async def handle_user_created(event):
            await asyncio.sleep(0)
            print(f"Handled: {event.user_id}")

        bus.subscribe(UserCreatedEvent, handle_user_created)

        event = UserCreatedEvent(user_id="123", name="John")
        await bus.publish(event)

    asyncio.run(main())
    assert capsys.readouterr().out == "Handled: 123\n"


async def test_async_handlers_execute_concurrently() -> None:
    """Two that wait for each other both get there."""
    barrier, bus = asyncio.Barrier(2), InMemoryAsyncMessageBus()

    async def handler(event: OrderCreated) -> None:
        await barrier.wait()

    bus.subscribe(OrderCreated, handler)
    bus.subscribe(OrderCreated, handler)
    async with asyncio.timeout(10):
        await bus.publish(OrderCreated(**order))


def test_the_quick_references_bus(capsys: pytest.CaptureFixture[str]) -> None:
    """Subscribe to events, publish one."""
    bus = InMemoryMessageBus()

    # Subscribe to events
    def handle_user_created(event: UserCreatedEvent):
        print(f"User created: {event.user_id}")

    bus.subscribe(UserCreatedEvent, handle_user_created)

    # Publish event
    bus.publish(UserCreatedEvent(user_id="123", name="John"))
    assert capsys.readouterr().out == "User created: 123\n"


# --- with handlers that are shared by both kinds of bus --------------------------------------------------------------


@pytest.mark.parametrize("make", [InMemoryMessageBus, MessageBus])
def test_the_application_can_move_to_the_other_bus(
    make: Callable[[], MessageBus], capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules, handlers and messages of the complete example run on a MessageBus unchanged."""
    bus, store = make(), InMemoryEventStore()
    OrderModule().register(bus, store)
    bus.publish(CreateOrder(**order))
    assert capsys.readouterr().out == "📦 Order ORD-001 created\n"


# --- what is missing ------------------------------------------------------------------------------------------------


def test_what_is_not_there_yet_is_listed() -> None:
    """docs/migrating.md names each missing name, and no name of the list has appeared meanwhile."""
    there = [name for name in NOT_YET if hasattr(message_bus, name)]
    assert not there, (
        f"no longer missing: take {there} out of NOT_YET and of docs/migrating.md, and run their examples"
    )
    page = text_of("docs/migrating.md")
    missing = [name for name in NOT_YET if f"`{name}`" not in page]
    assert not missing, f"docs/migrating.md does not say that these are missing: {missing}"
