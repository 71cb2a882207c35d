"""Bring a database's message_bus tables to a revision: `upgrade`, `downgrade`, `current`.

The revisions are Alembic's, in the repository's `alembic/`, shipped as `message_bus/migrations/`. They have a version
table of their own, `<prefix>schema_version`, beside the tables, and never meet the application's own migrations. Who
keeps the tables in the application's MetaData and lets its Alembic migrate them does not need this module.

Called by `message-bus db`, by deployment scripts and tests. Alembic is imported when something is migrated.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, literal, select, text
from sqlalchemy.engine import URL
from sqlalchemy.schema import CreateSchema

from message_bus.errors import SchemaError, SettingsError, UnsupportedDatabase, WiringError
from message_bus.storage.logs import schema_of
from message_bus.storage.schema import SUPPORTED_DIALECTS, differences
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import missing_driver, sync_url

if TYPE_CHECKING:
    from alembic.config import Config

Target = str | URL | Engine | Connection

VERSION_TABLE: Final = "schema_version"
_TABLES: Final = MessageBusTables()
_LOCK_CLASS: Final = zlib.crc32(b"message-bus db") >> 1  # pg_locks.classid of our advisory locks
_SQLITE_BUSY_SECONDS: Final = 30
_alembic_in_use = threading.Lock()  # alembic.context and alembic.op are one per process


@dataclass(frozen=True, slots=True)
class Migrated:
    """What `upgrade` or `downgrade` did: the revisions before and after (None: no tables)."""

    before: str | None
    after: str | None
    created_schema: bool = False
    adopted: bool = False  # tables that create_all had made were found complete and are now on record


def upgrade(target: Target, *, tables: MessageBusTables = _TABLES, revision: str = "head") -> Migrated:
    """Bring the tables to `revision`, creating the schema if it is missing.

    `target`: a URL (`postgresql://` means psycopg 3), an Engine, or a Connection; asynchronously
    `await connection.run_sync(upgrade)`. All of it is one transaction: a failed upgrade changes nothing. With a
    Connection it is the caller's transaction and the caller commits (G10). Several processes may upgrade at once: one
    works, the others wait for it and then find nothing to do.

    Raises: SettingsError for an unknown revision or unreadable URL; SchemaError when tables are there that no revision
    made; WiringError when the database is newer than this package; UnsupportedDatabase.
    """
    with _transaction(target) as connection:
        schema = schema_of(connection, tables.outbox)
        _take_turns(connection, schema, tables)
        created_schema = _create_schema(connection, schema)
        before = _known(_recorded(connection, schema, tables))
        adopted = before is None and inspect(connection).has_table(tables.outbox.name, schema)
        if adopted:
            _adopt(connection, schema, tables, revision)
        else:
            _run("upgrade", connection, schema, tables, revision)
        return Migrated(before, _recorded(connection, schema, tables), created_schema, adopted)


def downgrade(target: Target, *, tables: MessageBusTables = _TABLES, revision: str = "-1") -> Migrated:
    """Take the tables back to an older `revision` ("-1": the one before, "base": drop them all), data included.

    Transactions, locks and errors as in `upgrade`. The schema itself stays.
    """
    with _transaction(target) as connection:
        schema = schema_of(connection, tables.outbox)
        _take_turns(connection, schema, tables)
        before = _known(_recorded(connection, schema, tables))
        if before is None:
            return Migrated(None, None)
        _run("downgrade", connection, schema, tables, revision)
        after = _recorded(connection, schema, tables)
        if after is None:
            quote = connection.dialect.identifier_preparer.quote
            name = quote(f"{tables.prefix}{VERSION_TABLE}")
            connection.execute(text(f"DROP TABLE {f'{quote(schema)}.' if schema else ''}{name}"))
        return Migrated(before, after)


def current(target: Target, *, tables: MessageBusTables = _TABLES) -> str | None:
    """The revision on record in the database; None if there is none. Only reads."""
    with _transaction(target, reads_only=True) as connection:
        return _recorded(connection, schema_of(connection, tables.outbox), tables)


def holds_rows(target: Target, *, tables: MessageBusTables = _TABLES) -> bool:
    """Would dropping the tables lose anything? Only reads."""
    with _transaction(target, reads_only=True) as connection:
        inspector, schema = inspect(connection), schema_of(connection, tables.outbox)
        there = [table for table in tables.all if inspector.has_table(table.name, schema)]
        return any(connection.scalar(select(literal(1)).select_from(table).limit(1)) for table in there)


def head() -> str | None:
    """The newest revision that this version of the package knows."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config()).get_current_head()


def migrations_directory() -> Path:
    """The directory of `env.py` and `versions/`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "migrations", package.parent / "alembic"):
        # site-packages/alembic is Alembic itself, which has no env.py
        if (directory / "env.py").is_file() and (directory / "versions").is_dir():
            return directory
    raise WiringError(
        f"no migrations beside {package} (the installation is incomplete: install message_bus again)"
    )


@contextmanager
def _transaction(target: Target, *, reads_only: bool = False) -> Generator[Connection]:
    if isinstance(target, Connection):
        _check_dialect(target.dialect.name)
        yield target
    elif isinstance(target, Engine):
        with _begin(target, reads_only) as connection:
            yield connection
    elif isinstance(target, str | URL):
        engine = _engine(sync_url(target))
        try:
            with _begin(engine, reads_only) as connection:
                yield connection
        finally:
            engine.dispose()
    else:
        raise TypeError(
            f"cannot migrate a {type(target).__name__!r} "
            "(give a URL, an Engine or a Connection; asynchronously: await connection.run_sync(upgrade))"
        )


def _engine(url: URL) -> Engine:
    _check_dialect(url.get_backend_name())
    timeout = {"timeout": _SQLITE_BUSY_SECONDS} if url.get_backend_name() == "sqlite" else {}
    try:
        return create_engine(url, poolclass=NullPool, connect_args=timeout)
    except ImportError as error:
        raise WiringError(missing_driver(error, url)) from error


@contextmanager
def _begin(engine: Engine, reads_only: bool) -> Generator[Connection]:
    with engine.connect() as connection:
        _check_dialect(connection.dialect.name)
        if connection.dialect.name == "postgresql":
            # who has waited for the lock must see what the one before has committed
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if connection.dialect.name == "sqlite" and not reads_only:
                _begin_immediate(connection)
            yield connection


def _begin_immediate(connection: Connection) -> None:
    """Begin anew, with the write lock: Python's sqlite3 begins no transaction before DDL, and others a deferred one."""
    if getattr(connection.connection.dbapi_connection, "in_transaction", False):
        connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_dialect(name: str) -> None:
    if name not in SUPPORTED_DIALECTS:
        raise UnsupportedDatabase(f"{name!r} is not supported (use PostgreSQL or SQLite)")


def _take_turns(connection: Connection, schema: str | None, tables: MessageBusTables) -> None:
    """Wait until no other transaction migrates these tables. (SQLite has one writer anyway.)"""
    if connection.dialect.name != "postgresql":
        return
    where = schema or connection.scalar(text("SELECT current_schema()"))
    key = {"class": _LOCK_CLASS, "key": zlib.crc32(f"{where}.{tables.prefix}".encode()) >> 1}
    connection.execute(text("SELECT pg_advisory_xact_lock(CAST(:class AS int), CAST(:key AS int))"), key)
    held = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        " AND classid = CAST(CAST(:class AS int) AS oid) AND objid = CAST(CAST(:key AS int) AS oid)"
    )
    if not connection.scalar(held, key):
        raise UnsupportedDatabase(
            "a migration needs a transaction (this connection is in AUTOCOMMIT: give one that is not)"
        )


def _create_schema(connection: Connection, schema: str | None) -> bool:
    # asked first: CREATE SCHEMA IF NOT EXISTS wants the privilege even when there is nothing to create
    if schema is None or inspect(connection).has_schema(schema):
        return False
    if connection.dialect.name == "sqlite":
        raise SettingsError(
            "MessageBusTables", [f"no database is attached as {schema!r} (on SQLite leave schema out)"]
        )
    connection.execute(CreateSchema(schema))
    return True


def _recorded(connection: Connection, schema: str | None, tables: MessageBusTables) -> str | None:
    from alembic.migration import MigrationContext

    options = {"version_table": f"{tables.prefix}{VERSION_TABLE}", "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _known(revision: str | None) -> str | None:
    from alembic.script import ScriptDirectory

    if revision is not None:
        revisions = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
        if revision not in revisions:
            raise WiringError(
                f"the database is at revision {revision!r}, which this version of message_bus does not know "
                "(install the version that brought it there, or a newer one)"
            )
    return revision


def _adopt(connection: Connection, schema: str | None, tables: MessageBusTables, revision: str) -> None:
    """Put tables that `create_all` made on record, if they are exactly what the newest revision would have made."""
    if revision not in ("head", head()):
        raise WiringError(
            f"tables are there that no revision made (upgrade them to 'head', not to {revision!r})"
        )
    found = differences(connection, tables)
    if found:
        raise SchemaError(
            ["the tables were not made by a revision, and are not like the newest one's:", *found]
        )
    _run("stamp", connection, schema, tables, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    return config


def _run(
    action: str, connection: Connection, schema: str | None, tables: MessageBusTables, revision: str
) -> None:
    from alembic import command
    from alembic.util import CommandError

    config = _config()
    config.attributes.update(
        connection=connection,
        schema=schema,
        prefix=tables.prefix,
        version_table=f"{tables.prefix}{VERSION_TABLE}",
    )
    with _alembic_in_use:
        try:
            getattr(command, action)(config, revision)
        except CommandError as error:
            known = f"the newest is {head()!r}"
            raise SettingsError(f"{action} to revision {revision!r}", [f"{error} ({known})"]) from error
