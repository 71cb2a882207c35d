"""One helper that makes a SQLite engine fit for transactions: application, demo and tests share it.

Python's sqlite3 begins transactions late and around some statements only, so that SAVEPOINT and SELECT … then write do
not behave. SQLAlchemy documents the cure, which this applies: switch the driver's own BEGIN off, and emit ours when
SQLAlchemy begins (docs: "SQLite", "Transactions with SQLite and the sqlite3 driver"). It works for sqlite3 and aiosqlite.

Our BEGIN is BEGIN IMMEDIATE. A deferred transaction that reads first and writes later fails *at once* with "database
is locked" when somebody else committed in between: its snapshot is too old, and no timeout helps. An immediate one
waits for its turn up to `busy_timeout`, then runs to its end. The price: transactions take turns, also those that
only read. Those can say so and run beside the writer: `engine.execution_options(sqlite_begin="DEFERRED")`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event

from message_bus.errors import SettingsError, UnsupportedDatabase

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    AnyEngine = TypeVar("AnyEngine", sa.Engine, AsyncEngine)

_MODES: Final = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE")
_LEGACY_TRANSACTION_CONTROL: Final = -1  # of sqlite3.Connection.autocommit, from Python 3.12


def configure_sqlite(engine: AnyEngine, *, busy_timeout: timedelta = timedelta(seconds=30)) -> AnyEngine:
    """Make an Engine or AsyncEngine on SQLite keep transactions and savepoints; returns it. Twice is like once.

    Call it before the engine's first connection. It switches the file to WAL (readers and the writer do not block
    each other; it stays so), lets a writer wait `busy_timeout` for its turn, and begins transactions as the module
    says. Foreign keys and `synchronous` are left as they are.

    Raises: UnsupportedDatabase if the engine is not on SQLite.
    """
    sync_engine = engine if isinstance(engine, sa.Engine) else engine.sync_engine
    if sync_engine.dialect.name != "sqlite":
        raise UnsupportedDatabase(f"configure_sqlite() was given an engine on {sync_engine.dialect.name!r}")
    if busy_timeout < timedelta(0):
        raise SettingsError("configure_sqlite", ["busy_timeout must not be negative"])
    if not event.contains(sync_engine, "begin", _begin):
        milliseconds = int(busy_timeout.total_seconds() * 1_000)
        connect: Callable[..., None] = partial(_connect, milliseconds=milliseconds)
        event.listen(sync_engine, "connect", connect)
        event.listen(sync_engine, "begin", _begin)
    return engine


def _connect(dbapi_connection: Any, _record: object, *, milliseconds: int) -> None:
    if getattr(dbapi_connection, "autocommit", _LEGACY_TRANSACTION_CONTROL) != _LEGACY_TRANSACTION_CONTROL:
        dbapi_connection.autocommit = _LEGACY_TRANSACTION_CONTROL
    dbapi_connection.isolation_level = None
    if getattr(dbapi_connection, "driver_connection", dbapi_connection).in_transaction:
        raise SettingsError(
            "configure_sqlite", ["the driver begins transactions itself (leave out autocommit=False)"]
        )
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
    cursor.execute("PRAGMA journal_mode")
    (mode,) = cursor.fetchone()
    if mode not in ("wal", "memory"):  # asking is free; switching needs the file for itself
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") == "AUTOCOMMIT":
        return
    mode = str(options.get("sqlite_begin", "IMMEDIATE")).upper()
    if mode not in _MODES:
        raise SettingsError("sqlite_begin", [f"{mode!r} is not one of {', '.join(_MODES)}"])
    connection.exec_driver_sql(f"BEGIN {mode}")
