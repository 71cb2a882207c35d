"""What event stores say to a database: their statements, rendered once, and how they are run on a plain Connection.

One colour, the caller's transaction, no decisions: those are in `sql_log.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.orm import Session

from message_bus.errors import SchemaError, SettingsError, UnsupportedDatabase
from message_bus.eventsourcing.stores.encoding import check_stream
from message_bus.storage import event_statements
from message_bus.storage.driver import Rendered, execute_raw, is_observed
from message_bus.storage.event_guard import DELETING
from message_bus.storage.event_statements import Names, appending_of
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.logs import schema_of
from message_bus.storage.tables import MessageBusTables


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements over one set of tables on one dialect."""

    advance: dict[str, Rendered]
    take_back: Rendered
    version_of: Rendered
    events_of: Rendered
    events_after: Rendered
    events_of_trace: Rendered
    keep_snapshot: sa.Executable
    snapshot_of: Rendered


@lru_cache(maxsize=64)
def statements_of(tables: MessageBusTables, dialect: sa.Dialect) -> Statements:
    """The statements, each rendered once. Raises: UnsupportedDatabase for another dialect."""
    appending_of(dialect)
    build = event_statements
    return Statements(
        advance={
            checked: Rendered(build.advance(tables, dialect_name=dialect.name, checked=checked))
            for checked in ("any", "new", "at")
        },
        take_back=Rendered(build.take_back(tables)),
        version_of=Rendered(build.version_of(tables)),
        events_of=Rendered(build.events_of(tables, dialect.name)),
        events_after=Rendered(build.events_after(tables, dialect.name)),
        events_of_trace=Rendered(build.events_of_trace(tables, dialect.name)),
        keep_snapshot=build.keep_snapshot(tables, dialect.name),
        snapshot_of=Rendered(build.snapshot_of(tables)),
    )


@lru_cache(maxsize=256)
def _insert(dialect: sa.Dialect, schema: str | None, prefix: str, form: int) -> str:
    quote = dialect.identifier_preparer

    def name_of(short: str) -> str:
        name = quote.quote(f"{prefix}{short}")
        return f"{quote.quote_schema(schema)}.{name}" if schema else name

    return appending_of(dialect).statement(Names(event=name_of("event"), log=name_of("log")), form)


class _On:
    """A connection in the place where `Rendered` expects a session."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def connection(self) -> sa.Connection:
        return self._connection


def run(
    connection: sa.Connection, tables: MessageBusTables, statement: Rendered, parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Run a statement in the connection's transaction, which begins if none is open; its rows as the driver makes them.

    Raises: SchemaError if a table is missing; else SQLAlchemy's own errors.
    """
    if not connection.in_transaction():
        connection.begin()
    try:
        rows, _ = statement.run(cast("Session", _On(connection)), parameters)
    except exc.DBAPIError as error:
        if database_of(connection.dialect).misses_table(error):
            raise SchemaError([f"table {tables.event.fullname!r}, or one beside it, is missing"]) from error
        raise
    return rows


def insert_events(
    connection: sa.Connection, tables: MessageBusTables, rows: Sequence[tuple[Any, ...]]
) -> Sequence[Any]:
    """Insert events, each a row of `event_statements.COLUMNS`; position, version and time of each, in order."""
    dialect = connection.dialect
    schema = schema_of(connection, tables.event)
    appending = appending_of(dialect)
    statement = _insert(dialect, schema, tables.prefix, appending.form(len(rows)))
    parameters = appending.parameters(rows)
    if is_observed(connection):
        written: Sequence[Any] = connection.exec_driver_sql(statement, parameters).all()
    else:
        written, _ = execute_raw(connection, statement, parameters)
    return sorted(written, key=_by_version) if len(rows) > 1 else written


def _by_version(row: Any) -> int:
    version: int = row[1]
    return version


def forget(connection: sa.Connection, aggregate_id: str, by: str, tables: MessageBusTables) -> int:
    """Delete a stream, in the connection's transaction; how many events it had."""
    check_stream(aggregate_id)
    if not by.strip():
        raise SettingsError("delete_stream", ["by is empty (say who wants it: it is logged)"])
    refuse_autocommit(connection)
    is_guarded_by_setting = connection.dialect.name == "postgresql"
    if is_guarded_by_setting:
        connection.execute(event_statements.lift_guard(DELETING, aggregate_id))
    count = 0
    for statement in event_statements.forget_stream(tables):
        count = connection.execute(statement, {"of_stream": aggregate_id}).rowcount
    if is_guarded_by_setting:
        connection.execute(event_statements.lift_guard(DELETING, ""))
    for statement in event_statements.forget_failures(tables):
        connection.execute(statement, {"of_stream": aggregate_id})
    return count


def refuse_autocommit(connection: sa.Connection) -> None:
    """Begin a transaction if none is open, and raise UnsupportedDatabase if there cannot be one."""
    if not connection.in_transaction():
        connection.begin()
    if database_of(connection.dialect).is_autocommit(connection):
        raise UnsupportedDatabase(
            "events cannot be written on an AUTOCOMMIT connection: they would be visible before the commit and stay "
            "after a rollback (use an engine or session that is not set to isolation_level='AUTOCOMMIT')"
        )
