# Generated from saga_async.py by tests/tools/unasync.py: do not edit.
"""`Saga`: steps run one after another, each in a transaction of its own; when one fails, those before it are undone.

    one turn:  lock the row ──► what comes next? ──► call the step ──► its effects and the new progress, one COMMIT

A turn begins with what the database says, never with what this process remembers, so any process can take the next one:
after a crash `resume_unfinished` does. What comes next is decided in `saga_progress.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import pause
from message_bus.errors import SagaChanged, SagaNotFound, SettingsError, Unavailable
from message_bus.eventsourcing.sagas import saga_progress
from message_bus.eventsourcing.sagas.saga_progress import SagaOutcome
from message_bus.eventsourcing.sagas.saga_rows import Found, SagaRows, outages
from message_bus.eventsourcing.sagas.saga_steps import SagaStep, checked
from message_bus.eventsourcing.sagas.saga_turns import SagaTurns, json_ready
from message_bus.observability.observer import Observer, SagaRun, guarded, nothing
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.eventsourcing")

_PAGE: Final = 100


class Saga:
    """A list of steps with what undoes them: `Saga("place order", [SagaStep(reserve, release), SagaStep(charge, refund)])`.

    `saga.run(sessions, saga_id, arguments)` runs it to its end and says how that was. `sessions`: a factory of sessions
    or an engine; the saga opens sessions, and commits each step's effects together with how far it has come: exactly once
    (G5), through crashes. Steps with outside effects (`transactional=False`) happen at least once.

    When an action fails for good, the steps that are done are undone, last first, each with the arguments of the saga and the
    result of the step. A compensation that fails for good is left undone, and the earlier ones still run.

    A saga that was started goes on with a definition whose first steps are those that it has done; else `SagaChanged`.
    `observer`: is told of each run. Immutable; safe to share.

    Raises: SettingsError, listing every problem, if it is not put together well.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[SagaStep],
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self._observer = guarded(observer)
        self.steps = checked(name, steps)
        self._rows = SagaRows(name, tables)
        self._turns = SagaTurns(name, self.steps, self._rows, tables)

    def run(
        self,
        sessions: Callable[[], Session] | Engine,
        saga_id: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> SagaOutcome:
        """Start the saga with this id, or go on with it, to its end; waits between attempts. An ended one is only looked at.

        Two that run the same id share the steps: each is done once, and both return the same outcome.

        Raises: Unavailable if a database, or what a step needs, is out of reach: nothing counts, run or resume it later.
        SagaChanged for other arguments or steps. What a failing step raises is logged, and its text is in the outcome.
        """
        make = _sessions(sessions)
        with outages(self.name, "starting"), make() as session:
            if arguments is not None or self._rows.read(session, saga_id) is None:
                self.start(session, saga_id, arguments)
            session.commit()
        outcome = self._drive(make, saga_id, waits=True)
        assert outcome is not None, "only who does not wait is sent away"
        return outcome

    def start(self, session: Session, saga_id: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Record the saga in the caller's transaction (G1, G10); `resume_unfinished`, or `run`, does the rest.

        Nothing happens if it is there already. Raises: SagaChanged if it was started with other arguments; SettingsError.
        """
        if not isinstance(session, Session | scoped_session):
            given = type(session).__name__
            remedy = f"give an open {Session.__name__}, or call run"
            problem = f"start works in a transaction of yours, not on a {given!r} ({remedy})"
            raise SettingsError(f"saga {self.name!r}", [problem])
        if not isinstance(saga_id, str) or not saga_id:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingsError(f"saga {self.name!r}", ["its id must be a str that is not empty"])
        given = json_ready(self.name, {} if arguments is None else arguments, "its arguments")
        if not isinstance(given, dict):
            raise SettingsError(f"saga {self.name!r}", ["its arguments must be a mapping (or None)"])
        found = self._rows.begin(session, saga_id, given)
        if arguments is not None and found.progress.arguments != given:
            raise SagaChanged(
                self.name, saga_id, "it was started with other arguments (give these, None, or a new id)"
            )

    def outcome(self, sessions: Callable[[], Session] | Engine, saga_id: str) -> SagaOutcome | None:
        """Say how far the saga with this id has come; None if there is none."""
        with _sessions(sessions)() as session:
            found = self._rows.read(session, saga_id)
        return None if found is None else self._outcome(found)

    def resume_unfinished(
        self, sessions: Callable[[], Session] | Engine, *, limit: int | None = None
    ) -> list[SagaOutcome]:
        """Go on with the sagas of this name that have not ended, at most `limit`; call it at start-up and from cron.

        It finds what a dead process has left, and what `start` has recorded. One that another process has in hand is left
        to it; one that waits for its next attempt is returned as it is ("running" or "compensating"). A saga that cannot go on
        is logged, and does not stop the others.

        Raises: Unavailable if the database is out of reach.
        """
        make = _sessions(sessions)
        outcomes: list[SagaOutcome] = []
        after, left = "", limit
        while left is None or left > 0:
            wanted = _PAGE if left is None else min(left, _PAGE)
            with outages(self.name, "looking for unfinished ones"), make() as session:
                ids = self._rows.unfinished(session, after=after, limit=wanted)
            # in any order: one that kills its process each time must not keep the others from their turn
            for saga_id in random.sample(ids, len(ids)):
                outcome = self._resume(make, saga_id)
                if outcome is not None:
                    outcomes.append(outcome)
            if len(ids) < wanted:
                break
            after, left = ids[-1], None if left is None else left - len(ids)
        return outcomes

    def compensate_again(self, sessions: Callable[[], Session] | Engine, saga_id: str) -> SagaOutcome:
        """Try the compensations again that were given up, say after their cause was mended.

        Raises: SagaNotFound if none was started with this id; as `run`.
        """
        make = _sessions(sessions)
        with make() as session:
            found = self._rows.read(session, saga_id, lock=True)
            if found is None:
                raise SagaNotFound(self.name, saga_id)
            if found.progress.left_undone:
                self._turns.record(session, found, saga_progress.once_more(found.progress))
        outcome = self._drive(make, saga_id, waits=True)
        assert outcome is not None, "only who does not wait is sent away"
        return outcome

    # --- turns ---

    def _resume(self, make: Callable[[], Session], saga_id: str) -> SagaOutcome | None:
        try:
            return self._drive(make, saga_id, waits=False)
        except Exception as error:
            if isinstance(error, Unavailable) and isinstance(error.__cause__, SQLAlchemyError):
                raise
            logger.exception(
                "saga %r, id %r cannot go on: %s",
                self.name,
                saga_id,
                type(error).__name__,
                extra={"saga": self.name, "saga_id": saga_id},
            )
            return None

    def _drive(self, make: Callable[[], Session], saga_id: str, *, waits: bool) -> SagaOutcome | None:
        """Turn after turn until it has ended; None if somebody else has it in hand and this one does not wait."""
        run = SagaRun(saga_type=self.name, saga_id=saga_id)
        if self._observer is None:
            return self._take_turns(make, run, waits=waits)
        with self._observer.saga(run) or nothing():
            return self._take_turns(make, run, waits=waits)

    def _take_turns(self, make: Callable[[], Session], run: SagaRun, *, waits: bool) -> SagaOutcome | None:
        saga_id, turns = run.saga_id, 0
        while True:
            with outages(self.name, "going on"), make() as session:
                found = self._rows.read(session, saga_id, lock=True, skip=not waits)
                if found is None:
                    return None
                span = self._turns.take(session, found)
            if span is None and turns:
                run.status = found.progress.status
            if span is None or (span and not waits):
                return self._outcome(found)
            turns += not span
            if span:
                pause(span.total_seconds())

    def _outcome(self, found: Found) -> SagaOutcome:
        progress = found.progress
        return SagaOutcome(
            name=self.name,
            id=found.id,
            status=progress.status,
            results=progress.results,
            failed_step=progress.failed_step,
            error=progress.error,
            left_undone=progress.left_undone,
        )


def _sessions(sessions: Callable[[], Session] | Engine) -> Callable[[], Session]:
    if isinstance(sessions, Engine):
        engine = sessions
        return lambda: Session(engine, expire_on_commit=False)
    if not callable(sessions):
        raise SettingsError(
            "sessions",
            [
                f"{type(sessions).__name__!r} makes no sessions (give a sessionmaker or an engine, of the saga's colour)"
            ],
        )
    return sessions
