# Generated from transactional_async.py by tests/tools/unasync.py: do not edit.
"""Transactional mode: handlers run on the session whose commit moves the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

from message_bus._compat import on_sync_session, plain_session
from message_bus.delivery.jobs import Change, Failed, Held, Job, Sent, Settled, end_of
from message_bus.delivery.ownership import forget_loaded, lent, write_everything
from message_bus.delivery.run import Run
from message_bus.delivery.telling import log_verdicts, tells_everything
from message_bus.errors import LeaseLost
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo

logger = logging.getLogger("message_bus.delivery")


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
        failed: Failed | None = None
        self._observed.begin()
        call = self._try
        ends_at = monotonic() + self._settings.commit_within.total_seconds()
        done = 0
        try:
            on_sync_session(self._session, forget_loaded)
            with lent(plain_session(self._session)):
                for job in jobs:
                    if called and (self._must_end() or monotonic() > ends_at):
                        break
                    done += 1
                    if blocked and self._waits(job, blocked):
                        held.append(Held(job))
                    else:
                        called.append(job)
                        handled.append(call(job, resources))
            on_sync_session(self._session, write_everything)
            settled = [
                Settled(job, each) for job, each in zip(called, handled, strict=True) if job.state is not None
            ]
            with self._observed.recording(lambda: [*held, *map(_sent, called, handled)]):
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
            with self._observed.recording(lambda: [*held, failed]):
                self._recorder.commit(self._session, [*held, failed], to=end_of(jobs, done, to))
            self._block(failed, blocked)
            handled = []
        if failed is not None:
            log_verdicts(self._observed.part, self._settings, [*held, failed])
        elif tells_everything():
            log_verdicts(self._observed.part, self._settings, [*held, *map(_sent, called, handled)])
        if handled:
            self._lease.suspicion.succeeded()
            self._tally.delivered += handled.count(True)
            self._tally.passed_over += handled.count(False)
        self._tally.tried += len(called)
        return done

    def _one_by_one(self, jobs: Sequence[Job], blocked: set[str], *, to: int) -> int:
        self._lease.reload(self._session)  # the commit may have happened, and its answer been lost (S1)
        for number, job in enumerate(jobs, 1):
            if self._lease.outdated or (number > 1 and not self._goes_on()):
                return number - 1
            if job.position <= self._lease.at.position:
                continue
            self._ready()
            self._group((job,), blocked, to=to if number == len(jobs) else job.position)
        return len(jobs)


def _sent(job: Job, handled: bool) -> Sent:
    return Sent(job, handled, ())
