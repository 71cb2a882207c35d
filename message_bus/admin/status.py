# Generated from status_async.py by tests/tools/unasync.py: do not edit.
"""How are the outbox and the event log doing? One value. `message-bus status` only prints it.

What is wrong, and what to do, says `doctor`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.ground import on_connection, tables_of_logs
from message_bus.admin.overview import DeadCount, EventLogStatus, Status, WatermarkStatus
from message_bus.admin.partitions import PartitionStatus
from message_bus.admin.subscriptions import Subscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import schedule_statements, status_statements
from message_bus.storage.holders import holders
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import IDLE, MessageBusTables
from message_bus.storage.watermark import Watermark


def status(
    session: Session | scoped_session[Any] | Connection,
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Status:
    """Read how the outbox, its schedule, the event log, and their subscriptions are doing.

    Reads only, in the caller's transaction, which must be READ COMMITTED; counts rows, so that it takes a moment on a log
    with millions of them.

    Raises: SchemaError, UnsupportedDatabase for a database that cannot be read safely (`doctor` says more).
    """
    subscriptions = Subscriptions(session, tables=tables)
    partitions = subscriptions.list()
    target: Any = subscriptions.session
    watermarks: dict[str, WatermarkStatus] = {}
    dead: list[DeadCount] = []
    for of_log in on_sync_session(target, tables_of_logs, tables):
        watermarks[of_log.source_log] = _watermark(subscriptions, of_log, partitions)
        dead += [
            DeadCount(subscription=row.subscription, message=row.message, count=row[2])
            for row in target.execute(status_statements.dead_by_type(of_log))
        ]
    events = None
    if EVENT_LOG in watermarks:
        times = target.execute(status_statements.event_times(tables)).one()
        events = EventLogStatus(
            oldest_at=times.oldest_at, newest_at=times.newest_at, watermark=watermarks[EVENT_LOG]
        )
    size = target.execute(status_statements.outbox_size(tables)).one()
    schedule = target.execute(schedule_statements.depth(tables)).one()
    return Status(
        at=size.now,
        subscriptions=tuple(partitions),
        outbox_rows=size.rows,
        oldest_at=size.oldest_at,
        delayed=schedule.delayed,
        due=schedule.due,
        next_due_at=schedule.next_due_at,
        watermark=watermarks[OUTBOX_LOG],
        dead=tuple(dead),
        events=events,
    )


def _watermark(
    subscriptions: Subscriptions, tables: MessageBusTables, partitions: list[PartitionStatus]
) -> WatermarkStatus:
    look = Watermark(tables).look(subscriptions.connection())
    target: Any = subscriptions.session
    in_the_way = on_sync_session(target, on_connection, tables, holders, tables)
    passed = [
        each.position
        for each in partitions
        if each.log == tables.source_log and each.state != IDLE and each.position <= look.high
    ]
    return WatermarkStatus(
        settled=max([look.settled, *passed]),
        high=look.high,
        age=in_the_way[0].age if in_the_way else None,
        holder=str(in_the_way[0]) if in_the_way else None,
    )
