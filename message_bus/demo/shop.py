"""The wiring, in one place, and the one thing that the shop's web site would do: place an order.

`make_bus` is also what the command line takes: `message-bus process-outbox --app message_bus.demo.shop:make_bus`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, FixedDelay, MessageBus, MessageBusTables, Subscription
from message_bus.demo.handlers import reserve_stock, write_invoice
from message_bus.demo.messages import OrderPlaced, StockReserved
from message_bus.demo.models import Base, Order, Refusal
from message_bus.demo.orders import DUPLICATE, BadRow, OrderRow

tables: Final = MessageBusTables(Base.metadata)
"""The outbox lives in the shop's own metadata, so one `create_all` (or one Alembic history) makes everything."""

MAX_ATTEMPTS: Final = 3
RETRY_DELAY: Final = 0.1  # seconds; in real life leave the back-off alone, it starts at a second and doubles


def make_bus() -> MessageBus:
    """A bus that knows what the shop does about its messages."""
    bus = MessageBus()
    bus.set_event_handlers(OrderPlaced, [reserve_stock])
    bus.set_event_handlers(StockReserved, [write_invoice])
    settings = Subscription(name="shop", max_attempts=MAX_ATTEMPTS, backoff=FixedDelay(RETRY_DELAY))
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    return bus


def place_order(bus: MessageBus, session: Session, row: OrderRow) -> None:
    """Store the order and its message in one transaction: both are there, or neither is.

    Raises: BadRow if there is an order of this number already.
    """
    try:
        with session.begin():
            session.add(
                Order(
                    id=row.order_id,
                    customer=row.customer,
                    email=row.email,
                    country=row.country,
                    sku=row.sku,
                    quantity=row.quantity,
                )
            )
            bus.register_outbox_message(session, OrderPlaced(order_id=row.order_id, sku=row.sku))
    except IntegrityError as error:
        raise BadRow(DUPLICATE) from error


def take_in(bus: MessageBus, session: Session, number: int, row: OrderRow | BadRow) -> None:
    """Place the order in row `number` of the CSV, or put on record why there is none."""
    try:
        if isinstance(row, BadRow):
            raise row
        place_order(bus, session, row)
    except BadRow as bad:
        with session.begin():
            session.add(Refusal(row=number, reason=bad.reason))
