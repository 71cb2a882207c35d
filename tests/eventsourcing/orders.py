# ruff: noqa: D102  (what the classes under test are made of)
"""An aggregate to test with: orders that hold what snapshots find difficult.

Its events have names that no other test uses: stores without a registry look their classes up among all that are defined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

from message_bus import AggregateRoot, Event, when


class Stage(Enum):
    NEW = "new"
    PAID = "paid"
    SHIPPED = "shipped"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal
    tags: tuple[str, ...] = ()


class OrderPlaced(Event, frozen=True, name="aggregates.OrderPlaced"):
    order_id: str
    customer: UUID | None = None
    placed_at: datetime | None = None


class LineAdded(Event, frozen=True, name="aggregates.LineAdded"):
    line: Line


class OrderPaid(Event, frozen=True, name="aggregates.OrderPaid"):
    amount: Decimal


class OrderShippedEvent(Event, frozen=True, name="aggregates.OrderShippedEvent"):
    carrier: str = "post"


class OrderViewed(Event, frozen=True, name="aggregates.OrderViewed"):
    by: str = "ann"


class OrderLost(Event, frozen=True, name="aggregates.OrderLost"):
    pass


class ShippedTwice(Exception):
    pass


@dataclass(eq=False)
class Order(AggregateRoot):
    """Placed, filled, paid, shipped."""

    ignores = (OrderViewed,)

    order_id: str = ""
    customer: UUID | None = None
    placed_at: datetime | None = None
    lines: list[Line] = field(default_factory=list)
    paid: Decimal = Decimal(0)
    stage: Stage = Stage.NEW
    carriers: set[str] = field(default_factory=set)

    def place(self, order_id: str, customer: UUID | None = None, at: datetime | None = None) -> None:
        self.apply(OrderPlaced(order_id=order_id, customer=customer, placed_at=at))

    def add(self, sku: str, price: Decimal | int = 1) -> None:
        self.apply(LineAdded(line=Line(sku, Decimal(price))))

    def pay(self, amount: Decimal | int) -> None:
        self.apply(OrderPaid(amount=Decimal(amount)))

    def ship(self, carrier: str = "post") -> None:
        if self.stage is Stage.SHIPPED:
            raise ShippedTwice("it is on its way")
        self.apply(OrderShippedEvent(carrier=carrier))

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced) -> None:
        self.aggregate_id = self.order_id = event.order_id
        self.customer, self.placed_at = event.customer, event.placed_at

    def on_line_added(self, event: LineAdded) -> None:
        self.lines.append(event.line)

    def on_order_paid(self, event: OrderPaid) -> None:
        self.paid += event.amount
        self.stage = Stage.PAID

    def on_order_shipped(self, event: OrderShippedEvent) -> None:
        self.stage = Stage.SHIPPED
        self.carriers.add(event.carrier)


def state_of(order: Order) -> dict[str, object]:
    """Everything that an order is."""
    return {name: value for name, value in vars(order).items() if not name.startswith("_")}


def an_order(order_id: str = "o-1", lines: int = 0) -> Order:
    """An order that was just placed, with some lines."""
    order = Order()
    order.place(order_id)
    for number in range(lines):
        order.add(f"sku-{number}")
    return order
