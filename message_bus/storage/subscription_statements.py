"""One builder per operation that people do with subscriptions: SQL as values, the same on PostgreSQL and SQLite.

Whoever changes something first locks the log's row (S4), then the checkpoint rows (S3), and reads what it changes from
in a later statement. Always in this order, so that no two wait for each other. A subscription's positions are those of its
log: builders that speak about messages are given the tables of that log (`tables.of_log`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    Select,
    Subquery,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.statements import DECISION
from message_bus.storage.tables import DEAD, HELD, IDLE, RETRYING, TRYING, MessageBusTables
from message_bus.storage.types import utc_now
from message_bus.storage.views import partition_of


def _is_leased(tables: MessageBusTables) -> ColumnElement[bool]:
    t = tables.subscription
    return and_(t.c.owner.is_not(None), t.c.lease_until >= utc_now())


@built_once
def partitions(tables: MessageBusTables, *, locked: bool = False) -> Select[*tuple[Any, ...]]:
    """The partitions of the subscriptions :names; `leased`: does somebody work on it now? Locked in one order (S3)."""
    t = tables.subscription
    found = (
        select(*t.c, _is_leased(tables).label("leased"))
        .where(t.c.name.in_(bindparam("names", expanding=True)))
        .order_by(t.c.name, t.c.partition)
    )
    return found.with_for_update() if locked else found


@built_once
def names_of_subscriptions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Every subscription's name."""
    t = tables.subscription
    return select(t.c.name).distinct().order_by(t.c.name)


@built_once
def logs_read(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The names of the logs that have subscriptions."""
    t = tables.subscription
    return select(t.c.log).distinct().order_by(t.c.log)


@built_once
def log_of(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The name of the log that :subscription reads."""
    t = tables.subscription
    return select(t.c.log).where(t.c.name == bindparam("subscription")).limit(1)


def failures_by_partition(tables: MessageBusTables) -> Subquery:
    """What is recorded in the delivery table for each partition that reads the log, by state."""
    s, d = tables.subscription, tables.delivery

    def failed(*states: str) -> ColumnElement[Any]:
        return func.coalesce(func.sum(case((d.c.state.in_(states), 1), else_=0)), 0)

    return (
        select(
            s.c.name,
            s.c.partition,
            failed(RETRYING, TRYING).label("retrying"),
            failed(HELD).label("held"),
            failed(DEAD).label("dead"),
        )
        .select_from(s)
        .outerjoin(
            d,
            and_(d.c.subscription == s.c.name, partition_of(d, s.c.partitions) == s.c.partition),
        )
        .where(s.c.log == tables.source_log)
        .group_by(s.c.name, s.c.partition)
        .subquery("failures")
    )


def statuses(tables: MessageBusTables, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    """Every partition that reads the log, as people want to know it: how far behind, who works on it, what has failed.

    `lag` counts the messages behind the checkpoint, whatever their type; null for an idle one, which has no place yet.
    """
    s, o = tables.subscription, tables.source
    behind = (
        select(func.count())
        .select_from(o)
        .where(o.c.position > s.c.position, partition_of(o, s.c.partitions) == s.c.partition)
        .correlate(s)
        .scalar_subquery()
    )

    failures = failures_by_partition(tables)
    found = (
        select(
            s.c.name,
            s.c.partition,
            s.c.partitions,
            s.c.log,
            s.c.state,
            s.c.position,
            case((s.c.state == IDLE, None), else_=behind).label("lag"),
            case((_is_leased(tables), s.c.owner)).label("owner"),
            case((_is_leased(tables), s.c.lease_until)).label("lease_until"),
            failures.c.retrying,
            failures.c.held,
            failures.c.dead,
            # a relay acquires its lease once and keeps it: its last sign of life is the end of the lease
            case((s.c.lease_until > s.c.seen_at, s.c.lease_until), else_=s.c.seen_at).label("alive_until"),
            utc_now().label("now"),
        )
        .join(failures, and_(failures.c.name == s.c.name, failures.c.partition == s.c.partition))
        .order_by(s.c.name, s.c.partition)
    )
    return found if names is None else found.where(s.c.name.in_(names))


@built_once
def log_row(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The bookkeeping row of the log, not locked: for a dry run."""
    t = tables.log
    return select(t.c.pruned_to, t.c.last_epoch).where(t.c.log == tables.source_log)


@built_once
def furthest(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The furthest checkpoint up to :high: rows up to there are settled, or nobody had passed them."""
    t = tables.subscription
    return select(func.coalesce(func.max(t.c.position), 0)).where(
        t.c.log == tables.source_log, t.c.state != IDLE, t.c.position <= bindparam("high", type_=BigInteger)
    )


@built_once
def count_seen(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many messages can be seen after :known, up to :to."""
    t = tables.source
    return (
        select(func.count())
        .select_from(t)
        .where(
            t.c.position > bindparam("known", type_=BigInteger),
            t.c.position <= bindparam("to", type_=BigInteger),
        )
    )


@built_once
def set_state(tables: MessageBusTables) -> Update:
    """Put the partitions of :subscription that are :was into :becomes."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"), t.c.state == bindparam("was"))
        .values(state=bindparam("becomes"), revision=t.c.revision + DECISION)
    )


@built_once
def place(tables: MessageBusTables) -> Update:
    """Put every partition of :subscription at :to, in state :becomes.

    Whoever has a lease can commit nothing any more; nobody gets another one before its end (G3).
    """
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"))
        .values(
            position=bindparam("to"),
            state=bindparam("becomes"),
            revision=t.c.revision + DECISION,
            epoch=t.c.epoch + 1,
        )
    )


@built_once
def count_deliveries(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows :subscription has in the delivery table, by state."""
    t = tables.delivery
    return (
        select(t.c.state, func.count())
        .where(t.c.subscription == bindparam("subscription"))
        .group_by(t.c.state)
    )


@built_once
def remove_deliveries(tables: MessageBusTables) -> Delete:
    """Remove what is recorded about messages of :subscription: retries, dead letters and all."""
    t = tables.delivery
    return delete(t).where(t.c.subscription == bindparam("subscription"))


@built_once
def remove_subscription(tables: MessageBusTables) -> Delete:
    """Remove every partition of :subscription."""
    t = tables.subscription
    return delete(t).where(t.c.name == bindparam("subscription"))


@built_once
def note_epoch(tables: MessageBusTables) -> Update:
    """Remember :epoch, so that a subscription made later begins after it (S2)."""
    t = tables.log
    epoch = bindparam("epoch", type_=t.c.last_epoch.type)
    return (
        update(t)
        .where(t.c.log == tables.source_log)
        .values(last_epoch=case((t.c.last_epoch > epoch, t.c.last_epoch), else_=epoch))
    )


@built_once
def rename_subscription(tables: MessageBusTables) -> Update:
    """Call :subscription :new_name; whoever has a lease can commit nothing any more."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"))
        .values(
            name=bindparam("new_name"),
            revision=t.c.revision + DECISION,
            epoch=t.c.epoch + 1,
        )
    )


@built_once
def rename_deliveries(tables: MessageBusTables) -> Update:
    """Let what is recorded for :of_subscription be recorded for :new_name."""
    t = tables.delivery
    return (
        update(t)
        .where(t.c.subscription == bindparam("of_subscription"))
        .values(subscription=bindparam("new_name"))
    )


def between(tables: MessageBusTables, messages: Collection[str] | None) -> list[ColumnElement[bool]]:
    """What is ahead of a partition of :subscription, up to :to."""
    s, o = tables.subscription, tables.source
    conditions: list[ColumnElement[bool]] = [
        s.c.name == bindparam("subscription"),
        o.c.position > s.c.position,
        o.c.position <= bindparam("to", type_=o.c.position.type),
        partition_of(o, s.c.partitions) == s.c.partition,
    ]
    return conditions if messages is None else [*conditions, o.c.message.in_(messages)]


def count_between(
    tables: MessageBusTables, messages: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """How many messages the partitions of :subscription have not reached that others have: up to :to."""
    s, o = tables.subscription, tables.source
    return (
        select(func.count())
        .select_from(o.join(s, o.c.position > s.c.position))
        .where(*between(tables, messages))
    )


def hold_between(tables: MessageBusTables, messages: Collection[str] | None = None) -> Insert:
    """Record those messages as held: untried, to be tried in order before anything new of their key (S5)."""
    s, o, d = tables.subscription, tables.source, tables.delivery
    chosen = (
        select(s.c.name, o.c.position, o.c.key, o.c.key_hash, literal(HELD, Text))
        .select_from(o.join(s, o.c.position > s.c.position))
        .where(*between(tables, messages))
    )
    return insert(d).from_select(
        ["subscription", "position", "key", "key_hash", "state"], chosen, include_defaults=False
    )


@built_once
def add_partition(tables: MessageBusTables) -> Insert:
    """A partition that carries on where others have left off."""
    return insert(tables.subscription)
