"""The messages that the contracts send."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from message_bus.messages.message import Command, Event, Query


class PlaceOrder(Command):
    """A command."""

    order_id: int


class CancelOrder(Command):
    """A command of another type."""

    order_id: int


class GetOrder(Query[str]):
    """A query."""

    order_id: int


class OrderPlaced(Event, key="order_id"):
    """An event with a key."""

    order_id: int


class OrderPaid(Event):
    """An event without a key, with fields that JSON has no word for."""

    order_id: int
    amount: Decimal = Decimal("12.50")
    paid_at: datetime = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    payment: UUID = UUID(int=7)
    notes: tuple[str, ...] = ("ü", "\N{GRINNING FACE}", "")
    voucher: str | None = None


class OrderShipped(Event, version=3):
    """An event whose payload has a version."""

    order_id: int
