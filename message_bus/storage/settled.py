"""What of a log is settled: committed or never will be. Pure arithmetic over what looks at the database have seen.

A *look* reads the sequence's last value `high`, and after it the set of writers: the virtual transactions
that hold RowExclusiveLock on the log. Why a settled position is settled:

    1. A writer takes that lock before it draws a position, and holds it until its transaction has ended.
    2. So whoever drew a position at or below `high` is among the writers read after `high`, or has ended already.
    3. A virtual transaction id is not used again while the server lives, and a transaction that gave up the lock
       at its end has become visible, or has been rolled back, before it did. (One that gave it up by ROLLBACK TO
       a savepoint rolled back the positions drawn under it; drawing a new one takes the lock anew, and that
       position is above `high`.)
    4. So when no writer of a look has kept the lock through all later looks, every position up to that look's
       `high` is in each snapshot taken from now on, or will never exist.

Points 1 and 3 hold only for what `preconditions.py` lets pass, and 3 only within one incarnation of the
server (W4): after a crash the sequence may hand out once more what it had handed out to transactions that are gone.

Called by the watermark (`watermark_async.py`), which does the looking, and by the engine, which decides how often.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple

from message_bus.errors import PositionBehind

MOST_ENTRIES: Final = 64
"""More remembered looks than this are thinned out. There is never more than one per open writer."""

PATIENCE: Final = timedelta(seconds=2)
"""How long a one-shot step looks again before it reports what is not settled yet (W6)."""

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found; `settled` never exceeds `high`.

    `settled`: rows with positions up to here, read in a *later* statement, are all there will ever be.
    `high`: the last position drawn by anybody. `age`: since when a position above `settled` has been known to
    this process. `catch_up`: the SQL that brings the sequence to a position, with `{position}` in it.
    """

    settled: int
    high: int
    age: timedelta = timedelta(0)
    catch_up: str = ""

    @property
    def unsettled(self) -> int:
        """How many positions were drawn above `settled`: rows still to come, and gaps left by rollbacks."""
        return self.high - self.settled


class _Entry(NamedTuple):
    high: int
    writers: frozenset[str]  # those of that look that have held the lock in every look since
    since: float


@dataclass(slots=True)
class Remembered:
    """The looks that have not settled yet (W4, W5). Not safe for threads: its owner serialises looks.

    `_entries` is ordered by `high`, and the writers of each are a proper subset of the next one's, because
    each later look started from a later set and both have been intersected with everything since. So the
    settled ones are a prefix, and two entries with equal writers can only settle together: the one with the
    higher `high` says it all.
    """

    settled: int = 0
    """The largest position known to be settled; 0 is, always."""
    _incarnation: str = ""
    _entries: list[_Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._entries)

    def recalls(self, high: int, incarnation: str) -> bool:
        """Is what is remembered of the same log in the same incarnation, as far as `high` can tell?"""
        return incarnation == self._incarnation and high >= (
            self._entries[-1].high if self._entries else self.settled
        )

    def forget(self, incarnation: str = "") -> None:
        """Start again from nothing: always sound, at the price of waiting for every writer that is open now."""
        self.settled = 0
        self._incarnation = incarnation
        self._entries = []

    def observe(
        self,
        high: int,
        writers: frozenset[str],
        incarnation: str,
        *,
        own: frozenset[str] = frozenset(),
        now: float = 0.0,
    ) -> int:
        """Take in a look and return what is settled for whoever took it.

        `writers` were read after `high`, and after the previous look was taken in. `own`: those of them that
        are the looking transaction itself. To it its own rows are settled: they live and die with the
        checkpoint that it writes (W2). To everybody else they are not, so that is returned but not
        remembered.
        """
        if not self.recalls(high, incarnation):
            self.forget(incarnation)
        entries = [_Entry(e.high, e.writers & writers, e.since) for e in self._entries]
        if high > (entries[-1].high if entries else self.settled):
            entries.append(_Entry(high, writers, now))
        while entries and not entries[0].writers:
            self.settled = entries.pop(0).high
        self._entries = _thinned(_merged(entries))
        return max((e.high for e in self._entries if e.writers <= own), default=self.settled)

    def age(self, now: float, *, own: frozenset[str] = frozenset()) -> timedelta:
        """For how long the oldest position that is not settled has been known."""
        return timedelta(
            seconds=next((max(0.0, now - e.since) for e in self._entries if not e.writers <= own), 0.0)
        )


def _merged(entries: list[_Entry]) -> list[_Entry]:
    merged: list[_Entry] = []
    for entry in entries:
        if merged and merged[-1].writers == entry.writers:
            merged[-1] = _Entry(entry.high, entry.writers, merged[-1].since)
        else:
            merged.append(entry)
    return merged


def _thinned(entries: list[_Entry]) -> list[_Entry]:
    """Leave out every other one between the oldest, which settles first, and the newest. Only delays, never
    settles.
    """
    if len(entries) <= MOST_ENTRIES:
        return entries
    return [entries[0], *entries[2:-1:2], entries[-1]]


def pause_before_next_look(
    look: Look, *, goal: int, waited: float, patience: timedelta = PATIENCE
) -> float | None:
    """Seconds to wait before looking again, or None: `goal` is settled, or patience is at its end.

    `goal`: the `high` of the step's first look. (The newest one may run away from a reader for ever.)
    `waited`: seconds since that first look.
    """
    left = patience.total_seconds() - waited
    if look.settled >= goal or left <= 0:
        return None
    return min(max(_FIRST_PAUSE, waited / 2), _LONGEST_PAUSE, left)


def check_checkpoint(look: Look, position: int, *, log: str = "outbox") -> None:
    """Refuse to go on from a checkpoint that is ahead of the log (W8).

    `position` must have been read *before* the look was taken: another worker may have moved the checkpoint
    since.

    Raises: PositionBehind, with the SQL that repairs the sequence.
    """
    if position > look.high:
        repair = look.catch_up.format(position=position) or "advance the sequence"
        raise PositionBehind(
            log,
            look.high,
            position,
            f"stop the writers and run: {repair}; rows written at positions up to {position} since then were passed "
            "over: rewind the subscription to see them",
        )
