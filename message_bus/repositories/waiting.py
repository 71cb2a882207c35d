"""What one root transaction of a session has registered: which messages wait, and what savepoints do to them (L3).

    registered ──write()──► written ──commit──► gone with the transaction
        ▲  └─ its savepoint or transaction rolled back: dropped
        └──── written inside a savepoint that is rolled back, but registered before it: waits again

State only, and the INSERT: *when* to write is `late_writing`'s business, which is the only caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from message_bus.errors import InvalidOutboxMessage
from message_bus.observability.observer import around_writing
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.storage.record import Record, encode
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.writer import insert

Bind = sa.Engine | sa.Connection


@lru_cache(maxsize=64)
def clause_for(outbox: sa.Table) -> sa.Insert:
    """What `Session.get_bind` is asked with: an INSERT, so that routing sessions see a write."""
    return sa.insert(outbox)


def encoded(row: OutboxMessage) -> Record:
    """The row as it will be stored. Raises: InvalidOutboxMessage for what is not a row, or does not fit (L6)."""
    if not isinstance(row, OutboxMessage):
        raise InvalidOutboxMessage(
            f"{type(row).__name__!r} is not an OutboxMessage (build rows with repo.get_model(), "
            "or let bus.register_outbox_message() build them)"
        )
    return encode(row)


class Entry:
    """One registered message. `owner`: the transaction that decides about it. `written_in`: where its row stands."""

    __slots__ = ("bind", "owner", "record", "row", "tables", "written_in")

    def __init__(
        self,
        row: OutboxMessage,
        record: Record,
        tables: MessageBusTables,
        bind: Bind,
        owner: SessionTransaction,
    ) -> None:
        self.row = row
        self.record = record
        self.tables = tables
        self.bind = bind
        self.owner = owner
        self.written_in: SessionTransaction | None = None

    def joins(self, other: Entry) -> bool:
        """May both be written by one statement? (Two MessageBusTables can name the same tables.)"""
        return self.bind is other.bind and self.tables.qualified("") == other.tables.qualified("")


class Waiting:
    """The messages of one root transaction, in the order of registration, for all repositories on the session."""

    __slots__ = (
        "announced", "closing", "ended", "entries", "is_writing", "outer", "released", "root", "session", "unwinding",
        "wrote",
    )  # fmt: skip

    def __init__(self, session: Session, root: SessionTransaction) -> None:
        self.session = session
        self.root = root
        self.entries: list[Entry] = []
        self.closing = False  # before_commit of the root has passed
        self.announced: SessionTransaction | None = None  # the innermost savepoint at the last before_commit
        self.unwinding = False  # an outer transaction is being committed over this one's open savepoints
        self.released: SessionTransaction | None = None  # a savepoint that is released, but not yet closed
        self.ended: SessionTransaction | None = None  # committed or rolled back, but not yet closed
        self.is_writing = False
        self.wrote = False  # a row, whether or not a savepoint has taken it back since
        self.outer: list[sa.Connection] = []  # the user's own connections, whose commit we listen to

    def innermost(self) -> SessionTransaction:
        """The savepoint that decides about what is registered now, or the root."""
        nested = self.session.get_nested_transaction()
        if nested is not None and nested is self.released:
            nested = enclosing(nested)
        return nested or self.root

    def unwritten(self) -> Iterator[Entry]:
        """What has no row yet."""
        return (entry for entry in self.entries if entry.written_in is None)

    def write(self, only: sa.Connection | None = None) -> None:
        """Write what waits, one INSERT per bind and set of tables; with `only`, what is bound to that connection.

        A message counts as written only when its INSERT has succeeded (L6).
        """
        if self.is_writing:  # registered by a listener of the very INSERT: the loop below takes it along
            return
        self.is_writing = True
        try:
            while first := next(
                (each for each in self.unwritten() if only is None or each.bind is only), None
            ):
                connection = only or self.session.connection(
                    bind_arguments={"clause": clause_for(first.tables.outbox)}
                )
                chosen = [each for each in self.unwritten() if each.joins(first)]
                with around_writing([each.row for each in chosen]):
                    insert(connection, first.tables, [each.record for each in chosen])
                self.wrote = True
                innermost = self.innermost()
                for each in chosen:
                    each.written_in = innermost
        finally:
            self.is_writing = False
        self._forget_settled()

    def hand_over(self, released: SessionTransaction) -> None:
        """A savepoint was released: what it decided about is its parent's now."""
        self.released = released
        parent = enclosing(released)
        for entry in self.entries:
            if entry.owner is released:
                entry.owner = parent
            if entry.written_in is released:
                entry.written_in = parent
        self._forget_settled()

    def undo(self, ended: SessionTransaction) -> None:
        """A savepoint is gone: what it still owns was rolled back, what it wrote for its parents waits again."""
        self.entries = [entry for entry in self.entries if entry.owner is not ended]
        for entry in self.entries:
            if entry.written_in is ended:
                entry.written_in = None
        if self.announced is not ended:  # it was not released on behalf of an outer one
            self.unwinding = False
        self.announced = None

    def drop(self, entry: Entry) -> None:
        """Forget one message."""
        self.entries = [each for each in self.entries if each is not entry]

    def _forget_settled(self) -> None:
        """Rows that stand where their message was registered live and die with that transaction."""
        self.entries = [entry for entry in self.entries if entry.written_in is not entry.owner]

    # --- a session bound to a connection of the user's: whoever commits that, commits the messages too (L5) -------

    def listen_to(self, connection: sa.Connection) -> None:
        """Write before the connection's own commit, drop with its rollback."""
        if connection not in self.outer:
            self.outer.append(connection)
            for name, listener in self._listeners():
                event.listen(connection, name, listener)

    def stop_listening(self) -> None:
        """Leave the user's connections alone."""
        for connection in self.outer:
            for name, listener in self._listeners():
                event.remove(connection, name, listener)
        self.outer.clear()

    def _listeners(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("commit", self._outer_commit),
            ("prepare_twophase", self._outer_prepare),
            ("rollback", self._outer_rollback),
            ("rollback_twophase", self._outer_rollback_twophase),
        )

    def _outer_commit(self, connection: sa.Connection) -> None:
        self.write(only=connection)
        self._outer_rollback(connection)  # committed, whatever becomes of the session's savepoints

    def _outer_prepare(self, connection: sa.Connection, xid: object) -> None:
        self._outer_commit(connection)

    def _outer_rollback(self, connection: sa.Connection) -> None:
        self.entries = [entry for entry in self.entries if entry.bind is not connection]

    def _outer_rollback_twophase(self, connection: sa.Connection, xid: object, is_prepared: bool) -> None:
        self._outer_rollback(connection)


def enclosing(nested: SessionTransaction) -> SessionTransaction:
    """The savepoint or root around a savepoint; the transactions in between are those of flushes."""
    parent = nested.parent
    while parent is not None and not parent.nested and parent.parent is not None:
        parent = parent.parent
    assert parent is not None
    return parent
