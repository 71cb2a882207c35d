"""What a relay looks at while it has nothing to do: one statement that shows whether there may be work, and whose it is.

It only wakes somebody up: what is settled, due or blocked is decided by those who then work, in their own transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, func, null, or_, select
from sqlalchemy.dialects import postgresql

from message_bus.storage.logs import OUTBOX_LOG, POSITION
from message_bus.storage.tables import ACTIVE, RETRYING, MessageBusTables
from message_bus.storage.types import utc_now


@dataclass(frozen=True, slots=True)
class Part:
    """One partition of a subscription; `free`: its lease can be had; `due`: when its next failed message is tried again."""

    active: bool
    position: int
    revision: int
    epoch: int
    free: bool
    due: datetime | None


@dataclass(frozen=True, slots=True)
class Signs:
    """What one look saw. `now`: the database's clock; `high`: the last position drawn; `scheduled`: the next delayed message.

    `asleep_until`: until when writers notify, because a relay waits for it.
    """

    now: datetime
    high: int
    scheduled: datetime | None
    asleep_until: datetime | None
    parts: Mapping[tuple[str, int], Part]


def signs(dialect_name: str, tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """One row for each partition of :names; on PostgreSQL :log_table is the quoted name of the log's table.

    Delayed messages are a sign of the outbox's only.
    """
    s, d, o = tables.subscription, tables.delivery, tables.source
    high: Any
    if dialect_name == "postgresql":
        sequence = func.pg_get_serial_sequence(bindparam("log_table", type_=Text()), POSITION)
        high = func.pg_sequence_last_value(cast(sequence, postgresql.REGCLASS))
    else:
        high = select(func.max(o.c.position)).scalar_subquery()
    due = (
        select(func.min(d.c.next_attempt_at))
        .where(
            d.c.subscription == s.c.name,
            d.c.state == RETRYING,
            func.coalesce(d.c.key_hash, d.c.position) % s.c.partitions == s.c.partition,
        )
        .scalar_subquery()
    )
    due_at = tables.schedule.c.due_at
    scheduled: ColumnElement[Any] = (
        select(func.min(due_at)).scalar_subquery()
        if tables.source_log == OUTBOX_LOG
        else cast(null(), due_at.type)
    )
    return select(
        s.c.name,
        s.c.partition,
        s.c.state,
        s.c.position,
        s.c.revision,
        s.c.epoch,
        or_(s.c.owner.is_(None), s.c.lease_until < utc_now()).label("free"),
        due.label("due"),
        utc_now().label("now"),
        func.coalesce(high, 0).label("high"),
        scheduled.label("scheduled"),
        select(tables.log.c.asleep_until)
        .where(tables.log.c.log == tables.source_log)
        .scalar_subquery()
        .label("asleep_until"),
    ).where(s.c.name.in_(bindparam("names", expanding=True)))


def signs_of(rows: Iterable[Any]) -> Signs | None:
    """The rows of `signs` as values; None if there is not one."""
    found: Signs | None = None
    parts: dict[tuple[str, int], Part] = {}
    for row in rows:
        parts[row.name, row.partition] = Part(
            row.state == ACTIVE, row.position, row.revision, row.epoch, bool(row.free), row.due
        )
        found = found or Signs(row.now, row.high, row.scheduled, row.asleep_until, parts)
    return found
