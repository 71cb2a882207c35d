# Generated from lease_async.py by tests/tools/unasync.py: do not edit.
"""A subscription's partition under a lease: claim, move the checkpoint, renew, release.

    free ──claim──► mine (epoch + 1, fresh owner token) ──release──► free
                      └── lease_until passes: anybody may claim; my next commit finds no row ► LeaseLost (G6)

Every commit of progress is a compare-and-set on epoch, owner, position and revision (S1). An operator who replays a
dead letter adds two to the revision: that takes nothing from the lease, but what was read before is `outdated` (S3).

How long the lease is good it also knows by this process's own clock, counted from before the request that last made it
last (S7). It stays with a worker from run to run, and so does what the worker has to remember: `care`, `suspicion`.
Used by the engine only.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import CursorResult, Row
from sqlalchemy.orm import Session

from message_bus.delivery.care import Care
from message_bus.delivery.jobs import Position, TakenBack
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.suspicion import Suspicion
from message_bus.delivery.watch import Watch
from message_bus.errors import LeaseLost, SettingsError
from message_bus.storage import statements
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.tables import ACTIVE, IDLE, MessageBusTables

logger = logging.getLogger("message_bus.delivery")

USED: Final = 0.9  # of the lease: clocks run at different speeds, and a handler takes a moment to begin


def ensure_subscriptions(
    session: Session,
    tables: MessageBusTables,
    wanted: Sequence[Subscription],
    *,
    settled: int,
    high: int,
) -> set[str]:
    """Make the rows of subscriptions that are missing (S4); the names of those that are idle or paused.

    A new subscription starts at the beginning if its log has no history or no other subscription; else where
    `start` says; else it is idle. Leaves the transaction open: the caller commits.

    Raises: SettingsError if the database has another number of partitions.
    """
    known = _known(session, tables, wanted)
    missing = [settings for settings in wanted if str(settings.name) not in known]
    waking = [
        settings
        for settings in wanted
        if settings.start is not None and any(row.state == IDLE for row in known.get(str(settings.name), ()))
    ]
    if missing or waking:
        log = _lock_log(session, tables)  # in a later statement: what others have made meanwhile
        others = session.execute(statements.log_has_subscriptions(tables), {"log": OUTBOX_LOG})
        free_choice = high == 0 or not others.scalar_one()
        for settings in missing:
            start = _start_position(session, tables, settings, log.pruned_to, settled)
            state = ACTIVE if free_choice or settings.start is not None else IDLE
            _create(session, tables, settings, state=state, start=start, epoch=log.last_epoch)
        for settings in waking:
            start = _start_position(session, tables, settings, log.pruned_to, settled)
            session.execute(statements.start_idle(tables), {"subscription": settings.name, "start": start})
        known = _known(session, tables, wanted)
    for settings in wanted:
        count = known[str(settings.name)][0].partitions
        if count != settings.partitions:
            raise SettingsError(
                f"Subscription {settings.name!r}",
                [f"partitions is {settings.partitions}, but the database has {count} (set it to {count})"],
            )
    return {name for name, rows in known.items() if any(row.state != ACTIVE for row in rows)}


def _known(
    session: Session, tables: MessageBusTables, wanted: Sequence[Subscription]
) -> dict[str, list[Row[Any]]]:
    names = [settings.name for settings in wanted]
    known: dict[str, list[Row[Any]]] = {}
    for row in session.execute(statements.partitions_of(tables), {"names": names}):
        known.setdefault(row.name, []).append(row)
    return known


def _lock_log(session: Session, tables: MessageBusTables) -> Row[Any]:
    dialect = session.connection().dialect.name
    session.execute(statements.insert_or_ignore(dialect, tables.log).values(log=OUTBOX_LOG))
    row: Row[Any] = session.execute(statements.lock_log(tables), {"log": OUTBOX_LOG}).one()
    return row


def _create(
    session: Session,
    tables: MessageBusTables,
    settings: Subscription,
    *,
    state: str,
    start: int,
    epoch: int,
) -> None:
    dialect = session.connection().dialect.name
    session.execute(
        statements.insert_or_ignore(dialect, tables.subscription),
        [
            {
                "name": settings.name,
                "partition": partition,
                "partitions": settings.partitions,
                "log": OUTBOX_LOG,
                "state": state,
                "position": start,
                "epoch": epoch,
            }
            for partition in range(settings.partitions)
        ],
    )


def _start_position(
    session: Session, tables: MessageBusTables, settings: Subscription, pruned_to: int, settled: int
) -> int:
    match settings.start:
        case None | "beginning":
            return pruned_to
        case "now":
            return max(settled, pruned_to)
        case datetime() as time:
            found = session.execute(
                statements.position_before_time(tables), {"time": time, "settled": settled}
            )
            return max(min(int(found.scalar_one()), settled), pruned_to)
        case position:
            return max(int(position), pruned_to)


class Lease:
    """The right to move one partition's checkpoint, until `lease` has passed without a renewal.

    Not task-safe, but for `renew`: heartbeats come from elsewhere.
    """

    @staticmethod
    def clock() -> float:
        """This process's own clock, in seconds; tests put another one in its place."""
        return monotonic()

    def __init__(
        self,
        tables: MessageBusTables,
        settings: Subscription,
        partition: int,
        *,
        epoch: int,
        owner: str,
        at: Position,
        lease: timedelta,
        claimed_at: datetime,
        taken_over: bool,
        asked_at: float,
    ) -> None:
        self.settings = settings
        self.partition = partition
        self.at = at
        self.epoch = epoch
        self.claimed_at = claimed_at
        self.taken_over = taken_over
        self.outdated = False
        """An operator has decided something since the engine has read: it reads anew and sets this back."""
        self.care = Care.after(taken_over, settings.fetch_size)
        self.suspicion = Suspicion()
        self.watch = Watch(settings.handler_timeout, self.clock)
        self.settled_in = False
        """Whether what the last owner has left was looked at."""
        self.unfinished: TakenBack | None = None
        """How to take back the attempt that is recorded, as long as nobody knows what became of it (S6)."""
        self._over_at = asked_at + lease.total_seconds() * USED
        self._asked_at = asked_at
        self._lock = statements.lock_mine(tables)
        self._look = statements.look_mine(tables)
        self._advance = statements.advance(tables)
        self._renew = statements.renew(tables)
        self._release = statements.release(tables)
        self._lease = lease
        self._me = {"subscription": settings.name, "part": partition, "my_epoch": epoch, "me": owner}

    @property
    def over(self) -> bool:
        """Whether somebody else may have it by now: no handler is started before it is renewed (S7)."""
        return self.clock() >= self._over_at

    @property
    def hangs(self) -> bool:
        """Whether a handler runs for longer than it may, so that the lease is not renewed (S11)."""
        return self.watch.hangs

    def lock(self, session: Session) -> None:
        """Lock the partition's row, before delivery rows are read or changed (S3). Raises LeaseLost.

        If an operator has decided something, what is in hand goes on all the same: it was begun before.
        """
        row = session.execute(self._lock, self._me).one_or_none()
        decided = 0 if row is None else row.revision - self.at.revision
        if row is None or row.position != self.at.position or decided % statements.DECISION:
            raise self.lost()
        if decided:
            self.at = Position(row.position, row.revision)
            self.outdated = True

    def advance(self, session: Session, to: int) -> Position:
        """Move the checkpoint to `to`: the last statement before COMMIT. Raises LeaseLost.

        `self.at` moves to there only in `committed`, when the commit is known to have happened.
        """
        if not self._moved(session, to):
            self.lock(session)  # goes on only if it was an operator
            if not self._moved(session, to):
                raise self.lost()
        return self.next(to)

    def _moved(self, session: Session, to: int) -> bool:
        moved: CursorResult[Any] = session.execute(self._advance, self.advancing(to))  # type: ignore[assignment]
        return moved.rowcount == 1

    def advancing(self, to: int) -> dict[str, Any]:
        """The parameters of a statement that moves the checkpoint to `to`."""
        self._asked_at = self.clock()
        return {
            **self._me,
            "from": self.at.position,
            "at_revision": self.at.revision,
            "to": to,
            "lease": self._lease.total_seconds(),
        }

    def next(self, to: int) -> Position:
        """Where the partition stands once the checkpoint has moved to `to`."""
        return Position(to, self.at.revision + statements.PROGRESS)

    def lost(self) -> LeaseLost:
        """The error to raise when a statement of the owner has met no row."""
        return LeaseLost(str(self.settings.name), self.partition)

    def committed(self, at: Position) -> None:
        """The commit that `advance` prepared has happened."""
        self.at = at
        self._lasts(self._asked_at)

    def _lasts(self, asked_at: float) -> None:
        self._over_at = max(self._over_at, asked_at + self._lease.total_seconds() * USED)

    def happened(self, session: Session, expected: Position) -> bool:
        """After a commit whose answer was lost: did it happen (S1)? Raises LeaseLost."""
        row = session.execute(self._look, self._me).one_or_none()
        if row is None:
            raise self.lost()
        decided = int(row.revision) - expected.revision  # by operators who have come since: an even number
        return bool(row.position == expected.position and decided % statements.DECISION == 0)

    def reload(self, session: Session) -> None:
        """Read where the partition stands: what was in hand is not known any more. Ends its transaction. Raises LeaseLost."""
        row = session.execute(self._look, self._me).one_or_none()
        session.commit()
        if row is None:
            raise self.lost()
        self.outdated |= row.revision - self.at.revision not in (0, statements.PROGRESS)
        self.at = Position(row.position, row.revision)

    def renew(self, session: Session) -> bool:
        """Make the lease last from now, and commit; False if it is lost.

        While a handler hangs nothing is renewed: the lease ends, and somebody else takes the partition (S11).
        """
        for what in self.watch.news():
            logger.error(
                "%s runs for longer than its handler_timeout: subscription %r partition %d is left to another worker",
                what,
                self.settings.name,
                self.partition,
                extra={"subscription": self.settings.name, "partition": self.partition},
            )
        if self.watch.hangs:
            return True
        asked_at = self.clock()
        renewed: CursorResult[Any] = session.execute(  # type: ignore[assignment]
            self._renew, {**self._me, "lease": self._lease.total_seconds()}
        )
        mine = renewed.rowcount == 1
        session.commit()
        if mine:
            self._lasts(asked_at)
        return mine

    def release(self, session: Session) -> None:
        """Give the lease back; only with no batch in hand (S6). Leaves the transaction open."""
        session.execute(self._release, self._me)


def claim(
    session: Session,
    tables: MessageBusTables,
    settings: Subscription,
    partition: int,
    *,
    lease: timedelta,
) -> Lease | None:
    """Take the lease of a partition without waiting; None if somebody else has it. Leaves the transaction open."""
    asked_at = Lease.clock()
    found = session.execute(
        statements.claimable(tables),
        {"name": settings.name, "partition": partition, "partitions": settings.partitions},
    )
    row = found.one_or_none()
    if row is None:
        return None
    owner = secrets.token_hex(16)
    taken: CursorResult[Any] = session.execute(  # type: ignore[assignment]
        statements.acquire(tables),
        {
            "subscription": settings.name,
            "part": partition,
            "old_epoch": row.epoch,
            "me": owner,
            "lease": lease.total_seconds(),
        },
    )
    if taken.rowcount != 1:
        return None
    return Lease(
        tables,
        settings,
        partition,
        epoch=row.epoch + 1,
        owner=owner,
        at=Position(row.position, row.revision),
        lease=lease,
        claimed_at=row.now,
        taken_over=row.owner is not None,
        asked_at=asked_at,
    )
