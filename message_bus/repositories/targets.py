"""What a repository may stand on, session or connection, sync or async, and which way of writing belongs to each.

Named pairs for the two repositories of one source: what is `x_async` in the one is `x` in the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus.repositories import connection_writing, late_writing
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.storage.tables import MessageBusTables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

DEFAULT_TABLES: Final = MessageBusTables()
"""The tables under their default names, shared by all repositories that are not told otherwise. Immutable."""

COLOURS: Final = "give sync ones to SQLAlchemyOutBoxRepo, async ones to AsyncSQLAlchemyOutBoxRepo"


def register(target: Session | Connection, tables: MessageBusTables, row: OutboxMessage) -> None:
    """On a session the row waits for the commit, on a connection it is written at once."""
    if isinstance(target, Session):
        late_writing.buffer(target, tables, row)
    else:
        connection_writing.write_now(target, tables, [row])


def register_async(
    target: AsyncSession | AsyncConnection, tables: MessageBusTables, row: OutboxMessage
) -> None:
    """The row waits for the commit; needs no I/O."""
    plain = _plain(target)
    if isinstance(plain, Session):
        late_writing.buffer(plain, tables, row)
    else:
        connection_writing.hold(plain, tables, row)


def flush(target: Session | Connection) -> None:
    """Write now what waits."""
    if isinstance(target, Session):
        late_writing.flush(target)


async def flush_async(target: AsyncSession | AsyncConnection) -> None:
    """Write now what waits."""
    await target.run_sync(_flush_plain)


def _flush_plain(plain: Session | Connection) -> None:
    if isinstance(plain, Session):
        late_writing.flush(plain)
    else:
        connection_writing.write_held(plain)


def waiting(target: Session | Connection, tables: MessageBusTables) -> list[OutboxMessage]:
    """What is registered for these tables and not yet written."""
    return late_writing.waiting_rows(target, tables) if isinstance(target, Session) else []


def waiting_async(target: AsyncSession | AsyncConnection, tables: MessageBusTables) -> list[OutboxMessage]:
    """What is registered for these tables and not yet written."""
    plain = _plain(target)
    if isinstance(plain, Session):
        return late_writing.waiting_rows(plain, tables)
    return connection_writing.held_rows(plain, tables)


def _plain(target: AsyncSession | AsyncConnection) -> Session | Connection:
    plain = getattr(target, "sync_session", None)
    if plain is None:
        plain = target.sync_connection  # type: ignore[union-attr]
    assert isinstance(plain, Session | Connection)
    return plain
