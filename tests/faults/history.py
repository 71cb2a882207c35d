"""What must be true of the shop after any number of kills. Pure: a history in, a list of problems out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Effect:
    """One row that a handler wrote for an order, in the order in which they were written."""

    order_id: int
    sku: str
    quantity: int
    position: int


@dataclass(frozen=True)
class History:
    """What the shop's tables hold. `committed`: what the process that placed the orders counted itself."""

    committed: int
    orders: Mapping[int, tuple[str, int]]
    placed: Sequence[int]
    stock_at_first: Mapping[str, int]
    stock_left: Mapping[str, int]
    reservations: Sequence[Effect]
    invoices: Sequence[Effect]
    undelivered: Mapping[str, int] = field(default_factory=dict)


def problems(history: History) -> list[str]:
    """Everything that contradicts the guarantees; empty if nothing was lost, doubled or out of order."""
    return [
        *_count(history),
        *_once("message", history.orders, history.placed),
        *_once("reservation", history.orders, [each.order_id for each in history.reservations]),
        *_once("invoice", history.orders, [each.order_id for each in history.invoices]),
        *_contents("reservation", history.orders, history.reservations),
        *_contents("invoice", history.orders, history.invoices),
        *_stock(history),
        *_in_order("reservation", history.reservations),
        *_in_order("invoice", history.invoices),
        *(f"{count} messages are {state}" for state, count in sorted(history.undelivered.items()) if count),
    ]


def _count(history: History) -> Iterator[str]:
    if history.committed != len(history.orders):
        yield f"{history.committed} orders were committed, {len(history.orders)} are there"


def _once(what: str, orders: Mapping[int, object], found: Sequence[int]) -> Iterator[str]:
    counts = Counter(found)
    yield from (f"order {order} has no {what} (G1, G2)" for order in orders if not counts[order])
    yield from (f"order {order} has {count} {what}s (G5)" for order, count in counts.items() if count > 1)
    yield from (
        f"there is a {what} for order {order}, which is not there (G1)"
        for order in counts
        if order not in orders
    )


def _contents(what: str, orders: Mapping[int, tuple[str, int]], effects: Sequence[Effect]) -> Iterator[str]:
    for each in effects:
        if each.order_id in orders and orders[each.order_id] != (each.sku, each.quantity):
            yield f"the {what} of order {each.order_id} is about something else"


def _stock(history: History) -> Iterator[str]:
    wanted = dict(history.stock_at_first)
    for sku, quantity in history.orders.values():
        wanted[sku] -= quantity
    for sku, boxes in wanted.items():
        if history.stock_left.get(sku) != boxes:
            yield f"of {sku} there must be {boxes} boxes left, there are {history.stock_left.get(sku)} (G5)"


def _in_order(what: str, effects: Sequence[Effect]) -> Iterator[str]:
    by_key: dict[str, list[Effect]] = defaultdict(list)
    for each in effects:
        by_key[each.sku].append(each)
    for sku, of_key in by_key.items():
        for before, after in pairwise(of_key):
            if before.position > after.position:
                yield f"{sku}: {what} {before.position} was written before {after.position} (G3)"
