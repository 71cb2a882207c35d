"""Concurrent mode: handlers run without a transaction, several keys at once; then one commit records the batch.

    started ──► done, failed ──► recorded in position order, with what was emitted
       └── an outage, a stop, the end of the lease: nothing else is started, what is in hand is awaited and recorded

A message before the last one that is done, but not done itself, is recorded as to be tried at once, at attempt one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import NullPool, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine

from message_bus._compat import on_sync_session_async, plain_session_async, session_factory_async
from message_bus.delivery.collecting import CollectingOutbox
from message_bus.delivery.crew import AsyncCrew
from message_bus.delivery.jobs import (
    Change,
    Failed,
    Held,
    Interrupted,
    Job,
    Postponed,
    Sent,
    Tally,
    change_of,
    end_of,
)
from message_bus.delivery.lanes import Lanes
from message_bus.delivery.ownership import write_everything
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.delivery.run_async import AsyncRun
from message_bus.delivery.telling import log_verdicts
from message_bus.repositories.late_writing import buffer


@dataclass(frozen=True, slots=True)
class AsyncAttempt:
    """What came of one call of the handler."""

    job: Job
    handled: bool
    emitted: CollectingOutbox
    error: Exception | None = None


class AsyncConcurrentRun(AsyncRun):
    """Handlers run without a transaction; then one commit records what became of the batch. At least once."""

    _crew: AsyncCrew | None = None
    _sessions: Any = None

    async def run(self, *, limit: int | None, patience: AsyncPatience | None) -> Tally:
        """Run as `AsyncRun.run` says, with up to `concurrency` keys in hand."""
        self._sessions = session_factory_async(self._session)
        size = self._settings.concurrency
        bind = self._session.bind
        # handlers that share one connection (a test's transaction, SQLite in memory) cannot go side by side
        if size == 1 or not isinstance(bind, AsyncEngine) or not isinstance(bind.pool, QueuePool | NullPool):
            return await super().run(limit=limit, patience=patience)
        async with AsyncCrew(size, self._lease) as self._crew:
            return await super().run(limit=limit, patience=patience)

    def _group_size(self) -> int:
        return self._settings.fetch_size

    async def _group(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        outcomes: dict[int, Change | Sent] = {}
        self._observed.begin()
        interrupted = await self._all(jobs, blocked, outcomes)
        done = max((number for number, job in enumerate(jobs, 1) if job.position in outcomes), default=0)
        if done:
            results = [
                await self._emit(outcomes.get(job.position, Postponed(job)), blocked) for job in jobs[:done]
            ]
            changes = [change for each in results if (change := change_of(each)) is not None]
            with self._observed.recording(lambda: results):
                await self._recorder.commit(
                    self._session,
                    changes,
                    to=end_of(jobs, done, to),
                    ahead=ahead if done == len(jobs) else 0,
                )
            log_verdicts(self._observed.part, self._settings, results)
            for each in results:
                if isinstance(each, Sent):
                    self._count(each.handled)
                self._tally.tried += isinstance(each, Sent | Failed)
        if interrupted is not None:
            raise interrupted
        return done

    async def _all(
        self, jobs: Sequence[Job], blocked: set[str], outcomes: dict[int, Change | Sent]
    ) -> Interrupted | None:
        """Handle these jobs, as many at once as there may be; the outage that has ended it, if one has."""
        crew = self._crew
        lanes = Lanes(jobs, self._settings.concurrency if crew is not None else 1)
        interrupted: Interrupted | None = None
        begun = 0
        while True:
            attempts: list[AsyncAttempt] = []
            while interrupted is None and (begun == 0 or self._may_begin()) and (job := lanes.start()):
                if self._waits(job, blocked):
                    outcomes[job.position] = Held(job)
                    lanes.done(job)
                    continue
                begun += 1
                if crew is not None:
                    crew.start(self._outside, job)
                    continue
                attempts.append(await self._outside(job))
                break
            if crew is not None and lanes.in_hand:
                attempts = await crew.finished()
            if not attempts:
                return interrupted
            for attempt in attempts:
                lanes.done(attempt.job)
                try:
                    outcomes[attempt.job.position] = self._outcome(attempt, blocked)
                except Interrupted as outage:
                    interrupted = outage

    def _may_begin(self) -> bool:
        return not (self._must_end() or self._lease.suspicion.active)

    async def _outside(self, job: Job) -> AsyncAttempt:
        """Handle one message."""
        emitted = CollectingOutbox()
        try:
            handled = await self._try(job, {**self._context, "sessions": self._sessions, "outbox": emitted})
        except Exception as error:
            return AsyncAttempt(job, False, emitted, error)
        return AsyncAttempt(job, handled, emitted)

    def _outcome(self, attempt: AsyncAttempt, blocked: set[str]) -> Failed | Sent:
        """What a handler that fails has emitted is dropped. Raises Interrupted."""
        if attempt.error is not None:
            return self._failed(attempt.job, attempt.error, blocked)
        self._lease.suspicion.succeeded()
        return Sent(attempt.job, attempt.handled, attempt.emitted.rows)

    async def _emit(self, outcome: Change | Sent, blocked: set[str]) -> Change | Sent:
        """Write what a handler emitted; rows that the database refuses fail their message only. Raises Interrupted."""
        if not isinstance(outcome, Sent) or not outcome.rows:
            return outcome
        try:
            async with self._session.begin_nested():
                for row in outcome.rows:
                    buffer(plain_session_async(self._session), self._tables, row)
                await on_sync_session_async(self._session, write_everything)
        except Exception as error:
            return self._failed(outcome.job, error, blocked)
        return outcome

    def _failed(self, job: Job, error: Exception, blocked: set[str]) -> Failed:
        failed = self._judge(job, error)
        self._block(failed, blocked)
        return failed
