"""The checker of the fault suite finds each kind of fault: histories that must fail, each with its problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.history import Effect, History, Interruption, Message, Reader, check

TEA_1, TEA_2, TIN_3 = ("Moved", "tea", 1), ("Moved", "tea", 2), ("Moved", "tin", 3)
ALL = (TEA_1, TEA_2, TIN_3)


def by(reader: str, *messages: Message, at: float = 1.0) -> list[Effect]:
    """Effects one second after the other; the number of a message is its position."""
    return [Effect(reader, each, position=each[2], at=at + number) for number, each in enumerate(messages)]


GOOD = History(
    scenario="try",
    seed=7,
    readers=[Reader("once"), Reader("sender", transactional=False, batch=2)],
    written=ALL,
    effects=[*by("once", *ALL), *by("sender", *ALL)],
    acknowledged={TEA_1, TIN_3},
    seconds=1.25,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"effects": [*by("once", TIN_3, TEA_1, TEA_2), *by("sender", TEA_1, TIN_3, TEA_2)]},
        {"effects": [*by("once", *ALL), *by("sender", TIN_3)], "excused": {"sender": {TEA_1, TEA_2}}},
        {
            "effects": [*by("once", TEA_2, TIN_3, TEA_1), *by("sender", *ALL)],
            "out_of_turn": {"once": {TEA_1}},
        },
        {
            "effects": [*by("once", *ALL), *by("sender", *ALL), *by("sender", TEA_1, TEA_2, at=9.0)],
            "interruptions": [Interruption(4.5, 5.0)],
        },
    ],
)
def test_a_good_history_has_no_problem(changes: dict[str, Any]) -> None:
    """Keys may come in any order, dead letters not at all, and after a crash a concurrent reader repeats its batch."""
    assert check(replace(GOOD, **changes)).problems == []


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"effects": [*by("once", TEA_1, TIN_3), *by("sender", *ALL)]}, ["once: Moved 2 of 'tea' was not delivered (G2)"]),
        ({"effects": [*by("once", *ALL), *by("sender", TEA_1, TEA_2)]}, ["sender: Moved 3 of 'tin' was not delivered (G2)"]),
        (
            {"effects": [*by("once", TEA_1, *ALL), *by("sender", *ALL)], "interruptions": [Interruption(0, 99)]},
            ["once: Moved 1 of 'tea' had its effect more than once (G5)"],
        ),
        (
            {"effects": [*by("once", TEA_2, TEA_1, TIN_3), *by("sender", *ALL)]},
            ["once: Moved 1 of 'tea' came after a later message of its key (G3)"],
        ),
        (
            {"effects": [*by("once", *ALL), *by("sender", TIN_3, TEA_2, TEA_1)]},
            ["sender: Moved 1 of 'tea' came after a later message of its key (G3)"],
        ),
        (
            {"written": (TEA_1, TEA_2)},
            [f"{reader}: Moved 3 of 'tin' was delivered, but never committed (G1)" for reader in ("once", "sender")],
        ),
        (
            {"acknowledged": {*ALL, ("Moved", "tea", 4)}},
            ["Moved 4 of 'tea': its commit was answered, it is not there (G1)"],
        ),
        (
            {"effects": [*by("once", *ALL), *by("sender", *ALL, TIN_3)]},
            ["sender: Moved 3 of 'tin' was repeated without an interruption, or beyond the batch in hand"],
        ),
        (
            {
                "effects": [*by("once", *ALL), *by("sender", *ALL), *by("sender", TEA_1, at=9.0)],
                "interruptions": [Interruption(0.1, 0.5), Interruption(9.5, 10.0)],
            },
            ["sender: Moved 1 of 'tea' was repeated without an interruption, or beyond the batch in hand"],
        ),
        (
            {
                "effects": [*by("once", *ALL), *by("sender", *ALL), *by("sender", *ALL, at=9.0)],
                "interruptions": [Interruption(4.5, 5.0)],
            },
            ["sender: Moved 3 of 'tin' was repeated without an interruption, or beyond the batch in hand"],
        ),
    ],
)  # fmt: skip
def test_a_fault_is_found(changes: dict[str, Any], problems: list[str]) -> None:
    """Each fault is found, and nothing else is blamed."""
    found = check(replace(GOOD, **({"acknowledged": ()} | changes)))
    assert found.problems == problems


def test_the_line() -> None:
    """One line says it all."""
    assert check(GOOD).line == (
        "try: seed 7, written 3, delivered 6, lost 0, duplicated 0, order violations 0, repeats 0; 1.2 s"
    )
    bad = replace(GOOD, effects=by("sender", TEA_2, TEA_1, TEA_1), acknowledged={("Moved", "tea", 4)})
    assert check(bad).line == (
        "try: seed 7, written 3, delivered 2, lost 4, duplicated 0, order violations 1, repeats 1,"
        " 1 unexplained, 1 vanished; 1.2 s"
    )


MESSAGES = [("Moved", f"key-{n % 3}", n) for n in range(1, 10)]


@given(order=st.permutations(MESSAGES), which=st.sampled_from(MESSAGES))
def test_what_is_left_out_is_lost_and_what_is_added_is_doubled(order: list[Message], which: Message) -> None:
    """Whatever the order: exactly the missing message is lost, exactly the added one is duplicated (G2, G5)."""
    history = replace(GOOD, readers=[Reader("once")], written=MESSAGES, acknowledged=())
    missing = check(replace(history, effects=by("once", *(each for each in order if each != which))))
    assert (missing.lost, missing.duplicated) == ((("once", which),), ())
    added = check(replace(history, effects=by("once", *order, which)))
    assert (added.lost, added.duplicated) == ((), (("once", which),))


@given(order=st.permutations(MESSAGES))
def test_order_is_kept_only_if_each_key_ascends(order: list[Message]) -> None:
    """An order is blamed if and only if some key's messages do not ascend (G3)."""
    history = replace(GOOD, readers=[Reader("once")], written=MESSAGES, acknowledged=())
    ascends = all(
        [each for each in order if each[1] == key] == [each for each in MESSAGES if each[1] == key]
        for key in {key for _, key, _ in MESSAGES}
    )
    assert (check(replace(history, effects=by("once", *order))).disordered == ()) is ascends
