"""One builder per operation of the delivery engine: SQL as values, the same on PostgreSQL and SQLite.

Builders take the tables and return a statement with named parameters; they run nothing and decide nothing.
All instants are the database's clock (S2). A statement that changes a subscription names the state it expects
(owner, epoch, position, revision): no row means that the lease is gone (S1, G6).
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Delete,
    Float,
    Insert,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from message_bus.storage.tables import ACTIVE, BLOCKING, DEAD, HELD, IDLE, RETRYING, TRYING, MessageBusTables
from message_bus.storage.types import utc_after, utc_now

PROGRESS: Final = 1
"""What a commit of progress adds to a checkpoint's revision."""
DECISION: Final = 2
"""What an operator's decision adds. So an odd difference says that a commit has happened, an even one that it has not."""

MESSAGE_COLUMNS = ("id", "type", "message", "version", "key", "key_hash", "payload", "meta", "headers")


def insert_or_ignore(dialect_name: str, table: Any) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that leaves a row that is already there alone."""
    if dialect_name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


# --- subscriptions and leases ---------------------------------------------------------------------------------


def partitions_of(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The partitions of the subscriptions :names with their state."""
    t = tables.subscription
    columns = (t.c.name, t.c.partition, t.c.partitions, t.c.state, t.c.position)
    return (
        select(*columns)
        .where(t.c.name.in_(bindparam("names", expanding=True)))
        .order_by(t.c.name, t.c.partition)
    )


def lock_log(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The bookkeeping row of log :log, locked: creating, rewinding and pruning are one at a time (S4)."""
    t = tables.log
    return select(t.c.pruned_to, t.c.last_epoch).where(t.c.log == bindparam("log")).with_for_update()


def try_lock_log(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The same, but no row if somebody else holds it."""
    t = tables.log
    return (
        select(t.c.pruned_to, t.c.last_epoch)
        .where(t.c.log == bindparam("log"))
        .with_for_update(skip_locked=True)
    )


def log_has_subscriptions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Whether log :log has any subscription."""
    t = tables.subscription
    return select(exists().where(t.c.log == bindparam("log")))


def position_before_time(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The last position before the first row created at or after :time, at most :settled."""
    t = tables.outbox
    first = select(func.min(t.c.position)).where(
        t.c.created_at >= bindparam("time", type_=t.c.created_at.type)
    )
    return select(func.coalesce(first.scalar_subquery() - 1, bindparam("settled", type_=t.c.position.type)))


def start_idle(tables: MessageBusTables) -> Update:
    """Activate the idle partitions of :subscription at :start."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("subscription"), t.c.state == IDLE)
        .values(state=ACTIVE, position=bindparam("start"), revision=t.c.revision + 1)
    )


def claimable(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Partition (:name, :partition) if nobody holds its row or its lease; the row is locked, never waited for.

    None for a worker that thinks of another number of partitions: it would read by the wrong hashes (S5).
    """
    t = tables.subscription
    return (
        select(t.c.position, t.c.epoch, t.c.revision, t.c.owner, utc_now().label("now"))
        .where(
            t.c.name == bindparam("name"),
            t.c.partition == bindparam("partition"),
            t.c.partitions == bindparam("partitions"),
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


def lock_mine(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """My partition's row, locked, if the lease is still mine; delivery rows are read after this (S3)."""
    t = tables.subscription
    return select(t.c.position, t.c.revision).where(*_mine(tables)).with_for_update()


def look_mine(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """My partition's row, if the lease is still mine: what did the last commit leave? (S1)"""
    t = tables.subscription
    return select(t.c.position, t.c.revision).where(*_mine(tables))


def advance(tables: MessageBusTables) -> Update:
    """Move the checkpoint :from -> :to as the last statement before COMMIT, and renew the lease (S1)."""
    t = tables.subscription
    return (
        update(t)
        .where(*_mine(tables), t.c.position == bindparam("from"), t.c.revision == bindparam("at_revision"))
        .values(
            position=bindparam("to"),
            revision=t.c.revision + PROGRESS,
            lease_until=_extended(t),
        )
    )


def advance_and_read(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    names: tuple[str, ...] | None = None,
    hold_dead: bool = False,
) -> Select[*tuple[Any, ...]]:
    """`advance`, and in the same round trip the next :limit rows up to :settled; PostgreSQL only.

    One row at least if the checkpoint moved, with nulls if there is nothing to read; none if the lease is gone.
    `failures`: whether the subscription has rows in the delivery table that are to be tried, or that block their key.
    `hidden`: whether row-level security hides rows of :log_table from whoever the transaction has become (W9).
    """
    s, d = tables.subscription, tables.delivery
    moved = advance(tables).returning(s.c.revision).cte("moved")
    rows = new_rows(tables, partitions=partitions, partition=partition, names=names).lateral("ahead")
    failures = exists().where(
        d.c.subscription == bindparam("subscription"),
        d.c.state.in_((*BLOCKING, DEAD) if hold_dead else BLOCKING),
    )
    return (
        select(
            *rows.c,
            failures.label("failures"),
            func.row_security_active(
                cast(func.to_regclass(bindparam("log_table", type_=Text())), postgresql.OID)
            ).label("hidden"),
        )
        .select_from(moved.outerjoin(rows, true()))
        .order_by(rows.c.position)
    )


def renew(tables: MessageBusTables) -> Update:
    """The heartbeat: the lease lasts :lease seconds from now."""
    t = tables.subscription
    return update(t).where(*_mine(tables)).values(lease_until=_extended(t))


def release(tables: MessageBusTables) -> Update:
    """Give the lease back, with no batch in hand (S6)."""
    return update(tables.subscription).where(*_mine(tables)).values(owner=None, lease_until=None)


# --- reading ----------------------------------------------------------------------------------------------------


def _in_partition(table: Any, partitions: int, partition: int) -> list[ColumnElement[bool]]:
    if partitions == 1:
        return []
    return [func.coalesce(table.c.key_hash, table.c.position) % partitions == partition]


def _row_columns(
    tables: MessageBusTables, *, whole: ColumnElement[bool] | None = None, light: bool = False
) -> list[ColumnElement[Any]]:
    """The columns of a message; without what users have put into it if `light`, or where it is not to be `whole`."""
    t = tables.outbox
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


def row_at(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The whole message at :position."""
    t = tables.outbox
    return select(*_row_columns(tables)).where(t.c.position == bindparam("position"))


def new_rows(
    tables: MessageBusTables,
    *,
    partitions: int = 1,
    partition: int = 0,
    names: tuple[str, ...] | None = None,
    light: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The next :limit rows after :after, up to :settled, in position order; `light`: without their payload (S6)."""
    t = tables.outbox
    statement = select(*_row_columns(tables, light=light)).where(
        t.c.position > bindparam("after", type_=t.c.position.type),
        t.c.position <= bindparam("settled", type_=t.c.position.type),
        *_in_partition(t, partitions, partition),
    )
    if names is not None:
        statement = statement.where(t.c.message.in_(names))
    return statement.order_by(t.c.position).limit(bindparam("limit"))


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
    d, o = tables.delivery, tables.outbox
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


def leftovers(
    tables: MessageBusTables, *, partitions: int = 1, partition: int = 0
) -> Select[*tuple[Any, ...]]:
    """What a new owner looks at first: rows that somebody was trying, and dead letters of unknown types (S6, G7)."""
    d, o = tables.delivery, tables.outbox
    return (
        select(d.c.position, d.c.key, d.c.state, d.c.attempts, d.c.crashes, o.c.message)
        .select_from(d)
        .outerjoin(o, o.c.position == d.c.position)
        .where(
            d.c.subscription == bindparam("subscription"),
            or_(
                d.c.state == TRYING,
                and_(d.c.state == DEAD, d.c.error.like("UnknownMessageType:%"), o.c.position.is_not(None)),
            ),
            *_in_partition(d, partitions, partition),
        )
        .order_by(d.c.position)
    )


def failed_counts(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows :subscription has in each state."""
    t = tables.delivery
    return (
        select(t.c.state, func.count())
        .where(t.c.subscription == bindparam("subscription"))
        .group_by(t.c.state)
    )


def count_after(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """How many rows are visible after :settled."""
    t = tables.outbox
    return select(func.count()).select_from(t).where(t.c.position > bindparam("settled"))


# --- what became of a message -----------------------------------------------------------------------------------


def record_new_failure(tables: MessageBusTables) -> Insert:
    """A row for a message that failed at its first attempt; :delay seconds from now (null: dead)."""
    return insert(tables.delivery).values(
        subscription=bindparam("subscription"),
        position=bindparam("position"),
        key=bindparam("key"),
        key_hash=bindparam("key_hash"),
        state=bindparam("state"),
        attempts=bindparam("attempts"),
        next_attempt_at=utc_after(bindparam("delay", type_=Float())),
        error=bindparam("error"),
        traceback=bindparam("traceback"),
    )


def record_failure(tables: MessageBusTables) -> Update:
    """The same for a message that was in the delivery table already."""
    t = tables.delivery
    return (
        update(t)
        .where(*_this_row(tables))
        .values(
            state=bindparam("new_state"),
            attempts=bindparam("new_attempts"),
            next_attempt_at=utc_after(bindparam("delay", type_=Float())),
            error=bindparam("new_error"),
            traceback=bindparam("new_traceback"),
            updated_at=utc_now(),
        )
    )


def _this_row(tables: MessageBusTables) -> list[ColumnElement[bool]]:
    t = tables.delivery
    return [
        t.c.subscription == bindparam("of_subscription"),
        t.c.position == bindparam("at_position"),
        t.c.state == bindparam("was"),
    ]


def hold(tables: MessageBusTables) -> Insert:
    """Rows for messages whose key is blocked: untried."""
    return insert(tables.delivery)


def set_state(tables: MessageBusTables) -> Update:
    """Record an attempt before it is made (:new_state is trying), or take it back (S6)."""
    t = tables.delivery
    return update(t).where(*_this_row(tables)).values(state=bindparam("new_state"), updated_at=utc_now())


def record_crash(tables: MessageBusTables) -> Update:
    """A worker has died with this message alone in hand, for the :new_crashes-th time."""
    t = tables.delivery
    return (
        update(t)
        .where(*_this_row(tables))
        .values(
            state=bindparam("new_state"),
            crashes=bindparam("new_crashes"),
            next_attempt_at=utc_after(bindparam("delay", type_=Float())),
            error=bindparam("new_error"),
            traceback=None,
            updated_at=utc_now(),
        )
    )


def forget(tables: MessageBusTables) -> Delete:
    """Take a message that was retrying or held out of the delivery table: it was handled."""
    return delete(tables.delivery).where(*_this_row(tables))


# --- delayed messages ---------------------------------------------------------------------------------------------


def due_ids(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit delayed messages that are due."""
    t = tables.schedule
    return (
        select(t.c.id).where(t.c.due_at <= utc_now()).order_by(t.c.due_at, t.c.id).limit(bindparam("limit"))
    )


def promote(dialect_name: str, tables: MessageBusTables) -> Insert:
    """Copy the delayed messages :ids into the outbox, in the order in which they became due (S9).

    One whose id is in the outbox already is the same message: it is left out.
    """
    t = tables.schedule
    columns = [t.c[name] for name in MESSAGE_COLUMNS]
    chosen = select(*columns).where(t.c.id.in_(bindparam("ids", expanding=True))).order_by(t.c.due_at, t.c.id)
    copied = insert_or_ignore(dialect_name, tables.outbox)
    return copied.from_select(list(MESSAGE_COLUMNS), chosen, include_defaults=False)


def unschedule(tables: MessageBusTables) -> Delete:
    """Remove the delayed messages :ids."""
    t = tables.schedule
    return delete(t).where(t.c.id.in_(bindparam("ids", expanding=True)))


# --- retention ------------------------------------------------------------------------------------------------------


def passed_by_all(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The position that every subscription of :log has passed; null if there is none."""
    t = tables.subscription
    return select(func.min(t.c.position)).where(t.c.log == bindparam("log"))


def oldest_rows(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The next :limit rows after :after, up to :passed: is each `old` (before :age seconds from now), is it `kept`?

    `kept` is a row that is retrying, held or dead somewhere (G9). A window, not a filter: a log full of young rows
    is looked at once, not scanned to its end.
    """
    t, d = tables.outbox, tables.delivery
    return (
        select(
            t.c.position,
            (t.c.created_at < utc_after(bindparam("age", type_=Float()))).label("old"),
            exists().where(d.c.position == t.c.position).label("kept"),
        )
        .where(t.c.position > bindparam("after"), t.c.position <= bindparam("passed"))
        .order_by(t.c.position)
        .limit(bindparam("limit"))
    )


def prune(tables: MessageBusTables) -> Delete:
    """Remove the rows at :positions."""
    t = tables.outbox
    return delete(t).where(t.c.position.in_(bindparam("positions", expanding=True)))


def note_pruned(tables: MessageBusTables) -> Update:
    """Remember how far log :of_log was pruned; a dead letter that was kept, and goes later, takes nothing back (S4)."""
    t = tables.log
    to = bindparam("to", type_=t.c.pruned_to.type)
    return (
        update(t)
        .where(t.c.log == bindparam("of_log"))
        .values(pruned_to=case((t.c.pruned_to > to, t.c.pruned_to), else_=to))
    )
