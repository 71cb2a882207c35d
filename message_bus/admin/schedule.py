# Generated from schedule_async.py by tests/tools/unasync.py: do not edit.
"""List and cancel delayed messages, in the caller's transaction. `message-bus schedule` only wraps this.

A delayed message is one that was registered with `delay=`. Until it is due it can be taken back by its id; from then on
it is a message like any other, and nobody takes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.delayed import CancelReport, ScheduledMessage, uuids
from message_bus.admin.ground import dialect_of, refuse_autocommit, refuse_hidden
from message_bus.admin.letters import refuse_numbers, stored
from message_bus.errors import WiringError
from message_bus.repositories.targets import DEFAULT_TABLES, flush
from message_bus.storage import schedule_statements as statements
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.statements import insert_or_ignore, lock_log
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.admin")

Messages = list[ScheduledMessage]  # inside the class `list` is the method


class Schedule:
    """The delayed messages of one set of tables, on the caller's session or connection.

    The caller owns the transaction (G10): a cancelled message is cancelled when the caller commits. Not task-safe: neither
    is a session.

    Raises: WiringError for a session of the other colour, or anything else.
    """

    def __init__(
        self,
        session_or_connection: Session | scoped_session[Any] | Connection,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None:
        if not isinstance(session_or_connection, Session | scoped_session | Connection):
            raise WiringError(
                f"{type(self).__name__} works on {Session.__name__} or {Connection.__name__}, not on "
                f"{type(session_or_connection).__name__!r} (give sync ones to Schedule, async ones to Schedule)"
            )
        self._given = session_or_connection
        self.tables = tables

    @property
    def session(self) -> Session | Connection:
        """The session or connection; behind a scoped session the one of this moment."""
        return self._given() if isinstance(self._given, scoped_session) else self._given

    def list(
        self,
        *,
        message: str | None = None,
        key: str | None = None,
        limit: int | None = 100,
        after: ScheduledMessage | None = None,
        payload: bool = False,
    ) -> Messages:
        """Return the first `limit` delayed messages, the next due first; `after`: those behind this one.

        `message`: only of this type (its name). `key`: only of this key. Payload and meta are read only with
        `payload=True`.
        """
        refuse_numbers("list", limit=limit)
        self._refuse_hidden()
        rows = self.session.execute(
            statements.delayed(
                self.tables,
                message=message,
                key=key,
                after=None if after is None else (after.due_at, after.id),
                limit=limit,
                payload=payload,
            )
        )
        return [_message_of(row) for row in rows]

    def count(self) -> int:
        """Count the delayed messages, due ones included until they have entered the outbox."""
        self._refuse_hidden()
        return int(self.session.execute(statements.depth(self.tables)).one().delayed)

    def cancel(
        self, ids: Collection[UUID | str] | UUID | str, *, by: str | None = None, dry_run: bool = False
    ) -> CancelReport:
        """Take delayed messages back: they are never delivered. By their ids, which `register_outbox_message` returned.

        What has entered the outbox meanwhile is not taken back, and is reported as missing; so a message is either
        cancelled or delivered, never both. Messages that wait in this session for its commit are written first, so that
        they can be cancelled, too. Until the commit no delayed message enters the outbox: keep it short. `by`: who
        decides, for the log. Cancelling again changes nothing.

        Raises: SettingsError for an id that is no UUID. UnsupportedDatabase on an AUTOCOMMIT connection.
        """
        wanted = uuids("cancel", ids)
        session: Any = self.session
        self._refuse_hidden()
        if not dry_run:
            on_sync_session(session, refuse_autocommit, self.tables, "delayed messages are cancelled")
            flush(session)
            dialect = on_sync_session(session, dialect_of, self.tables)
            session.execute(insert_or_ignore(dialect, self.tables.log).values(log=OUTBOX_LOG))
            session.execute(lock_log(self.tables), {"log": OUTBOX_LOG})
        # a later statement than the lock: the mover has moved what it had in hand (S9)
        found = session.execute(statements.these(self.tables), {"ids": wanted})
        messages = tuple(_message_of(row) for row in found)
        if messages and not dry_run:
            session.execute(statements.cancel(self.tables), {"ids": [message.id for message in messages]})
            logger.warning(
                "cancel of %d delayed %s, by %s: in force when its transaction commits",
                len(messages),
                "message" if len(messages) == 1 else "messages",
                by or "somebody who gave no name",
                extra={
                    "action": "cancel",
                    "by": by,
                    "count": len(messages),
                    "message_ids": [str(message.id) for message in messages[:100]],
                },
            )
        there = {message.id for message in messages}
        return CancelReport(
            messages=messages,
            missing=tuple(each for each in wanted if each not in there),
            dry_run=dry_run,
        )

    def _refuse_hidden(self) -> None:
        session: Any = self.session
        on_sync_session(session, refuse_hidden, self.tables)


def _message_of(row: Row[Any]) -> ScheduledMessage:
    values = dict(row._mapping)
    asked_for = {name: stored(values.pop(name)) for name in ("payload", "meta") if name in values}
    return ScheduledMessage(**values, **asked_for)
