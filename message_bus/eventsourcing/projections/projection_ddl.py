"""What a rebuild does to tables: makes the copies, exchanges them with the live ones, drops what is retired.

Called on a plain Connection, in the transaction of the rebuild's bookkeeping: DDL is transactional on PostgreSQL and on
SQLite. Who reads `totals` by name reads the rebuilt one after the COMMIT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from sqlalchemy import Connection, Table, text
from sqlalchemy.schema import DropTable

from message_bus.eventsourcing.projections.projection_tables import copy_of, live_names, suffixed
from message_bus.storage import projection_statements as statements
from message_bus.storage.logs import quoted_name, schema_of


def create(connection: Connection, live: Iterable[Table], *, generation: int) -> None:
    """Make the copies of this generation; types that they need, too."""
    for table in live:
        copy = copy_of(table, generation, same_constraints=connection.dialect.name == "sqlite")
        copy.create(connection)


def drop(connection: Connection, tables: Iterable[Table]) -> None:
    """Drop these tables, if they are there."""
    for table in tables:
        connection.execute(DropTable(table, if_exists=True))


def lock(connection: Connection, tables: Iterable[Table], *, within: timedelta) -> None:
    """Keep everybody off these tables until the transaction ends; whoever uses one now is waited for (PostgreSQL).

    Not for long: behind us everybody else waits as well, readers too. On SQLite the transaction is alone anyway.
    """
    if connection.dialect.name != "postgresql":
        return
    milliseconds = max(1, round(within.total_seconds() * 1_000))
    connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
    names = ", ".join(quoted_name(connection, table) for table in tables)
    connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))


def hanging_on(connection: Connection, tables: Iterable[Table]) -> list[str]:
    """What would go on reading a live table under its new, retired name: views and foreign keys (PostgreSQL).

    SQLite looks for names anew each time.
    """
    if connection.dialect.name != "postgresql":
        return []
    found: list[str] = []
    for table in tables:
        rows = connection.execute(statements.HANGING_ON, {"name": quoted_name(connection, table)})
        found += [f"{row.kind} {row.name!r} refers to table {table.name!r}" for row in rows]
    return found


def exchange(connection: Connection, live: Mapping[str, Table], *, generation: int, retired: int) -> None:
    """Let the copies of `generation` have the live names, and what was live those of generation `retired`."""
    if connection.dialect.name == "postgresql":
        _exchange_on_postgresql(connection, live, generation, retired)
    else:
        _exchange_on_sqlite(connection, live, generation, retired)


def _exchange_on_postgresql(
    connection: Connection, live: Mapping[str, Table], generation: int, retired: int
) -> None:
    for table in live.values():
        copy, old = copy_of(table, generation), copy_of(table, retired)
        _hand_on_grants(connection, table, copy)
        taken: set[str] = set()
        for kind, name in _parts(connection, table):
            _rename_part(connection, table, kind, name, suffixed(name, retired))
        _rename(connection, table, old.name)
        _rename(connection, copy, table.name)
        names = live_names(table, generation)
        for kind, name in _parts(connection, table):
            wanted = names.get(name, name.replace(copy.name, table.name, 1))
            if wanted != name and wanted not in taken:
                _rename_part(connection, table, kind, name, wanted)
            taken.add(wanted)


def _exchange_on_sqlite(
    connection: Connection, live: Mapping[str, Table], generation: int, retired: int
) -> None:
    # else renaming a table rewrites the views and triggers that name it, so that they go on reading the retired one
    connection.execute(text("PRAGMA legacy_alter_table = ON"))
    try:
        for table in live.values():
            copy = copy_of(table, generation)
            for index in (*table.indexes, *copy.indexes):
                index.drop(connection, checkfirst=True)
            _rename(connection, table, suffixed(table.name, retired))
            _rename(connection, copy, table.name)
            for index in table.indexes:  # SQLite renames no index
                index.create(connection)
    finally:
        connection.execute(text("PRAGMA legacy_alter_table = OFF"))


def _parts(connection: Connection, table: Table) -> list[tuple[str, str]]:
    rows = connection.execute(statements.NAMED_PARTS, {"name": quoted_name(connection, table)})
    return [(row.kind, row.name) for row in rows]


def _rename(connection: Connection, table: Table, to: str) -> None:
    quote = connection.dialect.identifier_preparer.quote
    connection.execute(text(f"ALTER TABLE {quoted_name(connection, table)} RENAME TO {quote(to)}"))


def _rename_part(connection: Connection, table: Table, kind: str, name: str, to: str) -> None:
    quote = connection.dialect.identifier_preparer.quote
    if kind == "index":
        schema = schema_of(connection, table)
        full = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
        connection.execute(text(f"ALTER INDEX {full} RENAME TO {quote(to)}"))
    else:
        of_table = quoted_name(connection, table)
        connection.execute(text(f"ALTER TABLE {of_table} RENAME CONSTRAINT {quote(name)} TO {quote(to)}"))


def _hand_on_grants(connection: Connection, table: Table, copy: Table) -> None:
    """Whoever may read the live table may read the one that takes its name."""
    quote = connection.dialect.identifier_preparer.quote
    grants = connection.execute(statements.GRANTS, {"name": quoted_name(connection, table)}).all()
    for grantee, privilege, is_grantable in grants:
        to = "PUBLIC" if grantee is None else quote(grantee)
        option = " WITH GRANT OPTION" if is_grantable else ""
        connection.execute(text(f"GRANT {privilege} ON {quoted_name(connection, copy)} TO {to}{option}"))
