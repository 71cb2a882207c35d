"""One builder per operation on dead letters: SQL as values, the same on PostgreSQL and SQLite.

Whoever changes delivery rows first locks the checkpoint rows, and reads what it changes in a later statement (S3). A
letter can outlive its message (somebody deleted the row) and its subscription (dropped): both are outer joins.

A letter's position is one of its subscription's log: builders find those of the log that their tables are made for
(`tables.of_log`). One whose subscription is gone is taken to be of the outbox.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Delete,
    Float,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.statements import DECISION
from message_bus.storage.tables import DEAD, RETRYING, MessageBusTables
from message_bus.storage.types import utc_after, utc_now
from message_bus.storage.views import is_about, partition_of


class Selected(Protocol):
    """What the statements need of a selection (`message_bus.admin.letters.Selection` is one); None means any."""

    @property
    def subscription(self) -> str | None:
        """Whose letters."""

    @property
    def ids(self) -> Collection[Any] | None:
        """Ids of messages."""

    @property
    def message(self) -> str | None:
        """A type's name."""

    @property
    def error(self) -> str | None:
        """Text that the error contains, in whatever case."""

    @property
    def since(self) -> datetime | None:
        """Died at this moment or later."""

    @property
    def until(self) -> datetime | None:
        """Died before this moment."""


def _chosen(
    tables: MessageBusTables, selected: Selected, states: Collection[str] = (DEAD,)
) -> list[ColumnElement[bool]]:
    d, o = tables.delivery, tables.source
    conditions = [d.c.state.in_(states), is_about(tables.source_log, d, tables.subscription)]
    if selected.subscription is not None:
        conditions.append(d.c.subscription == selected.subscription)
    if selected.ids is not None:
        conditions.append(o.c.id.in_(selected.ids))
    if selected.message is not None:
        conditions.append(o.c.message == selected.message)
    if selected.error is not None:
        conditions.append(d.c.error.icontains(selected.error, autoescape=True))
    if selected.since is not None:
        conditions.append(d.c.updated_at >= selected.since)
    if selected.until is not None:
        conditions.append(d.c.updated_at < selected.until)
    return conditions


def letters(
    tables: MessageBusTables,
    selected: Selected,
    *,
    payload: bool = False,
    states: Collection[str] = (DEAD,),
    after: tuple[int, str] | None = None,
    limit: int | None = None,
) -> Select[*tuple[Any, ...]]:
    """The first `limit` dead letters behind `after` (position, subscription), in position order; or others, by `states`."""
    d, o = tables.delivery, tables.source
    columns: list[ColumnElement[Any]] = [
        d.c.subscription,
        d.c.position,
        literal(tables.source_log, Text).label("log"),
        o.c.id,
        o.c.type,
        o.c.message,
        d.c.key,
        d.c.attempts,
        d.c.error,
        d.c.traceback,
        d.c.updated_at.label("failed_at"),
        o.c.created_at,
        d.c.state,
        case((d.c.state == RETRYING, d.c.next_attempt_at)).label("next_attempt_at"),
    ]
    if payload:
        columns += [cast(o.c[name], Text).label(name) for name in ("payload", "meta")]
    conditions = _chosen(tables, selected, states)
    if after is not None:
        position, subscription = after
        conditions.append(
            or_(
                d.c.position > position,
                and_(d.c.position == position, d.c.subscription > subscription),
            )
        )
    return (
        select(*columns)
        .select_from(d)
        .outerjoin(o, o.c.position == d.c.position)
        .where(*conditions)
        .order_by(d.c.position, d.c.subscription)
        .limit(limit)
    )


def count_letters(
    tables: MessageBusTables, selected: Selected, states: Collection[str] = (DEAD,)
) -> Select[*tuple[Any, ...]]:
    """How many dead letters (or messages in other `states`) are meant."""
    d, o = tables.delivery, tables.source
    joined = select(func.count()).select_from(d).outerjoin(o, o.c.position == d.c.position)
    return joined.where(*_chosen(tables, selected, states))


def subscriptions_of_letters(tables: MessageBusTables, selected: Selected) -> Select[*tuple[Any, ...]]:
    """The names of the subscriptions that have such dead letters."""
    d, o = tables.delivery, tables.source
    joined = select(d.c.subscription).distinct().select_from(d).outerjoin(o, o.c.position == d.c.position)
    return joined.where(*_chosen(tables, selected)).order_by(d.c.subscription)


@built_once
def lock_subscriptions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The checkpoint rows of the subscriptions :names, locked, in one order for everybody (S3)."""
    t = tables.subscription
    return (
        select(t.c.name, t.c.partition)
        .where(t.c.name.in_(bindparam("names", expanding=True)))
        .order_by(t.c.name, t.c.partition)
        .with_for_update()
    )


def letters_to_decide(
    tables: MessageBusTables,
    selected: Selected,
    *,
    names: Sequence[str],
    triable: bool | None = None,
    between: tuple[int, int] | None = None,
    limit: int | None = None,
) -> Select[*tuple[Any, ...]]:
    """Dead letters of the subscriptions `names`, which are locked, with the partition that each belongs to.

    `triable`: only those whose message and subscription are still there, or only the others.
    """
    d, o, s = tables.delivery, tables.source, tables.subscription
    conditions = [*_chosen(tables, selected), d.c.subscription.in_(names)]
    if triable is not None:
        is_triable = and_(o.c.position.is_not(None), s.c.name.is_not(None))
        conditions.append(is_triable if triable else not_(is_triable))
    if between is not None:
        conditions.append(d.c.position.between(*between))
    return (
        select(
            d.c.subscription,
            d.c.position,
            literal(tables.source_log, Text).label("log"),
            o.c.id,
            o.c.message,
            d.c.key,
            d.c.updated_at.label("failed_at"),
            s.c.partition,
        )
        .select_from(d)
        .outerjoin(o, o.c.position == d.c.position)
        .outerjoin(
            s,
            and_(s.c.name == d.c.subscription, s.c.partition == partition_of(d, s.c.partitions)),
        )
        .where(*conditions)
        .order_by(d.c.position, d.c.subscription)
        .limit(limit)
    )


def _this_letter(tables: MessageBusTables) -> list[ColumnElement[bool]]:
    d = tables.delivery
    return [
        d.c.subscription == bindparam("of_subscription"),
        d.c.position == bindparam("at_position"),
        d.c.state == DEAD,
    ]


@built_once
def replay_letter(tables: MessageBusTables) -> Update:
    """Let a dead letter be tried anew, :delay seconds from now (null: at once), with all its attempts."""
    delay = bindparam("delay", type_=Float())
    return (
        update(tables.delivery)
        .where(*_this_letter(tables))
        .values(
            state=RETRYING,
            attempts=0,
            crashes=0,
            next_attempt_at=utc_after(delay),
            updated_at=utc_now(),
        )
    )


@built_once
def discard_letter(tables: MessageBusTables) -> Delete:
    """Take a dead letter out of the delivery table: given up for good, it holds back neither its key nor retention."""
    return delete(tables.delivery).where(*_this_letter(tables))


@built_once
def note_decision(tables: MessageBusTables) -> Update:
    """Tell the worker of partition (:of_subscription, :part) that what it has read about its keys is out of date."""
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("of_subscription"), t.c.partition == bindparam("part"))
        .values(revision=t.c.revision + DECISION)
    )
