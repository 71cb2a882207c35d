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
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import CursorResult
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from message_bus._compat import on_sync_session
from message_bus.delivery.care import Care
from message_bus.delivery.jobs import Position, TakenBack
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.suspicion import Suspicion
from message_bus.delivery.watch import Watch
from message_bus.errors import LeaseLost
from message_bus.storage import statements
from message_bus.storage.driver import Rendered
from message_bus.storage.tables import ACTIVE, MessageBusTables

logger = logging.getLogger("message_bus.delivery")

USED: Final = 0.9  # of the lease: clocks run at different speeds, and a handler takes a moment to begin


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
        guarded: bool = False,
    ) -> None:
        self.settings = settings
        self.partition = partition
        self.at = at
        self.epoch = epoch
        self.claimed_at = claimed_at
        self.taken_over = taken_over
        self.withdrawn = False
        """An operator has paused the subscription: what is in hand is finished, nothing else is begun."""
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
        self._doubted = False
        self._asked_at = self.asked_at = asked_at
        self.guarded = guarded
        """Whether the server is to end a transaction that holds the partition's row and is silent for a lease (S7)."""
        self._lock = statements.lock_mine(tables, guarded=guarded)
        self._look = statements.look_mine(tables)
        self._advance = Rendered(statements.advance(tables, guarded=guarded))
        self._renew = statements.renew(tables, guarded=guarded)
        self._release = statements.release(tables)
        self._hand_on = statements.hand_on(tables)
        self._lease = lease
        self._me = {"subscription": settings.name, "part": partition, "my_epoch": epoch, "me": owner}
        self._guard = {"idle": _milliseconds(lease)} if guarded else {}

    @property
    def owner(self) -> str:
        """The token of this acquisition (S2)."""
        return str(self._me["me"])

    def inherit(self, before: Lease) -> None:
        """Go on as the lease before this one would have: it was this worker's own, and nobody else had it between.

        Nobody has died, so nobody looks for what has killed whom; an attempt that is recorded is taken back (S6).
        """
        self.taken_over = before.taken_over
        self.care, self.suspicion = before.care, before.suspicion
        self.settled_in, self.unfinished = before.settled_in, before.unfinished

    @property
    def over(self) -> bool:
        """Whether somebody else may have it by now: no handler is started before it is renewed (S7)."""
        return self._doubted or self.clock() >= self._over_at

    @property
    def hangs(self) -> bool:
        """Whether a handler runs for longer than it may, so that the lease is not renewed (S11)."""
        return self.watch.hangs

    def doubt(self) -> None:
        """After an outage: nothing is begun before it was renewed by whoever is to record it; heartbeats come from elsewhere."""
        self._doubted = True

    def trust(self) -> None:
        """Whoever is to record what handlers do has just written something."""
        self._doubted = False

    def lock(self, session: Session) -> None:
        """Lock the partition's row, before delivery rows are read or changed (S3). Raises LeaseLost.

        If an operator has decided something, what is in hand goes on all the same: it was begun before.
        """
        row = session.execute(self._lock, {**self._me, **self._guard}).one_or_none()
        decided = 0 if row is None else row.revision - self.at.revision
        if row is None or row.position != self.at.position or decided % statements.DECISION:
            raise self.lost()
        if decided:
            self.at = Position(row.position, row.revision)
            self.outdated = True
            self.withdrawn = row.state != ACTIVE

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
        rows, moved = on_sync_session(session, self._advance.run, self.advancing(to))
        return len(rows) == 1 if self.guarded else moved == 1

    def advancing(self, to: int) -> dict[str, Any]:
        """The parameters of a statement that moves the checkpoint to `to`."""
        self._asked_at = self.clock()
        return {
            **self._me,
            **self._guard,
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
        self.trust()
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

    def check(self, session: Session) -> None:
        """Raise LeaseLost if the partition is somebody else's by now, or an operator has taken it away."""
        if session.execute(self._look, self._me).one_or_none() is None:
            raise self.lost()

    def reload(self, session: Session) -> None:
        """Read where the partition stands: what was in hand is not known any more. Ends its transaction. Raises LeaseLost."""
        row = session.execute(self._look, self._me).one_or_none()
        session.commit()
        if row is None:
            raise self.lost()
        self.outdated |= row.revision - self.at.revision not in (0, statements.PROGRESS)
        self.withdrawn = row.state != ACTIVE
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
        renewed = session.execute(
            self._renew, {**self._me, **self._guard, "lease": self._lease.total_seconds()}
        )
        row = renewed.one_or_none()
        session.commit()
        if row is None:
            return False
        self._lasts(asked_at)
        self.withdrawn = row.state != ACTIVE
        return True

    def release(self, session: Session) -> None:
        """Give the lease back; only with no batch in hand (S6). Leaves the transaction open.

        What has killed the owner before us, and was not met yet, is met by the next one as carefully.
        """
        session.execute(self._hand_on if self.care.needed else self._release, self._me)


def _milliseconds(span: timedelta) -> str:
    return str(max(1, round(span.total_seconds() * 1_000)))


def claim(
    session: Session,
    tables: MessageBusTables,
    settings: Subscription,
    partition: int,
    *,
    lease: timedelta,
    before: Lease | None = None,
) -> Lease | None:
    """Take the lease of a partition without waiting; None if somebody else has it. Leaves the transaction open.

    `before`: the last lease that this worker had, if it could not give it back.
    """
    asked_at = Lease.clock()
    connection = session.connection()
    # not in somebody's transaction, which goes on after ours
    guarded = connection.dialect.name == "postgresql" and isinstance(session.bind, Engine)
    found = session.execute(
        statements.claimable(tables, guarded=guarded),
        {
            "name": settings.name,
            "partition": partition,
            "partitions": settings.partitions,
            **({"idle": _milliseconds(lease)} if guarded else {}),
        },
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
    claimed = Lease(
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
        guarded=guarded,
    )
    if before is not None and (row.epoch, row.owner) == (before.epoch, before.owner):
        claimed.inherit(before)
    return claimed
