"""The guard of the event log: triggers that refuse to change or remove what is recorded.

`MessageBusTables` attaches them to its metadata, so `create_all` knows them. Alembic's autogenerate does not see
triggers: a migration written by it calls `create_guard(op.get_bind(), tables)` itself; `check_schema` reminds.

The one way through is `delete_stream`: on PostgreSQL it names the stream in a setting that ends with the transaction, on
SQLite, which has no settings, events may go once the row of their stream is gone. It is a guard against mistakes, not
against those who may drop the trigger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

from sqlalchemy import Connection, MetaData, Table, event, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from message_bus.storage.logs import quoted_name, schema_of

DELETING: Final = "message_bus.deleting_stream"
"""The setting that names the stream that the current transaction deletes (PostgreSQL)."""

GUARD: Final = "event_guard"
_REFUSAL: Final = (
    "the event log is append-only: no {operation} of an event (events are facts: append one that corrects it; "
    "delete_stream() removes a whole stream)"
)


class Tables(Protocol):
    """What the guard needs of `MessageBusTables`."""

    metadata: MetaData
    schema: str | None
    prefix: str
    event: Table
    stream: Table


class _Part(ExecutableDDLElement):
    """One statement of the guard; `op.execute` takes it too."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables


class CreateFunction(_Part):
    """The trigger function (PostgreSQL)."""


class DropFunction(_Part):
    """Drop the trigger function, if it is there (PostgreSQL)."""


class RefuseChanges(_Part):
    """The trigger against UPDATE, and TRUNCATE where that exists."""


class RefuseDeletes(_Part):
    """The trigger against DELETE."""


class DropRefuseChanges(_Part):
    """Drop the trigger against UPDATE, if it is there."""


class DropRefuseDeletes(_Part):
    """Drop the trigger against DELETE, if it is there."""


def create_guard(connection: Connection, tables: Tables) -> None:
    """Make the triggers, or make them anew. In the caller's transaction: `create_guard(op.get_bind(), tables)`."""
    connection.execute(DropRefuseChanges(tables))
    connection.execute(DropRefuseDeletes(tables))
    _create(connection, tables)


def attach(tables: Tables) -> None:
    """Let whoever creates the event table make its triggers, and who drops it drop the function after it."""

    def after_create(table: Table, connection: Connection, **_: Any) -> None:
        _create(connection, tables)

    def after_drop(table: Table, connection: Connection, **_: Any) -> None:
        if connection.dialect.name == "postgresql":  # triggers go with their table
            connection.execute(DropFunction(tables))

    event.listen(tables.event, "after_create", after_create)
    event.listen(tables.event, "after_drop", after_drop)


def missing_triggers(connection: Connection, tables: Tables) -> Iterator[str]:
    """The names of the triggers that are not there, or switched off. Reads the catalog only."""
    table = quoted_name(connection, tables.event)
    if connection.dialect.name == "postgresql":
        query = "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(:table) AND tgenabled <> 'D'"
        found = set(connection.scalars(text(query), {"table": table}))
    else:
        schema = schema_of(connection, tables.event)
        quote = connection.dialect.identifier_preparer.quote
        master = f"{quote(schema)}.sqlite_master" if schema else "sqlite_master"
        query = f"SELECT name FROM {master} WHERE type = 'trigger' AND tbl_name = :table"  # noqa: S608  (quoted)
        found = set(connection.scalars(text(query), {"table": tables.event.name}))
    yield from (name for name in trigger_names(tables) if name not in found)


def trigger_names(tables: Tables) -> tuple[str, str]:
    """What the two triggers are called."""
    return f"{tables.prefix}event_no_update", f"{tables.prefix}event_no_delete"


def _create(connection: Connection, tables: Tables) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(CreateFunction(tables))
    connection.execute(RefuseChanges(tables))
    connection.execute(RefuseDeletes(tables))


def _formatted(tables: Tables, name: str, compiler: DDLCompiler) -> str:
    # a Table, because only those have their schema translated
    return compiler.preparer.format_table(Table(name, MetaData(), schema=tables.schema))


def _event(part: _Part, compiler: DDLCompiler) -> str:
    return _formatted(part.tables, part.tables.event.name, compiler)


def _function(part: _Part, compiler: DDLCompiler) -> str:
    return _formatted(part.tables, f"{part.tables.prefix}{GUARD}", compiler)


@compiles(CreateFunction, "postgresql")
def _create_function(part: CreateFunction, compiler: DDLCompiler, **kw: Any) -> str:
    before, after = _REFUSAL.split("{operation}")
    return (
        f"CREATE OR REPLACE FUNCTION {_function(part, compiler)}() RETURNS trigger LANGUAGE plpgsql AS $guard$ BEGIN "
        "IF TG_OP = 'DELETE' THEN "
        f"IF current_setting('{DELETING}', true) = OLD.stream THEN RETURN OLD; END IF; "
        "END IF; "
        f"RAISE EXCEPTION USING ERRCODE = 'restrict_violation', MESSAGE = '{before}' || TG_OP || '{after}'; "
        "END $guard$"
    )


@compiles(DropFunction, "postgresql")
def _drop_function(part: DropFunction, compiler: DDLCompiler, **kw: Any) -> str:
    return f"DROP FUNCTION IF EXISTS {_function(part, compiler)}()"


@compiles(RefuseChanges, "postgresql")
def _refuse_changes(part: RefuseChanges, compiler: DDLCompiler, **kw: Any) -> str:
    name = compiler.preparer.quote(trigger_names(part.tables)[0])
    return (
        f"CREATE TRIGGER {name} BEFORE UPDATE OR TRUNCATE ON {_event(part, compiler)} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {_function(part, compiler)}()"
    )


@compiles(RefuseDeletes, "postgresql")
def _refuse_deletes(part: RefuseDeletes, compiler: DDLCompiler, **kw: Any) -> str:
    name = compiler.preparer.quote(trigger_names(part.tables)[1])
    return (
        f"CREATE TRIGGER {name} BEFORE DELETE ON {_event(part, compiler)} "
        f"FOR EACH ROW EXECUTE FUNCTION {_function(part, compiler)}()"
    )


@compiles(DropRefuseChanges, "postgresql")
@compiles(DropRefuseDeletes, "postgresql")
def _drop_trigger(part: _Part, compiler: DDLCompiler, **kw: Any) -> str:
    name = trigger_names(part.tables)[isinstance(part, DropRefuseDeletes)]
    return f"DROP TRIGGER IF EXISTS {compiler.preparer.quote(name)} ON {_event(part, compiler)}"


@compiles(RefuseChanges, "sqlite")
def _refuse_changes_sqlite(part: RefuseChanges, compiler: DDLCompiler, **kw: Any) -> str:
    name = _formatted(part.tables, trigger_names(part.tables)[0], compiler)
    event_table = compiler.preparer.quote(
        part.tables.event.name
    )  # a trigger's table is in the trigger's schema
    refusal = _REFUSAL.format(operation="UPDATE")
    return f"CREATE TRIGGER {name} BEFORE UPDATE ON {event_table} BEGIN SELECT RAISE(ABORT, '{refusal}'); END"


@compiles(RefuseDeletes, "sqlite")
def _refuse_deletes_sqlite(part: RefuseDeletes, compiler: DDLCompiler, **kw: Any) -> str:
    name = _formatted(part.tables, trigger_names(part.tables)[1], compiler)
    quote = compiler.preparer.quote
    refusal = _REFUSAL.format(operation="DELETE")
    return (
        f"CREATE TRIGGER {name} BEFORE DELETE ON {quote(part.tables.event.name)} "  # noqa: S608  (names are quoted)
        f"WHEN EXISTS (SELECT 1 FROM {quote(part.tables.stream.name)} WHERE stream = OLD.stream) "
        f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
    )


@compiles(DropRefuseChanges, "sqlite")
@compiles(DropRefuseDeletes, "sqlite")
def _drop_trigger_sqlite(part: _Part, compiler: DDLCompiler, **kw: Any) -> str:
    name = trigger_names(part.tables)[isinstance(part, DropRefuseDeletes)]
    return f"DROP TRIGGER IF EXISTS {_formatted(part.tables, name, compiler)}"
