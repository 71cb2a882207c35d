# Generated from saga_rows_async.py by tests/tools/unasync.py: do not edit.
"""The row of a saga: read, locked, and written if nobody else has gone on with it since. Called by `saga.py` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from message_bus.errors import Unavailable
from message_bus.eventsourcing.missing_tables import reading
from message_bus.eventsourcing.sagas import saga_progress
from message_bus.eventsourcing.sagas.saga_progress import Progress
from message_bus.storage import saga_statements
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables


class Outrun(Exception):
    """Somebody else has gone on with the saga since it was read."""


@dataclass(frozen=True, slots=True)
class Found:
    """A saga's row as it was read, and when, by the database's clock."""

    id: str
    progress: Progress
    revision: int
    now: datetime


class SagaRows:
    """The rows of one saga's definition. Stateless."""

    def __init__(self, name: str, tables: MessageBusTables) -> None:
        self._name = name
        self._tables = tables

    def begin(self, session: Session, saga_id: str, arguments: Mapping[str, Any]) -> Found:
        """Make the row unless there is one; what is there then."""
        values = {
            "name": self._name,
            "id": saga_id,
            "data": saga_progress.stored(Progress(arguments)),
        }
        dialect = session.connection().dialect.name
        with reading(self._tables.saga):
            session.execute(saga_statements.begin(dialect, self._tables).values(values))
        found = self.read(session, saga_id)
        assert found is not None, "it is there now"
        return found

    def read(self, session: Session, saga_id: str, *, lock: bool = False, skip: bool = False) -> Found | None:
        """The row; locked to the end of the transaction, and None with `skip` if somebody else holds it."""
        statement = (
            saga_statements.lock(self._tables, skip=skip) if lock else saga_statements.read(self._tables)
        )
        with reading(self._tables.saga):
            rows = session.execute(statement, {"saga_name": self._name, "saga_id": saga_id})
        row = rows.one_or_none()
        if row is None:
            return None
        progress = saga_progress.restored(row.data, status=row.state, error=row.error)
        return Found(saga_id, progress, row.revision, row.now)

    def save(self, session: Session, found: Found, progress: Progress) -> None:
        """Write what has become of it. Raises: Outrun."""
        changed: CursorResult[Any] = session.execute(  # type: ignore[assignment]
            saga_statements.save(self._tables),
            {
                "saga_name": self._name,
                "saga_id": found.id,
                "at_revision": found.revision,
                "new_state": progress.status,
                "new_data": saga_progress.stored(progress),
                "new_error": progress.error,
            },
        )
        if changed.rowcount != 1:
            raise Outrun

    def now(self, session: Session) -> datetime:
        """The database's clock."""
        instant: datetime = session.execute(saga_statements.clock()).scalar_one()
        return instant

    def unfinished(self, session: Session, *, after: str, limit: int) -> Sequence[str]:
        """The next ids of sagas that have not ended."""
        parameters = {"saga_name": self._name, "after": after, "limit": limit}
        with reading(self._tables.saga):
            page = session.scalars(saga_statements.unfinished(self._tables), parameters)
        return page.all()


@contextmanager
def outages(name: str, what: str) -> Iterator[None]:
    """Let what says that the database is out of reach say so by its type. Raises: Unavailable."""
    try:
        yield
    except SQLAlchemyError as error:
        if is_outage(error):
            raise Unavailable(
                f"saga {name!r}: the database is out of reach while {what} ({type(error).__name__}); nothing is lost, "
                "run or resume it later"
            ) from error
        raise
