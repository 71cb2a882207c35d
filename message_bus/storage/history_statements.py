"""One builder per operation on the history: SQL as values, the same on PostgreSQL and SQLite.

Rows are written behind the lock on the checkpoint rows (S3), in the transaction of what they tell, before its
compare-and-set: whoever has lost the lease writes none (G6). They are read by `why` only, and removed with the messages.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Delete,
    Float,
    Insert,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.history_table import REPARTITIONED, RESET
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.subscription_statements import between
from message_bus.storage.tables import BLOCKING, DEAD, MessageBusTables
from message_bus.storage.types import utc_after


@built_once
def remember(tables: MessageBusTables, *, held: bool = False, hold_dead: bool = False) -> Insert:
    """One row, or many at once, for what has just happened to messages.

    `held`: some of them are held; behind which message of :of_key is found out here, after it was recorded. `hold_dead`: a
    dead letter holds its key, too.
    """
    h = tables.history
    values = {
        "subscription": _given("of_subscription", h.c.subscription),
        "log": _given("of_log", h.c.log),
        "position": _given("at_position", h.c.position),
        "message_id": _given("of_message", h.c.message_id),
        "what": _given("happened", h.c.what),
        "attempt": _given("at_attempt", h.c.attempt),
        "error": _given("with_error", h.c.error),
        "decided_by": _given("by", h.c.decided_by),
    }
    if held:
        values["behind"] = _in_the_way(tables, hold_dead=hold_dead)
    return insert(h).values(values).inline()


def _given(name: str, column: Column[Any]) -> ColumnElement[Any]:
    return bindparam(name, type_=column.type)


def _in_the_way(tables: MessageBusTables, *, hold_dead: bool) -> ColumnElement[Any]:
    """The first message of :of_key before :at_position that the subscription is not done with; null without a key."""
    d = tables.delivery
    blocking = (*BLOCKING, DEAD) if hold_dead else BLOCKING
    return (
        select(d.c.position)
        .where(
            d.c.subscription == bindparam("of_subscription", type_=Text()),
            d.c.key == bindparam("of_key", type_=Text()),
            d.c.position < bindparam("at_position", type_=d.c.position.type),
            or_(*(d.c.state == state for state in blocking)),  # an IN would not go with many rows at once
        )
        .order_by(d.c.position)
        .limit(1)
        .scalar_subquery()
    )


@built_once
def remember_reset(tables: MessageBusTables) -> Insert:
    """What is recorded about messages of :of_subscription, which reads this log, is about to go: :by decided it."""
    d, o, h = tables.delivery, tables.source, tables.history
    recorded = (
        select(
            d.c.subscription,
            literal(tables.source_log, Text),
            d.c.position,
            o.c.id,
            literal(RESET, Text),
            _given("by", h.c.decided_by),
        )
        .select_from(d.outerjoin(o, o.c.position == d.c.position))
        .where(d.c.subscription == bindparam("of_subscription"))
    )
    return insert(h).from_select(_TOLD, recorded, include_defaults=False)


def remember_repartition(tables: MessageBusTables, messages: Any = None) -> Insert:
    """The messages that some partitions of :subscription have not reached, up to :to, are about to be held, by :by."""
    s, o, h = tables.subscription, tables.source, tables.history
    held = (
        select(
            s.c.name,
            literal(tables.source_log, Text),
            o.c.position,
            o.c.id,
            literal(REPARTITIONED, Text),
            _given("by", h.c.decided_by),
        )
        .select_from(o.join(s, o.c.position > s.c.position))
        .where(*between(tables, messages))
    )
    return insert(h).from_select(_TOLD, held, include_defaults=False)


_TOLD = ["subscription", "log", "position", "message_id", "what", "decided_by"]


@built_once
def rename_history(tables: MessageBusTables) -> Update:
    """What has happened in :of_subscription has happened in :new_name."""
    h = tables.history
    return (
        update(h)
        .where(h.c.subscription == bindparam("of_subscription"))
        .values(subscription=bindparam("new_name"))
    )


@built_once
def remove_history(tables: MessageBusTables) -> Delete:
    """Forget what has happened in :subscription."""
    h = tables.history
    return delete(h).where(h.c.subscription == bindparam("subscription"))


@built_once
def history_of(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """What has happened to the message :id, in the order in which it did; `behind_id` is null if that message is gone."""
    h = tables.history
    outbox, events = tables.outbox.alias("ahead"), tables.event.alias("ahead_event")
    is_outbox = h.c.log == OUTBOX_LOG
    return (
        select(
            h.c.subscription,
            h.c.log,
            h.c.position,
            h.c.what,
            h.c.attempt,
            h.c.behind,
            select(outbox.c.id)
            .where(is_outbox, outbox.c.position == h.c.behind)
            .scalar_subquery()
            .label("behind_id"),
            select(events.c.id)
            .where(~is_outbox, events.c.position == h.c.behind)
            .scalar_subquery()
            .label("behind_event"),
            h.c.error,
            h.c.decided_by,
            h.c.happened_at,
        )
        .where(h.c.message_id == bindparam("id"))
        .order_by(h.c.id)
    )


# --- retention ------------------------------------------------------------------------------------------------------


@built_once
def forget_pruned(tables: MessageBusTables) -> Delete:
    """Forget what has happened to the messages :ids of the outbox, which are about to go."""
    h = tables.history
    return delete(h).where(
        h.c.message_id.in_(bindparam("ids", expanding=True)), h.c.log == literal(OUTBOX_LOG, Text)
    )


@built_once
def forget_old(tables: MessageBusTables) -> Delete:
    """Forget the oldest :limit things that happened before :age seconds from now, and that retention leaves behind.

    Those are what has happened to events, which stay, and to messages of the outbox that are gone already. What is still
    retrying, held or dead keeps its history (G9).
    """
    h, d, o, log = tables.history.alias("old"), tables.delivery, tables.outbox, tables.log
    is_recorded = exists().where(d.c.subscription == h.c.subscription, d.c.position == h.c.position)
    pruned_to = select(log.c.pruned_to).where(log.c.log == OUTBOX_LOG).scalar_subquery()
    is_gone = and_(h.c.position <= pruned_to, ~exists().where(o.c.position == h.c.position))
    chosen = (
        select(h.c.id)
        .where(
            h.c.happened_at < utc_after(bindparam("age", type_=Float())),
            or_(h.c.log != OUTBOX_LOG, is_gone),
            ~is_recorded,
        )
        .order_by(h.c.happened_at)
        .limit(bindparam("limit"))
    )
    return delete(tables.history).where(tables.history.c.id.in_(chosen))
