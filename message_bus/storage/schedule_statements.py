"""One builder per operation that people do with delayed messages: SQL as values.

A message leaves the schedule when it is due: the mover copies it into the outbox, one mover at a time, behind the lock on
the log's row. Whoever takes one out locks that row first, or the mover could have read it already (S9).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Delete, Select, Text, and_, bindparam, cast, delete, func, or_, select

from message_bus.storage.building import built_once
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_now


@built_once
def delayed(
    tables: MessageBusTables,
    *,
    message: str | None = None,
    key: str | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int | None = None,
    payload: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The first `limit` delayed messages behind `after` (due time, id), in the order in which they become due."""
    t = tables.schedule
    columns: list[ColumnElement[Any]] = [
        *(t.c[name] for name in ("id", "type", "message", "key", "due_at", "created_at"))
    ]
    if payload:
        columns += [cast(t.c[name], Text).label(name) for name in ("payload", "meta")]
    found = select(*columns)
    if message is not None:
        found = found.where(t.c.message == message)
    if key is not None:
        found = found.where(t.c.key == key)
    if after is not None:
        due_at, message_id = after
        found = found.where(or_(t.c.due_at > due_at, and_(t.c.due_at == due_at, t.c.id > message_id)))
    return found.order_by(t.c.due_at, t.c.id).limit(limit)


@built_once
def these(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Those of :ids that are delayed."""
    t = tables.schedule
    return (
        select(t.c.id, t.c.type, t.c.message, t.c.key, t.c.due_at, t.c.created_at)
        .where(t.c.id.in_(bindparam("ids", expanding=True)))
        .order_by(t.c.due_at, t.c.id)
    )


@built_once
def cancel(tables: MessageBusTables) -> Delete:
    """Take the delayed messages :ids out of the schedule."""
    t = tables.schedule
    return delete(t).where(t.c.id.in_(bindparam("ids", expanding=True)))


@built_once
def depth(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many messages are delayed, how many of them are due, and when the next one is."""
    t = tables.schedule
    return select(
        func.count().label("delayed"),
        func.count().filter(t.c.due_at <= utc_now()).label("due"),
        func.min(t.c.due_at).label("next_due_at"),
    )
