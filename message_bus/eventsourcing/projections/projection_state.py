"""What a projection decides from its bookkeeping, as plain functions over plain values. No database, no clock.

    live ──swap──► retired ──drop──► gone          building ──swap──► live

Asked by `Projection` once a transaction, and by the rebuild and the swap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

INLINE: Final = "(inline)"
"""Stands in `projection.subscription` of what the writers fill in their own transactions."""


@dataclass(frozen=True, kw_only=True)
class Lag:
    """How far a projection is behind: `messages` that it reads lie after `position`; the oldest was written `age` ago."""

    position: int
    messages: int
    age: timedelta


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One table, live and rebuilt: their rows, and how many different rows only one of them has.

    `columns`: those that were compared; what the database itself makes (times, numbers) is left out.
    """

    table: str
    live_rows: int
    rebuilt_rows: int
    only_live: int | None
    only_rebuilt: int | None
    columns: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether there is no difference; True for what was only counted."""
        return self.only_live is None or (
            self.live_rows == self.rebuilt_rows and not self.only_live and not self.only_rebuilt
        )


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Live and rebuilt tables at one position of the log. `why_not` says why they were only counted, if so."""

    position: int
    tables: tuple[Comparison, ...]
    why_not: str | None = None

    @property
    def ok(self) -> bool:
        """Whether no difference was found."""
        return all(each.equal for each in self.tables)


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What a rebuild has built: `generation` holds the events up to `position`, but those at `failed`.

    `verification` compares it with the live one.
    """

    name: str
    generation: int
    version: int
    position: int
    failed: tuple[int, ...]
    verification: Verification

    @property
    def ok(self) -> bool:
        """Whether a swap would be taken without `force`."""
        return not self.failed and self.verification.ok


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What a swap has done: `generation` is live, at `position`; `retired` lies in `tables`, until they are dropped."""

    name: str
    generation: int
    version: int
    position: int
    retired: int
    tables: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ProjectionStatus:
    """One generation of one projection: its `state` is "live", "building" or "retired".

    `tables`: short names and the names in the database. `subscription` fills it, and stands at `position` with `lag`
    messages of any type behind it; None for an inline one. `swapped_at`: when it became live.
    """

    name: str
    generation: int
    version: int
    state: str
    subscription: str
    position: int | None
    lag: int | None
    tables: Mapping[str, str]
    created_at: datetime
    swapped_at: datetime | None


def obstacle(*, stored_version: int, stored_filler: str, version: int, filler: str) -> str | None:
    """Why a projection of this version, filled by this, must not write into the live tables; None if it may."""
    if stored_filler != filler:
        if INLINE not in (stored_filler, filler):
            return f"subscription {stored_filler!r} fills its tables (keep that name, or give the projection another)"
        how = "by the writers, inline," if stored_filler == INLINE else f"by subscription {stored_filler!r}"
        return f"its tables are filled {how} already (a projection is either inline or a subscription: give one another name)"
    if stored_version < version:
        return (
            f"it is version {version} here, but its tables are version {stored_version} "
            "(rebuild and swap it: message-bus projections rebuild, then swap)"
        )
    if stored_version > version:
        return (
            f"it is version {version} here, but its tables are version {stored_version} already "
            "(this program is older: deploy the one that has rebuilt them)"
        )
    return None


def next_generation(generations: Collection[int]) -> int:
    """The number of a new generation: none is used twice."""
    return max(generations, default=0) + 1


def new_failures(
    rebuilt: Sequence[tuple[int, str]], live: Sequence[tuple[int, str]], *, dead: str
) -> tuple[int, ...]:
    """The positions at which the rebuild has failed, or waits for one that has, but not where the live one is dead, too."""
    known = {position for position, state in live if state == dead}
    return tuple(position for position, state in rebuilt if not (state == dead and position in known))


def poll_pauses(timeout: float, *, first: float = 0.005, longest: float = 0.1) -> Sequence[float]:
    """The pauses between looks for so many seconds: short ones at first, then longer ones; the last look is at the end."""
    pauses: list[float] = []
    left, pause = max(timeout, 0.0), first
    while left > 0:
        pauses.append(min(pause, left))
        left -= pauses[-1]
        pause = min(pause * 2, longest)
    return pauses
