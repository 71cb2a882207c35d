"""One builder per operation on the rows of process managers: SQL as values.

A row is made first and locked then, in statements of their own: two subscriptions that meet the first messages of one
process at once must not both begin it. PostgreSQL lets the second INSERT wait for the first one's transaction; SQLite has
one writer at a time anyway.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Update, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from message_bus.storage.building import built_once
from message_bus.storage.statements import insert_or_ignore
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_now


def create(dialect_name: str, tables: MessageBusTables) -> postgresql.Insert | sqlite.Insert:
    """A new process, unless there is one under this name and key."""
    return insert_or_ignore(dialect_name, tables.process)


@built_once
def lock(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Process (:process_name, :process_key), locked to the end of the transaction."""
    t = tables.process
    return (
        select(t.c.state, t.c.data, t.c.schema_version)
        .where(t.c.name == bindparam("process_name"), t.c.key == bindparam("process_key"))
        .with_for_update()
    )


@built_once
def save(tables: MessageBusTables) -> Update:
    """What the process has become."""
    t = tables.process
    return (
        update(t)
        .where(t.c.name == bindparam("process_name"), t.c.key == bindparam("process_key"))
        .values(
            state=bindparam("new_state"),
            data=bindparam("new_data", type_=t.c.data.type),
            schema_version=bindparam("new_schema_version"),
            updated_at=utc_now(),
        )
    )
