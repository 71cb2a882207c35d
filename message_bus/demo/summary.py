"""What the demo prints at the end: each figure twice, from the CSV and from the database. Pure: ledgers in, lines out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields

from message_bus.demo.ledger import PRINTER, WAREHOUSE, DeadLetter, Ledger
from message_bus.demo.models import Status
from message_bus.storage.tables import DEAD
from message_bus.storage.views import DELIVERED

_MOST_LINES = 20


def lines_of(
    wanted: Ledger, have: Ledger, letters: Sequence[DeadLetter], differences: Sequence[str]
) -> Iterator[str]:
    """The summary, line by line."""
    yield f"{'':<42}{'from the CSV':>16}{'in the database':>18}"
    for (title, left), (_, right) in zip(_figures(wanted), _figures(have), strict=True):
        yield f"{title:<42}{left:>16}{right:>18}  {'ok' if left == right else 'DIFFERS'}"
    yield ""
    for reason, count in Counter(have.refused.values()).most_common():
        yield f"  refused  {count:>4}  {reason}"
    for letter in letters[:_MOST_LINES]:
        yield f"  dead letter  order {letter.order_id}, given up after {letter.attempts} attempts: {letter.error}"
        yield f"               ({letter.followers} later messages about {letter.sku} waited for it, and only until then)"
    yield ""
    entries = sum(len(getattr(wanted, each.name)) for each in fields(Ledger))
    if not differences:
        yield f"Orders, stock, invoices and dead letters agree, in each of {entries:,} entries."
        return
    yield f"They do NOT agree: {len(differences):,} differences."
    yield from (f"  {each}" for each in differences[:_MOST_LINES])
    if len(differences) > _MOST_LINES:
        yield f"  ... and {len(differences) - _MOST_LINES:,} more"


def _figures(ledger: Ledger) -> Iterator[tuple[str, str]]:
    statuses = Counter(ledger.states.values())
    late = Counter(place for place, _ in ledger.second_attempts)
    yield "rows: orders placed", f"{len(ledger.orders):,}"
    yield "rows: refused", f"{len(ledger.refused):,}"
    yield "orders: invoiced", f"{statuses[Status.INVOICED]:,}"
    yield "orders: out of stock", f"{statuses[Status.OUT_OF_STOCK]:,}"
    yield "orders: reserved, but never invoiced", f"{statuses[Status.RESERVED]:,}"
    yield "orders: still to be looked at", f"{statuses[Status.PLACED]:,}"
    yield "boxes: reserved", f"{sum(sum(each) for each in ledger.reserved.values()):,}"
    yield "boxes: left in stock", f"{sum(ledger.stock.values()):,}"
    yield "invoices: written", f"{sum(len(each) for each in ledger.invoiced.values()):,}"
    yield "invoices: total in EUR", f"{sum(sum(each) for each in ledger.invoiced.values()) / 100:,.2f}"
    yield "reserved at the second attempt", f"{late[WAREHOUSE]:,}"
    yield "invoiced at the second attempt", f"{late[PRINTER]:,}"
    yield "messages: delivered", f"{ledger.messages.get(DELIVERED, 0):,}"
    yield "messages: dead letters", f"{ledger.messages.get(DEAD, 0):,}"
    yield "messages: waiting, retrying or held", f"{_pending(ledger):,}"


def _pending(ledger: Ledger) -> int:
    return sum(count for state, count in ledger.messages.items() if state not in (DELIVERED, DEAD))
