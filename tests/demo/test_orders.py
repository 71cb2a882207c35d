"""The CSV that comes with the demo: what is in it, and what is made of its bad rows."""

from __future__ import annotations

from collections import Counter

import pytest

from message_bus.demo.handlers import VAT
from message_bus.demo.ledger import expected
from message_bus.demo.orders import DUPLICATE, BadRow, OrderRow, read_orders, read_products
from tests.demo import make_orders_csv as made

REASONS: dict[made.Spoiler, str] = {
    made._unknown_product: "unknown product",
    made._quantity_not_positive: "quantity is out of range",
    made._quantity_not_a_number: "quantity is not a whole number",
    made._no_customer: "no customer",
    made._bad_email: "e-mail address is malformed",
    made._trailing_garbage: "more columns than the header",
    made._cut_off: "cut off",
    made._bad_id: "order number is not a number",
}


def test_the_file_is_what_its_generator_writes() -> None:
    """The committed orders.csv is what make_orders_csv.py writes."""
    assert made.TARGET.read_text(encoding="utf-8") == made.orders_csv()


def test_every_bad_row_is_refused_for_its_own_reason() -> None:
    """As many rows are refused for each reason as the generator has spoilt in that way."""
    products = read_products()
    refused = expected(products, read_orders(products)).refused
    assert Counter(refused.values()) == {
        **{REASONS[spoil]: count for spoil, count in made.BAD.items()},
        DUPLICATE: made.REPEATED,
    }


def test_all_other_rows_are_orders() -> None:
    """Each good row of the generator is an order, with its customer's name as it was written."""
    products = read_products()
    orders = [row for row in read_orders(products) if isinstance(row, OrderRow)]
    assert len({order.order_id for order in orders}) == made.GOOD
    assert any("美咲" in order.customer for order in orders)
    assert any(", " in order.customer for order in orders)


def test_one_order_cannot_be_invoiced_and_others_wait_behind_it() -> None:
    """Exactly one order is from where nobody knows the tax, in stock, and followed by others of its product."""
    products = read_products()
    rows = read_orders(products)
    wanted = expected(products, rows)
    orders = [row for row in rows if isinstance(row, OrderRow)]
    (poison,) = [order for order in orders if order.country not in VAT]
    assert poison.order_id == made.POISON
    assert list(wanted.dead_letters) == [made.POISON]
    assert sum(order.sku == poison.sku for order in orders[orders.index(poison) :]) > 50


@pytest.mark.parametrize("most", [1, 200, None])
def test_only_the_first_rows_are_read_if_so_asked(most: int | None) -> None:
    """`most` cuts the file; None reads all of it."""
    products = read_products()
    rows = read_orders(products, most=most)
    assert rows == read_orders(products)[:most] or all(
        isinstance(row, BadRow) for row in rows if row not in rows
    )
    assert len(rows) == (most or made.GOOD + sum(made.BAD.values()) + made.REPEATED)
