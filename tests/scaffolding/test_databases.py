"""The fixtures that every other test stands on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus.storage.tables import MessageBusTables
from tests.conftest import clean_up
from tests.waiting import async_wait_until, wait_until


def test_the_tables_are_there_and_empty(
    tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """`tables` are made in the database that `session_factory` reaches."""
    with session_factory() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(tables.outbox)) == 0


async def test_the_async_tables_are_there_and_empty(
    async_tables: MessageBusTables, async_session_factory: async_sessionmaker[AsyncSession]
) -> None:
    """`async_tables` are made in the database that `async_session_factory` reaches."""
    async with async_session_factory() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(async_tables.outbox)) == 0


async def test_both_engines_reach_one_database(engine: sa.Engine, async_engine: AsyncEngine) -> None:
    """What is committed through `engine` is seen through `async_engine`, whatever the driver."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE shared (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO shared VALUES (7)")
    async with async_engine.connect() as async_connection:
        assert await async_connection.scalar(sa.text("SELECT n FROM shared")) == 7


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_has_a_database_of_its_own(engine: sa.Engine, attempt: int) -> None:
    """A table made by one test is not there in the next."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (n INTEGER)")


@pytest.mark.postgresql
def test_the_url_carries_the_schema(database_url: sa.URL, schema: str, backend: str) -> None:
    """A program that is given only the URL works in the test's schema; the mark leaves PostgreSQL alone."""
    assert backend == "postgresql"
    engine = sa.create_engine(database_url.render_as_string(hide_password=False), poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT current_schema()")) == schema


@pytest.mark.sqlite
async def test_the_mark_sqlite_leaves_sqlite_alone(
    async_backend: str, backend: str, sqlite_path: Path
) -> None:
    """Marks narrow the backends, of both colours at once."""
    assert (backend, async_backend, sqlite_path.exists()) == ("sqlite", "aiosqlite", False)


@pytest.mark.postgresql
def test_the_server_is_durable_and_modern(engine: sa.Engine) -> None:
    """The guarantees are tested with fsync on, on a version that lists prepared transactions in pg_locks."""
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW fsync")) == "on"
        assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(sa.text("SELECT current_setting('server_version_num')::int")) >= 140001


@pytest.mark.postgresql
def test_what_a_test_leaves_behind_is_found_and_ended(
    administration: sa.Engine, database_url: sa.URL
) -> None:
    """A transaction that is still open, and a prepared one; who is between transactions may stay."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with administration.connect() as connection, psycopg.connect(url) as idle, psycopg.connect(url) as busy:
        idle.execute("SELECT 1")
        idle.execute(f"PREPARE TRANSACTION 'of {idle.info.backend_pid}'")
        busy.execute("SELECT 'business'")
        prepared, session = clean_up(connection, patience=0.01)
        assert prepared == f"prepared transaction 'of {idle.info.backend_pid}'"
        assert re.fullmatch(
            rf"session {busy.info.backend_pid}, idle in transaction, last .*business.*", session
        )
        assert clean_up(connection) == []
        idle.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")


@pytest.mark.postgresql
def test_a_server_process_that_has_not_noticed_the_end_of_its_client_is_waited_for(
    administration: sa.Engine, database_url: sa.URL
) -> None:
    """On a busy machine that takes a while; the test has left nothing."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    looks: list[None] = []
    left: list[str] = []
    with psycopg.connect(url) as gone:
        gone.execute("SELECT 1")
        pid = gone.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        gone.close()
    with administration.connect() as connection:
        sa.event.listen(connection, "after_cursor_execute", lambda *_: looks.append(None))
        cleaning = threading.Thread(target=lambda: left.extend(clean_up(connection, patience=30)))
        cleaning.start()
        wait_until(lambda: len(looks) > 1)
        os.kill(pid, signal.SIGCONT)
        cleaning.join()
    assert left == []


async def test_waiting_returns_what_became_true() -> None:
    """Both ways of waiting return the first true value, and fail with the last false one."""
    values = iter([None, 0, "done"])
    assert wait_until(lambda: next(values)) == "done"
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await async_wait_until(event.is_set)
    with pytest.raises(AssertionError, match=r"no answer for 0\.01 s \(last value: 0\)"):
        wait_until(lambda: 0, timeout=0.01, message="no answer")
