"""What `why` says in words, and how a tree is made of what was found: tables of cases, and whatever headers may hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus.admin import Emitted, HistoryEntry
from message_bus.admin.emitted import MOST_EMITTED, MOST_GENERATIONS, Found, family_of, merged, tree_of
from message_bus.admin.history import in_words
from message_bus.storage.history_table import HAPPENINGS

THEN = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = UUID(int=0)


def entry(what: str, **values: Any) -> HistoryEntry:
    """Something that has happened."""
    return HistoryEntry(subscription="s", log="outbox", what=what, at=THEN, **values)


def found(number: int, cause: int | None, **values: Any) -> Found:
    """A message of the story, registered so many seconds after its beginning."""
    caused_by = None if cause is None else str(UUID(int=cause))
    at = THEN + timedelta(seconds=number)
    return Found(
        UUID(int=number), "EVENT", f"M{number}", None, at, caused_by, **{"position": number, **values}
    )


def tree(*members: Found) -> tuple[tuple[Emitted, ...], bool]:
    """What the message with the id 0 has brought about, and whether there is more."""
    family = family_of(ROOT, members)
    return tree_of(ROOT, family, {each.id: "waiting" for each in family.members}), family.more


def shape(emitted: tuple[Emitted, ...]) -> list[Any]:
    """Numbers of the messages, in nested lists."""
    return [[each.id.int, *shape(each.emitted)] for each in emitted]


def count(emitted: tuple[Emitted, ...]) -> int:
    """How many messages there are in a tree."""
    return sum(1 + count(each.emitted) for each in emitted)


IN_WORDS = [
    (entry("failed", attempt=2, error="ValueError: x"), "attempt 2 failed: ValueError: x"),
    (entry("failed", attempt=1), "attempt 1 failed: no error recorded"),
    (entry("dead", attempt=1, error="E: x"), "dead after 1 attempt: E: x"),
    (entry("dead", attempt=3, error="E: x"), "dead after 3 attempts: E: x"),
    (entry("dead", error="killed the worker 2 times"), "dead: killed the worker 2 times"),
    (entry("crashed", attempt=1), "its worker died with it in hand (1 crash by then)"),
    (entry("crashed", attempt=2), "its worker died with it in hand (2 crashes by then)"),
    (
        entry("held", behind=ROOT, behind_position=7),
        f"held behind message {ROOT} of the same key, at position 7",
    ),
    (entry("held", behind_position=7), "held behind the message at position 7, which is gone"),
    (entry("delivered", attempt=1), "delivered"),
    (entry("delivered", attempt=3), "delivered at attempt 3"),
    (entry("passed over", attempt=3), "passed over: nobody here wants it"),
    (entry("unwanted"), "passed over: the subscription does not read its type any more"),
    (entry("revived"), "tried anew: its type is known by now"),
    (entry("replayed", by="ann"), "replayed by ann"),
    (entry("discarded"), "discarded by somebody who gave no name"),
    (entry("reset", by="ann"), "forgotten: the subscription was reset, by ann"),
    (entry("repartitioned", by="ann"), "held: the subscription was repartitioned, by ann"),
]
"""What the history can hold, and how it is told."""


@pytest.mark.parametrize(("told", "text"), IN_WORDS)
def test_what_has_happened_in_words(told: HistoryEntry, text: str) -> None:
    """Each thing has its words."""
    assert in_words(told) == text


def test_everything_that_can_happen_has_words() -> None:
    """None of what the table takes was forgotten above."""
    assert {told.what for told, _ in IN_WORDS} == set(HAPPENINGS)


def test_children_in_the_order_of_time() -> None:
    """Under the one that has brought them about; strangers of the same story are left out."""
    assert tree(found(5, 1), found(3, 0), found(1, 0), found(2, 1), found(4, 9), found(6, None)) == tree(
        *(found(number, cause) for number, cause in ((1, 0), (2, 1), (3, 0), (5, 1)))
    )
    emitted, more = tree(found(5, 1), found(3, 0), found(1, 0), found(2, 1), found(4, 9), found(6, None))
    assert (shape(emitted), more) == ([[1, [2], [5]], [3]], False)


def test_one_that_is_in_both_logs() -> None:
    """It is one message, wherever it was found."""
    both = merged([found(1, 0)], [found(1, 0, position=None, recorded=4)])
    assert [(each.position, each.recorded) for each in both] == [(1, 4)]


def test_one_too_many() -> None:
    """200 are told without a word, of 201 the last one is missing, and that is said; the nearest come first."""
    near = [found(number, 0) for number in range(1, MOST_EMITTED)]
    for far, more in ((1, False), (2, True)):
        emitted, there_is_more = tree(*near, *(found(1_000 + number, 1) for number in range(far)))
        assert (count(emitted), there_is_more) == (MOST_EMITTED, more)
        assert [len(each.emitted) for each in emitted[:2]] == [1, 0]


def test_one_generation_too_many() -> None:
    """50 are told without a word; of 51 the last one is missing, and that is said."""
    for generations, more in ((MOST_GENERATIONS, False), (MOST_GENERATIONS + 1, True)):
        emitted, there_is_more = tree(*(found(number, number - 1) for number in range(1, generations + 1)))
        assert (count(emitted), there_is_more) == (MOST_GENERATIONS, more)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_whatever_causes_whatever(pairs: list[tuple[int, int]]) -> None:
    """Headers may say anything: a tree comes of it, with everyone in it once, the message itself not at all."""
    emitted, _ = tree(*merged([found(number, cause) for number, cause in pairs]))
    seen: list[int] = []

    def walk(level: tuple[Emitted, ...]) -> None:
        for each in level:
            seen.append(each.id.int)
            walk(each.emitted)

    walk(emitted)
    assert len(seen) == len(set(seen))
    assert 0 not in seen
