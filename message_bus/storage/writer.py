"""The INSERT of the write path: puts outbox rows into their tables, in the order in which they were registered.

Rows go in by one statement per table; those with a `delay` go to the schedule. It has one colour (under an async
driver it runs inside SQLAlchemy's greenlet) and knows nothing of sessions. The repositories' late writing calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import exc

from message_bus.errors import InvalidOutboxMessage, SchemaError, UnsupportedDatabase
from message_bus.storage.driver import execute_raw, is_observed
from message_bus.storage.insert_dialects import SECONDS, Database, Target, database_of
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
        _execute(connection, database, tables, at_once, delayed=False)
    if delayed:
        _execute(connection, database, tables, delayed, delayed=True)


def _execute(
    connection: sa.Connection,
    database: Database,
    tables: MessageBusTables,
    records: Sequence[Record],
    *,
    delayed: bool,
) -> None:
    table = tables.schedule if delayed else tables.outbox
    schema = schema_of(connection, table)
    statement = _statement(
        database, connection.dialect, schema, tables.prefix, many=len(records) > 1, delayed=delayed
    )
    parameters = database.parameters(records, delayed)
    try:
        if is_observed(connection):
            connection.exec_driver_sql(statement, parameters)
        else:
            execute_raw(connection, statement, parameters, many=isinstance(parameters, list))
    except exc.DBAPIError as error:
        if isinstance(error, exc.IntegrityError) and database.names_id(error, table):
            raise InvalidOutboxMessage(
                f"outbox message id {_id_used_twice(database, error, connection, table, records)} is used twice "
                "(leave the id out to get a new UUIDv7)"
            ) from error
        if database.misses_table(error):
            raise SchemaError([f"table {table.fullname!r} is missing"]) from error
        raise


@lru_cache(maxsize=256)
def _statement(
    database: Database, dialect: sa.Dialect, schema: str | None, prefix: str, *, many: bool, delayed: bool
) -> str:
    quote = dialect.identifier_preparer

    def name_of(short: str) -> str:
        name = quote.quote(f"{prefix}{short}")
        return f"{quote.quote_schema(schema)}.{name}" if schema else name

    target = Target(
        name_of("schedule" if delayed else "outbox"), outbox=name_of("outbox"), log=name_of("log")
    )
    due = str(utc_after(sa.literal_column(SECONDS)).compile(dialect=dialect)) if delayed else None
    return database.statement(target, due, many=many)


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
