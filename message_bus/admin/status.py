# Generated from status_async.py by tests/tools/unasync.py: do not edit.
"""How is the outbox doing? One value. `message-bus status` only prints it; what is wrong, and what to do, says `doctor`."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.ground import on_connection
from message_bus.admin.overview import DeadCount, Status, WatermarkStatus
from message_bus.admin.subscriptions import Subscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import schedule_statements, status_statements
from message_bus.storage.holders import holders
from message_bus.storage.tables import IDLE, MessageBusTables
from message_bus.storage.watermark import Watermark


def status(
    session: Session | scoped_session[Any] | Connection,
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Status:
    """Read how the outbox, its subscriptions and its schedule are doing.

    Reads only, in the caller's transaction, which must be READ COMMITTED; counts rows, so that it takes a moment on a log
    with millions of them.

    Raises: SchemaError, UnsupportedDatabase for a database that cannot be read safely (`doctor` says more).
    """
    subscriptions = Subscriptions(session, tables=tables)
    partitions = subscriptions.list()
    target: Any = subscriptions.session
    look = Watermark(tables).look(subscriptions.connection())
    in_the_way = on_sync_session(target, on_connection, tables, holders, tables)
    size = target.execute(status_statements.outbox_size(tables)).one()
    schedule = target.execute(schedule_statements.depth(tables)).one()
    dead = target.execute(status_statements.dead_by_type(tables))
    passed = [each.position for each in partitions if each.state != IDLE and each.position <= look.high]
    return Status(
        at=size.now,
        subscriptions=tuple(partitions),
        outbox_rows=size.rows,
        oldest_at=size.oldest_at,
        delayed=schedule.delayed,
        due=schedule.due,
        next_due_at=schedule.next_due_at,
        watermark=WatermarkStatus(
            settled=max([look.settled, *passed]),
            high=look.high,
            age=in_the_way[0].age if in_the_way else None,
            holder=str(in_the_way[0]) if in_the_way else None,
        ),
        dead=tuple(
            DeadCount(subscription=row.subscription, message=row.message, count=row[2]) for row in dead
        ),
    )
