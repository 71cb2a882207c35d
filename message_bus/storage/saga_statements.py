"""One builder per operation on the rows of sagas: SQL as values.

Whoever runs a step holds the row's lock meanwhile: a runner that dies lets go of it, and nobody has to guess whether it is
alive. `revision` is the second net, and the only one on SQLite, which locks no rows: what was decided from an older one is
not written.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Update, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from message_bus.storage.building import built_once
from message_bus.storage.event_tables import COMPENSATING, RUNNING
from message_bus.storage.statements import insert_or_ignore
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_now


def locks_rows(dialect_name: str) -> bool:
    """Whether a transaction can hold one row without holding up all other writers."""
    return dialect_name != "sqlite"


def begin(dialect_name: str, tables: MessageBusTables) -> postgresql.Insert | sqlite.Insert:
    """A new saga, unless there is one with this name and id."""
    return insert_or_ignore(dialect_name, tables.saga)


@built_once
def read(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Saga (:saga_name, :saga_id), and the database's clock."""
    t = tables.saga
    return select(t.c.state, t.c.revision, t.c.data, t.c.error, utc_now().label("now")).where(
        t.c.name == bindparam("saga_name"), t.c.id == bindparam("saga_id")
    )


@built_once
def lock(tables: MessageBusTables, *, skip: bool) -> Select[*tuple[Any, ...]]:
    """The same, locked to the end of the transaction; with `skip`, no row if somebody else has it."""
    return read(tables).with_for_update(skip_locked=skip)


def clock() -> Select[*tuple[Any, ...]]:
    """The database's clock."""
    return select(utc_now())


@built_once
def save(tables: MessageBusTables) -> Update:
    """What has become of the saga since revision :at_revision; no row if somebody else has gone on with it."""
    t = tables.saga
    return (
        update(t)
        .where(
            t.c.name == bindparam("saga_name"),
            t.c.id == bindparam("saga_id"),
            t.c.revision == bindparam("at_revision"),
        )
        .values(
            state=bindparam("new_state"),
            data=bindparam("new_data", type_=t.c.data.type),
            error=bindparam("new_error"),
            revision=t.c.revision + 1,
            updated_at=utc_now(),
        )
    )


@built_once
def unfinished(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The ids behind :after of the first :limit sagas :saga_name that have not ended."""
    t = tables.saga
    return (
        select(t.c.id)
        .where(
            t.c.name == bindparam("saga_name"),
            t.c.state.in_((RUNNING, COMPENSATING)),
            t.c.id > bindparam("after"),
        )
        .order_by(t.c.id)
        .limit(bindparam("limit"))
    )
