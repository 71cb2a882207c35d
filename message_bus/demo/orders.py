"""Reads the files that come with the demo: the products, and orders as a careless colleague exported them.

What a row says is checked here, without a database; that an order number is taken only the database knows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from typing import Any, Final

DUPLICATE: Final = "order number is taken"
MOST_BOXES: Final = 999

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


class BadRow(Exception):
    """A row that is no order; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """One row of products.csv."""

    sku: str
    name: str
    cents: int
    stock: int


@dataclass(frozen=True, kw_only=True)
class OrderRow:
    """One good row of orders.csv."""

    order_id: int
    customer: str
    email: str
    country: str
    sku: str
    quantity: int


def read_products() -> dict[str, ProductRow]:
    """The products by their sku."""
    return {
        row["sku"]: ProductRow(
            sku=row["sku"], name=row["name"], cents=int(row["cents"]), stock=int(row["stock"])
        )
        for row in _rows("products.csv")
    }


def read_orders(products: Collection[str], *, most: int | None = None) -> list[OrderRow | BadRow]:
    """The first `most` rows, each as an order or as what is wrong with it."""
    return [_read(row, products) for row in islice(_rows("orders.csv"), most)]


def _rows(name: str) -> Iterator[dict[Any, Any]]:
    text = (files("message_bus.demo") / name).read_text(encoding="utf-8")
    return csv.DictReader(io.StringIO(text, newline=""))


def _read(row: dict[Any, Any], products: Collection[str]) -> OrderRow | BadRow:
    if None in row:
        return BadRow("more columns than the header")
    if None in row.values():
        return BadRow("cut off")
    text = {name: value.strip() for name, value in row.items()}
    if not text["order_id"].isdecimal():
        return BadRow("order number is not a number")
    if not text["customer"]:
        return BadRow("no customer")
    if not _EMAIL.fullmatch(text["email"]):
        return BadRow("e-mail address is malformed")
    if text["sku"] not in products:
        return BadRow("unknown product")
    if not _WHOLE_NUMBER.fullmatch(text["quantity"]):
        return BadRow("quantity is not a whole number")
    if not 1 <= int(text["quantity"]) <= MOST_BOXES:
        return BadRow("quantity is out of range")
    return OrderRow(
        order_id=int(text["order_id"]),
        customer=text["customer"],
        email=text["email"],
        country=text["country"],
        sku=text["sku"],
        quantity=int(text["quantity"]),
    )
