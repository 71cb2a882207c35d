"""What logs are called, and how a connection calls their tables. Used by whatever speaks about a log in catalog queries."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Table
from sqlalchemy.engine import Connection

OUTBOX_LOG: Final = "outbox"
"""The name of the outbox among the logs."""

EVENT_LOG: Final = "events"
"""The name of the event log among the logs."""

POSITION: Final = "position"
"""The column that orders every log."""


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
