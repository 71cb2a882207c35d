"""Subscriptions as operators see them, as plain values, and what may be done with one. Pure: no session, no clock.

`subscriptions` reads and changes the rows; status, doctor and the command line print these values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from message_bus.errors import SettingsError, names_of
from message_bus.storage.logs import OUTBOX_LOG

SubscriptionAction = Literal["start", "pause", "resume", "reset", "rename", "drop", "repartition"]
Place = Literal["beginning", "now"] | int | datetime
"""Where a subscription is to go on: from the first message kept, behind the last one, after a position, at a time."""

MOST_HELD: Final = 10_000
"""How far partitions may stand apart, in messages, to be brought to one position by holding them."""
_LONGEST_NAME: Final = 200
_MOST_PARTITIONS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class PartitionStatus:
    """One partition of one subscription.

    `log`: "outbox" or "events". `position`: every message of that log up to here is dealt with. `lag`: messages behind it, of
    whatever type; None while it is "idle". `owner`: the token of the worker that has the lease until
    `lease_until`; None: nobody. `retrying`, `held`, `dead`: messages that have failed, or wait for one that has. `seen_at`:
    when a worker last showed a sign of life.
    """

    subscription: str
    partition: int
    partitions: int
    log: str = OUTBOX_LOG
    state: str
    position: int
    lag: int | None
    owner: str | None
    lease_until: datetime | None
    retrying: int
    held: int
    dead: int
    seen_at: datetime


@dataclass(frozen=True, kw_only=True)
class SubscriptionChange:
    """What was done with a subscription; with `dry_run`, what would have been done.

    `before`: the position of each partition before. `position`: of all of them now; None: they stay where they are.
    `removed`: rows of the delivery table that go, by state: retries, dead letters. `held`: messages that are put there
    (repartition); if it starts while somebody writes, positions at which their messages may appear: it stays idle until
    they have ended, and the next run lets it begin. `partitions`, `name`: what it has, and is called, afterwards. `changed`
    is False if all was so before.
    """

    action: SubscriptionAction
    subscription: str
    name: str
    before: tuple[int, ...]
    position: int | None = None
    partitions: int
    removed: Mapping[str, int] = field(default_factory=dict)
    held: int = 0
    changed: bool = True
    dry_run: bool = False


def refuse_place(to: Any) -> None:
    """Raise SettingsError if this is no place in a log."""
    problem = None
    if isinstance(to, datetime):
        if to.tzinfo is None:
            problem = "the time is a naive datetime (give it a timezone)"
    elif isinstance(to, int) and not isinstance(to, bool):
        if to < 0:
            problem = "a position is 0 or more"
    elif to not in ("beginning", "now"):
        problem = f"{to!r} is no place in a log (give 'beginning', 'now', a position or an aware datetime)"
    if problem is not None:
        raise SettingsError("subscriptions", [problem])


def refuse_name(name: str) -> None:
    """Raise SettingsError if no subscription can be called this."""
    if not 0 < len(name) <= _LONGEST_NAME:
        raise SettingsError("subscriptions", [f"a name has 1 to {_LONGEST_NAME} characters"])


def refuse_count(partitions: int) -> None:
    """Raise SettingsError if this is no number of partitions."""
    if (
        not isinstance(partitions, int)
        or isinstance(partitions, bool)
        or not 1 <= partitions <= _MOST_PARTITIONS
    ):
        raise SettingsError(
            "repartition", [f"partitions must be a whole number from 1 to {_MOST_PARTITIONS:,}"]
        )


def unknown(name: str, known: Collection[str]) -> SettingsError:
    """The error of a name that no subscription has."""
    there = (
        f"there are: {names_of(sorted(known))}" if known else "there are none yet: the first run makes them"
    )
    return SettingsError("subscriptions", [f"no subscription is called {name!r} ({there})"])


def refuse_leased(action: str, rows: Sequence[Any], *, force: bool) -> None:
    """Raise SettingsError if a worker has a lease now: what it has in hand would be repeated elsewhere at the same time."""
    leased = [row for row in rows if row.leased]
    if not leased or force:
        return
    until = max(row.lease_until for row in leased)
    name = leased[0].name
    raise SettingsError(
        action,
        [
            (
                f"a worker has the lease of subscription {name!r} until {until:%Y-%m-%d %H:%M:%S}Z or longer "
                "(stop its workers, or pause it and wait for them to end; force: that worker can commit nothing any more, and "
                "nobody takes its place before the lease ends)"
            )
        ],
    )


def refuse_apart(name: str, positions: Sequence[int], behind: int, *, hold: bool, most: int) -> None:
    """Raise SettingsError if partitions stand at several positions and are not to be, or cannot be, brought to one."""
    where = f"its partitions stand apart, from {min(positions)} to {max(positions)}, with {behind:,} messages between"
    if not hold:
        raise SettingsError(
            f"repartition of {name!r}",
            [
                (
                    f"{where} (let its workers run until nothing is left, and try again; or hold=True: these messages are "
                    "recorded as held, and come first, in order)"
                )
            ],
        )
    if behind > most:
        raise SettingsError(
            f"repartition of {name!r}",
            [f"{where}, more than {most:,} (let its workers catch up first, or raise most=)"],
        )


def refuse_beyond(to: int, *, known: int, open_writers: bool) -> None:
    """Raise SettingsError beyond what is known: messages that are still being committed would be passed over unseen (S4).

    `known`: the last position of which it is known that nothing will appear at or before it any more.
    """
    if to > known:
        why = (
            "a transaction that has written messages is still open: `message-bus doctor` names it; try again when it has "
            "ended"
            if open_writers
            else "give a smaller one, or 'now'"
        )
        raise SettingsError("subscriptions", [f"position {to} is beyond the settled one, {known} ({why})"])
