# Generated from sqlalchemy_async.py by tests/tools/unasync.py: do not edit.
"""The outbox repository over SQLAlchemy: on a session messages wait for the commit, on a connection they are written.

The caller owns the transaction (G10): nothing here commits or rolls back except `save()` and `rollback()`. A message
exists if and only if the transaction it was registered in commits (G1). Several repositories on one session share
one buffer and one order. Not safe to share between threads or tasks: neither is a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus.errors import WiringError
from message_bus.repositories import targets
from message_bus.repositories.outbox import OutBoxRepoABC
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import outbox_rows
from message_bus.storage.tables import MessageBusTables


class SQLAlchemyOutBoxRepo(OutBoxRepoABC):
    """The outbox in message_bus's own tables, on the caller's session or connection.

    `tables`: which set of tables; the default is the one that `message-bus db upgrade` makes.

    Raises: WiringError for a session of the other colour, or anything else.
    """

    def __init__(
        self,
        session_or_connection: Session | scoped_session[Any] | Connection,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None:
        super().__init__()
        if not isinstance(session_or_connection, Session | scoped_session | Connection):
            raise WiringError(
                f"{type(self).__name__} works on {Session.__name__} or {Connection.__name__}, not on "
                f"{type(session_or_connection).__name__!r} ({targets.COLOURS})"
            )
        self._given = session_or_connection
        self.tables = tables

    @property
    def session(self) -> Session | Connection:
        """The session or connection; behind a scoped session the one of this moment."""
        return self._given() if isinstance(self._given, scoped_session) else self._given

    def get_model(self) -> type[OutboxMessage]:
        """Return the class of the rows."""
        return OutboxMessage

    def _add(self, outbox_message: OutboxMessage) -> None:
        targets.register(self.session, self.tables, outbox_message)

    def flush(self) -> None:
        """Write what is registered now instead of at the commit.

        Do it last: from here to its end the transaction holds back every reader of the outbox (L7).
        """
        targets.flush(self.session)

    def get(self, id: UUID | str) -> OutboxMessage | None:  # noqa: A002
        """Return the message with this id, with `processed` computed; None if there is none (or no more).

        Finds what this session has registered but not yet written, and delayed messages; these have no position.
        """
        message_id = id if isinstance(id, UUID) else UUID(id)
        for waiting in targets.waiting(self.session, self.tables):
            if waiting.id == message_id:
                return waiting
        for statement in (outbox_rows.outbox_row, outbox_rows.scheduled_row):
            rows = self._read(statement(self.tables, message_id))
            if rows:
                return rows[0]
        return None

    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Return the messages that are not processed yet, in position order: waiting, retrying, held and dead ones.

        A dead letter stays in the list until someone replays or discards it. Messages of other transactions that are
        not committed are not seen, delayed ones not before they are due; what this session has not written comes last.
        """
        rows = self._read(outbox_rows.unprocessed_rows(self.tables, limit))
        waiting = [row for row in targets.waiting(self.session, self.tables) if not row.delay]
        return [*rows, *waiting][:limit]

    def save(self) -> None:
        """Write what is registered and commit the caller's transaction."""
        self.flush()
        self.session.commit()

    def rollback(self) -> None:
        """Roll the caller's transaction back, and drop what was registered in it."""
        self.session.rollback()

    def _read(self, statement: sa.Select[Any]) -> Sequence[OutboxMessage]:
        result = self.session.execute(statement)
        return [OutboxMessage(**row) for row in result.mappings()]
