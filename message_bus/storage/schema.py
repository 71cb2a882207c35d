"""Does the database hold the tables that this version needs? `check_schema` names everything that differs, at once.

It compares what the tables say with what the database reports. It repairs nothing (that is for `message-bus db upgrade`
or the user's own migrations) and needs no Alembic. More than we ask for is fine as long as our rows still go in:
columns that may stay empty, other indexes, other names for the same index or unique constraint.

Called at start by whoever reads the log: `process_outbox`, the relay, and users' own start-up checks. Asynchronously:
`await connection.run_sync(check_schema, tables)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Dialect,
    Index,
    Table,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.engine.reflection import Inspector, ObjectKind
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import ColumnCollectionConstraint, DefaultClause
from sqlalchemy.types import TypeEngine

from message_bus.errors import SchemaError, UnsupportedDatabase
from message_bus.storage.event_guard import missing_triggers
from message_bus.storage.logs import schema_of
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.views import VIEW, VIEW_COLUMNS

SUPPORTED_DIALECTS: Final = ("postgresql", "sqlite")


def check_schema(connection: Connection, tables: MessageBusTables) -> None:
    """Make sure that the database has exactly the tables, columns, constraints, indexes and view that we rely on.

    Only reads, in the caller's transaction. If nothing differs, it asks whether the outbox can be read safely (W7).

    Raises: SchemaError naming every difference; UnsupportedDatabase if the database or the log cannot keep the guarantees.
    """
    found = differences(connection, tables)
    if found:
        raise SchemaError(found)
    from message_bus.storage.preconditions import check_log

    check_log(connection, tables)


def differences(connection: Connection, tables: MessageBusTables) -> list[str]:
    """Everything in which the database differs from `tables`, one sentence each; empty if nothing does.

    If no table is there, that is the one difference.
    """
    if connection.dialect.name not in SUPPORTED_DIALECTS:
        raise UnsupportedDatabase(f"{connection.dialect.name!r} is not supported (use PostgreSQL or SQLite)")
    schema = schema_of(connection, tables.outbox)
    if schema is not None and not inspect(connection).has_schema(schema):
        return [f"schema {schema!r} is missing"]
    reflected = _reflect(connection, tables, schema)
    if not reflected:
        first, *others = tables.all
        return [f"all tables are missing ({_spell(schema, first.name)} and {len(others)} others)"]
    found: list[str] = []
    for table in tables.all:
        have = reflected.get(table.name)
        if have is None:
            found.append(f"table {_spell(schema, table.name)} is missing")
        else:
            found += [
                f"table {_spell(schema, table.name)}: {each}"
                for each in _of_table(table, have, connection.dialect)
            ]
    found += _of_view(connection, tables, schema)
    if tables.event.name in reflected:
        found += _of_guard(connection, tables, schema)
    return found


@dataclass(frozen=True, slots=True)
class _Reflected:
    """One table as the database reports it."""

    columns: Mapping[str, Mapping[str, Any]]
    primary_key: Sequence[str]
    unique: frozenset[frozenset[str]]
    indexes: frozenset[tuple[str, ...]]
    checks: Mapping[str, str]
    sql: str | None  # SQLite: the CREATE TABLE it keeps; the only place that shows AUTOINCREMENT


def _reflect(connection: Connection, tables: MessageBusTables, schema: str | None) -> dict[str, _Reflected]:
    inspector: Inspector = inspect(connection)
    names = [table.name for table in tables.all]
    columns = inspector.get_multi_columns(schema, names, kind=ObjectKind.TABLE)
    keys = inspector.get_multi_pk_constraint(schema, names)
    uniques = inspector.get_multi_unique_constraints(schema, names)
    indexes = inspector.get_multi_indexes(schema, names)
    checks = inspector.get_multi_check_constraints(schema, names)
    reflected: dict[str, _Reflected] = {}
    for (_, name), found in columns.items():
        table = (schema, name)
        full = [index for index in indexes.get(table, ()) if not _is_partial(index)]
        unique = [constraint["column_names"] for constraint in uniques.get(table, ())]
        unique += [_index_columns(index) for index in full if index["unique"]]
        reflected[name] = _Reflected(
            columns={column["name"]: dict(column) for column in found},
            primary_key=keys[table]["constrained_columns"] if table in keys else (),
            unique=frozenset(frozenset(each) for each in unique),
            indexes=frozenset(tuple(_index_columns(index)) for index in full),
            checks={check["name"]: check["sqltext"] for check in checks.get(table, ()) if check["name"]},
            sql=_sqlite_sql(connection, schema, name) if connection.dialect.name == "sqlite" else None,
        )
    return reflected


def _is_partial(index: Mapping[str, Any]) -> bool:
    return any(
        option.endswith("_where") and value is not None
        for option, value in index.get("dialect_options", {}).items()
    )


def _index_columns(index: Mapping[str, Any]) -> list[str]:
    return [name or "<expression>" for name in index["column_names"]]


def _sqlite_sql(connection: Connection, schema: str | None, name: str) -> str | None:
    quote = connection.dialect.identifier_preparer.quote
    query = f"SELECT sql FROM {f'{quote(schema)}.' if schema else ''}sqlite_master WHERE name = :name"  # noqa: S608  (quoted)
    sql: str | None = connection.scalar(text(query), {"name": name})
    return sql


def _of_table(table: Table, have: _Reflected, dialect: Dialect) -> Iterator[str]:
    for column in table.columns:
        if column.name not in have.columns:
            yield f"column {column.name} is missing"
        else:
            for each in _of_column(column, have.columns[column.name], dialect):
                yield f"column {column.name} {each}"
    for name, extra in have.columns.items():
        if name not in table.columns and _must_be_given(extra):
            yield f"column {name} is not ours and must be given (make it nullable, or give it a default)"
    if (
        have.sql is not None
        and table.dialect_options["sqlite"]["autoincrement"]
        and not _AUTOINCREMENT.search(have.sql)
    ):
        yield "AUTOINCREMENT is missing (without it SQLite uses positions of deleted rows again)"
    wanted_key = [column.name for column in table.primary_key.columns]
    if list(have.primary_key) != wanted_key:
        yield f"the primary key is ({', '.join(have.primary_key)}), not ({', '.join(wanted_key)})"
    for constraint in _by_name(table.constraints):
        yield from _of_constraint(constraint, have)
    for index in _by_name(table.indexes):
        if tuple(column.name for column in index.columns) not in have.indexes:
            yield f"index {index.name} on {_columns(index)} is missing"


def _of_column(column: Column[Any], have: Mapping[str, Any], dialect: Dialect) -> Iterator[str]:
    wanted_type, found_type = _type(column.type, dialect), _type(have["type"], dialect)
    if wanted_type != found_type:
        yield f"has type {found_type}, not {wanted_type}"
    if have["nullable"] and not column.nullable:
        yield "may be null (it must be NOT NULL)"
    elif column.nullable and not have["nullable"]:
        yield "is NOT NULL (it must be nullable)"
    if dialect.name == "postgresql" and column.identity is not None:
        yield from _of_identity(have.get("identity"))
    elif isinstance(column.server_default, DefaultClause):
        wanted, found = _default(column.server_default, dialect), have.get("default")
        if found is None:
            yield f"has no default (it must be {wanted})"
        elif _plain(found) != _plain(wanted):
            yield f"has the default {found}, not {wanted}"


def _of_identity(have: Mapping[str, Any] | None) -> Iterator[str]:
    """Positions must come from the sequence alone, one by one, upwards: else a reader passes over rows (W7)."""
    if have is None:
        yield "is not an identity column (it must be GENERATED ALWAYS AS IDENTITY)"
        return
    if not have["always"]:
        yield "is GENERATED BY DEFAULT (it must be GENERATED ALWAYS)"
    if have["increment"] != 1:
        yield f"has INCREMENT {have['increment']} (it must be 1)"
    if have["cache"] != 1:
        yield f"has CACHE {have['cache']} (it must be 1)"
    if have["cycle"]:
        yield "has CYCLE (it must be NO CYCLE)"


def _of_constraint(
    constraint: ColumnCollectionConstraint | CheckConstraint, have: _Reflected
) -> Iterator[str]:
    match constraint:
        case UniqueConstraint():
            if frozenset(column.name for column in constraint.columns) not in have.unique:
                yield f"unique constraint {constraint.name} on {_columns(constraint)} is missing"
        case CheckConstraint():
            found, wanted = have.checks.get(str(constraint.name)), str(constraint.sqltext)
            if found is None:
                yield f"check constraint {constraint.name} ({wanted}) is missing"
            elif _values(found) != _values(wanted):  # databases reword a CHECK, but keep its values
                yield f"check constraint {constraint.name} is ({found}), not ({wanted})"
        case _:
            pass  # the primary key was compared by its columns


def _of_view(connection: Connection, tables: MessageBusTables, schema: str | None) -> Iterator[str]:
    inspector, name = inspect(connection), f"{tables.prefix}{VIEW}"
    remedy = "message_bus.storage.views.create_view(op.get_bind(), tables) in a migration makes it"
    if name not in inspector.get_view_names(schema):
        yield f"view {_spell(schema, name)} is missing ({remedy})"
        return
    columns = tuple(column["name"] for column in inspector.get_columns(name, schema))
    if columns != VIEW_COLUMNS:
        found, wanted = ", ".join(columns), ", ".join(VIEW_COLUMNS)
        yield f"view {_spell(schema, name)} has the columns ({found}), not ({wanted}) ({remedy})"


def _of_guard(connection: Connection, tables: MessageBusTables, schema: str | None) -> Iterator[str]:
    remedy = "message_bus.storage.event_guard.create_guard(op.get_bind(), tables) in a migration makes it"
    for name in missing_triggers(connection, tables):
        yield f"table {_spell(schema, tables.event.name)}: trigger {name} is missing ({remedy})"


_AUTOINCREMENT: Final = re.compile(r"\bAUTOINCREMENT\b", re.IGNORECASE)
_CAST: Final = re.compile(r"::[a-z ]+")
_LITERAL: Final = re.compile(r"'([^']*)'")


def _must_be_given(column: Mapping[str, Any]) -> bool:
    filled = column.get("default") is not None or column.get("identity") or column.get("computed")
    return not column["nullable"] and not filled


def _type(type_: TypeEngine[Any], dialect: Dialect) -> str:
    try:
        return type_.compile(dialect=dialect)
    except CompileError:  # a type that SQLAlchemy does not know
        return repr(type_)


def _default(default: DefaultClause, dialect: Dialect) -> str:
    if isinstance(default.arg, str):
        return default.arg
    return str(default.arg.compile(dialect=dialect))


def _plain(default: str) -> str:
    """A default without what databases add to it: casts, quotes, spaces, parentheses."""
    return re.sub(r"[\s()']", "", _CAST.sub("", default)).lower()


def _values(condition: str) -> set[str]:
    return set(_LITERAL.findall(condition))


def _columns(of: ColumnCollectionConstraint | Index) -> str:
    return f"({', '.join(column.name for column in of.columns)})"


def _spell(schema: str | None, name: str) -> str:
    return f"{schema}.{name}" if schema else name


def _by_name(things: Any) -> list[Any]:
    return sorted(things, key=lambda thing: str(thing.name))
