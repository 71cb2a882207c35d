"""Dead letters as plain values: what one is, which are meant, what was done with them.

Pure: they know no session and no clock. `dead_letters` reads and changes the rows; the command line prints them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

from message_bus.errors import SettingsError

Action = Literal["replay", "discard"]
State = Literal["dead", "retrying", "held", "trying", "all"]

COLOURS: Final = "give sync ones to DeadLetters, async ones to AsyncDeadLetters"


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that a subscription has given up; if it was asked for, one that it still tries (`state`).

    `state`: "dead", "retrying" (again at `next_attempt_at`, or with the next run), "held" (behind an earlier one of its
    key) or "trying" (in hand, or was when its worker died). For these `failed_at` is when that was recorded.
    `position`: of the message in its `log`: "outbox", or "events", where the key is the stream. `attempts`: how often it was
    tried. `failed_at`: when it died; `created_at`: when it was registered, or recorded. `payload` and `meta` are there only
    if they were asked for, as they are stored: a payload may hold secrets.

    `id`, `type` ("COMMAND" or "EVENT"), `message` (the type's name) and `created_at` are None if somebody has deleted the
    message itself: such a letter can only be discarded.
    """

    subscription: str
    position: int
    id: UUID | None
    type: str | None
    message: str | None
    key: str | None
    attempts: int
    error: str | None
    traceback: str | None = field(repr=False)
    failed_at: datetime
    created_at: datetime | None
    payload: Any = field(default=None, repr=False)
    meta: Any = field(default=None, repr=False)
    state: str = "dead"
    next_attempt_at: datetime | None = None
    log: str = "outbox"


@dataclass(frozen=True, kw_only=True)
class ChosenLetter:
    """One dead letter that was replayed or discarded, or would be."""

    subscription: str
    position: int
    id: UUID | None
    message: str | None
    key: str | None
    failed_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeadLetterReport:
    """What `replay` or `discard` did; with `dry_run`, what it would have done.

    `letters`: in position order. `left`: how many of the selected were left alone, because nobody could try them: the
    message or the subscription is gone. (Only `replay` leaves any.)
    """

    action: Action
    letters: tuple[ChosenLetter, ...]
    left: int = 0
    dry_run: bool = False

    @property
    def count(self) -> int:
        """How many letters."""
        return len(self.letters)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The subscriptions that the letters belong to, by name."""
        return tuple(sorted({letter.subscription for letter in self.letters}))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which dead letters are meant: those that fit everything that is given.

    `ids`: message ids. `message`: a type's name. `error`: text that the error contains, in whatever case. `since`,
    `until`: died at or after the one, before the other.

    Raises: SettingsError listing every problem at once.
    """

    subscription: str | None = None
    ids: Collection[UUID | str] | None = None
    message: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ids, str | UUID):
            object.__setattr__(self, "ids", (self.ids,))
        problems = list(self._problems())
        if problems:
            raise SettingsError("dead letters", problems)
        if self.ids is not None:
            ids = tuple(each if isinstance(each, UUID) else UUID(each) for each in self.ids)
            object.__setattr__(self, "ids", ids)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given, so that every dead letter is meant. (An empty list of ids means none.)"""
        return self == Selection()

    def _problems(self) -> Iterator[str]:
        for name in ("subscription", "message", "error"):
            if getattr(self, name) == "":
                yield f"{name} is empty (leave it out to select whatever it is)"
        for name in ("since", "until"):
            time: datetime | None = getattr(self, name)
            if time is not None and time.tzinfo is None:
                yield f"{name} is a naive datetime (give it a timezone)"
        for each in self.ids or ():
            if not isinstance(each, UUID) and not _is_uuid(each):
                yield f"{each!r} is no message id (ids are UUIDs)"


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except (ValueError, AttributeError, TypeError):
        return False
    return True


def refuse_unclear(
    action: Action, selection: Selection, *, letters: Iterable[Any] | None, everything: bool
) -> None:
    """Raise SettingsError if a change says neither which letters it means nor that it means all, or says both."""
    selected = letters is not None or not selection.is_empty
    if not selected and not everything:
        raise SettingsError(
            action,
            [
                (
                    "nothing is selected (name letters, ids, a subscription, a message type, a text of the error, "
                    "since or until; or say everything=True)"
                )
            ],
        )
    if selected and everything:
        raise SettingsError(action, ["everything=True contradicts a selection (leave one of them out)"])


def states_of(state: State) -> tuple[str, ...]:
    """The states that are meant. Raises SettingsError for one that there is not."""
    *every, everything = get_args(State)
    if state != everything and state not in every:
        raise SettingsError(
            "dead letters", [f"state {state!r} is unknown (use {', '.join(every)} or {everything})"]
        )
    return tuple(every) if state == everything else (state,)


def refuse_numbers(subject: str, *, limit: int | None, per_second: float | None = None) -> None:
    """Raise SettingsError if a limit or a rate is no positive number."""
    problems: list[str] = []
    if limit is not None and limit < 1:
        problems.append("limit must be at least 1 (None: all)")
    if per_second is not None and not 0 < per_second < float("inf"):
        problems.append("per_second must be a number above 0 (None: all at once)")
    if problems:
        raise SettingsError(subject, problems)


def delays(count: int, per_second: float | None) -> list[float | None]:
    """In how many seconds each of `count` letters is due, so that at most `per_second` come due; None is at once."""
    return [None if per_second is None else number / per_second for number in range(count)]


def stored(text: str | None) -> Any:
    """JSON as it is stored, decoded; what is no JSON as it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
