"""Messages registered on a Core connection, without a session.

A sync connection writes at registration: exact with every savepoint, and there is no later moment that the library
could call its own. On an AsyncConnection registration cannot do I/O, so the row waits until that connection next does
something that decides about it: a savepoint begins or is released, or the transaction commits. Called by the
repositories; for sessions see `late_writing.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event

from message_bus.errors import WiringError
from message_bus.observability.observer import around_writing
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.waiting import encoded
from message_bus.storage.record import Record
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.writer import insert

_KEY: Final = "message_bus.waiting_on_connection"  # in Connection.info


def write_now(connection: sa.Connection, tables: MessageBusTables, rows: Sequence[OutboxMessage]) -> None:
    """Write the rows in the connection's transaction; it begins one if none is open, as every statement does."""
    records = [encoded(row) for row in rows]
    with around_writing(rows):
        insert(connection, tables, records)


def hold(connection: sa.Connection, tables: MessageBusTables, row: OutboxMessage) -> None:
    """Register a row on the Connection inside an AsyncConnection; needs no I/O.

    Raises: WiringError if no transaction is open (beginning one is I/O).
    """
    record = encoded(row)
    if not connection.in_transaction():
        raise WiringError(
            "a message was registered on an AsyncConnection without a transaction "
            "(begin one first: `async with connection.begin():`)"
        )
    held = _held_on(connection)
    if held is None:
        held = _Held(connection)
        connection.info[_KEY] = held
    held.entries.append((tables, record, row))


def write_held(connection: sa.Connection) -> None:
    """Write now what waits on the connection."""
    held = _held_on(connection)
    if held is not None:
        held.write(connection)


def held_rows(connection: sa.Connection, tables: MessageBusTables) -> list[OutboxMessage]:
    """What waits on the connection for these tables, in order."""
    held = _held_on(connection)
    if held is None:
        return []
    return [row for known, _, row in held.entries if known.qualified("") == tables.qualified("")]


def count_held(connection: sa.Connection) -> int:
    """How many messages wait on the connection."""
    if connection.closed or connection.invalidated:
        return 0
    held = _held_on(connection)
    return 0 if held is None else len(held.entries)


def _held_on(connection: sa.Connection) -> _Held | None:
    held: _Held | None = connection.info.get(_KEY)
    return held if held is not None and held.connection() is connection else None


class _Held:
    """What waits on one connection. Whatever waits when a savepoint begins is written outside of it; so all that
    waits when it ends was registered inside, and a rollback to it drops exactly that."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = weakref.ref(connection)
        self.entries: list[tuple[MessageBusTables, Record, OutboxMessage]] = []
        for name in ("commit", "prepare_twophase", "savepoint", "release_savepoint"):
            event.listen(connection, name, self.write, named=True)
        for name in ("rollback", "rollback_twophase", "rollback_savepoint"):
            event.listen(connection, name, self.drop, named=True)

    def write(self, conn: sa.Connection, **_: object) -> None:
        while self.entries:
            tables = self.entries[0][0]
            mine = [each for each in self.entries if each[0].qualified("") == tables.qualified("")]
            with around_writing([row for _, _, row in mine]):
                insert(conn, tables, [record for _, record, _ in mine])
            self.entries = [each for each in self.entries if each[0].qualified("") != tables.qualified("")]

    def drop(self, conn: sa.Connection, **_: object) -> None:
        self.entries.clear()
