"""Records what became of messages, and moves the checkpoint, in one commit.

    lock the checkpoint row (S3) ──► delivery rows ──► history ──► compare-and-set of the checkpoint, last (S1) ──► COMMIT

Whatever the session did before (a handler's effects) is in that commit too (G5). The history is one statement more, and
only where there is something to tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus.delivery.jobs import (
    Change,
    Crashed,
    Failed,
    Held,
    Job,
    Position,
    Postponed,
    Revived,
    Settled,
    TakenBack,
    Trying,
    Unwanted,
)
from message_bus.delivery.lease_async import AsyncLease
from message_bus.delivery.reading_async import AsyncReader
from message_bus.delivery.remembering import Remembered
from message_bus.delivery.verdicts import Dead, Retry, error_text, traceback_text
from message_bus.errors import LeaseLost
from message_bus.storage import history_statements, outcome_statements
from message_bus.storage.dead_letter_statements import replay_letter
from message_bus.storage.tables import DEAD, HELD, RETRYING, TRYING, MessageBusTables

logger = logging.getLogger("message_bus.delivery")


class AsyncRecorder:
    """Writes changes for one leased partition."""

    def __init__(self, tables: MessageBusTables, lease: AsyncLease, reader: AsyncReader) -> None:
        self._lease = lease
        self._reader = reader
        self._name = lease.settings.name
        self._redact = lease.settings.redact
        self._hold = outcome_statements.hold(tables)
        self._forget = outcome_statements.forget(tables)
        self._first_failure = outcome_statements.record_new_failure(tables)
        self._next_failure = outcome_statements.record_failure(tables)
        self._set_state = outcome_statements.set_state(tables)
        self._crash = outcome_statements.record_crash(tables)
        self._replay = replay_letter(tables)
        self._log = tables.source_log
        hold_dead = lease.settings.on_dead_letter == "hold"
        self._remember = {
            held: history_statements.remember(tables, held=held, hold_dead=hold_dead)
            for held in (False, True)
        }

    async def commit(
        self, session: AsyncSession, changes: Sequence[Change], *, to: int, ahead: int = 0
    ) -> None:
        """Write the changes, move the checkpoint to `to`, commit; if the answer is lost, find out what happened.

        `ahead`: how many rows the reader may read in the same round trip, for the next batch.

        Raises: LeaseLost, with nothing committed. Any other error: nothing was committed either, but for an
        outage while asking (then the next `AsyncLease` reads the truth from the database).
        """
        if changes:
            await self._lease.lock(session)
            await self._write(session, changes)
            self._reader.failures |= any(not isinstance(change, Settled) for change in changes)
            self._reader.expect_due()
        expected = await self._reader.advance(session, self._lease, to, ahead=0 if changes else ahead)
        await self._commit(session, expected)
        self._lease.committed(expected)

    async def _commit(self, session: AsyncSession, expected: Position) -> None:
        try:
            await session.commit()
        except Exception as error:
            self._reader.forget()
            await session.rollback()
            if not await self._lease.happened(session, expected):
                raise
            await session.commit()
            logger.warning(
                "the commit for subscription %r succeeded, although it raised %s",
                self._name,
                type(error).__name__,
                extra={"subscription": self._name, "position": expected.position},
            )

    async def _write(self, session: AsyncSession, changes: Sequence[Change]) -> None:
        rows = [row for change in changes if (row := self._untried(change)) is not None]
        if rows:
            await session.execute(self._hold, rows)
        remembered = Remembered(str(self._name), self._log)
        for change in changes:
            error: str | None = None
            match change:
                case Failed(job=job):
                    failure = self._failure(change)
                    error = failure["error"]
                    if job.state is None:
                        await session.execute(self._first_failure, failure)
                    else:
                        await self._one(session, self._next_failure, self._repeated(job, failure))
                case Settled(job=job):
                    await self._one(session, self._forget, self._row(job))
                case Trying(job=job) if job.state is not None:
                    await self._one(session, self._set_state, {**self._row(job), "new_state": TRYING})
                case TakenBack(position=position, state=state):  # if it is not there it was never recorded
                    row = {"of_subscription": self._name, "at_position": position, "was": TRYING}
                    await session.execute(self._set_state, {**row, "new_state": state})
                case Unwanted(position=position, state=state):
                    row = {"of_subscription": self._name, "at_position": position, "was": state}
                    await self._one(session, self._forget, row)
                case Crashed():
                    await self._one(session, self._crash, self._crashed(change))
                case Revived(position=position):
                    letter = {"of_subscription": self._name, "at_position": position, "delay": None}
                    await self._one(session, self._replay, letter)
                case Held() | Postponed() | Trying():
                    pass
            remembered.add(change, error=error)
        if remembered.rows:  # last: behind what a message is held was recorded above
            await session.execute(self._remember[remembered.any_held], remembered.rows)

    def _untried(self, change: Change) -> dict[str, Any] | None:
        """The row of a new message that has not been tried."""
        match change:
            case Held(job=job):
                state = HELD
            case Postponed(job=job):
                state = RETRYING
            case Trying(job=job) if job.state is None:
                state = TRYING
            case _:
                return None
        return {
            "subscription": self._name,
            "position": job.position,
            "key": job.message.key,
            "key_hash": job.message.key_hash,
            "state": state,
        }

    async def _one(self, session: AsyncSession, statement: Any, parameters: dict[str, Any]) -> None:
        result: CursorResult[Any] = await session.execute(statement, parameters)  # type: ignore[assignment]
        if result.rowcount != 1:  # an operator was faster: what the handler did is undone, its row decides
            raise LeaseLost(str(self._name), self._lease.partition)

    def _row(self, job: Job) -> dict[str, Any]:
        return {"of_subscription": self._name, "at_position": job.position, "was": job.state}

    def _failure(self, change: Failed) -> dict[str, Any]:
        verdict, job = change.verdict, change.job
        return {
            "subscription": self._name,
            "position": job.position,
            "key": job.message.key,
            "key_hash": job.message.key_hash,
            "state": RETRYING if isinstance(verdict, Retry) else DEAD,
            "attempts": job.attempts + 1,
            "delay": verdict.delay.total_seconds() if isinstance(verdict, Retry) else None,
            "error": error_text(change.error, redact=self._redact),
            "traceback": traceback_text(change.error, redact=self._redact),
        }

    def _crashed(self, change: Crashed) -> dict[str, Any]:
        verdict = change.verdict
        return {
            "of_subscription": self._name,
            "at_position": change.position,
            "was": TRYING,
            "new_state": DEAD if isinstance(verdict, Dead) else RETRYING,
            "new_crashes": change.crashes,
            "delay": None if isinstance(verdict, Dead) else verdict.delay.total_seconds(),
            "new_error": verdict.reason
            if isinstance(verdict, Dead)
            else "the worker died with this message in hand",
        }

    def _repeated(self, job: Job, failure: dict[str, Any]) -> dict[str, Any]:
        return {
            **self._row(job),
            "new_state": failure["state"],
            "new_attempts": failure["attempts"],
            "delay": failure["delay"],
            "new_error": failure["error"],
            "new_traceback": failure["traceback"],
        }
