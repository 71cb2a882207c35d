"""One builder per operation of the housekeeping: SQL as values, the same on PostgreSQL and SQLite.

Delayed messages enter the outbox, old rows leave it; both behind the lock on the log's row, which `statements.py` has.
Builders take the tables and return a statement with named parameters; they run nothing and decide nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Delete,
    Float,
    Insert,
    Select,
    Update,
    bindparam,
    case,
    delete,
    exists,
    func,
    select,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.statements import insert_or_ignore
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_after, utc_now

MESSAGE_COLUMNS = ("id", "type", "message", "version", "key", "key_hash", "payload", "meta", "headers")


# --- delayed messages ---------------------------------------------------------------------------------------------


@built_once
def due_ids(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit delayed messages that are due."""
    t = tables.schedule
    return (
        select(t.c.id).where(t.c.due_at <= utc_now()).order_by(t.c.due_at, t.c.id).limit(bindparam("limit"))
    )


def promote(dialect_name: str, tables: MessageBusTables) -> Insert:
    """Copy the delayed messages :ids into the outbox, in the order in which they became due (S9).

    One whose id is in the outbox already is the same message: it is left out.
    """
    t = tables.schedule
    columns = [t.c[name] for name in MESSAGE_COLUMNS]
    chosen = select(*columns).where(t.c.id.in_(bindparam("ids", expanding=True))).order_by(t.c.due_at, t.c.id)
    copied = insert_or_ignore(dialect_name, tables.outbox)
    return copied.from_select(list(MESSAGE_COLUMNS), chosen, include_defaults=False)


@built_once
def unschedule(tables: MessageBusTables) -> Delete:
    """Remove the delayed messages :ids."""
    t = tables.schedule
    return delete(t).where(t.c.id.in_(bindparam("ids", expanding=True)))


# --- retention ------------------------------------------------------------------------------------------------------


@built_once
def passed_by_all(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The position that every subscription of :log has passed; null if there is none."""
    t = tables.subscription
    return select(func.min(t.c.position)).where(t.c.log == bindparam("log"))


@built_once
def oldest_rows(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit rows after :after, up to :passed: is each `old` (before :age seconds from now), is it `kept`?

    `kept` is a row that is retrying, held or dead somewhere (G9). A window, not a filter: a log full of young rows
    is looked at once, not scanned to its end.
    """
    t, d, s = tables.outbox, tables.delivery, tables.subscription
    of_another_log = exists().where(s.c.name == d.c.subscription, s.c.log != OUTBOX_LOG)
    return (
        select(
            t.c.position,
            t.c.id,
            (t.c.created_at < utc_after(bindparam("age", type_=Float()))).label("old"),
            exists().where(d.c.position == t.c.position, ~of_another_log).label("kept"),
        )
        .where(t.c.position > bindparam("after"), t.c.position <= bindparam("passed"))
        .order_by(t.c.position)
        .limit(bindparam("limit"))
    )


@built_once
def prune(tables: MessageBusTables) -> Delete:
    """Remove the rows at :positions."""
    t = tables.outbox
    return delete(t).where(t.c.position.in_(bindparam("positions", expanding=True)))


@built_once
def note_pruned(tables: MessageBusTables) -> Update:
    """Remember how far log :of_log was pruned; a dead letter that was kept, and goes later, takes nothing back (S4)."""
    t = tables.log
    to = bindparam("to", type_=t.c.pruned_to.type)
    return (
        update(t)
        .where(t.c.log == bindparam("of_log"))
        .values(pruned_to=case((t.c.pruned_to > to, t.c.pruned_to), else_=to))
    )
