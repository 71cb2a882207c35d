"""Two at once at the event store: who waits, who wins, what is settled, who is woken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from message_bus.errors import ConcurrencyError, DuplicateEvent, UnsupportedDatabase
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.messages.envelope import new_envelope
from message_bus.messages.ids import uuid7
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from message_bus.testing.event_store_messages import Deposited
from tests.eventsourcing.test_store_sql import saved, store_on
from tests.waiting import wait_until


def waiting(observer: sa.Connection) -> int:
    """How many transactions of this database wait for another one."""
    observer.rollback()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(observer.scalar(sa.text(query)) or 0)


@contextmanager
def second_writer(engine: sa.Engine, stream: str, event: Any, expected: int | None) -> Iterator[list[Any]]:
    """Another thread that saves an event, and then one to the stream "after" in the same transaction."""
    outcome: list[Any] = []

    def run() -> None:
        with engine.begin() as connection:
            store = store_on(connection)
            try:
                outcome.extend(store.save(stream, [event], expected))
            except (ConcurrencyError, DuplicateEvent) as error:
                outcome.append(error)
            store.save("after", [Deposited(99)])

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    thread.join(timeout=60)


@pytest.mark.postgresql
@pytest.mark.parametrize("expected", [0, 1])
def test_the_second_waits_and_gets_a_conflict(
    engine: sa.Engine, tables: MessageBusTables, expected: int
) -> None:
    """Both expect the same version; the loser learns the new one, and his transaction commits what else he does (G12)."""
    if expected:
        saved(engine, "a", 0)
    with engine.connect() as first, engine.connect() as observer:
        store_on(first).save("a", [Deposited(1)], expected)
        with second_writer(engine, "a", Deposited(2), expected) as outcome:
            wait_until(lambda: waiting(observer) == 1)
            first.commit()
    (error,) = outcome
    assert isinstance(error, ConcurrencyError)
    assert (error.expected_version, error.actual_version) == (expected, expected + 1)
    with engine.connect() as connection:
        assert store_on(connection).current_version("a") == expected + 1
        assert store_on(connection).load("after") == [Deposited(99)]


@pytest.mark.postgresql
def test_the_second_wins_if_the_first_rolls_back(engine: sa.Engine, tables: MessageBusTables) -> None:
    """What was never committed conflicts with nobody."""
    with engine.connect() as first, engine.connect() as observer:
        store_on(first).save("a", [Deposited(1)], 0)
        with second_writer(engine, "a", Deposited(2), 0) as outcome:
            wait_until(lambda: waiting(observer) == 1)
            first.rollback()
    assert [each.version for each in outcome] == [1]


@pytest.mark.postgresql
def test_without_an_expected_version_both_succeed_in_order(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """The second waits before it draws a position: positions of a stream follow its versions (G3)."""
    saved(engine, "a", 0)
    with engine.connect() as first, engine.connect() as observer:
        store_on(first).save("a", [Deposited(1)])
        with second_writer(engine, "a", Deposited(2), None) as outcome:
            wait_until(lambda: waiting(observer) == 1)
            store_on(first).save("a", [Deposited(3)])
            first.commit()
    assert [each.version for each in outcome] == [4]
    with engine.connect() as connection:
        events = store_on(connection).load("a")
    positions = [event.envelope.position for event in events]
    assert events == [Deposited(0), Deposited(1), Deposited(3), Deposited(2)]
    assert positions == sorted(positions)


@pytest.mark.postgresql
def test_the_same_id_at_the_same_time(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Who comes second waits, gets DuplicateEvent, and his transaction goes on."""
    taken = uuid7()
    with engine.connect() as first, engine.connect() as observer:
        store_on(first).save("a", [new_envelope(Deposited(1), id=taken)])
        with second_writer(engine, "b", new_envelope(Deposited(2), id=taken), 0) as outcome:
            wait_until(lambda: waiting(observer) == 1)
            first.commit()
    (error,) = outcome
    assert isinstance(error, DuplicateEvent)
    assert error.event_id == taken
    with engine.connect() as connection:
        assert store_on(connection).current_version("b") == 0
        assert store_on(connection).load("after") == [Deposited(99)]


@pytest.mark.postgresql
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("expected", [0, 1, None])
def test_with_an_old_snapshot_it_is_a_conflict_too(
    engine: sa.Engine, tables: MessageBusTables, level: str, expected: int | None
) -> None:
    """The version cannot be seen in that transaction, so the error has none: roll back and repeat."""
    if expected:
        saved(engine, "a", 0)
    with engine.connect().execution_options(isolation_level=level) as connection:
        store = store_on(connection)
        assert store.current_version("a") == (expected or 0)
        saved(engine, "a", 1)
        with pytest.raises(ConcurrencyError) as caught:
            store.save("a", [Deposited(2)], expected)
        assert caught.value.actual_version is None
        connection.rollback()
        store.save("a", [Deposited(2)], (expected or 0) + 1)
        connection.commit()


@pytest.mark.postgresql
async def test_with_an_old_snapshot_it_is_a_conflict_asynchronously(
    async_engine: AsyncEngine, async_tables: MessageBusTables
) -> None:
    """Every driver's error is understood."""
    async with async_engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        store = AsyncSQLAlchemyEventStore(connection)
        assert await store.current_version("a") == 0
        async with async_engine.begin() as other:
            await AsyncSQLAlchemyEventStore(other).save("a", [Deposited(1)])
        with pytest.raises(ConcurrencyError):
            await store.save("a", [Deposited(2)], 0)
        await connection.rollback()


@pytest.mark.postgresql
def test_an_open_writer_holds_back_what_comes_after_it(engine: sa.Engine, tables: MessageBusTables) -> None:
    """What was settled before it is read, what came after it is not, until it has ended (G2)."""
    watermark = Watermark(tables.of_log(EVENT_LOG))

    def read() -> list[Any]:
        with engine.connect() as connection:
            return [each.message for each in store_on(connection, watermark=watermark).read_all()]

    saved(engine, "a", 1)
    assert read() == [Deposited(1)]
    with engine.connect() as slow:
        store_on(slow).save("b", [Deposited(2)])
        saved(engine, "c", 3)
        assert read() == [Deposited(1)]
        slow.commit()
    assert read() == [Deposited(1), Deposited(2), Deposited(3)]


@pytest.mark.postgresql
def test_a_store_that_has_seen_nothing_waits_for_open_writers(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """Its first look settles nothing, so it looks again until they have ended."""
    read: list[Any] = []

    def run() -> None:
        with engine.connect() as connection:
            while not read:  # a slow machine may need longer than the patience of one call
                read.extend(each.message for each in store_on(connection).read_all())

    with engine.connect() as slow:
        store_on(slow).save("a", [Deposited(1)])
        thread = threading.Thread(target=run)
        thread.start()
        slow.commit()
        thread.join(timeout=60)
    assert read == [Deposited(1)]


@pytest.mark.postgresql
def test_reading_all_in_repeatable_read_is_refused(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Its snapshot is older than what is settled: events would be missed."""
    engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match=r"(?i)repeatable read"):
        store_on(connection).read_all()


@pytest.mark.postgresql
def test_a_sleeping_reader_is_notified(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Saving notifies while somebody has said that he sleeps, else not (one NOTIFY in each commit is dear)."""
    with engine.connect() as listener:
        channel = listener.scalar(
            sa.text("SELECT 'message_bus_' || to_regclass(:name)::oid"), {"name": tables.event.name}
        )
        listener.exec_driver_sql(f'LISTEN "{channel}"')
        listener.commit()
        saved(engine, "a", 1)
        assert notifications(listener) == 0
        with engine.begin() as connection:
            asleep_until = sa.func.now() + sa.text("interval '1 hour'")
            connection.execute(sa.insert(tables.log).values(log=EVENT_LOG, asleep_until=asleep_until))
        saved(engine, "a", 2)
        saved(engine, "a", 3, 4)
        assert notifications(listener) == 2


def notifications(listener: sa.Connection) -> int:
    """How many have come."""
    listener.exec_driver_sql("SELECT 1")
    listener.commit()
    driver: Any = listener.connection.driver_connection
    return len(list(driver.notifies(timeout=0)))
