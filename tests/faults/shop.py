"""A shop to be killed: what its handlers do is plain SQL that shows whatever is lost, doubled or out of order.

`process-outbox` runs it as `--app tests.faults.shop:make_bus` (or make_async_bus: the same subscription). With
`KILL_ME=moment:n` in the environment the process kills itself with SIGKILL the n-th time it comes to that moment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event as events
from sqlalchemy.orm import Session

from message_bus import (
    AsyncMessageBus,
    Context,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    Subscription,
)

SUBSCRIPTION: Final = "shop"
SKUS: Final = tuple(f"sku-{number}" for number in range(6))
STOCK: Final = 1_000_000  # of each
FAILS_AT_FIRST: Final = 29  # every so many orders; so there are retrying and held rows when a kill comes

IN_A_HANDLER: Final = "in a handler"
BEFORE_A_COMMIT: Final = "before a commit"
AFTER_A_COMMIT: Final = "after a commit"

metadata = sa.MetaData()
tables = MessageBusTables(metadata)
orders = sa.Table(
    "shop_order",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sku", sa.Text, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
)
stock = sa.Table(
    "shop_stock",
    metadata,
    sa.Column("sku", sa.Text, primary_key=True),
    sa.Column("boxes", sa.Integer, nullable=False),
)


def _effects(name: str) -> sa.Table:
    # nothing is unique here: doing it twice must show, not fail
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
    )


reservations = _effects("shop_reservation")
invoices = _effects("shop_invoice")


class OrderPlaced(Event, key="sku"):
    """An order was committed."""

    order_id: int
    sku: str
    quantity: int


class StockReserved(Event, key="sku"):
    """Its boxes were set aside."""

    order_id: int
    sku: str
    quantity: int


class NotAtFirst(Exception):
    """What some handlers raise at the first attempt."""


def _effect(table: sa.Table, event: OrderPlaced | StockReserved, context: Context) -> sa.Insert:
    position = context.envelope.position
    return table.insert().values(
        order_id=event.order_id, sku=event.sku, quantity=event.quantity, position=position
    )


def _reserve(event: OrderPlaced, context: Context) -> Sequence[sa.Executable]:
    left = stock.c.boxes - event.quantity
    return [
        _effect(reservations, event, context),
        stock.update().where(stock.c.sku == event.sku).values(boxes=left),
    ]


def _finish_reserving(event: OrderPlaced, context: Context) -> None:
    context.emit(StockReserved(order_id=event.order_id, sku=event.sku, quantity=event.quantity))
    _maybe_fail(event.order_id, context)


def _maybe_fail(order_id: int, context: Context) -> None:
    _come_to(IN_A_HANDLER)
    if order_id % FAILS_AT_FIRST == 0 and context.attempt == 1:
        raise NotAtFirst


def reserve(event: OrderPlaced, context: Context) -> None:
    """Reserve the boxes of an order."""
    for statement in _reserve(event, context):
        context.db_session.execute(statement)
    _finish_reserving(event, context)


def invoice(event: StockReserved, context: Context) -> None:
    """Invoice an order."""
    context.db_session.execute(_effect(invoices, event, context))
    _maybe_fail(event.order_id + 1, context)


async def reserve_async(event: OrderPlaced, context: Context) -> None:
    """Reserve the boxes of an order."""
    for statement in _reserve(event, context):
        await context.db_session.execute(statement)
    _finish_reserving(event, context)


async def invoice_async(event: StockReserved, context: Context) -> None:
    """Invoice an order."""
    await context.db_session.execute(_effect(invoices, event, context))
    _maybe_fail(event.order_id + 1, context)


def invoice_apart(event: StockReserved, context: Context) -> None:
    """Invoice an order in a transaction of its own: what a handler must not do, if it is to happen once."""
    with context.db_session.get_bind().begin() as connection:
        connection.execute(_effect(invoices, event, context))
    _maybe_fail(event.order_id + 1, context)


def _subscription() -> Subscription:
    return Subscription(name=SUBSCRIPTION, max_attempts=10, backoff=FixedDelay(0.05))


def make_bus() -> MessageBus:
    """The application that is killed."""
    _arm()
    bus = MessageBus(event_handlers={OrderPlaced: [reserve], StockReserved: [invoice]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=_subscription())])
    return bus


def make_async_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    _arm()
    bus = AsyncMessageBus(event_handlers={OrderPlaced: [reserve_async], StockReserved: [invoice_async]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=_subscription())])
    return bus


def make_leaky_bus() -> MessageBus:
    """An application with a fault, for the test that the faults would be found."""
    _arm()
    bus = MessageBus(event_handlers={OrderPlaced: [reserve], StockReserved: [invoice_apart]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=_subscription())])
    return bus


# --- dying ----------------------------------------------------------------------------------------------------------

_left: dict[str, int] = {}  # how many more times until this moment kills the process


def _arm() -> None:
    moment, _, count = os.environ.get("KILL_ME", "").partition(":")
    if moment:
        _left[moment] = int(count)
        events.listen(sa.Engine, "commit", lambda connection: _come_to(BEFORE_A_COMMIT))
        events.listen(Session, "after_commit", lambda session: _come_to(AFTER_A_COMMIT))


def _come_to(moment: str) -> None:
    if moment in _left:
        _left[moment] -= 1
        if _left[moment] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
