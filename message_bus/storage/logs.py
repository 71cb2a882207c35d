"""Which table a log is, and how a connection calls it. Used by whatever speaks about a log in catalog
queries.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Table
from sqlalchemy.engine import Connection

from message_bus.errors import SettingsError
from message_bus.storage.tables import OUTBOX_LOG, MessageBusTables

POSITION: Final = "position"
"""The column that orders every log."""


def log_table(tables: MessageBusTables, log: str = OUTBOX_LOG) -> Table:
    """The table of the log with this name.

    Raises: SettingsError if there is no such log.
    """
    logs = {OUTBOX_LOG: tables.outbox}
    if log not in logs:
        raise SettingsError("log", [f"{log!r} is not a log (there are: {', '.join(map(repr, logs))})"])
    return logs[log]


def schema_of(connection: Connection, table: Table) -> str | None:
    """The schema in which this connection's statements find the table: `schema_translate_map` has its say."""
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = translated.get(table.schema, table.schema)
    return schema


def quoted_name(connection: Connection, table: Table) -> str:
    """The table's name as this connection's SQL must spell it; without a schema the search_path decides."""
    quote = connection.dialect.identifier_preparer.quote
    schema = schema_of(connection, table)
    return f"{quote(schema)}.{quote(table.name)}" if schema else quote(table.name)
