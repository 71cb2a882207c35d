"""`configure_sqlite`: transactions and savepoints that hold, and writers that wait for their turn."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from message_bus.errors import SettingsError, UnsupportedDatabase
from message_bus.storage.outages import is_outage
from message_bus.storage.sqlite import configure_sqlite
from tests.late_writing.conftest import Order, Room
from tests.late_writing.scenario import under_every_driver

pytestmark = pytest.mark.sqlite


@under_every_driver
def test_savepoints_belong_to_their_transaction(room: Room) -> None:
    """Without the helper a savepoint released first is committed, whatever becomes of the transaction around it."""
    for engine, left in ((room.engine, 0), (room.make_engine(configure=False), 1)):
        with engine.connect() as connection:
            with connection.begin_nested():
                connection.execute(sa.insert(Order).values(customer="c"))
            connection.rollback()
        assert room.orders() == left


@under_every_driver
def test_settings(room: Room) -> None:
    """WAL, the busy timeout, and the driver's own BEGIN off; foreign keys stay as they are."""
    with room.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 0
        driver: Any = connection.connection.driver_connection
        assert driver.isolation_level is None
        assert driver.in_transaction


@under_every_driver
def test_twice_is_like_once(room: Room) -> None:
    """Configuring an engine again changes nothing: one BEGIN per transaction."""
    seen = room.statements(configure_sqlite(room.engine))
    with room.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert seen == ["BEGIN IMMEDIATE", "SELECT 1"]


@under_every_driver
def test_reading_first_and_writing_later(room: Room) -> None:
    """A deferred transaction whose snapshot has become old fails at once when it writes; ours has taken its turn first."""
    deferred = room.engine.execution_options(sqlite_begin="DEFERRED")
    with deferred.connect() as reader:
        reader.execute(sa.select(Order)).all()
        with room.engine.begin() as writer:
            writer.execute(sa.insert(Order).values(customer="c"))
        with pytest.raises(sa.exc.OperationalError) as caught:
            reader.execute(sa.insert(Order).values(customer="d"))
        assert is_outage(caught.value)
    with room.engine.connect() as connection:
        assert len(connection.execute(sa.select(Order)).all()) == 1
        connection.execute(sa.insert(Order).values(customer="d"))
        connection.commit()
    assert room.orders() == 2


@under_every_driver
def test_readers_that_say_so_run_beside_the_writer(room: Room) -> None:
    """With sqlite_begin="DEFERRED" a reader neither waits for a writer nor sees what it has not committed."""
    with room.engine.connect() as writer:
        writer.execute(sa.insert(Order).values(customer="c"))
        assert room.orders() == 0
        writer.commit()
    assert room.orders() == 1


@under_every_driver
def test_an_unknown_mode_is_refused(room: Room) -> None:
    """What `sqlite_begin` says goes into a statement: only the three words of SQLite are taken."""
    engine = room.engine.execution_options(sqlite_begin="IMMEDIATE; DROP TABLE orders")
    with engine.connect() as connection, pytest.raises(SettingsError, match="sqlite_begin"):
        connection.begin()


@under_every_driver
def test_autocommit_is_left_alone(room: Room) -> None:
    """VACUUM and the like need to run outside a transaction: AUTOCOMMIT still means that."""
    with room.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM")
    with room.engine.begin() as connection:
        connection.execute(sa.insert(Order).values(customer="c"))
        with connection.begin_nested() as nested:
            connection.execute(sa.insert(Order).values(customer="d"))
            nested.rollback()
    assert room.orders() == 1


def test_a_busy_writer_is_waited_for(sqlite_path: Path) -> None:
    """A transaction waits for the one before it instead of failing."""
    engine = configure_sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(sqlite_path))))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")

    def count_up() -> None:
        for _ in range(20):
            with engine.begin() as connection:
                number = connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one()
                connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        numbers = connection.exec_driver_sql("SELECT n FROM t ORDER BY n").scalars().all()
    engine.dispose()
    assert numbers == list(range(80))


def test_a_database_in_memory() -> None:
    """WAL is for files; a database in memory works as it is."""
    engine = configure_sqlite(sa.create_engine("sqlite://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
    engine.dispose()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sqlite3 has the autocommit attribute from Python 3.12"
)
@under_every_driver
def test_a_driver_that_begins_by_itself(room: Room) -> None:
    """autocommit=False lets the driver begin, DEFERRED: switched off where it can be (sqlite3), else refused (aiosqlite)."""
    engine = room.make_engine(connect_args={"autocommit": False})
    if engine.driver == "aiosqlite":
        with pytest.raises(SettingsError, match="autocommit=False"):
            engine.connect()
    else:
        seen = room.statements(engine)
        with engine.begin() as connection:
            connection.execute(sa.insert(Order).values(customer="c"))
        assert seen[0] == "BEGIN IMMEDIATE"
        assert room.orders() == 1


def test_what_is_refused() -> None:
    """Only SQLite engines, only a timeout that makes sense; the engine comes back, sync or async."""
    with pytest.raises(UnsupportedDatabase, match="postgresql"):
        configure_sqlite(sa.create_engine("postgresql+psycopg://"))
    with pytest.raises(SettingsError, match="busy_timeout"):
        configure_sqlite(sa.create_engine("sqlite://"), busy_timeout=timedelta(seconds=-1))
    engine = create_async_engine("sqlite+aiosqlite://")
    assert configure_sqlite(engine) is engine
