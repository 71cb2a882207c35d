"""Everything a database knows about the tables in it, as plain values that can be compared."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

_POSTGRESQL = {
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
               pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
          FROM pg_class c
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'v')""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = to_regnamespace(:schema) AND contype <> 'n'""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = :schema",
    "sequences": """
        SELECT sequencename, data_type::text, start_value, increment_by, cycle, cache_size
          FROM pg_sequences WHERE schemaname = :schema""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(oid) FROM pg_trigger
         WHERE NOT tgisinternal
           AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace(:schema))""",
    "functions": """
        SELECT proname, pg_get_function_identity_arguments(oid), prosrc FROM pg_proc
         WHERE pronamespace = to_regnamespace(:schema)""",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = :schema",
}


def catalogue(
    connection: sa.Connection, schema: str | None = None, *, without: str = "schema_version"
) -> list[Any]:
    """Describe everything in a schema but what has `without` in its name."""
    if connection.dialect.name == "sqlite":
        master = f"{schema}.sqlite_master" if schema else "sqlite_master"
        rows = connection.exec_driver_sql(f"SELECT type, name, sql FROM {master}").all()
        found = [(row.type, row.name, _plain(row.sql or "")) for row in rows]
    else:
        schema = schema or connection.scalar(sa.text("SELECT current_schema()"))
        found = [
            (kind, *row)
            for kind, query in _POSTGRESQL.items()
            for row in connection.execute(sa.text(query), {"schema": schema})
        ]
    return sorted(
        (row for row in found if without not in f"{row[1]}{row[2]}" and row[1] != "sqlite_sequence"), key=repr
    )


def _plain(sql: str) -> str:
    """SQL text without the freedom to lay it out."""
    return " ".join(sql.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split())
