# Generated from deleting_async.py by tests/tools/unasync.py: do not edit.
"""Deleting a stream for good: for data-protection requests, not for corrections.

The event log is append-only, and triggers say so. This is the one way through them; it lifts the guard for one stream in
one transaction.
"""

from __future__ import annotations

import logging

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus._compat import on_sync_connection
from message_bus.eventsourcing.stores.sql_statements import forget
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.eventsourcing")


def delete_stream(
    session: Session | Connection,
    aggregate_id: str,
    *,
    by: str,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> int:
    """Delete the events of a stream, its version, its snapshot; return how many events there were.

    In the caller's transaction (G10); who is appending to the stream is waited for. `by`: who wants it, for the log line.
    What subscriptions of the event log have on record of failures of these events goes as well, dead letters included. (A
    worker that fails with one of them at this very moment writes it down again: then repeat the call.)

    What it does not remove: copies of the events in the outbox and its dead letters, and wherever they were published;
    what projections, process managers and sagas have made of them; backups. Who has not read the events yet will not see
    them.

    The stream is new again: its version is 0, so whoever has loaded it before and saves with the version that it had gets
    a ConcurrencyError. If the id is used again, that protection ends when the new stream reaches that version: better
    use another id. Positions are not used again.

    Raises: SettingsError if `by` is empty.
    """
    connection = session
    if isinstance(session, Session):
        connection = session.connection(bind_arguments={"clause": tables.event})
    assert isinstance(connection, Connection)
    count = on_sync_connection(connection, forget, aggregate_id, by, tables)
    logger.warning(
        "stream %r: %d events deleted by %s (in a transaction that is still to be committed)",
        aggregate_id,
        count,
        by,
        extra={"stream": aggregate_id, "events": count, "by": by},
    )
    return count
