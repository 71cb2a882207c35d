"""The row of a projection's live generation: read before it writes, made when it runs for the first time.

Called on a plain Session or Connection, in the transaction that is to be committed with what the projection writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect
from sqlalchemy.orm import Session

from message_bus.eventsourcing.projections.projection_state import obstacle
from message_bus.eventsourcing.projections.projection_tables import stored_names
from message_bus.storage import projection_statements as statements
from message_bus.storage.event_tables import LIVE
from message_bus.storage.logs import schema_of
from message_bus.storage.statements import insert_or_ignore
from message_bus.storage.tables import MessageBusTables

if TYPE_CHECKING:
    from message_bus.eventsourcing.projections.projection import Projection


def obstacle_of(
    session: Session | Connection, projection: Projection, tables: MessageBusTables
) -> str | None:
    """Say why it cannot write into the live tables; None if it can. A projection that is new is noted down as live."""
    row = session.execute(statements.live(tables), {"name": projection.name}).one_or_none()
    if row is None:
        connection = session if isinstance(session, Connection) else session.connection()
        missing = _missing(connection, projection)
        if missing:
            return f"there is no table {missing[0]!r} (create it: run your migrations)"
        first = {
            "name": projection.name,
            "generation": 0,
            "version": projection.version,
            "state": LIVE,
            "subscription": projection.filled_by,
            "tables": stored_names(projection.live_tables),
        }
        session.execute(insert_or_ignore(connection.dialect.name, tables.projection), first)
        row = session.execute(statements.live(tables), {"name": projection.name}).one()
    return obstacle(
        stored_version=row.version,
        stored_filler=row.subscription,
        version=projection.version,
        filler=projection.filled_by,
    )


def _missing(connection: Connection, projection: Projection) -> list[str]:
    inspector = inspect(connection)
    return [
        table.fullname
        for table in projection.live_tables.values()
        if not inspector.has_table(table.name, schema=schema_of(connection, table))
    ]
