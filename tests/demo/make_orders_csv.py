"""Writes message_bus/demo/orders.csv: some 3,000 orders as a careless colleague would export them.

    python tests/demo/make_orders_csv.py

The same seed gives the same file on every Python; a test compares them. `BAD` says how many rows of each kind are bad,
`POISON` which order has a country that nobody can invoice: both are what the demo's tests know about the file.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TARGET: Final = ROOT / "message_bus" / "demo" / "orders.csv"
PRODUCTS: Final = ROOT / "message_bus" / "demo" / "products.csv"

HEADER: Final = ["order_id", "customer", "email", "country", "sku", "quantity"]
GOOD: Final = 2_860
POISON: Final = 1_057  # order id
_FIRST_ID: Final = 1_001
_SEED: Final = 20_240_229

_GIVEN: Final = """
    Ada Bjørn Chloé Dmitri Élodie Fatima Günther Håkon Íris José Kübra Łukasz Márta Noémie Ōtani Paweł
    Quỳnh Renée Søren Þóra Ursula Věra Wen Xóchitl Yıldız Zoë 美咲 志明 Ольга Γιώργος יעל أمينة
""".split()  # noqa: SIM905
_FAMILY: Final = """
    Andersson Böhm Čapek D'Angelo Eriksen Ferreira Gauß Hernández Ivanova Jørgensen Kowalski Lefèvre
    Müller Núñez O’Neill Petrović Quintana Rossi Šimić Țepeș Ünal Virtanen Wójcik Yılmaz Ždanov
""".split()  # noqa: SIM905
_HOSTS: Final = ["example.com", "example.org", "mail.example.net", "post.example.eu"]
_COUNTRIES: Final = ["DE"] * 6 + ["AT"] * 3 + ["FR"] * 4 + ["NL"] * 2 + ["PL"] * 2 + ["DK", "SE", "LU"]

Row = list[str]
Spoiler = Callable[[Row, random.Random], Row]


def _unknown_product(row: Row, dice: random.Random) -> Row:
    return [*row[:4], dice.choice(["TEA-99", "tea-1", "XYZ", ""]), row[5]]


def _quantity_not_positive(row: Row, dice: random.Random) -> Row:
    return [*row[:5], dice.choice(["0", "-1", "-12"])]


def _quantity_not_a_number(row: Row, dice: random.Random) -> Row:
    return [*row[:5], dice.choice(["two", "", "1.5", "3 pcs", "1e3", "O", "½"])]


def _no_customer(row: Row, dice: random.Random) -> Row:
    return [row[0], dice.choice(["", "   "]), *row[2:]]


def _bad_email(row: Row, dice: random.Random) -> Row:
    name, _, host = row[2].partition("@")
    bad = [f"{name}.{host}", f"{name}@", f"{name}@@{host}", f"{name} @{host}", "n/a", f"{name}@localhost"]
    return [*row[:2], dice.choice(bad), *row[3:]]


def _trailing_garbage(row: Row, dice: random.Random) -> Row:
    return [*row, *dice.choice([["", ""], ["#REF!"], ["call back!!", "ok?"]])]


def _cut_off(row: Row, dice: random.Random) -> Row:
    return row[: dice.randint(2, 5)]


def _bad_id(row: Row, dice: random.Random) -> Row:
    return [dice.choice([f"#{row[0]}", f"A-{row[0]}", "", f"{row[0]}.0"]), *row[1:]]


BAD: Final[dict[Spoiler, int]] = {
    _unknown_product: 22,
    _quantity_not_positive: 19,
    _quantity_not_a_number: 21,
    _no_customer: 14,
    _bad_email: 23,
    _trailing_garbage: 12,
    _cut_off: 6,
    _bad_id: 9,
}
REPEATED: Final = 18  # order ids that come a second time, unchanged or with another quantity


def orders_csv() -> str:
    """The text of the file."""
    dice = random.Random(_SEED)
    rows = [_good_row(_FIRST_ID + number, dice) for number in range(GOOD)]
    rows[POISON - _FIRST_ID][3] = "AX"
    for spoil, count in BAD.items():
        for _ in range(count):
            spoilt = spoil(_good_row(90_000 + len(rows), dice), dice)
            rows.insert(dice.randrange(len(rows)), spoilt)
    taken: set[str] = set()
    for _ in range(REPEATED):
        first = dice.randrange(len(rows) - 60)
        while not _may_be_repeated(rows[first], taken):
            first = dice.randrange(len(rows) - 60)
        taken.add(rows[first][0])
        again = [*rows[first][:5], rows[first][5] if dice.random() < 0.5 else str(dice.randint(1, 9))]
        rows.insert(first + dice.randint(1, 50), again)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([HEADER, *rows])
    return text.getvalue()


def _may_be_repeated(row: Row, taken: set[str]) -> bool:
    return (
        len(row) == len(HEADER)
        and row[0].isdecimal()
        and _FIRST_ID <= int(row[0]) < 90_000
        and row[0] not in taken
    )


def _good_row(order_id: int, dice: random.Random) -> Row:
    given, family = dice.choice(_GIVEN), dice.choice(_FAMILY)
    customer = f"{family}, {given}" if dice.random() < 0.1 else f"{given} {family}"
    quantity = min(dice.randint(1, 5), dice.randint(1, 5)) + (10 if dice.random() < 0.03 else 0)
    email = f"customer{order_id}@{dice.choice(_HOSTS)}"
    return [str(order_id), customer, email, dice.choice(_COUNTRIES), dice.choice(_skus()), str(quantity)]


@cache
def _skus() -> list[str]:
    with PRODUCTS.open(encoding="utf-8", newline="") as file:
        return [row["sku"] for row in csv.DictReader(file)]


if __name__ == "__main__":
    TARGET.write_text(orders_csv(), encoding="utf-8", newline="")
