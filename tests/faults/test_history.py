"""The checker of the fault tests finds each kind of fault: histories that must fail, each with its problem."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.history import Effect, History, problems

FIRST, SECOND, OTHER = Effect(1, "tea", 2, 11), Effect(2, "tea", 3, 12), Effect(3, "tin", 1, 13)
GOOD = History(
    committed=3,
    orders={1: ("tea", 2), 2: ("tea", 3), 3: ("tin", 1)},
    placed=[1, 2, 3],
    stock_at_first={"tea": 10, "tin": 10, "cup": 10},
    stock_left={"tea": 5, "tin": 9, "cup": 10},
    reservations=[FIRST, SECOND, OTHER],
    invoices=[FIRST, SECOND, OTHER],
)


@pytest.mark.parametrize(
    "history",
    [
        GOOD,
        replace(GOOD, reservations=[OTHER, FIRST, SECOND]),
        replace(GOOD, invoices=[FIRST, OTHER, SECOND], undelivered={"retrying": 0}),
    ],
)
def test_a_good_history_has_no_problem(history: History) -> None:
    """Messages of different keys may come in any order."""
    assert problems(history) == []


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        (replace(GOOD, committed=4), "4 orders were committed, 3 are there"),
        (replace(GOOD, placed=[1, 2]), "order 3 has no message (G1, G2)"),
        (replace(GOOD, placed=[1, 2, 3, 3]), "order 3 has 2 messages (G5)"),
        (replace(GOOD, placed=[1, 2, 3, 9]), "there is a message for order 9, which is not there (G1)"),
        (replace(GOOD, reservations=[FIRST, OTHER]), "order 2 has no reservation (G1, G2)"),
        (replace(GOOD, reservations=[FIRST, FIRST, SECOND, OTHER]), "order 1 has 2 reservations (G5)"),
        (replace(GOOD, invoices=[FIRST, SECOND]), "order 3 has no invoice (G1, G2)"),
        (replace(GOOD, invoices=[FIRST, SECOND, OTHER, OTHER]), "order 3 has 2 invoices (G5)"),
        (
            replace(GOOD, reservations=[FIRST, SECOND, OTHER, Effect(8, "cup", 1, 14)]),
            "there is a reservation for order 8, which is not there (G1)",
        ),
        (
            replace(GOOD, invoices=[FIRST, SECOND, replace(OTHER, quantity=2)]),
            "the invoice of order 3 is about something else",
        ),
        (
            replace(GOOD, stock_left={"tea": 3, "tin": 9, "cup": 10}),
            "of tea there must be 5 boxes left, there are 3 (G5)",
        ),
        (
            replace(GOOD, stock_left={"tea": 5, "tin": 9}),
            "of cup there must be 10 boxes left, there are None (G5)",
        ),
        (
            replace(GOOD, reservations=[SECOND, FIRST, OTHER]),
            "tea: reservation 12 was written before 11 (G3)",
        ),
        (replace(GOOD, invoices=[SECOND, OTHER, FIRST]), "tea: invoice 12 was written before 11 (G3)"),
        (replace(GOOD, undelivered={"held": 2}), "2 messages are held"),
    ],
)
def test_a_fault_is_found(history: History, problem: str) -> None:
    """Each fault is found, and nothing else is blamed."""
    assert problems(history) == [problem]
