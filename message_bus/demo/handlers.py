"""What the shop does about a message. A handler is a function (or an object with `handle`) of a message and its context.

Behind the outbox `context.db_session` is a session whose commit also records that the message was handled: what a
handler writes there happens exactly once, and what it emits is in the same commit. So handlers neither commit nor
remember what they have done. An exception rolls all of it back, and the message is tried again.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from message_bus import Context
from message_bus.demo.messages import OrderPlaced, StockReserved
from message_bus.demo.models import Invoice, Order, Product, Reservation, Status

VAT: Final = {"AT": 20, "DE": 19, "DK": 25, "FR": 20, "LU": 17, "NL": 21, "PL": 23, "SE": 25}  # percent

# every so many orders something is wrong at the first attempt, as happens in real life
WAREHOUSE_STUMBLES_EVERY: Final = 61
PRINTER_JAMS_EVERY: Final = 37


class WarehouseBusy(Exception):
    """The warehouse does not answer just now; it will."""


class PrinterJammed(Exception):
    """The invoice does not come out of the printer; it will."""


class NoTaxRate(Exception):
    """Nobody has told the shop how to invoice to this country: trying again does not help."""


def reserve_stock(event: OrderPlaced, context: Context) -> None:
    """Set the ordered boxes aside if there are enough. That there are not is no error: the customer is told so."""
    session: Session = context.db_session
    order = session.get_one(Order, event.order_id)
    product = session.get_one(Product, event.sku)
    if product.stock < order.quantity:
        order.status = Status.OUT_OF_STOCK
        return
    product.stock -= order.quantity
    order.status = Status.RESERVED
    session.add(Reservation(order_id=order.id, quantity=order.quantity, attempt=context.attempt))
    context.emit(StockReserved(order_id=order.id, sku=order.sku))
    if order.id % WAREHOUSE_STUMBLES_EVERY == 0 and context.attempt == 1:
        raise WarehouseBusy  # after the work, which is undone: otherwise the summary would not agree


def write_invoice(event: StockReserved, context: Context) -> None:
    """Write the invoice of an order."""
    session: Session = context.db_session
    order = session.get_one(Order, event.order_id)
    product = session.get_one(Product, event.sku)
    cents = gross(order.quantity * product.cents, order.country)
    order.status = Status.INVOICED
    session.add(Invoice(order_id=order.id, cents=cents, attempt=context.attempt))
    if order.id % PRINTER_JAMS_EVERY == 0 and context.attempt == 1:
        raise PrinterJammed


def gross(net: int, country: str) -> int:
    """The price in cents with value-added tax, rounded half up. Raises: NoTaxRate."""
    if country not in VAT:
        raise NoTaxRate(f"no tax rate for country {country!r}")
    return (net * (100 + VAT[country]) + 50) // 100
