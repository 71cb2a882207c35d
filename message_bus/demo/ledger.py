"""The proof: what must have come of the orders, from the CSV in plain Python, beside what the database says.

Both are a `Ledger`; if all went well they are equal, entry by entry. `expected` knows nothing of messages, attempts or
tables: it hands the boxes out in the order of the file, as if nothing had ever failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from message_bus import MessageBusTables
from message_bus.demo.handlers import PRINTER_JAMS_EVERY, WAREHOUSE_STUMBLES_EVERY, NoTaxRate, gross
from message_bus.demo.models import Invoice, Order, Product, Refusal, Reservation, Status
from message_bus.demo.orders import DUPLICATE, BadRow, OrderRow, ProductRow
from message_bus.storage.tables import DEAD
from message_bus.storage.views import DELIVERED, outbox_delivery

WAREHOUSE: Final = "warehouse"
PRINTER: Final = "printer"


@dataclass
class Ledger:
    """What is true of the shop in the end, by number of row, number of order, or name of product."""

    refused: dict[int, str] = field(default_factory=dict)
    orders: dict[int, tuple[str, str, str, str, int]] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=dict)
    reserved: dict[int, list[int]] = field(default_factory=dict)
    invoiced: dict[int, list[int]] = field(default_factory=dict)
    dead_letters: dict[int, int] = field(default_factory=dict)
    second_attempts: dict[tuple[str, int], int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)


def expected(products: Mapping[str, ProductRow], rows: Sequence[OrderRow | BadRow]) -> Ledger:
    """What must come of these rows."""
    ledger = Ledger(stock={sku: product.stock for sku, product in products.items()})
    messages: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        if isinstance(row, BadRow):
            ledger.refused[number] = row.reason
        elif row.order_id in ledger.orders:
            ledger.refused[number] = DUPLICATE
        else:
            messages[DELIVERED] += 1
            ledger.orders[row.order_id] = (row.customer, row.email, row.country, row.sku, row.quantity)
            ledger.states[row.order_id] = Status.OUT_OF_STOCK
            if row.quantity <= ledger.stock[row.sku]:
                ledger.stock[row.sku] -= row.quantity
                messages[_reserve(ledger, row, products[row.sku])] += 1
    ledger.messages = dict(messages)
    return ledger


def _reserve(ledger: Ledger, row: OrderRow, product: ProductRow) -> str:
    """Enter a reserved order and its invoice; what becomes of the message about it."""
    ledger.reserved[row.order_id] = [row.quantity]
    if row.order_id % WAREHOUSE_STUMBLES_EVERY == 0:
        ledger.second_attempts[WAREHOUSE, row.order_id] = 2
    try:
        cents = gross(row.quantity * product.cents, row.country)
    except NoTaxRate:
        ledger.states[row.order_id] = Status.RESERVED
        ledger.dead_letters[row.order_id] = 1
        return DEAD
    ledger.states[row.order_id] = Status.INVOICED
    ledger.invoiced[row.order_id] = [cents]
    if row.order_id % PRINTER_JAMS_EVERY == 0:
        ledger.second_attempts[PRINTER, row.order_id] = 2
    return DELIVERED


def found(session: Session, tables: MessageBusTables) -> Ledger:
    """What the database says."""
    ledger = Ledger(
        refused={row: reason for row, reason in session.execute(select(Refusal.row, Refusal.reason))},
        stock={sku: stock for sku, stock in session.execute(select(Product.sku, Product.stock))},
    )
    for order in session.scalars(select(Order)):
        ledger.orders[order.id] = (order.customer, order.email, order.country, order.sku, order.quantity)
        ledger.states[order.id] = order.status
    for each in session.scalars(select(Reservation)):
        ledger.reserved.setdefault(each.order_id, []).append(each.quantity)
        if each.attempt > 1:
            ledger.second_attempts[WAREHOUSE, each.order_id] = each.attempt
    for invoice in session.scalars(select(Invoice)):
        ledger.invoiced.setdefault(invoice.order_id, []).append(invoice.cents)
        if invoice.attempt > 1:
            ledger.second_attempts[PRINTER, invoice.order_id] = invoice.attempt
    ledger.dead_letters = dict(Counter(letter.order_id for letter in dead_letters(session, tables)))
    states = outbox_delivery(tables).subquery()
    ledger.messages = {
        state: count
        for state, count in session.execute(select(states.c.state, func.count()).group_by(states.c.state))
    }
    return ledger


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up."""

    order_id: int
    sku: str
    attempts: int
    error: str
    followers: int


def dead_letters(session: Session, tables: MessageBusTables) -> list[DeadLetter]:
    """The messages that were given up, and how many later ones of the same product were delivered all the same."""
    outbox, delivery = tables.outbox, tables.delivery
    later = outbox.alias()
    followers = (
        select(func.count())
        .where(later.c.key == outbox.c.key, later.c.position > outbox.c.position)
        .scalar_subquery()
    )
    rows = session.execute(
        select(outbox.c.payload, delivery.c.attempts, delivery.c.error, followers)
        .join(delivery, delivery.c.position == outbox.c.position)
        .where(delivery.c.state == DEAD)
        .order_by(outbox.c.position)
    )
    return [
        DeadLetter(payload["order_id"], payload["sku"], attempts, error or "", count)
        for payload, attempts, error, count in rows
    ]


def differences(wanted: Ledger, have: Ledger) -> list[str]:
    """Every entry in which the two differ, in words; empty if nothing was lost or done twice."""
    return [
        f"{each.name.replace('_', ' ')}: {entry!r} must be {_say(left)}, the database says {_say(right)}"
        for each in fields(Ledger)
        for entry, left, right in _unlike(getattr(wanted, each.name), getattr(have, each.name))
    ]


def _unlike(
    wanted: Mapping[Hashable, Any], have: Mapping[Hashable, Any]
) -> Iterator[tuple[Hashable, Any, Any]]:
    for entry in [*wanted, *(each for each in have if each not in wanted)]:
        if wanted.get(entry) != have.get(entry):
            yield entry, wanted.get(entry), have.get(entry)


def _say(value: object) -> str:
    if value is None:
        return "nothing"
    return repr(str(value)) if isinstance(value, str) else repr(value)  # str(): a Status is one
