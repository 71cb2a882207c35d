"""One builder per operation that lets a new subscription begin: SQL as values. `starting` runs them behind the log's lock.

Who begins "now" while somebody writes has rows in the delivery table for positions at which nothing can be seen yet.
Builders take the tables and return a statement with named parameters; they run nothing and decide nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Delete,
    Insert,
    Select,
    Text,
    Update,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.statements import DECISION
from message_bus.storage.tables import ACTIVE, HELD, IDLE, MessageBusTables


@built_once
def position_before_time(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The last position before the first row created at or after :time, at most :settled."""
    t = tables.source
    first = select(func.min(t.c.position)).where(
        t.c.created_at >= bindparam("time", type_=t.c.created_at.type)
    )
    return select(func.coalesce(first.scalar_subquery() - 1, bindparam("settled", type_=t.c.position.type)))


@built_once
def mark_late(tables: MessageBusTables) -> Insert:
    """Record for :subscription, as held, the positions after :known up to :to that nobody can see; PostgreSQL only.

    Some are gaps that rollbacks have left, at some a row appears when its writer commits: `complete_late` tells.
    """
    d, o = tables.delivery, tables.source
    drawn = (
        func.generate_series(
            bindparam("known", type_=d.c.position.type) + 1, bindparam("to", type_=d.c.position.type)
        )
        .table_valued("position")
        .render_derived(name="drawn")
    )
    unseen = select(bindparam("subscription", type_=Text()), drawn.c.position, literal(HELD, Text)).where(
        ~exists().where(o.c.position == drawn.c.position)
    )
    return insert(d).from_select(["subscription", "position", "state"], unseen, include_defaults=False)


@built_once
def has_late(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Whether :subscription, which is idle, waits for rows that `mark_late` has recorded."""
    d = tables.delivery
    return select(
        exists().where(d.c.subscription == bindparam("subscription"), d.c.state == HELD, d.c.error.is_(None))
    )


@built_once
def complete_late(tables: MessageBusTables) -> Update:
    """Give those of `mark_late` whose message has appeared their keys."""
    d, o = tables.delivery, tables.source
    return (
        update(d)
        .where(
            d.c.subscription == bindparam("of_subscription"),
            d.c.state == HELD,
            d.c.position == o.c.position,
        )
        .values(key=o.c.key, key_hash=o.c.key_hash)
    )


@built_once
def forget_gaps(tables: MessageBusTables) -> Delete:
    """Remove those of `mark_late` at whose positions nothing will appear any more."""
    d, o = tables.delivery, tables.source
    return delete(d).where(
        d.c.subscription == bindparam("of_subscription"),
        d.c.state == HELD,
        ~exists().where(o.c.position == d.c.position),
    )


@built_once
def activate(tables: MessageBusTables) -> Update:
    """Let the idle partitions of :subscription begin where they are."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"), t.c.state == IDLE)
        .values(state=ACTIVE, revision=t.c.revision + DECISION)
    )


@built_once
def start_idle(tables: MessageBusTables) -> Update:
    """Put the idle partitions of :subscription at :start, in state :becomes."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"), t.c.state == IDLE)
        .values(state=bindparam("becomes"), position=bindparam("start"), revision=t.c.revision + DECISION)
    )


@built_once
def highest_epoch(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The highest epoch that a subscription of any log had when it was dropped: a name may move to another log (S2)."""
    return select(func.coalesce(func.max(tables.log.c.last_epoch), 0))
