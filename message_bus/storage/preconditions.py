"""Refuse what would lose messages, before it does (W3, W7, W9): checks of a log and of a reader's connection.

Run once at start and by `check_schema`, not per look; what can change later (isolation, privileges, row
security, the table itself) the look checks again for itself. Called on a sync Connection; the async side goes
through `run_sync`. They read catalogs only and run in the connection's transaction.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Text, bindparam, text
from sqlalchemy.engine import Connection

from message_bus.errors import SchemaError, UnsupportedDatabase
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.logs import POSITION, quoted_name, schema_of
from message_bus.storage.requirements import LogFacts, faults_of, faults_of_reader, unsupported_server
from message_bus.storage.tables import MessageBusTables

READER_SETTINGS: Final = ("SET LOCAL row_security = off",)

_SERVER: Final = "SELECT version(), current_setting('server_version_num')"

_SQLITE_AUTOCOMMIT: Final = (
    "it is in AUTOCOMMIT, so progress and effects would not be committed together (use configure_sqlite(engine), "
    "or an engine without isolation_level)"
)

_READER: Final = "SELECT current_setting('transaction_isolation'), pg_is_in_recovery()"

_FACTS: Final = text("""
SELECT current_user AS role, pg_is_in_recovery() AS is_standby,
       class.relkind::text AS kind, class.relpersistence::text AS persistence,
       class.relispartition OR EXISTS (
           SELECT 1 FROM pg_inherits WHERE inhrelid = class.oid OR inhparent = class.oid
       ) AS is_inherited,
       (SELECT subname FROM pg_subscription_rel JOIN pg_subscription s ON s.oid = srsubid
        WHERE srrelid = class.oid LIMIT 1) AS replicated_by,
       format_type(attribute.atttypid, NULL) AS type, attribute.attidentity::text AS identity,
       sequence.seqrelid::regclass::text AS sequence, format_type(sequence.seqtypid, NULL) AS sequence_type,
       (SELECT relpersistence::text FROM pg_class WHERE oid = sequence.seqrelid) AS persistence_of_sequence,
       sequence.seqincrement AS increment, sequence.seqcache AS cache, sequence.seqcycle AS is_cycling,
       sequence.seqmin AS minimum, sequence.seqmax AS maximum,
       has_sequence_privilege(sequence.seqrelid, 'USAGE, SELECT') AS may_read_sequence,
       has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE') AS may_see_incarnation,
       row_security_active(class.oid) AS is_row_security_active,
       to_regclass(:delivery) IS NOT NULL AND to_regclass(:history) IS NULL AS lacks_history
FROM pg_class AS class
LEFT JOIN pg_attribute AS attribute
       ON attribute.attrelid = class.oid AND attribute.attname = :position AND NOT attribute.attisdropped
LEFT JOIN pg_depend AS owned
       ON owned.classid = 'pg_class'::regclass AND owned.refclassid = 'pg_class'::regclass
      AND owned.refobjid = class.oid AND owned.refobjsubid = attribute.attnum AND owned.deptype IN ('i', 'a')
LEFT JOIN pg_sequence AS sequence ON sequence.seqrelid = owned.objid
WHERE class.oid = to_regclass(:name)
""").bindparams(*(bindparam(each, type_=Text) for each in ("name", "position", "delivery", "history")))


def check_log(connection: Connection, tables: MessageBusTables) -> None:
    """Refuse a log that cannot be read safely, or a server or a role that it cannot be read with (W7).

    Run it with the role that reads the log: privileges and row security are those of the connection.

    Raises: UnsupportedDatabase, with every fault and its remedy; SchemaError if there is no such table.
    """
    _refuse(f"log {tables.source_log!r} cannot be read safely", faults_of_log(connection, tables))


def faults_of_log(connection: Connection, tables: MessageBusTables) -> list[str]:
    """Everything that `check_log` refuses, each with its remedy. Raises: SchemaError if there is no such table."""
    table = tables.log_table(tables.source_log)
    match connection.dialect.name:
        case "postgresql":
            return _faults_on_postgresql(connection, quoted_name(connection, table), tables)
        case "sqlite":
            return _faults_on_sqlite(connection, table.name, tables)
        case other:
            return [f"dialect {other!r} is not supported (use PostgreSQL 14.1+ or SQLite)"]


def check_reader(connection: Connection) -> None:
    """Refuse a connection that must not read a log: an older snapshot (W3), AUTOCOMMIT, a standby.

    A session that a test suite has bound to a transaction of its own is fine, at READ COMMITTED.

    Raises: UnsupportedDatabase, with every fault and its remedy.
    """
    if connection.dialect.name == "sqlite" and database_of(connection.dialect).is_autocommit(connection):
        _refuse("this connection cannot read a log safely", [_SQLITE_AUTOCOMMIT])
    if connection.dialect.name != "postgresql":
        return
    isolation, is_standby = connection.execute(text(_READER)).one()
    is_autocommit = bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
    faults = faults_of_reader(isolation, is_autocommit=is_autocommit, is_standby=is_standby)
    _refuse("this connection cannot read a log safely", faults)


def reader_settings(dialect_name: str) -> tuple[str, ...]:
    """The statements to run in a transaction before it reads or prunes a log (W9).

    With row security off the server raises where it would have hidden rows. It holds to the end of the
    transaction, and for whatever else runs in it: not for a transaction that a handler shares, where the
    look's own check stands.
    """
    return READER_SETTINGS if dialect_name == "postgresql" else ()


def _faults_on_postgresql(connection: Connection, name: str, tables: MessageBusTables) -> list[str]:
    version_text, version = connection.execute(text(_SERVER)).one()
    if (fault := unsupported_server(version_text, int(version))) is not None:
        return [fault]
    delivery, history = (quoted_name(connection, each) for each in (tables.delivery, tables.history))
    asked = {"name": name, "position": POSITION, "delivery": delivery, "history": history}
    row = connection.execute(_FACTS, asked).mappings().first()
    if row is None or row["lacks_history"]:  # it is younger than the others: somebody forgot to upgrade
        missing = name if row is None else history
        raise SchemaError([f"table {missing} is missing, or not on the search_path of this connection"])
    known: dict[str, Any] = {"type": "missing", "identity": "", "replicated_by": None}
    known |= {fact: value for fact, value in row.items() if value is not None and fact != "lacks_history"}
    return faults_of(LogFacts(table=name, **known))


def _faults_on_sqlite(connection: Connection, name: str, tables: MessageBusTables) -> list[str]:
    schema = schema_of(connection, tables.outbox)
    master = (
        f"{connection.dialect.identifier_preparer.quote(schema)}.sqlite_master" if schema else "sqlite_master"
    )
    wanted = "type = 'table' AND name IN (:name, :delivery, :history)"
    query = text(f"SELECT name, sql FROM {master} WHERE {wanted}")  # noqa: S608  (quoted)
    delivery, history = tables.delivery.name, tables.history.name
    rows = connection.execute(query, {"name": name, "delivery": delivery, "history": history})
    there: dict[str, str] = {row.name: row.sql for row in rows}
    if name not in there or (delivery in there and history not in there):
        raise SchemaError([f"table {name if name not in there else history} is missing"])
    if "AUTOINCREMENT" not in there[name].upper():
        return [f"{name}.position may be used again (make it INTEGER PRIMARY KEY AUTOINCREMENT)"]
    return []


def _refuse(subject: str, faults: list[str]) -> None:
    if faults:
        listed = faults[0] if len(faults) == 1 else "".join(f"\n  - {fault}" for fault in faults)
        raise UnsupportedDatabase(f"{subject}: {listed}")
