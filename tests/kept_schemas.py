"""PostgreSQL schemas with the message_bus tables, used by one test after another: making them anew is most of a small test.

After a test its schema is swept: rows deleted, sequences set back, what it has made beside our tables dropped. It is kept
only if everything that we made in it is still as we made it; a test that alters tables, triggers, grants or policies, or
that writes much, takes its schema with it. Used by conftest.py alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import sqlalchemy as sa

MOST_USES: Final = 100
LARGEST: Final = 512 * 1024  # bytes of a table and its indexes

# which rows of which catalog are ours; compared whole, but for what the server changes without being told to
_CATALOGS: Final = {
    "pg_class": "oid = ANY({ours})",
    "pg_sequence": "seqrelid = ANY({ours})",
    "pg_inherits": "inhrelid = ANY({ours}) OR inhparent = ANY({ours})",
    "pg_attribute": "attrelid = ANY({ours}) AND attnum > 0",
    "pg_attrdef": "adrelid = ANY({ours})",
    "pg_constraint": "conrelid = ANY({ours})",
    "pg_trigger": "tgrelid = ANY({ours})",
    "pg_rewrite": "ev_class = ANY({ours})",
    "pg_index": "indrelid = ANY({ours})",
    "pg_policy": "polrelid = ANY({ours})",
    "pg_proc": "pronamespace = {schema}",
    "pg_type": "typnamespace = {schema} AND typtype IN ('d', 'e', 'r')",
    "pg_namespace": "oid = {schema}",
}
_CLASS: Final = "(to_jsonb(pg_class) - '{relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid}'::text[])::text"


@dataclass
class KeptSchema:
    """One schema, and what is ours in it."""

    name: str
    script: str
    uses: int = 0
    ours: list[int] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    state: str = ""

    @classmethod
    def make(cls, connection: sa.Connection, script: str) -> KeptSchema:
        """A new one, with the tables that the script makes."""
        made = cls(f"test_{uuid4().hex[:12]}", script)
        run = connection.exec_driver_sql
        run(f"CREATE SCHEMA {made.name}; BEGIN; SET LOCAL search_path = {made.name}; {script}; COMMIT")
        for oid, name, kind in run(
            f"SELECT oid, relname, relkind::text FROM pg_class WHERE relnamespace = '{made.name}'::regnamespace"
        ):
            made.ours.append(oid)
            if kind == "r":
                made.tables.append(name)
            elif kind == "S":
                made.sequences.append(name)
        made.state = made._state_on(connection)
        return made

    def sweep(self, connection: sa.Connection) -> bool:
        """Make it as it was; False if that cannot be, or is not worth it: then it is to be dropped."""
        self.uses += 1
        run = connection.exec_driver_sql
        there = run(f"SELECT to_regnamespace('{self.name}')").scalar()
        if there is None or self.uses >= MOST_USES or self._state_on(connection) != self.state:
            return False
        kinds = {"r": "TABLE", "v": "VIEW", "p": "TABLE", "m": "MATERIALIZED VIEW"}
        largest, others = 0, []
        for oid, name, kind, size in run(
            "SELECT oid, relname, relkind::text, CASE WHEN relkind = 'r' THEN pg_total_relation_size(oid) ELSE 0 END"
            f" FROM pg_class WHERE relnamespace = '{self.name}'::regnamespace"
        ):
            if oid in self.ours:
                largest = max(largest, size)
            elif kind in kinds:
                others.append(f'DROP {kinds[kind]} IF EXISTS {self.name}."{name}" CASCADE')
        if largest > LARGEST:
            return False
        statements = [
            "BEGIN",
            "SET LOCAL session_replication_role = replica",  # events cannot be deleted otherwise
            *others,
            *(f'DELETE FROM {self.name}."{table}"' for table in self.tables),
            *(f"SELECT setval('{self.name}.\"{each}\"', 1, false)" for each in self.sequences),
            "COMMIT",
        ]
        run("; ".join(statements))
        return True

    def drop(self, connection: sa.Connection) -> None:
        """Remove it with all that is in it."""
        connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")

    def _state_on(self, connection: sa.Connection) -> str:
        ours = f"'{{{','.join(map(str, self.ours))}}}'::oid[]"
        parts: list[str] = []
        for catalog, condition in _CATALOGS.items():
            where = condition.format(ours=ours, schema=f"'{self.name}'::regnamespace")
            row = _CLASS if catalog == "pg_class" else f"{catalog}::text"
            found = f"SELECT {row} AS found FROM {catalog} WHERE {where}"
            parts.append(f"(SELECT string_agg(found, ';' ORDER BY found) FROM ({found}) AS each)")
        return str(connection.exec_driver_sql(f"SELECT md5(concat_ws('|', {', '.join(parts)}))").scalar_one())
