"""Statements that go straight to the driver's cursor: for the few that run with every commit, where SQLAlchemy's own way is
a good part of the whole transaction.

Whoever logs, traces or rewrites statements is not gone past: then they take the ordinary way. Errors leave wrapped as
SQLAlchemy wraps them, and a lost connection is invalidated. One colour: under an async driver it runs inside SQLAlchemy's
greenlet. Used by the writer of outbox rows and by the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.orm import Session


def is_observed(connection: sa.Connection) -> bool:
    """Does somebody log, trace or rewrite statements, or is the transaction in a state that SQLAlchemy must refuse?"""
    root, nested = connection.get_transaction(), connection.get_nested_transaction()
    if root is None or not root.is_active or (nested is not None and not nested.is_active):
        return True
    listeners = connection.dispatch
    return bool(
        listeners.before_cursor_execute
        or listeners.after_cursor_execute
        or connection.dialect.dispatch.handle_error
        or connection.engine.logger.isEnabledFor(logging.INFO)
    )


def execute_raw(
    connection: sa.Connection, statement: str, parameters: Any, *, many: bool = False, **options: Any
) -> tuple[Sequence[Any], int]:
    """What `exec_driver_sql` does, without its machinery: the rows as the driver makes them, and the row count.

    `options`: what the driver's `cursor()` takes.
    """
    dialect = connection.dialect
    cursor = connection.connection.cursor(**options)
    try:
        if many:
            cursor.executemany(statement, parameters)
        else:
            cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else (), cursor.rowcount
    except dialect.loaded_dbapi.Error as error:
        is_lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
        wrapped = exc.DBAPIError.instance(
            statement,
            parameters,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=connection.engine.hide_parameters,
            connection_invalidated=is_lost,
            dialect=dialect,
        )
        if is_lost:
            _let_sqlalchemy_know(connection)
        raise wrapped from error
    finally:
        cursor.close()


def _let_sqlalchemy_know(connection: sa.Connection) -> None:
    """A lost connection that it meets itself makes it drop all others of the pool that are as old, too."""
    with suppress(exc.DBAPIError):
        connection.exec_driver_sql("SELECT 1")
    if not connection.invalidated:
        connection.invalidate()


class _Rendered(NamedTuple):
    dialect: sa.Dialect
    text: str
    fixed: Mapping[str, Any]
    order: Sequence[str] | None  # of positional parameters
    options: Mapping[str, Any]


class Rendered:
    """A statement that is rendered once. Its parameters need no conversion, and rows come as the driver makes them.

    Share it between threads; it is bound to no connection.
    """

    def __init__(self, statement: sa.Executable) -> None:
        self._statement: Any = statement
        self._rendered: _Rendered | None = None

    def run(self, session: Session, parameters: Mapping[str, Any]) -> tuple[Sequence[Any], int]:
        """Execute it in the session's transaction; the rows, and how many it met."""
        connection = session.connection()
        if is_observed(connection) or connection.get_execution_options().get("schema_translate_map"):
            result: Any = connection.execute(self._statement, parameters)
            return (result.all(), -1) if result.returns_rows else ((), result.rowcount)
        rendered = self._rendered
        if rendered is None or rendered.dialect is not connection.dialect:
            rendered = self._rendered = _render(self._statement, connection.dialect)
        values: Any = {**rendered.fixed, **parameters}
        if rendered.order is not None:
            values = tuple([values[name] for name in rendered.order])
        return execute_raw(connection, rendered.text, values, **rendered.options)


def _render(statement: Any, dialect: sa.Dialect) -> _Rendered:
    compiled = statement.compile(dialect=dialect)
    assert "POSTCOMPILE" not in compiled.string, "an IN list is expanded at each execution"
    order = list(compiled.positiontup) if compiled.positional else None
    # psycopg decodes binary answers faster; its asyncio twin is wrapped by SQLAlchemy, and asyncpg knows nothing else
    options = {"binary": True} if dialect.driver == "psycopg" and not dialect.is_async else {}
    return _Rendered(dialect, compiled.string, compiled.params, order, options)
