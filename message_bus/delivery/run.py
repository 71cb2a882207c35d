# Generated from run_async.py by tests/tools/unasync.py: do not edit.
"""The passes of a run: what is due, what is new, and when it is enough.

    settle in ──► due and held rows ──► new rows ──► due and held rows ──► ... nothing left

In each pass the sequence of a key is kept (G3): a message whose key is blocked is recorded as held, and becomes
runnable when those before it are done. When an operator has replayed a dead letter, what is in hand is finished and a new
pass begins: which keys are blocked has to be read again (S3). While everything fails, one message at a time is tried,
a new one if there is one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import Any

from message_bus._compat import stall_watch
from message_bus.delivery.attempts import Attempts
from message_bus.delivery.jobs import (
    Change,
    Crashed,
    Interrupted,
    Job,
    Revived,
    TakenBack,
    Tally,
    Unwanted,
)
from message_bus.delivery.observed import crashes_of
from message_bus.delivery.patience import Patience
from message_bus.delivery.telling import log_crash, log_unwanted
from message_bus.delivery.verdicts import decide_crash
from message_bus.errors import LeaseLost
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import DEAD, RETRYING, TRYING

OUTAGES_IN_A_ROW = 3  # after a serialization failure or a lost connection the next attempt usually succeeds


class Run(Attempts):
    """What both modes share: the passes, the limit, the end. One use, one task."""

    _limit: float = float("inf")
    _now: datetime | None = None

    def run(self, *, limit: int | None, patience: Patience | None) -> Tally:
        """Handle messages until nothing is left, `limit` were tried, a stop is asked, or something is out of reach.

        Raises: LeaseLost; what was in hand is rolled back. Errors of the database that do not pass.
        """
        self._limit = float("inf") if limit is None else limit
        self._turns.begin()
        with stall_watch() as self._stall:
            self._passes(patience)
        self._turns.end()
        self._tally.suspicious = self._lease.suspicion.active
        return self._tally

    def _passes(self, patience: Patience | None) -> None:
        interruptions = 0
        while self._left():
            progress = self._tally.tried
            try:
                moved = self._once()
            except Interrupted as interrupted:
                interruptions = interruptions + 1 if progress == self._tally.tried else 1
                self._recover(interrupted, final=interruptions >= OUTAGES_IN_A_ROW)
                if self._tally.unavailable:
                    break
                continue
            if not moved and (patience is None or not patience.wait(self._reader.looked)):
                break

    def _left(self) -> bool:
        return (
            self._tally.tried < self._limit
            and not self._stop.asked
            and not self._lease.withdrawn
            and not self._lease.suspicion.waits(self._lease.clock())
        )

    def _goes_on(self) -> bool:
        """Whether another message of those that were read may be begun."""
        return self._left() and not self._lease.outdated

    def _once(self) -> bool:
        """One pass over due rows and one over new ones: was there anything?"""
        if self._lease.outdated:
            self._reader.failures = True
            self._reader.expect_due()
            self._lease.outdated = False
        try:
            self._settle_in()
            if self._lease.suspicion.active:  # new ones first: an old one that fails for ever proves nothing
                return self._new() or (self._goes_on() and self._due())
            moved = self._due()
            return not self._goes_on() or self._new() or moved
        except LeaseLost:
            self._session.rollback()
            raise
        except Exception as error:
            self._session.rollback()
            self._take_back_after(error)
            if not isinstance(error, Interrupted) and is_outage(error):
                raise Interrupted(error, database=True) from error
            raise
        except BaseException:
            self._session.rollback()
            raise

    def _take_back_after(self, error: Exception) -> None:
        try:
            self._take_back()
        except LeaseLost:
            self._session.rollback()
            if not isinstance(error, Interrupted):  # the error says more than that somebody else goes on
                raise error from None
            raise
        except Exception as another:
            self._session.rollback()
            if not is_outage(another):
                raise  # else the next pass does it before anything else

    def _settle_in(self) -> None:
        """Once after a claim: count who has killed the last owner (G7), revive what was unknown to it."""
        self._take_back()
        if self._lease.settled_in:
            return
        self._now = self._lease.claimed_at
        if self._changes_for(self._reader.leftovers(self._session)):
            self._session.commit()
            self._lease.lock(self._session)  # in a later statement (S3)
            left = self._reader.leftovers(self._session)
            changes = self._changes_for(left)
            names = {row.position: row.message for row in left}
            self._observed.begin()  # nobody here has worked on them
            with self._observed.recording(lambda: crashes_of(changes, left)):
                self._recorder.commit(self._session, changes, to=self._lease.at.position)
            for change in changes:
                match change:
                    case Crashed():
                        log_crash(self._observed.part, change, names[change.position])
                    case Unwanted():
                        log_unwanted(self._observed.part, change, names[change.position])
                    case _:
                        pass
        else:
            self._session.commit()
        self._lease.settled_in = True

    def _changes_for(self, left: Sequence[Any]) -> list[Change]:
        """What becomes of the rows that the last owner has left."""
        knows = self._handler if hasattr(self._handler, "registry") else getattr(self._handler, "bus", None)
        registry = getattr(knows, "registry", ())
        changes: list[Change] = []
        for row in left:
            if row.state != DEAD and not self._reader.reads(row.message):
                changes.append(Unwanted(row.position, row.state, row.id))
            elif row.state != TRYING:
                if row.message in registry:
                    changes.append(Revived(row.position, row.id))
            elif self._lease.taken_over:
                verdict = decide_crash(
                    crashes=row.crashes + 1, settings=self._settings, chance=random.random()
                )
                changes.append(Crashed(row.position, row.crashes + 1, verdict, row.id))
            else:  # it gave the lease back, so nobody has died
                changes.append(TakenBack(row.position, RETRYING))
        return changes

    def _due(self) -> bool:
        """Try what is due, one by one: was there anything?"""
        if not self._reader.may_be_due:
            return False
        if self._now is None:
            self._now = self._reader.now(self._session)
        care = self._lease.care
        careful = care.due > 0
        due = self._reader.due(self._session, now=self._now, light=careful)
        moved = False
        waiting: set[str] = set()
        for job in due:
            self._turns.give_way(self._session, self._tables.subscription)
            if not self._goes_on():
                return True
            if job.position in self._failed_here or job.message.key in waiting:
                waiting |= {job.message.key} if job.message.key is not None else set()
                continue
            moved = True
            if not self._reader.reads(job.message.message):
                unwanted = Unwanted(job.position, str(job.state), job.message.id)
                self._recorder.commit(self._session, [unwanted], to=self._lease.at.position)
                log_unwanted(self._observed.part, unwanted, job.message.message)
            elif careful or job.crashes:
                self._carefully(job, waiting, to=self._lease.at.position)
            else:
                self._together((job,), waiting, to=self._lease.at.position)
        care.handled_due(len(due), all_of_them=len(due) < self._settings.fetch_size)
        return moved

    def _fetch(self, in_hand: int = 0) -> int:
        most = max(self._settings.fetch_size, self._group_size())
        return int(max(0, min(most, self._limit - self._tally.tried - in_hand)))

    def _new(self) -> bool:
        """Read new messages and try them: was there anything?"""
        careful = self._lease.care.new > 0
        limit = self._fetch()
        asked_at = monotonic()
        batch = self._reader.new(self._session, self._lease, limit=limit, light=careful)
        jobs, blocked = batch.jobs, set(batch.blocked)
        self._observed.received(jobs, asked_at)
        if not jobs and batch.up_to > self._lease.at.position:
            self._recorder.commit(self._session, (), to=batch.up_to)
        if careful:
            self._one_at_a_time(jobs, blocked, up_to=batch.up_to)
            if len(jobs) < limit and self._lease.at.position >= batch.up_to:
                self._lease.care.handled_new(0, all_of_them=True)
        else:
            self._in_groups(jobs, blocked, up_to=batch.up_to)
        return bool(jobs)

    def _one_at_a_time(self, jobs: Sequence[Job], blocked: set[str], *, up_to: int) -> None:
        for number, job in enumerate(jobs, 1):
            self._turns.give_way(self._session, self._tables.subscription)
            if not self._goes_on():
                return
            to = up_to if number == len(jobs) else job.position
            if self._waits(job, blocked):
                self._together((job,), blocked, to=to)
            else:
                self._carefully(job, blocked, to=to)
            self._lease.care.handled_new(1, all_of_them=False)

    def _in_groups(self, jobs: Sequence[Job], blocked: set[str], *, up_to: int) -> None:
        index = 0
        while index < len(jobs) and self._goes_on():
            self._turns.give_way(self._session, self._tables.subscription)
            group = self._next_group(jobs, index, blocked)
            whole = index + len(group) == len(jobs)
            ahead = self._fetch(len(group)) if whole else 0
            to = up_to if whole else group[-1].position
            index += self._together(group, blocked, to=to, ahead=ahead)

    def _next_group(self, jobs: Sequence[Job], index: int, blocked: set[str]) -> Sequence[Job]:
        """From `index`: as many as share a commit; messages that are only recorded as held do not count."""
        size = 1 if self._lease.suspicion.active else self._group_size()
        if not blocked:
            return jobs[index : index + size]
        end = index
        handled = 0
        while end < len(jobs) and handled < size:
            handled += jobs[end].message.key not in blocked
            end += 1
        return jobs[index:end]

    def _group_size(self) -> int:
        return self._settings.messages_per_commit

    def _recover(self, interrupted: Interrupted, *, final: bool) -> None:
        """After an outage: read where we stand and go on, or stop if it does not pass. Raises LeaseLost."""
        if interrupted.database:
            self._lease.doubt()  # a server that can only be read would let handlers run, and not record what they did
        if final or not interrupted.database:
            self._tally.outage = interrupted.error
            return
        self._reader.forget()
        self._lease.reload(self._session)
