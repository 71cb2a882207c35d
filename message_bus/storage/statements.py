"""One builder per operation of the delivery engine: SQL as values, the same on PostgreSQL and SQLite.

Builders take the tables and return a statement with named parameters; they run nothing and decide nothing. Messages come
from `tables.source`, that of the log which `tables` were made for (`tables.of_log`).
All instants are the database's clock (S2). A statement that changes a subscription names the state it expects
(owner, epoch, position, revision): no row means that the lease is gone (S1, G6).
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from message_bus.storage.building import built_once
from message_bus.storage.tables import ACTIVE, BLOCKING, DEAD, HELD, RETRYING, TRYING, MessageBusTables
from message_bus.storage.types import utc_after, utc_now

PROGRESS: Final = 1
"""What a commit of progress adds to a checkpoint's revision."""
DECISION: Final = 2
"""What an operator's decision adds. So an odd difference says that a commit has happened, an even one that it has not."""


def insert_or_ignore(dialect_name: str, table: Any) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that leaves a row that is already there alone."""
    if dialect_name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


# --- subscriptions and leases ---------------------------------------------------------------------------------


@built_once
def partitions_of(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The partitions of the subscriptions :names with their state."""
    t = tables.subscription
    columns = (t.c.name, t.c.partition, t.c.partitions, t.c.log, t.c.state, t.c.position)
    return (
        select(*columns)
        .where(t.c.name.in_(bindparam("names", expanding=True)))
        .order_by(t.c.name, t.c.partition)
    )


@built_once
def lock_log(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The bookkeeping row of log :log, locked: creating, rewinding and pruning are one at a time (S4)."""
    t = tables.log
    return select(t.c.pruned_to, t.c.last_epoch).where(t.c.log == bindparam("log")).with_for_update()


@built_once
def try_lock_log(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The same, but no row if somebody else holds it."""
    t = tables.log
    return (
        select(t.c.pruned_to, t.c.last_epoch)
        .where(t.c.log == bindparam("log"))
        .with_for_update(skip_locked=True)
    )


@built_once
def log_has_subscriptions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Whether log :log has any subscription."""
    t = tables.subscription
    return select(exists().where(t.c.log == bindparam("log")))


def _guard(guarded: bool) -> list[ColumnElement[Any]]:
    """Let the server end this transaction when its worker is silent for :idle milliseconds, so that one which hangs
    does not hold the row for ever (S7). Nobody else's code runs between this statement and the commit. PostgreSQL only.
    """
    if not guarded:
        return []
    limit = bindparam("idle", type_=Text())
    return [func.set_config("idle_in_transaction_session_timeout", limit, true()).label("guard")]


@built_once
def claimable(tables: MessageBusTables, *, guarded: bool = False) -> Select[*tuple[Any, ...]]:
    """Partition (:name, :partition) if nobody holds its row or its lease; the row is locked, never waited for.

    None for a worker that thinks of another number of partitions: it would read by the wrong hashes (S5).
    """
    t = tables.subscription
    return (
        select(
            t.c.position,
            t.c.epoch,
            t.c.revision,
            t.c.owner,
            utc_now().label("now"),
            *_guard(guarded),
        )
        .where(
            t.c.name == bindparam("name"),
            t.c.partition == bindparam("partition"),
            t.c.partitions == bindparam("partitions"),
            t.c.log == tables.source_log,
            t.c.state == ACTIVE,
            or_(t.c.owner.is_(None), t.c.lease_until < utc_now()),
        )
        .with_for_update(skip_locked=True)
    )


def _mine(tables: MessageBusTables) -> list[ColumnElement[bool]]:
    t = tables.subscription
    return [
        t.c.name == bindparam("subscription"),
        t.c.partition == bindparam("part"),
        t.c.epoch == bindparam("my_epoch"),
        t.c.owner == bindparam("me"),
    ]


def _extended(subscription: Any) -> ColumnElement[Any]:
    """:lease seconds from now, but never sooner than before: the server's clock may step back (S2)."""
    wanted = utc_after(bindparam("lease", type_=Float()))
    return case((subscription.c.lease_until > wanted, subscription.c.lease_until), else_=wanted)


@built_once
def acquire(tables: MessageBusTables) -> Update:
    """Take the lease of a claimable partition: a new owner token, the next epoch (S2)."""
    t = tables.subscription
    return (
        update(t)
        .where(
            t.c.name == bindparam("subscription"),
            t.c.partition == bindparam("part"),
            t.c.epoch == bindparam("old_epoch"),
        )
        .values(
            owner=bindparam("me"),
            epoch=t.c.epoch + 1,
            lease_until=utc_after(bindparam("lease", type_=Float())),
            seen_at=utc_now(),
        )
    )


@built_once
def lock_mine(tables: MessageBusTables, *, guarded: bool = False) -> Select[*tuple[Any, ...]]:
    """My partition's row, locked, if the lease is still mine; delivery rows are read after this (S3)."""
    t = tables.subscription
    columns = (t.c.position, t.c.revision, t.c.state, *_guard(guarded))
    return select(*columns).where(*_mine(tables)).with_for_update()


@built_once
def look_mine(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """My partition's row, if the lease is still mine: what did the last commit leave? (S1)"""
    t = tables.subscription
    return select(t.c.position, t.c.revision, t.c.state).where(*_mine(tables))


@built_once
def advance(tables: MessageBusTables, *, guarded: bool = False) -> Update:
    """Move the checkpoint :from -> :to as the last statement before COMMIT, and renew the lease (S1).

    `guarded`: comes back with a row.
    """
    t = tables.subscription
    moved = (
        update(t)
        .where(*_mine(tables), t.c.position == bindparam("from"), t.c.revision == bindparam("at_revision"))
        .values(
            position=bindparam("to"),
            revision=t.c.revision + PROGRESS,
            lease_until=_extended(t),
        )
    )
    return moved.returning(*_guard(guarded)) if guarded else moved


@built_once
def advance_and_read(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    names: tuple[str, ...] | None = None,
    hold_dead: bool = False,
    guarded: bool = False,
) -> Select[*tuple[Any, ...]]:
    """`advance`, and in the same round trip the next :limit rows up to :settled; PostgreSQL only.

    One row at least if the checkpoint moved, with nulls if there is nothing to read; none if the lease is gone.
    `failures`: whether the subscription has rows in the delivery table that are to be tried, or that block their key.
    `hidden`: whether row-level security hides rows of :log_table from whoever the transaction has become (W9).
    """
    s = tables.subscription
    moved = advance(tables).returning(s.c.revision, *_guard(guarded)).cte("moved")
    rows = new_rows(tables, partitions=partitions, partition=partition, names=names).lateral("ahead")
    log_table = cast(func.to_regclass(bindparam("log_table", type_=Text())), postgresql.OID)
    hidden = select(func.row_security_active(log_table)).scalar_subquery()  # asked once, not for each row
    return (
        select(
            *rows.c,
            _failures(tables, hold_dead).label("failures"),
            hidden.label("hidden"),
            *([moved.c.guard] if guarded else []),
        )
        .select_from(moved.outerjoin(rows, true()))
        .order_by(rows.c.position)
    )


@built_once
def failures_ahead(tables: MessageBusTables, *, hold_dead: bool = False) -> Select[*tuple[Any, ...]]:
    """Whether :subscription has rows that are to be tried, or that block their key; when the next is due, and what time it is."""
    d = tables.delivery
    next_due = select(func.min(d.c.next_attempt_at)).where(
        d.c.subscription == bindparam("subscription"), d.c.state == RETRYING
    )
    return select(
        _failures(tables, hold_dead).label("there"),
        next_due.scalar_subquery().label("next_due"),
        utc_now().label("now"),
    )


def _failures(tables: MessageBusTables, hold_dead: bool) -> ColumnElement[bool]:
    d = tables.delivery
    states = (*BLOCKING, DEAD) if hold_dead else BLOCKING
    is_one = or_(*(d.c.state == literal_column(f"'{state}'") for state in states))
    return exists().where(d.c.subscription == bindparam("subscription"), is_one)


@built_once
def renew(tables: MessageBusTables, *, guarded: bool = False) -> Update:
    """The heartbeat: the lease lasts :lease seconds from now. It comes back with the state that operators have set."""
    t = tables.subscription
    return (
        update(t)
        .where(*_mine(tables))
        .values(lease_until=_extended(t), seen_at=utc_now())
        .returning(t.c.state, *_guard(guarded))
    )


@built_once
def release(tables: MessageBusTables) -> Update:
    """Give the lease back, with no batch in hand (S6)."""
    return update(tables.subscription).where(*_mine(tables)).values(owner=None, lease_until=None)


@built_once
def hand_on(tables: MessageBusTables) -> Update:
    """End the lease now, but not as if all were well: the next owner takes it over, and goes on carefully (S6)."""
    return update(tables.subscription).where(*_mine(tables)).values(lease_until=utc_now())


# --- reading ----------------------------------------------------------------------------------------------------


def _in_partition(table: Any, partitions: int, partition: int) -> list[ColumnElement[bool]]:
    if partitions == 1:
        return []
    return [func.coalesce(table.c.key_hash, table.c.position) % partitions == partition]


def _row_columns(
    tables: MessageBusTables, *, whole: ColumnElement[bool] | None = None, light: bool = False
) -> list[ColumnElement[Any]]:
    """The columns of a message; without what users have put into it if `light`, or where it is not to be `whole`."""
    t = tables.source
    plain = ("position", "id", "type", "message", "version", "key")

    def text_of(name: str) -> ColumnElement[Any]:
        if light:
            return cast(null(), Text).label(name)
        text = cast(t.c[name], Text)
        return (text if whole is None else case((whole, text))).label(name)

    return [
        *(t.c[name] for name in plain),
        text_of("meta"),
        text_of("headers"),
        t.c.created_at,
        text_of("payload"),
    ]


def now() -> Select[*tuple[Any, ...]]:
    """The database's clock."""
    return select(utc_now())


@built_once
def row_at(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The whole message at :position."""
    t = tables.source
    return select(*_row_columns(tables)).where(t.c.position == bindparam("position"))


@built_once
def new_rows(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    names: tuple[str, ...] | None = None,
    light: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The next :limit rows after :after, up to :settled, in position order; `light`: without their payload (S6)."""
    t = tables.source
    statement = select(*_row_columns(tables, light=light)).where(
        t.c.position > bindparam("after", type_=t.c.position.type),
        t.c.position <= bindparam("settled", type_=t.c.position.type),
        *_in_partition(t, partitions, partition),
    )
    if names is not None:
        statement = statement.where(or_(*(t.c.message == name for name in names)))
    return statement.order_by(t.c.position).limit(bindparam("limit"))


@built_once
def blocked_keys(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Which of :keys have a row that blocks them in :subscription (S3)."""
    t = tables.delivery
    return (
        select(t.c.key)
        .distinct()
        .where(
            t.c.subscription == bindparam("subscription"),
            t.c.key.in_(bindparam("keys", expanding=True)),
            t.c.state.in_(bindparam("blocking", expanding=True)),
        )
    )


@built_once
def due_rows(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    hold_dead: bool = False,
    light: bool = False,
) -> Select[*tuple[Any, ...]]:
    """Rows to be tried now, in position order: those that are due at :now or held, and not behind one that is stuck.

    A key's rows come one after another: when one of them fails again, the caller leaves out the rest. (One head of a key
    at a time would read all that is held anew for each message that is released.) `light`: without their payload; one that
    has killed a worker always comes without (S6).
    """
    d, o = tables.delivery, tables.source
    now = bindparam("now", type_=d.c.next_attempt_at.type)
    mine = d.c.subscription == bindparam("subscription")
    stuck = (
        select(d.c.key, func.min(d.c.position).label("position"))
        .where(
            mine,
            d.c.key.is_not(None),
            or_(
                d.c.state.in_((TRYING, DEAD) if hold_dead else (TRYING,)),
                and_(d.c.state == RETRYING, d.c.next_attempt_at >= now),
            ),
        )
        .group_by(d.c.key)
        .subquery("stuck")
    )
    return (
        select(
            *_row_columns(tables, whole=d.c.crashes == 0, light=light), d.c.state, d.c.attempts, d.c.crashes
        )
        .select_from(d)
        .join(o, o.c.position == d.c.position)
        .outerjoin(stuck, stuck.c.key == d.c.key)
        .where(
            mine,
            or_(
                d.c.state == HELD,
                and_(
                    d.c.state == RETRYING,
                    # not <=: on SQLite's clock of milliseconds a failure could be due in the run that recorded it;
                    # null: a dead letter that was set back by hand
                    or_(d.c.next_attempt_at.is_(None), d.c.next_attempt_at < now),
                ),
            ),
            or_(stuck.c.position.is_(None), d.c.position < stuck.c.position),
            *_in_partition(d, partitions, partition),
        )
        .order_by(d.c.position)
        .limit(bindparam("limit"))
    )


@built_once
def leftovers(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    names: tuple[str, ...] | None = None,
) -> Select[*tuple[Any, ...]]:
    """What a new owner looks at first: rows that somebody was trying, and dead letters of unknown types (S6, G7).

    Also what is to be tried but is none of `names`, the types that the subscription reads.
    """
    d, o = tables.delivery, tables.source
    unwanted = [] if names is None else [and_(d.c.state.in_((RETRYING, HELD)), o.c.message.not_in(names))]
    return (
        select(d.c.position, d.c.key, d.c.state, d.c.attempts, d.c.crashes, o.c.message, o.c.id)
        .select_from(d)
        .outerjoin(o, o.c.position == d.c.position)
        .where(
            d.c.subscription == bindparam("subscription"),
            or_(
                d.c.state == TRYING,
                and_(d.c.state == DEAD, d.c.error.like("UnknownMessageType:%"), o.c.position.is_not(None)),
                *unwanted,
            ),
            *_in_partition(d, partitions, partition),
        )
        .order_by(d.c.position)
    )


@built_once
def failed_counts(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows :subscription has in each state."""
    t = tables.delivery
    return (
        select(t.c.state, func.count())
        .where(t.c.subscription == bindparam("subscription"))
        .group_by(t.c.state)
    )


@built_once
def count_after(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows are visible after :settled."""
    t = tables.source
    return select(func.count()).select_from(t).where(t.c.position > bindparam("settled"))
