"""An application with one of everything, for `message-bus describe`. Nothing of it is ever run."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from message_bus import (
    AsyncMessageBus,
    Command,
    DispatchOutboxHandler,
    Event,
    EventHandlerABC,
    FixedDelay,
    MessageBus,
    OutboxHandlerABC,
    ProcessManager,
    Projection,
    Query,
    Relay,
    Saga,
    SagaStep,
    Subscription,
    in_thread,
    when,
)
from message_bus.observability.observer import Observer

TOTALS = sa.Table("totals", sa.MetaData(), sa.Column("customer", sa.String, primary_key=True))


class PlaceOrder(Command, key="customer"):
    """What the shop is asked to do."""

    customer: str


class OrderPlaced(Event, name="shop.placed", version=2, key="customer", renamed_from="Placed"):
    """What has happened."""

    customer: str


class PaymentOverdue(Event):
    """What a process sends itself."""

    customer: str


class OrdersOf(Query[int]):
    """A question."""

    customer: str


def place(command: PlaceOrder) -> None:
    """Handle the command."""


def count_orders(query: OrdersOf) -> int:
    """Answer the query."""
    return 0


def send_mail(event: OrderPlaced) -> None:
    """Handle the event."""


class Bookkeeper(EventHandlerABC):
    """Handles the event, too."""

    def _handle(self, event: OrderPlaced, context: Any, *args: Any, **kwargs: Any) -> None:
        """Write it down."""


async def place_async(command: PlaceOrder) -> None:
    """Handle the command."""


def logged(message: Any, context: Any, call_next: Any) -> Any:
    """A middleware."""
    return call_next()


class Quiet(Observer):
    """Observes nothing."""


class OrderTotals(Projection):
    """A read model."""

    name = "order_totals"
    tables = {"totals": TOTALS}  # noqa: RUF012

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced) -> None:
        """Write it."""


class Fulfilment(ProcessManager):
    """What comes next."""

    name = "fulfilment"
    correlate = {OrderPlaced: "customer", PaymentOverdue: "customer"}  # noqa: RUF012
    timeouts = (PaymentOverdue,)

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced) -> None:
        """Begin."""

    @when(PaymentOverdue)
    def overdue(self, event: PaymentOverdue) -> None:
        """Go on."""


class Warehouse(OutboxHandlerABC):
    """Sends rows elsewhere."""

    subscription = Subscription(name="warehouse", types=[OrderPlaced], concurrency=8, start="now")

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        """Send it."""


def reserve(context: Any) -> None:
    """The first step."""


def release(context: Any) -> None:
    """What undoes it."""


order_saga = Saga(
    "place order",
    [
        SagaStep(reserve, release),
        SagaStep(place, name="charge", transactional=False, retry=FixedDelay(1.0), max_attempts=3),
    ],
)


def make_bus() -> MessageBus:
    """A bus with one of everything."""
    bus = MessageBus(middleware=[logged])
    bus.observe(Quiet())
    bus.set_command_handler(PlaceOrder, place)
    bus.set_query_handler(OrdersOf, count_orders)
    bus.set_event_handlers(OrderPlaced, [send_mail])
    bus.registry.add_upcaster(OrderPlaced, dict, from_version=1)
    bus.set_outbox_handlers(
        [
            DispatchOutboxHandler(subscription=Subscription(name="dispatch", start="beginning")),
            DispatchOutboxHandler(
                handlers={OrderPlaced: [Bookkeeper()]},
                subscription=Subscription(name="books", start="beginning", partitions=4, max_attempts=5),
            ),
            Warehouse(),
        ]
    )
    return bus


def make_relay() -> Relay:
    """The same beside a projection and a process manager."""
    bus = make_bus()
    projection = OrderTotals(registry=bus.registry)
    manager = Fulfilment(registry=bus.registry, subscription=Subscription(start="beginning"))
    engine = sa.create_engine("sqlite:///there-is-no-such-file.db")
    return Relay(bus, engine, projections=[projection], process_managers=[manager])


def make_async_bus() -> AsyncMessageBus:
    """A bus of the other colour."""
    bus = AsyncMessageBus()
    bus.set_command_handler(PlaceOrder, place_async)
    bus.set_event_handlers(OrderPlaced, [in_thread(send_mail)])
    bus.set_query_handler(OrdersOf, count_orders)
    bus.registry.add_upcaster(OrderPlaced, dict, from_version=1)
    return bus


def make_risky() -> MessageBus:
    """A bus with a warning."""
    bus = make_bus()
    bus.register_messages(type("Forgotten", (Command,), {}))
    return bus


class OrderPlacedAgain(Event, name="shop.placed", key="customer"):
    """The event as it was: version 1, with another field."""

    customer: str
    cents: int


def make_older() -> MessageBus:
    """A bus of last year."""
    return MessageBus(event_handlers={OrderPlacedAgain: []})
