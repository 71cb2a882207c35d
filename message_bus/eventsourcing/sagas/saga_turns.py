# Generated from saga_turns_async.py by tests/tools/unasync.py: do not edit.
"""One turn of a saga: what comes next is called, and its effects are committed with how far the saga has come.

    Act, Undo ──returned──► effects and progress, one COMMIT
        └──raised──► all is rolled back; the failure is recorded, unless something was out of reach

Whoever takes a turn has read, and locked, the row on the same session. Called by `saga.py` alone.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from copy import deepcopy
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from message_bus._compat import on_sync_session, plain_session, result_of
from message_bus.delivery.ownership import lent, write_everything
from message_bus.delivery.verdicts import error_text
from message_bus.errors import RetryLater, SagaChanged, Unavailable, WiringError
from message_bus.eventsourcing.sagas import saga_progress
from message_bus.eventsourcing.sagas.saga_progress import (
    Act,
    Announce,
    End,
    Finish,
    Progress,
    Undo,
    Wait,
    what_next,
)
from message_bus.eventsourcing.sagas.saga_rows import Found, Outrun, SagaRows
from message_bus.eventsourcing.sagas.saga_steps import SagaContext, SagaStep
from message_bus.messages.codec import to_json
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.storage import saga_statements
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.eventsourcing")


class SagaTurns:
    """The turns of one saga's definition. Stateless."""

    def __init__(
        self, name: str, steps: Sequence[SagaStep], rows: SagaRows, tables: MessageBusTables
    ) -> None:
        self._name = name
        self._steps = steps
        self._rows = rows
        self._tables = tables

    def take(self, session: Session, found: Found) -> timedelta | None:
        """Do what comes next; how long to wait before the next turn, None if it has ended."""
        progress = found.progress
        if reason := saga_progress.changed(progress, self._steps):
            raise SagaChanged(
                self._name, found.id, f"{reason} (finish it with the old steps, or put new ones behind)"
            )
        following = what_next(progress, self._steps, now=found.now)
        match following:
            case End():
                return None
            case Wait(span=span):
                return span
            case Finish():
                self.record(session, found, saga_progress.settled(progress, self._steps))
            case Announce(step=step):
                self.record(session, found, saga_progress.announced(progress, step))
            case Act() | Undo():
                self._try(session, found, following)
        return timedelta(0)

    def _try(self, session: Session, found: Found, following: Act | Undo) -> None:
        step = following.step
        try:
            result = self._call(session, found, following)
            progress = self._after(found.progress, following, result)
            self._rows.save(session, found, progress)
            self._commit(session)
        except Outrun:
            session.rollback()
        except Exception as error:
            session.rollback()
            if isinstance(error, Unavailable) or is_outage(error):
                raise Unavailable(
                    f"saga {self._name!r}, id {found.id!r}: step {step.name!r} met something out of reach "
                    f"({type(error).__name__}); nothing is lost, run or resume it later"
                ) from error
            self._record_failure(session, found, following, error)

    def _after(self, progress: Progress, following: Act | Undo, result: Any) -> Progress:
        """What has become of it after the step has returned."""
        step = following.step
        if isinstance(following, Undo):
            return saga_progress.undone(progress, self._steps, step)
        try:
            stored = json_ready(self._name, result, f"the result of step {step.name!r}")
        except WiringError as error:
            if step.transactional:
                raise  # it is rolled back, and has not happened
            return saga_progress.spoiled(progress, self._steps, step, text=error_text(error))
        return saga_progress.succeeded(progress, self._steps, step, stored)

    def _call(self, session: Session, found: Found, following: Act | Undo) -> Any:
        step, progress = following.step, found.progress
        undoing = isinstance(following, Undo)
        call = step.compensation if undoing else step.action
        assert call is not None, "only what has one is undone"
        context = SagaContext(
            saga=self._name,
            saga_id=found.id,
            step=step.name,
            arguments=deepcopy(dict(progress.arguments)),
            results=deepcopy(progress.results),
            result=deepcopy(following.done.result) if isinstance(following, Undo) else None,
            session=session if step.transactional else None,
            outbox=SQLAlchemyOutBoxRepo(session, tables=self._tables) if step.transactional else None,
            attempt=progress.failures + 1,
            compensating=undoing,
        )
        if not step.transactional:
            if not saga_statements.locks_rows(session.connection().dialect.name):
                session.rollback()  # else all writers would wait for what is outside
            return result_of(call(context))
        with lent(plain_session(session)):
            result = result_of(call(context))
        on_sync_session(session, write_everything)
        return result

    def _record_failure(
        self, session: Session, found: Found, following: Act | Undo, error: Exception
    ) -> None:
        step = following.step
        undoing = isinstance(following, Undo)
        is_asked_for = isinstance(error, RetryLater)
        logger.log(
            logging.INFO if is_asked_for else logging.WARNING,
            "saga %r, id %r: %s of step %r %s at attempt %d: %s",
            self._name,
            found.id,
            "the compensation" if undoing else "the action",
            step.name,
            "asks for a later attempt" if is_asked_for else "failed",
            found.progress.failures + 1,
            type(error).__name__,
            exc_info=None if is_asked_for else error,
            extra={"saga": self._name, "saga_id": found.id, "step": step.name},
        )
        now = self._rows.now(session)
        judge = saga_progress.undoing_failed if undoing else saga_progress.failed
        progress = judge(
            found.progress, self._steps, step, error, text=error_text(error), now=now, chance=random.random()
        )
        self.record(session, found, progress)

    def record(self, session: Session, found: Found, progress: Progress) -> None:
        """Save and commit; if somebody else was faster, the next turn sees what they have done."""
        try:
            self._rows.save(session, found, progress)
            self._commit(session)
        except Outrun:
            session.rollback()

    def _commit(self, session: Session) -> None:
        session.commit()


def json_ready(name: str, value: Any, what: str) -> Any:
    """The value as JSON gives it back. Raises: WiringError if it cannot be stored."""
    try:
        return msgspec.json.decode(to_json(value))
    except Exception as error:  # noqa: BLE001  (what a value's own functions may raise)
        raise WiringError(
            f"saga {name!r}: {what} cannot be stored as JSON ({type(error).__name__}: give plain values)"
        ) from None
