"""Who is in the way (W10): sessions with what they do, prepared transactions by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from message_bus.storage.holders import Holder, holders
from tests.watermark.readers import Log, Reader, pid_of
from tests.watermark.test_preconditions import as_role

__all__ = ["as_role"]  # a fixture

pytestmark = pytest.mark.postgresql


def found(log: Log) -> list[Holder]:
    with log.engine.connect() as connection:
        return holders(connection, log.tables)


def test_nobody_is_in_the_way_of_an_idle_log(log: Log) -> None:
    """Readers hold nothing, and who asks does not find itself."""
    assert found(log) == []
    with log.engine.connect() as connection:
        log.write(connection)
        assert holders(connection, log.tables) == []
        connection.rollback()


def test_a_writer_is_named_with_what_it_does(log: Log) -> None:
    """Pid, application, state, query, and an age by the server's clock."""
    writer = log.begin()
    writer.execute(sa.text("SET LOCAL application_name = 'shop'"))
    log.write(writer)
    (holder,) = found(log)
    assert holder.pid == pid_of(writer)
    assert holder.application_name == "shop"
    assert holder.state == "idle in transaction"
    assert holder.query is not None
    assert holder.age is not None
    assert timedelta(0) < holder.age < timedelta(minutes=1)
    assert f"pid {holder.pid}, application shop, open for" in str(holder)
    writer.rollback()


def test_the_oldest_comes_first(log: Log) -> None:
    """The one to look at is the one that the watermark waits for."""
    older, newer = log.begin(), log.begin()
    pids = [pid_of(older), pid_of(newer)]
    log.write(newer)
    log.write(older)
    assert [holder.pid for holder in found(log)] == pids
    older.rollback()
    newer.rollback()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM {log}", "UPDATE {log} SET key = key", "LOCK TABLE {log} IN ROW EXCLUSIVE MODE"]
)
def test_who_holds_it_without_writing_messages_is_named_too(log: Log, statement: str) -> None:
    """Retention and repairs in long transactions are in the way as much as writers."""
    other = log.begin()
    other.execute(sa.text(statement.format(log=log.name)))
    (holder,) = found(log)
    assert holder.query == statement.format(log=log.name) or "pg_backend_pid" in str(holder.query)
    other.rollback()


def test_a_forgotten_prepared_transaction_is_named_by_its_gid(log: Log) -> None:
    """It belongs to no session: the remedy is to end it by name."""
    writer = log.begin()
    log.write(writer)
    writer.execute(sa.text("PREPARE TRANSACTION 'it''s forgotten'"))
    writer.rollback()
    (holder,) = found(log)
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ROLLBACK PREPARED 'it''s forgotten'"))
    assert (holder.pid, holder.prepared) == (None, "it's forgotten")
    assert holder.age is not None
    assert "ROLLBACK PREPARED 'it''s forgotten'" in str(holder)
    assert found(log) == []


def test_what_a_role_may_not_see_says_what_to_grant(log: Log, as_role: Callable[[], sa.Connection]) -> None:
    """Another user's query and age are hidden without pg_read_all_stats; that it holds the lock is not."""
    writer = log.begin()
    log.write(writer)
    (holder,) = holders(as_role(), log.tables)
    assert holder.pid == pid_of(writer)
    assert holder.query is None
    assert "grant pg_read_all_stats" in str(holder)
    writer.rollback()


def test_the_async_side_asks_too(log: Log, reader: Reader) -> None:
    """Through run_sync, on each driver."""
    writer = log.begin()
    log.write(writer)
    reader.begin()
    assert [holder.pid for holder in reader.run(holders, log.tables)] == [pid_of(writer)]
    reader.end()
    writer.rollback()
