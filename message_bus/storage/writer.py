"""The INSERT of the write path: puts outbox rows into their tables, in the order in which they were registered.

Rows go in by one statement per table; those with a `delay` go to the schedule. It has one colour (under an async
driver it runs inside SQLAlchemy's greenlet) and knows nothing of sessions. The repositories' late writing calls it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from message_bus.errors import InvalidOutboxMessage, SchemaError, UnsupportedDatabase
from message_bus.storage.insert_dialects import SECONDS, Database, database_of
from message_bus.storage.logs import schema_of
from message_bus.storage.record import Record, encode
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_after

if TYPE_CHECKING:
    from message_bus.repositories.outbox_message import OutboxMessage


def write(connection: sa.Connection, tables: MessageBusTables, rows: Sequence[OutboxMessage]) -> None:
    """Write rows in the connection's transaction; the order of `rows` becomes the order of their positions.

    Raises: as `encode` and `insert` do. Nothing is written if one row does not fit.
    """
    insert(connection, tables, [encode(row) for row in rows])


def insert(connection: sa.Connection, tables: MessageBusTables, records: Sequence[Record]) -> None:
    """Write encoded rows in the connection's transaction, in their order. Honours its `schema_translate_map`.

    Raises: InvalidOutboxMessage if a message id is already taken; UnsupportedDatabase on an AUTOCOMMIT connection or
    another kind of database; SchemaError if a table is missing; else SQLAlchemy's own errors.
    """
    if not connection.in_transaction():
        connection.begin()
    database = database_of(connection.dialect)
    if database.is_autocommit(connection):
        raise UnsupportedDatabase(
            "an outbox message cannot be written on an AUTOCOMMIT connection: it would be visible before the commit "
            "and stay after a rollback (write with an engine or session that is not set to isolation_level='AUTOCOMMIT')"
        )
    at_once = [record for record in records if record.delay is None]
    delayed = (
        [record for record in records if record.delay is not None] if len(at_once) < len(records) else []
    )
    if at_once:
        _execute(connection, database, tables.outbox, at_once, delayed=False)
    if delayed:
        _execute(connection, database, tables.schedule, delayed, delayed=True)


def _execute(
    connection: sa.Connection,
    database: Database,
    table: sa.Table,
    records: Sequence[Record],
    *,
    delayed: bool,
) -> None:
    statement = _statement(
        database, connection.dialect, schema_of(connection, table), table.name, len(records) > 1, delayed
    )
    parameters = database.parameters(records, delayed)
    try:
        if _is_observed(connection):
            connection.exec_driver_sql(statement, parameters)
        else:
            _execute_raw(connection, statement, parameters, many=isinstance(parameters, list))
    except exc.DBAPIError as error:
        if isinstance(error, exc.IntegrityError) and database.names_id(error, table):
            raise InvalidOutboxMessage(
                f"outbox message id {_id_used_twice(database, error, connection, table, records)} is used twice "
                "(leave the id out to get a new UUIDv7)"
            ) from error
        if database.misses_table(error):
            raise SchemaError([f"table {table.fullname!r} is missing"]) from error
        raise


def _is_observed(connection: sa.Connection) -> bool:
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


def _execute_raw(connection: sa.Connection, statement: str, parameters: Any, *, many: bool) -> None:
    """What `exec_driver_sql` does, without its machinery: that costs a tenth of a whole transaction here.

    Errors leave it wrapped as SQLAlchemy wraps them, and a lost connection is invalidated.
    """
    dialect = connection.dialect
    cursor = connection.connection.cursor()
    try:
        if many:
            cursor.executemany(statement, parameters)
        else:
            cursor.execute(statement, parameters)
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
            connection.invalidate(error)
        raise wrapped from error
    finally:
        cursor.close()


@lru_cache(maxsize=256)
def _statement(
    database: Database, dialect: sa.Dialect, schema: str | None, name: str, many: bool, delayed: bool
) -> str:
    quote = dialect.identifier_preparer
    table = f"{quote.quote_schema(schema)}.{quote.quote(name)}" if schema else quote.quote(name)
    due = str(utc_after(sa.literal_column(SECONDS)).compile(dialect=dialect)) if delayed else None
    return database.statement(table, due, many)


def _id_used_twice(
    database: Database,
    error: exc.IntegrityError,
    connection: sa.Connection,
    table: sa.Table,
    records: Sequence[Record],
) -> str:
    ids = Counter(record.id for record in records)
    ((first, count),) = ids.most_common(1)
    known = (
        str(first) if count > 1 or len(ids) == 1 else database.find_taken(error, connection, table, list(ids))
    )
    return repr(known) if known else f"of one of {len(ids)} messages"
