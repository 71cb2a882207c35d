"""Reading the outbox as its users do, row by row: the SQL behind a repository's `get` and `list_unprocessed`.

A row is *processed* when at least one subscription has a say in it and every one of them has handled it, or passed
it over. One that is still waiting, retrying, held or dead somewhere is not: a dead letter was never handled.
Subscriptions that are idle have no place in the log yet, hence no say. Not for the engine, which reads by checkpoint.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, select
from sqlalchemy.sql.expression import literal

from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.tables import IDLE, MessageBusTables
from message_bus.storage.views import is_about, partition_of

_COLUMNS = ("id", "type", "message", "version", "key", "payload", "meta", "headers", "created_at")


def outbox_row(tables: MessageBusTables, message_id: object) -> Select[Any]:
    """The row of one message, and whether it is processed."""
    return _rows(tables).where(tables.outbox.c.id == message_id)


def scheduled_row(tables: MessageBusTables, message_id: object) -> Select[Any]:
    """The row of one message that still waits in the schedule; it has no position."""
    t = tables.schedule
    return select(
        literal(None).label("position"), *(t.c[name] for name in _COLUMNS), literal(False).label("processed")
    ).where(t.c.id == message_id)


def unprocessed_rows(tables: MessageBusTables, limit: int | None) -> Select[Any]:
    """The first `limit` rows that are not processed, in position order.

    Nothing lies before the lowest checkpoint but rows with a delivery record, so the search starts at the lower of both.
    """
    outbox, delivery = tables.outbox, tables.delivery
    subscription = tables.subscription
    checkpoint = (
        select(func.coalesce(func.min(subscription.c.position), 0))
        .where(subscription.c.log == OUTBOX_LOG, subscription.c.state != IDLE)
        .scalar_subquery()
    )
    recorded = select(delivery.c.position).where(is_about(OUTBOX_LOG, delivery, subscription))
    oldest = recorded.order_by(delivery.c.position).limit(1).scalar_subquery()
    start = case((oldest <= checkpoint, oldest - 1), else_=checkpoint)
    return (
        _rows(tables)
        .where(outbox.c.position > start, ~_is_processed(tables))
        .order_by(outbox.c.position)
        .limit(limit)
    )


def _rows(tables: MessageBusTables) -> Select[Any]:
    t = tables.outbox
    return select(t.c.position, *(t.c[name] for name in _COLUMNS), _is_processed(tables).label("processed"))


def _is_processed(tables: MessageBusTables) -> ColumnElement[bool]:
    outbox, delivery = tables.outbox, tables.delivery
    s = tables.subscription.alias("s")
    has_a_say = and_(
        s.c.log == OUTBOX_LOG, s.c.state != IDLE, s.c.partition == partition_of(outbox, s.c.partitions)
    )
    record = exists().where(delivery.c.subscription == s.c.name, delivery.c.position == outbox.c.position)
    open_somewhere = exists().where(
        has_a_say, (s.c.position < outbox.c.position) | record.correlate(s, outbox)
    )
    return and_(exists().where(has_a_say).correlate(outbox), ~open_somewhere.correlate(outbox))
