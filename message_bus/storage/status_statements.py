"""One builder per question of status, doctor, why and prune: SQL as values. They read only.

Builders are about the log that their tables are made for (`tables.of_log`), unless they say which.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    exists,
    func,
    literal,
    null,
    select,
    text,
)

from message_bus.messages.envelope import CAUSATION_ID, CORRELATION_ID
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.tables import DEAD, EVENT, IDLE, MessageBusTables
from message_bus.storage.types import utc_after, utc_now
from message_bus.storage.views import is_about, partition_of


def outbox_size(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows the outbox has, when the oldest was registered, and the time now."""
    t = tables.outbox
    oldest = select(t.c.created_at).order_by(t.c.position).limit(1).scalar_subquery()
    return select(func.count().label("rows"), oldest.label("oldest_at"), utc_now().label("now")).select_from(
        t
    )


def event_times(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """When the oldest event was recorded, and the newest."""
    t = tables.event
    oldest = select(t.c.recorded_at).order_by(t.c.position).limit(1).scalar_subquery()
    newest = select(t.c.recorded_at).order_by(t.c.position.desc()).limit(1).scalar_subquery()
    return select(oldest.label("oldest_at"), newest.label("newest_at"))


def dead_by_type(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many dead letters each subscription has, by the name of their type (null: the message is gone)."""
    d, o = tables.delivery, tables.source
    return (
        select(d.c.subscription, o.c.message, func.count().label("count"))
        .select_from(d.outerjoin(o, o.c.position == d.c.position))
        .where(d.c.state == DEAD, is_about(tables.source_log, d, tables.subscription))
        .group_by(d.c.subscription, o.c.message)
        .order_by(d.c.subscription, func.count().desc(), o.c.message)
    )


def count_prunable(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows of the outbox every subscription has passed, that are older than :age seconds and recorded nowhere (G9)."""
    t, d, s = tables.outbox, tables.delivery, tables.subscription
    passed = select(func.min(s.c.position)).where(s.c.log == OUTBOX_LOG).scalar_subquery()
    return (
        select(func.count())
        .select_from(t)
        .where(
            t.c.position <= passed,
            t.c.created_at < utc_after(bindparam("age", type_=Float())),
            ~exists().where(d.c.position == t.c.position, is_about(OUTBOX_LOG, d, s)),
        )
    )


def message_at(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The message :id in the outbox."""
    t = tables.outbox
    columns = (t.c.position, t.c.id, t.c.type, t.c.message, t.c.key, t.c.created_at)
    return select(*columns, *_origin(t)).where(t.c.id == bindparam("id"))


def event_at(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The event :id in the event log."""
    t = tables.event
    columns = (t.c.position, t.c.id, t.c.message, t.c.stream, t.c.version, t.c.recorded_at)
    return select(*columns, *_origin(t)).where(t.c.id == bindparam("id"))


def message_delayed(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The message :id in the schedule."""
    t = tables.schedule
    columns = (t.c.id, t.c.type, t.c.message, t.c.key, t.c.created_at, t.c.due_at)
    return select(*columns, *_origin(t)).where(t.c.id == bindparam("id"))


def _header(t: Table, name: str) -> ColumnElement[Any]:
    header: ColumnElement[Any] = t.c.headers[name].as_string()
    return header


def _origin(t: Table) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return _header(t, CORRELATION_ID).label("correlation_id"), _header(t, CAUSATION_ID).label("caused_by")


def _in_a_story(t: Table) -> tuple[ColumnElement[Any], ...]:
    """What a story tells of a message of the outbox or the schedule."""
    caused_by = _header(t, CAUSATION_ID).label("caused_by")
    return t.c.id, t.c.type, t.c.message, t.c.key, t.c.created_at, caused_by


def outbox_story(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit messages of the outbox after :after whose correlation id is :story. Reads all rows from there on."""
    t = tables.outbox
    return (
        select(*_in_a_story(t), t.c.position)
        .where(
            t.c.position > bindparam("after", type_=t.c.position.type), _header(t, CORRELATION_ID) == _story()
        )
        .order_by(t.c.position)
        .limit(_limit())
    )


def event_story(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit events after :after whose correlation id is :story; it has an index."""
    t = tables.event
    columns = (
        t.c.id,
        literal(EVENT, Text).label("type"),
        t.c.message,
        t.c.stream.label("key"),
        t.c.recorded_at.label("created_at"),
        _header(t, CAUSATION_ID).label("caused_by"),
        null().label("position"),
        t.c.position.label("recorded"),
    )
    return (
        select(*columns)
        .where(t.c.position > bindparam("after", type_=t.c.position.type), t.c.correlation_id == _story())
        .order_by(t.c.position)
        .limit(_limit())
    )


def schedule_story(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit delayed messages whose correlation id is :story. Reads all of the schedule."""
    t = tables.schedule
    return (
        select(*_in_a_story(t), null().label("position"), null().label("recorded"), t.c.due_at)
        .where(_header(t, CORRELATION_ID) == _story())
        .order_by(t.c.due_at, t.c.id)
        .limit(_limit())
    )


def _limit() -> ColumnElement[int]:
    return bindparam("limit", type_=Integer())


def _story() -> ColumnElement[Any]:
    return bindparam("story", type_=Text())


def states_at(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """What has become of the messages at :positions of the log, in each subscription that is not idle."""
    s, o, d = tables.subscription, tables.source, tables.delivery
    mine = o.alias("mine")
    return (
        select(mine.c.position, s.c.position.label("checkpoint"), d.c.state)
        .select_from(
            mine.join(
                s, (s.c.log == tables.source_log) & (s.c.partition == partition_of(mine, s.c.partitions))
            ).outerjoin(d, (d.c.subscription == s.c.name) & (d.c.position == mine.c.position))
        )
        .where(mine.c.position.in_(bindparam("positions", expanding=True)), s.c.state != IDLE)
    )


def fates(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """What each subscription has to do with the message at :position: its checkpoint, and what is recorded.

    `ahead`: how many messages of its partition it has to deal with before.
    """
    s, o, d = tables.subscription, tables.source, tables.delivery
    mine = o.alias("mine")
    ahead = (
        select(func.count())
        .select_from(o)
        .where(
            o.c.position > s.c.position,
            o.c.position < mine.c.position,
            partition_of(o, s.c.partitions) == s.c.partition,
        )
        .correlate(s, mine)
        .scalar_subquery()
    )
    return (
        select(
            s.c.name,
            s.c.partition,
            s.c.partitions,
            s.c.state.label("subscription_state"),
            s.c.position.label("checkpoint"),
            ahead.label("ahead"),
            d.c.state,
            d.c.attempts,
            d.c.crashes,
            d.c.next_attempt_at,
            d.c.error,
            d.c.created_at.label("failed_at"),
            d.c.updated_at,
        )
        .select_from(
            mine.join(
                s, (s.c.log == tables.source_log) & (s.c.partition == partition_of(mine, s.c.partitions))
            ).outerjoin(d, (d.c.subscription == s.c.name) & (d.c.position == mine.c.position))
        )
        .where(mine.c.position == bindparam("position", type_=o.c.position.type))
        .order_by(s.c.name)
    )


def in_the_way(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The first message of :key before :position that :subscription is not done with."""
    d, o = tables.delivery, tables.source
    return (
        select(d.c.position, d.c.state, o.c.id)
        .select_from(d.outerjoin(o, o.c.position == d.c.position))
        .where(
            d.c.subscription == bindparam("subscription"),
            d.c.key == bindparam("key", type_=Text()),
            d.c.position < bindparam("position", type_=d.c.position.type),
        )
        .order_by(d.c.state == DEAD, d.c.position)
        .limit(1)
    )


def checkpoints(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Every checkpoint of the log."""
    t = tables.subscription
    return select(t.c.name, t.c.partition, t.c.position).where(t.c.log == tables.source_log)


PREPARED: Final = text("""
SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared) AS seconds
FROM pg_prepared_xacts
WHERE database = current_database()
ORDER BY prepared
""")

GUARDED: Final = text("""
SELECT class.relname AS name, row_security_active(class.oid) AS here, current_user AS role
FROM pg_class AS class
WHERE class.relrowsecurity AND class.oid IN (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) AS name)
ORDER BY class.relname
""")
