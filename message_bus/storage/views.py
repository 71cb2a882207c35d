"""The view `outbox_delivery`: for every outbox row and subscription, what has become of the message.

No flag is stored per row; the answer is computed from checkpoints and delivery rows. It is for people and reports
(`row.processed`, `why`), deliberately not for the engine, whose hot loop never reads it.

`MessageBusTables` attaches the view to its metadata, so `create_all` and `drop_all` know it. Alembic's autogenerate
does not see views: a migration written by it calls `create_view(op.get_bind(), tables)` itself; `check_schema` reminds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from sqlalchemy import (
    Connection,
    MetaData,
    Select,
    Table,
    case,
    event,
    exists,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from message_bus.storage.logs import OUTBOX_LOG, schema_of

# what the view says besides the states of delivery rows
WAITING: Final = "waiting"
DELIVERED: Final = "delivered"

VIEW: Final = "outbox_delivery"
VIEW_COLUMNS: Final = ("position", "id", "message", "subscription", "state")


class Tables(Protocol):
    """What the view needs of `MessageBusTables`."""

    metadata: MetaData
    schema: str | None
    prefix: str
    outbox: Table
    subscription: Table
    delivery: Table


def partition_of(messages: FromClause, partitions: ColumnElement[int]) -> ColumnElement[int]:
    """The partition that a row of a log belongs to: by the hash of its key, unkeyed ones by their position."""
    return func.coalesce(messages.c.key_hash, messages.c.position) % partitions


def is_about(log: str, delivery: FromClause, subscription: Table) -> ColumnElement[bool]:
    """Whether a delivery row is about a message of this log: its position is one of its subscription's log.

    One whose subscription is gone is taken to be about the outbox, so that retention does not pass over it.
    """
    whose = subscription.alias("whose")
    if log == OUTBOX_LOG:
        return ~exists().where(whose.c.name == delivery.c.subscription, whose.c.log != OUTBOX_LOG)
    return exists().where(whose.c.name == delivery.c.subscription, whose.c.log == log)


def outbox_delivery(tables: Tables) -> Select[*tuple[Any, ...]]:
    """The query behind the view: one row per outbox row and subscription, whatever its number of partitions."""
    outbox, subscription, delivery = (
        tables.outbox.alias("o"),
        tables.subscription.alias("s"),
        tables.delivery.alias("d"),
    )
    passed = case((outbox.c.position <= subscription.c.position, literal(DELIVERED)), else_=literal(WAITING))
    return (
        select(
            outbox.c.position,
            outbox.c.id,
            outbox.c.message,
            subscription.c.name.label("subscription"),
            func.coalesce(delivery.c.state, passed).label("state"),
        )
        .select_from(outbox)
        .join(
            subscription,
            (subscription.c.log == OUTBOX_LOG)
            & (subscription.c.partition == partition_of(outbox, subscription.c.partitions)),
        )
        .outerjoin(
            delivery,
            (delivery.c.subscription == subscription.c.name) & (delivery.c.position == outbox.c.position),
        )
    )


class CreateView(ExecutableDDLElement):
    """DDL that makes the view; on PostgreSQL it replaces an older one and keeps its grants. `op.execute` takes it too."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables


class DropView(ExecutableDDLElement):
    """DDL that drops the view if it is there."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables


def create_view(connection: Connection, tables: Tables) -> None:
    """Make the view, or make it anew. Runs in the caller's transaction: `create_view(op.get_bind(), tables)`."""
    if connection.dialect.name != "postgresql":  # only PostgreSQL can replace a view in place
        drop_view(connection, tables)
    connection.execute(CreateView(tables))


def drop_view(connection: Connection, tables: Tables) -> None:
    """Drop the view if it is there. Runs in the caller's transaction; call it before dropping the tables."""
    connection.execute(DropView(tables))


def attach(tables: Tables) -> None:
    """Let `create_all` on this metadata make the view, and dropping any of the tables it reads drop it first."""
    sources = (tables.outbox, tables.subscription, tables.delivery)

    def after_create(metadata: MetaData, connection: Connection, **options: Any) -> None:
        if options.get("checkfirst", True):
            missing = _is_missing(connection, tables, sources)
        else:  # the caller vouches that nothing is there (and a mock connection could not be asked)
            missing = set(sources) <= set(options.get("tables") or ())
        if missing:
            connection.execute(CreateView(tables))

    def before_drop(source: Table, connection: Connection, **options: Any) -> None:
        connection.execute(DropView(tables))

    event.listen(tables.metadata, "after_create", after_create)
    for source in sources:
        event.listen(source, "before_drop", before_drop)


def _is_missing(connection: Connection, tables: Tables, sources: Iterable[Table]) -> bool:
    inspector, schema = inspect(connection), schema_of(connection, tables.outbox)
    if inspector.has_table(f"{tables.prefix}{VIEW}", schema):
        return False
    return all(
        inspector.has_table(source.name, schema) for source in sources
    )  # `tables=` may have named others


def _view_name(tables: Tables, compiler: DDLCompiler) -> str:
    # a Table, because only those have their schema translated
    return compiler.preparer.format_table(Table(f"{tables.prefix}{VIEW}", MetaData(), schema=tables.schema))


def _query(tables: Tables, compiler: DDLCompiler) -> str:
    return compiler.sql_compiler.process(outbox_delivery(tables), literal_binds=True)


@compiles(CreateView)
def _create(element: CreateView, compiler: DDLCompiler, **kw: Any) -> str:
    return f"CREATE VIEW {_view_name(element.tables, compiler)} AS {_query(element.tables, compiler)}"


@compiles(CreateView, "postgresql")
def _create_or_replace(element: CreateView, compiler: DDLCompiler, **kw: Any) -> str:
    return (
        f"CREATE OR REPLACE VIEW {_view_name(element.tables, compiler)} AS {_query(element.tables, compiler)}"
    )


@compiles(DropView)
def _drop(element: DropView, compiler: DDLCompiler, **kw: Any) -> str:
    return f"DROP VIEW IF EXISTS {_view_name(element.tables, compiler)}"
