# Generated from engine_async.py by tests/tools/unasync.py: do not edit.
"""Runs one leased partition of one subscription until nothing is left: the only engine there is.

    due and held rows ──► new rows ──► due and held rows ──► ... nothing left

In each pass the sequence of a key is kept (G3): a message whose key is blocked is recorded as held, and becomes
runnable when those before it are done. When an operator has replayed a dead letter, what is in hand is finished and a new
pass begins: which keys are blocked has to be read again (S3). Two modes differ in how a group of messages is handled:
`TransactionalRun` on the session whose commit moves the checkpoint, `ConcurrentRun` outside of any transaction.
Called by `process`; it never waits for a lease and never decides what a failure means (that is `verdicts`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from message_bus._compat import on_sync_session, plain_session, result_of
from message_bus.bus.context import Context
from message_bus.delivery.changes import Recorder
from message_bus.delivery.collecting import CollectingOutbox
from message_bus.delivery.jobs import (
    Change,
    Failed,
    Held,
    Interrupted,
    Job,
    Sent,
    Settled,
    Tally,
    change_of,
    end_of,
)
from message_bus.delivery.lease import Lease
from message_bus.delivery.ownership import forget_loaded, lent, write_everything
from message_bus.delivery.patience import Patience
from message_bus.delivery.reading import Reader
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.verdicts import Dead, Delivered, Outage, PassedOver, Retry, decide, single_errors
from message_bus.errors import LeaseLost
from message_bus.repositories.late_writing import buffer
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables

if TYPE_CHECKING:
    from message_bus.outbox_handlers.base import OutboxHandlerABC

logger = logging.getLogger("message_bus.delivery")

OUTAGES_IN_A_ROW = 3  # after a serialization failure or a lost connection the next attempt usually succeeds


class Run:
    """What both modes share: the passes, the limit, recording. One use, one task."""

    def __init__(
        self,
        session: Session,
        handler: OutboxHandlerABC,
        *,
        tables: MessageBusTables,
        settings: Subscription,
        lease: Lease,
        reader: Reader,
        context: Mapping[str, Any],
        sessions: Callable[[], Any],
    ) -> None:
        self._session = session
        self._handler = handler
        self._tables = tables
        self._settings = settings
        self._lease = lease
        self._reader = reader
        self._recorder = Recorder(tables, lease, reader)
        self._context = context
        self._sessions = sessions
        self._tally = Tally()
        self._failed_here: set[int] = set()  # once a run is enough, even if the database's clock steps back
        self._limit: float = float("inf")

    def run(self, *, limit: int | None, patience: Patience) -> Tally:
        """Handle messages until nothing is left, `limit` were tried, or something is out of reach.

        Raises: LeaseLost; what was in hand is rolled back. Errors of the database that do not pass.
        """
        self._limit = float("inf") if limit is None else limit
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
            if not moved and not patience.wait(self._reader.looked):
                break
        return self._tally

    def _left(self) -> bool:
        return self._tally.tried < self._limit

    def _once(self) -> bool:
        """One pass over due rows and one over new ones: was there anything?"""
        if self._lease.outdated:
            self._reader.failures = True
            self._lease.outdated = False
        try:
            due: Sequence[Job] = ()
            if self._reader.failures:
                due = self._reader.due(self._session, now=self._lease.claimed_at)
            moved = False
            waiting: set[str] = set()
            for job in due:
                if not self._left() or self._lease.outdated:
                    return True
                if job.position in self._failed_here or job.message.key in waiting:
                    waiting |= {job.message.key} if job.message.key is not None else set()
                    continue
                moved = True
                self._group((job,), waiting, to=self._lease.at.position)
            if not self._left() or self._lease.outdated:
                return True
            batch = self._reader.new(self._session, self._lease, limit=self._fetch())
            self._new(batch.jobs, set(batch.blocked), up_to=batch.up_to)
        except (LeaseLost, Interrupted):
            self._session.rollback()
            raise
        except Exception as error:
            self._session.rollback()
            if is_outage(error):
                raise Interrupted(error, database=True) from error
            raise
        except BaseException:
            self._session.rollback()
            raise
        return moved or bool(batch.jobs)

    def _fetch(self, in_hand: int = 0) -> int:
        return int(max(0, min(self._settings.fetch_size, self._limit - self._tally.tried - in_hand)))

    def _new(self, jobs: Sequence[Job], blocked: set[str], *, up_to: int) -> None:
        if not jobs and up_to > self._lease.at.position:
            self._recorder.commit(self._session, (), to=up_to)
        index = 0
        while index < len(jobs) and not self._lease.outdated:
            group = self._next_group(jobs, index, blocked)
            whole = index + len(group) == len(jobs)
            ahead = self._fetch(len(group)) if whole else 0
            index += self._group(group, blocked, to=up_to if whole else group[-1].position, ahead=ahead)

    def _next_group(self, jobs: Sequence[Job], index: int, blocked: set[str]) -> Sequence[Job]:
        """From `index`: as many as share a commit; messages that are only recorded as held do not count."""
        end = index
        handled = 0
        while end < len(jobs) and handled < self._group_size():
            handled += jobs[end].message.key not in blocked
            end += 1
        return jobs[index:end]

    def _group_size(self) -> int:
        return self._settings.messages_per_commit

    def _group(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        """Handle these jobs and commit up to `to` (or as far as it got); how many of them are done with.

        `ahead`: how many rows may be read for the next batch when the checkpoint moves.
        """
        raise NotImplementedError

    def _call(self, job: Job, resources: Mapping[str, Any]) -> bool:
        """Call the handler; True if it handled the message, False if it passed it over."""
        context = Context(resources)
        context["attempt"] = job.attempts + 1
        handled = result_of(self._handler.handle(job.message, context))
        return not isinstance(handled, PassedOver)

    def _count(self, handled: bool) -> None:
        if handled:
            self._tally.delivered += 1
        else:
            self._tally.passed_over += 1

    def _judge(self, job: Job, error: Exception) -> Failed:
        """The failure with its verdict, logged. Raises Interrupted for an outage."""
        outage = is_outage(error)
        verdict = decide(
            error, attempt=job.attempts + 1, settings=self._settings, chance=random.random(), outage=outage
        )
        match verdict:
            case Outage():
                raise Interrupted(
                    error, database=any(isinstance(each, SQLAlchemyError) for each in single_errors(error))
                ) from error
            case Retry() | Dead():
                self._failed_here.add(job.position)
                self._log(job, verdict, error)
                return Failed(job, error, verdict)
            case Delivered() | PassedOver():  # pragma: no cover  (decide() says these of no error only)
                raise AssertionError(verdict)

    def _waits(self, job: Job, blocked: set[str]) -> bool:
        """Whether it is a new message behind one of its key that is not done."""
        return job.state is None and job.message.key in blocked

    def _block(self, failed: Failed, blocked: set[str]) -> None:
        """Let later messages of its key wait, if they have to."""
        key = failed.job.message.key
        if key is not None and (isinstance(failed.verdict, Retry) or self._settings.on_dead_letter == "hold"):
            blocked.add(key)

    def _log(self, job: Job, verdict: Retry | Dead, error: Exception) -> None:
        extra = {
            "subscription": self._settings.name,
            "message_id": str(job.message.id),
            "message_type": job.message.message,
            "position": job.position,
            "attempt": job.attempts + 1,
        }
        match verdict:
            case Retry(delay=delay):
                logger.warning(
                    "%s failed in subscription %r at attempt %d, again in %.1f s: %s",
                    job.message.message,
                    self._settings.name,
                    job.attempts + 1,
                    delay.total_seconds(),
                    type(error).__name__,
                    extra=extra,
                )
            case Dead(reason=reason):
                logger.error(
                    "%s is a dead letter of subscription %r: %s",
                    job.message.message,
                    self._settings.name,
                    reason,
                    exc_info=error,
                    extra=extra,
                )

    def _recover(self, interrupted: Interrupted, *, final: bool) -> None:
        """After an outage: read where we stand and go on, or stop if it does not pass. Raises LeaseLost."""
        if final or not interrupted.database:
            logger.warning(
                "subscription %r stops for now: out of reach: %s",
                self._settings.name,
                type(interrupted.error).__name__,
                exc_info=interrupted.error,
                extra={"subscription": self._settings.name},
            )
            self._tally.unavailable = True
            return
        self._reader.forget()
        self._lease.reload(self._session)


class TransactionalRun(Run):
    """Handlers run on the session whose commit moves the checkpoint: effects exactly once (G5)."""

    def _group(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        resources = {
            **self._context,
            "db_session": self._session,
            "outbox": SQLAlchemyOutBoxRepo(self._session, tables=self._tables),
        }
        held: list[Change] = []
        called: list[Job] = []
        handled: list[bool] = []
        started = monotonic()
        done = 0
        try:
            on_sync_session(self._session, forget_loaded)
            with lent(plain_session(self._session)):
                for job in jobs:
                    if called and monotonic() - started > self._settings.commit_within.total_seconds():
                        break
                    done += 1
                    if self._waits(job, blocked):
                        held.append(Held(job))
                    else:
                        called.append(job)
                        handled.append(self._call(job, resources))
            on_sync_session(self._session, write_everything)
            settled = [Settled(job) for job in called if job.state is not None]
            self._recorder.commit(
                self._session,
                [*held, *settled],
                to=end_of(jobs, done, to),
                ahead=ahead if done == len(jobs) else 0,
            )
        except LeaseLost:
            raise
        except Exception as error:
            self._session.rollback()
            if len(called) > 1:  # nothing is committed: message by message, so that only the culprit pays
                logger.info(
                    "a batch of subscription %r is repeated message by message: %s",
                    self._settings.name,
                    type(error).__name__,
                    extra={"subscription": self._settings.name},
                )
                return self._one_by_one(jobs, blocked, to=to)
            if not called:
                raise
            failed = self._judge(called[0], error)
            self._recorder.commit(self._session, [*held, failed], to=end_of(jobs, done, to))
            self._block(failed, blocked)
            handled = []
        for each in handled:
            self._count(each)
        self._tally.tried += len(called)
        return done

    def _one_by_one(self, jobs: Sequence[Job], blocked: set[str], *, to: int) -> int:
        self._lease.reload(self._session)  # the commit may have happened, and its answer been lost (S1)
        for number, job in enumerate(jobs, 1):
            if self._lease.outdated:
                return number - 1
            if job.position <= self._lease.at.position:
                continue
            self._group((job,), blocked, to=to if number == len(jobs) else job.position)
        return len(jobs)


class ConcurrentRun(Run):
    """Handlers run without a transaction; then one commit records what became of the batch. At least once."""

    def _group_size(self) -> int:
        return self._settings.fetch_size

    def _group(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        outcomes: list[Change | Sent] = []
        interrupted: Interrupted | None = None
        for job in jobs:
            try:
                outcomes.append(Held(job) if self._waits(job, blocked) else self._outside(job, blocked))
            except Interrupted as outage:
                interrupted = outage
                break
        done = len(outcomes)
        if done:
            outcomes = [self._emit(each, blocked) for each in outcomes]
            changes = [change for each in outcomes if (change := change_of(each)) is not None]
            self._recorder.commit(
                self._session,
                changes,
                to=end_of(jobs, done, to),
                ahead=ahead if done == len(jobs) else 0,
            )
        for each in outcomes:
            if isinstance(each, Sent):
                self._count(each.handled)
            self._tally.tried += not isinstance(each, Held)
        if interrupted is not None:
            raise interrupted
        return done

    def _outside(self, job: Job, blocked: set[str]) -> Failed | Sent:
        """Handle one message; what a handler that fails has emitted is dropped. Raises Interrupted."""
        emitted = CollectingOutbox()
        try:
            handled = self._call(job, {**self._context, "sessions": self._sessions, "outbox": emitted})
        except Exception as error:
            return self._failed(job, error, blocked)
        return Sent(job, handled, emitted.rows)

    def _emit(self, outcome: Change | Sent, blocked: set[str]) -> Change | Sent:
        """Write what a handler emitted; rows that the database refuses fail their message only. Raises Interrupted."""
        if not isinstance(outcome, Sent) or not outcome.rows:
            return outcome
        try:
            with self._session.begin_nested():
                for row in outcome.rows:
                    buffer(plain_session(self._session), self._tables, row)
                on_sync_session(self._session, write_everything)
        except Exception as error:
            return self._failed(outcome.job, error, blocked)
        return outcome

    def _failed(self, job: Job, error: Exception, blocked: set[str]) -> Failed:
        failed = self._judge(job, error)
        self._block(failed, blocked)
        return failed
