"""Selections, reports and rates as plain values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from message_bus import ChosenLetter, DeadLetterReport, SettingsError
from message_bus.admin.letters import Selection, delays, refuse_numbers, refuse_unclear, stored

NAIVE = datetime(2026, 1, 1)
AWARE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"since": NAIVE}, "since is a naive datetime (give it a timezone)"),
        ({"until": NAIVE}, "until is a naive datetime (give it a timezone)"),
        ({"ids": ["x"]}, "'x' is no message id (ids are UUIDs)"),
        ({"ids": [7]}, "7 is no message id (ids are UUIDs)"),
        ({"subscription": ""}, "subscription is empty (leave it out"),
        ({"message": ""}, "message is empty (leave it out"),
        ({"error": ""}, "error is empty (leave it out"),
    ],
)
def test_a_selection_that_says_nothing_sensible(given: dict[str, Any], problem: str) -> None:
    """Each problem is named, with its remedy."""
    with pytest.raises(SettingsError) as caught:
        Selection(**given)
    assert problem in str(caught.value)


def test_all_problems_are_reported_at_once() -> None:
    """One error for the whole selection."""
    with pytest.raises(SettingsError) as caught:
        Selection(since=NAIVE, until=NAIVE, error="")
    assert len(caught.value.problems) == 3


def test_ids_may_be_text_or_one_alone() -> None:
    """What is copied from a log is as good as a UUID."""
    one = uuid4()
    assert Selection(ids=[str(one)]).ids == (one,)
    assert Selection(ids=str(one)).ids == (one,)  # type: ignore[arg-type]
    assert Selection(ids=one).ids == (one,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "is_empty"),
    [
        ({}, True),
        ({"ids": []}, False),
        ({"subscription": "x"}, False),
        ({"since": AWARE}, False),
    ],
)
def test_what_is_an_empty_selection(given: dict[str, Any], is_empty: bool) -> None:
    """Nothing given means everything; an empty list of ids means nothing, and must never mean everything."""
    assert Selection(**given).is_empty is is_empty


@pytest.mark.parametrize(
    ("selection", "letters", "everything", "problem"),
    [
        (Selection(), None, False, "nothing is selected"),
        (Selection(message="x"), None, True, "everything=True contradicts a selection"),
        (Selection(), [], True, "everything=True contradicts a selection"),
        (Selection(), None, True, None),
        (Selection(), [], False, None),
        (Selection(ids=[]), None, False, None),
    ],
)
def test_what_is_refused(
    selection: Selection, letters: list[Any] | None, everything: bool, problem: str | None
) -> None:
    """Everything has to be said in so many words, and alone."""
    if problem is None:
        refuse_unclear("discard", selection, letters=letters, everything=everything)
        return
    with pytest.raises(SettingsError, match=problem):
        refuse_unclear("discard", selection, letters=letters, everything=everything)


@pytest.mark.parametrize(
    ("limit", "per_second", "fine"),
    [
        (None, None, True),
        (1, 0.5, True),
        (0, None, False),
        (None, 0, False),
        (None, -1, False),
        (None, float("nan"), False),
        (None, float("inf"), False),
    ],
)
def test_limits_and_rates(limit: int | None, per_second: float | None, fine: bool) -> None:
    """Both are positive numbers, or not given."""
    if fine:
        refuse_numbers("replay", limit=limit, per_second=per_second)
        return
    with pytest.raises(SettingsError):
        refuse_numbers("replay", limit=limit, per_second=per_second)


def test_a_rate_spreads_first_attempts() -> None:
    """The first is due now, each next one a part of a second later; without a rate all are due at once."""
    assert delays(4, 2) == [0, 0.5, 1, 1.5]
    assert delays(2, 0.1) == [0, 10]
    assert delays(2, None) == [None, None]


def test_a_report_counts_and_names_subscriptions() -> None:
    """How many, and whose."""
    letters = tuple(
        ChosenLetter(subscription=name, position=1, id=UUID(int=1), message="m", key=None, failed_at=AWARE)
        for name in "bab"
    )
    report = DeadLetterReport(action="replay", letters=letters)
    assert (report.count, report.subscriptions) == (3, ("a", "b"))


def test_what_is_stored_is_shown_even_if_it_is_no_json() -> None:
    """A payload that nobody can decode is one reason why letters die."""
    assert stored('{"a": [1]}') == {"a": [1]}
    assert stored("{broken") == "{broken"
    assert stored(None) is None
