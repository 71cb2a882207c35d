"""One builder per operation on projections and their bookkeeping: SQL as values. Texts where only one database has it.

`projection` says which generation of the tables is live; the place in the log is in `subscription`, under the name that
stands there. Builders run nothing and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Delete,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)

from message_bus.storage.building import built_once
from message_bus.storage.event_tables import BUILDING, LIVE, RETIRED
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.statements import DECISION
from message_bus.storage.tables import ACTIVE, BLOCKING, DEAD, IDLE, MessageBusTables
from message_bus.storage.types import utc_now


@built_once
def live(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The live generation of :name."""
    t = tables.projection
    return select(t.c.generation, t.c.version, t.c.subscription).where(
        t.c.name == bindparam("name"), t.c.state == literal_column(f"'{LIVE}'")
    )


@built_once
def generations(tables: MessageBusTables, *, locked: bool = False) -> Select[*tuple[Any, ...]]:
    """Every generation of :name, the oldest first; locked, in this order, by whoever is about to change them."""
    t = tables.projection
    found = select(t).where(t.c.name == bindparam("name")).order_by(t.c.generation)
    return found.with_for_update() if locked else found


@built_once
def retire(tables: MessageBusTables) -> Update:
    """The live generation of :of_projection is retired; its tables are called :names now."""
    t = tables.projection
    return (
        update(t)
        .where(t.c.name == bindparam("of_projection"), t.c.state == LIVE)
        .values(state=RETIRED, tables=bindparam("names", type_=JSON))
    )


@built_once
def make_live(tables: MessageBusTables) -> Update:
    """:at_generation of :of_projection is live; its tables are called :names now, and :filled_by fills them."""
    t = tables.projection
    return (
        update(t)
        .where(
            t.c.name == bindparam("of_projection"),
            t.c.generation == bindparam("at_generation"),
            t.c.state == BUILDING,
        )
        .values(
            state=LIVE,
            tables=bindparam("names", type_=JSON),
            subscription=bindparam("filled_by"),
            swapped_at=utc_now(),
        )
    )


@built_once
def forget_generation(tables: MessageBusTables) -> Delete:
    """Remove :at_generation of :of_projection from the bookkeeping, unless it is live."""
    t = tables.projection
    return delete(t).where(
        t.c.name == bindparam("of_projection"),
        t.c.generation == bindparam("at_generation"),
        t.c.state != LIVE,
    )


@built_once
def take_over(tables: MessageBusTables) -> Update:
    """Put :of_subscription at :to; one that was idle knows its place now.

    Whoever has the lease can commit nothing any more, and somebody else may claim at once: what a projection does is in its
    transaction, so nobody has to wait for the end of what is rolled back anyway (G6).
    """
    t = tables.subscription
    return (
        update(t)
        .where(t.c.name == bindparam("of_subscription"))
        .values(
            position=bindparam("to", type_=t.c.position.type),
            revision=t.c.revision + DECISION,
            epoch=t.c.epoch + 1,
            owner=None,
            lease_until=None,
            state=case((t.c.state == IDLE, ACTIVE), else_=t.c.state),
        )
    )


@built_once
def position_of(tables: MessageBusTables, *, locked: bool = False) -> Select[*tuple[Any, ...]]:
    """Where subscription :name stands; `leased`: does somebody work on it now?"""
    t = tables.subscription
    leased = and_(t.c.owner.is_not(None), t.c.lease_until >= utc_now())
    found = select(t.c.position, t.c.epoch, t.c.state, t.c.log, leased.label("leased")).where(
        t.c.name == bindparam("name")
    )
    return found.with_for_update() if locked else found


def behind(tables: MessageBusTables, names: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """How many messages of these types lie after :position, and since when the oldest of them."""
    t = tables.source
    return select(
        func.count().label("messages"), func.min(t.c.created_at).label("oldest"), utc_now().label("now")
    ).where(t.c.position > bindparam("position", type_=t.c.position.type), t.c.message.in_(names))


@built_once
def reached(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Where subscription :name stands, and whether something up to :position waits for another attempt or is dead.

    A dead letter further back is passed: only the one at :position itself will never arrive.
    """
    s, d = tables.subscription, tables.delivery
    position = bindparam("position", type_=d.c.position.type)
    missing = exists().where(
        d.c.subscription == s.c.name,
        or_(
            and_(d.c.position <= position, d.c.state.in_(BLOCKING)),
            and_(d.c.position == position, d.c.state == DEAD),
        ),
    )
    return select(s.c.position, s.c.state, missing.label("missing")).where(s.c.name == bindparam("name"))


def visible_after(
    tables: MessageBusTables, names: Sequence[str], *, bounded: bool
) -> Select[*tuple[Any, ...]]:
    """The first :limit messages of these types after :after (and up to :to, if `bounded`): what the engine reads as well."""
    t = tables.source
    columns = [
        *(t.c[name] for name in ("position", "id", "type", "message", "version", "key")),
        cast(t.c.meta, Text).label("meta"),
        cast(t.c.headers, Text).label("headers"),
        t.c.created_at,
        cast(t.c.payload, Text).label("payload"),
    ]
    found = select(*columns).where(
        t.c.position > bindparam("after", type_=t.c.position.type), t.c.message.in_(names)
    )
    if bounded:
        found = found.where(t.c.position <= bindparam("to", type_=t.c.position.type))
    return found.order_by(t.c.position).limit(bindparam("limit"))


@built_once
def failed_positions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """What is recorded for :subscription: position and state."""
    d = tables.delivery
    return (
        select(d.c.position, d.c.state)
        .where(d.c.subscription == bindparam("subscription"))
        .order_by(d.c.position)
    )


@built_once
def overview(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Every generation of every projection, with its place in its log; none if it is inline or retired."""
    p, s, e, o = tables.projection, tables.subscription, tables.event, tables.outbox

    def after(table: Table) -> Any:
        return (
            select(func.count())
            .select_from(table)
            .where(table.c.position > s.c.position)
            .correlate(s)
            .scalar_subquery()
        )

    lag = case(
        (s.c.name.is_(None), null()),
        (s.c.log == EVENT_LOG, after(e)),
        else_=after(o),
    )
    return (
        select(p, s.c.position, s.c.state.label("subscription_state"), lag.label("lag"))
        .select_from(p.outerjoin(s, and_(s.c.name == p.c.subscription, p.c.state != RETIRED)))
        .order_by(p.c.name, p.c.generation)
    )


def difference(one: Table, other: Table, columns: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """How many different rows of `one` are not in `other`. JSON, which PostgreSQL cannot compare, is compared as text."""

    def rows(table: Table) -> Select[*tuple[Any, ...]]:
        chosen = (table.c[name] for name in columns)
        return select(*(cast(each, Text) if isinstance(each.type, JSON) else each for each in chosen))

    return select(func.count()).select_from(rows(one).except_(rows(other)).subquery("missing"))


# --- PostgreSQL's catalog -----------------------------------------------------------------------------------------

HANGING_ON: Final = text("""
SELECT DISTINCT CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind, v.oid::regclass::text AS name
FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = to_regclass(:name) AND v.oid <> d.refobjid
UNION
SELECT 'foreign key of', conrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND confrelid = to_regclass(:name)
ORDER BY 1, 2
""").bindparams(bindparam("name", type_=Text))
"""What refers to the table :name itself, and so would go on referring to it under its new name."""

NAMED_PARTS: Final = text("""
SELECT 'index' AS kind, c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(:name)
UNION ALL
SELECT 'constraint', conname FROM pg_constraint
WHERE conrelid = to_regclass(:name) AND contype IN ('c', 'f') AND conislocal
ORDER BY 1, 2
""").bindparams(bindparam("name", type_=Text))
"""The indexes of the table :name (those behind keys, too) and its constraints that have none."""

GRANTS: Final = text("""
SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS grantee, a.privilege_type,
       a.is_grantable
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass(:name) AND a.grantee <> c.relowner
ORDER BY 1, 2
""").bindparams(bindparam("name", type_=Text))
"""Who may do what with the table :name, besides its owner; no grantee is PUBLIC."""
