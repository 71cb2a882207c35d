"""The shop's own tables. Plain SQLAlchemy: nothing in them knows of messages.

Money is in cents. `Reservation.attempt` and `Invoice.attempt` say at which attempt the handler succeeded; they are here
for the summary, a real shop would not keep them.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The shop's metadata. The tables of the outbox live in it too (see `shop.py`)."""


class Status(StrEnum):
    """What has become of an order."""

    PLACED = "placed"
    RESERVED = "reserved"
    INVOICED = "invoiced"
    OUT_OF_STOCK = "out of stock"


class Product(Base):
    """Something to buy; `stock` is how many boxes nobody has ordered yet."""

    __tablename__ = "products"

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]


class Order(Base):
    """One accepted row of the CSV; its number comes from there."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer: Mapped[str]
    email: Mapped[str]
    country: Mapped[str]
    sku: Mapped[str] = mapped_column(ForeignKey("products.sku"))
    quantity: Mapped[int]
    status: Mapped[Status] = mapped_column(default=Status.PLACED)


class Refusal(Base):
    """A row of the CSV that is no order, and why."""

    __tablename__ = "refusals"

    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str]


class Reservation(Base):
    """Boxes set aside for an order. Not unique per order on purpose: doing it twice would show."""

    __tablename__ = "reservations"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    quantity: Mapped[int]
    attempt: Mapped[int]


class Invoice(Base):
    """What a customer has to pay. Not unique per order, for the same reason."""

    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    cents: Mapped[int]
    attempt: Mapped[int]
