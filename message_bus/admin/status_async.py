"""How is the outbox doing? One value. `message-bus status` only prints it; what is wrong, and what to do, says `doctor`."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from message_bus._compat import on_sync_session_async
from message_bus.admin.ground import on_connection
from message_bus.admin.overview import DeadCount, Status, WatermarkStatus
from message_bus.admin.subscriptions_async import AsyncSubscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import schedule_statements, status_statements
from message_bus.storage.holders import holders
from message_bus.storage.tables import IDLE, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark


async def async_status(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Status:
    """Read how the outbox, its subscriptions and its schedule are doing.

    Reads only, in the caller's transaction, which must be READ COMMITTED; counts rows, so that it takes a moment on a log
    with millions of them.

    Raises: SchemaError, UnsupportedDatabase for a database that cannot be read safely (`doctor` says more).
    """
    subscriptions = AsyncSubscriptions(session, tables=tables)
    partitions = await subscriptions.list()
    target: Any = subscriptions.session
    look = await AsyncWatermark(tables).look(await subscriptions.connection())
    in_the_way = await on_sync_session_async(target, on_connection, tables, holders, tables)
    size = (await target.execute(status_statements.outbox_size(tables))).one()
    schedule = (await target.execute(schedule_statements.depth(tables))).one()
    dead = await target.execute(status_statements.dead_by_type(tables))
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
