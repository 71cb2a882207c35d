"""The event stores that own an engine: opening, closing, pools, several at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from message_bus.errors import ConcurrencyError, SettingsError, WiringError
from message_bus.eventsourcing.stores.postgresql_store import PostgreSQLEventStore
from message_bus.eventsourcing.stores.sqlite_store import SQLiteEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.registry import Registry
from message_bus.storage.migrations import current, head
from message_bus.testing.event_store_messages import Deposited, contract_registry


@pytest.fixture
def url(database_url: sa.URL) -> str:
    """A URL as people write it."""
    return database_url.set(drivername=database_url.get_backend_name()).render_as_string(hide_password=False)


@pytest.mark.postgresql
async def test_postgresql_from_nothing(url: str) -> None:
    """`initialize` makes the tables by the migrations; closed and opened again, everything is there."""
    store = PostgreSQLEventStore(url, pool_min_size=1, registry=contract_registry())
    await store.initialize()
    await store.initialize()
    assert current(url) == head()
    await store.save("a", [Deposited(1)], 0)
    await store.save_snapshot_async(Snapshot("a", "Account", 1, {"cents": 1}))
    assert await store.ping()
    await store.close()
    await store.aclose()
    async with store:
        assert await store.load("a") == [Deposited(1)]
        snapshot = await store.load_snapshot_async("a")
        assert snapshot is not None
        assert snapshot.state == {"cents": 1}
        assert await store.delete_stream("a", by="me") == 1
        assert await store.load("a") == []


@pytest.mark.postgresql
async def test_a_closed_store_says_so(url: str) -> None:
    """WiringError with the remedy, for every call."""
    store = PostgreSQLEventStore(url)
    for call in (store.ping(), store.load("a"), store.save("a", []), store.delete_stream("a", by="me")):
        with pytest.raises(WiringError, match="initialize"):
            await call


@pytest.mark.postgresql
async def test_many_tasks_share_a_small_pool(url: str) -> None:
    """They wait for a connection; of those who expect the same version one wins (G12)."""
    registry = contract_registry()
    async with PostgreSQLEventStore(url, pool_min_size=1, pool_max_size=3, registry=registry) as store:
        results = await asyncio.gather(
            *[store.save("a", [Deposited(n)], 0) for n in range(20)], return_exceptions=True
        )
        conflicts = [each for each in results if isinstance(each, ConcurrencyError)]
        assert len(conflicts) == 19
        await asyncio.gather(*[store.save("b", [Deposited(n)]) for n in range(20)])
        events = await store.load("b")
    positions = [event.envelope.position for event in events]
    assert [event.envelope.version for event in events] == list(range(1, 21))
    assert positions == sorted(positions)


@pytest.mark.postgresql
async def test_a_database_that_is_not_there(url: str) -> None:
    """Opening fails, and leaves nothing open."""
    nowhere = sa.make_url(url).set(database="nowhere_at_all").render_as_string(hide_password=False)
    with pytest.raises(sa.exc.OperationalError):
        await PostgreSQLEventStore(nowhere).initialize()


def test_the_settings_are_checked_all_at_once() -> None:
    """And the connection string is neither in the text nor in the repr: it holds a password."""
    with pytest.raises(SettingsError) as caught:
        PostgreSQLEventStore("sqlite:///secret.db", 0, -1, 0)
    assert len(caught.value.problems) == 3
    assert "secret" not in str(caught.value)
    store = PostgreSQLEventStore("postgresql://me:secret@localhost/shop", 1, 5, 1.5)
    assert "secret" not in repr(store)
    assert store == PostgreSQLEventStore("postgresql://me:secret@localhost/shop", 1, 5, 1.5)
    assert (store.pool_min_size, store.pool_max_size, store.pool_timeout) == (1, 5, 1.5)


@pytest.mark.postgresql
async def test_gaps_between_upcasters_are_found_at_the_start(url: str, tmp_path: Path) -> None:
    """Before the first old event is met, in both stores."""
    registry = Registry()
    registry.register(Deposited)
    with pytest.raises(SettingsError, match="nothing leads from version 1"):
        await PostgreSQLEventStore(url, registry=registry).initialize()
    with pytest.raises(SettingsError, match="nothing leads from version 1"):
        SQLiteEventStore(tmp_path / "x.db", registry=registry).initialize()


def test_sqlite_from_nothing(tmp_path: Path) -> None:
    """A path or a URL; closed and opened again, everything is there."""
    path = tmp_path / "events.db"
    store = SQLiteEventStore(path, registry=contract_registry())
    with pytest.raises(WiringError, match="initialize"):
        store.load("a")
    store.initialize()
    store.initialize()
    assert current(f"sqlite:///{path}") == head()
    store.save("a", [Deposited(1)], 0)
    assert store.ping()
    store.close()
    store.close()
    with SQLiteEventStore(f"sqlite:///{path}", registry=contract_registry()) as again:
        assert again.load("a") == [Deposited(1)]
        assert again.delete_stream("a", by="me") == 1
        assert again.current_version("a") == 0
    with pytest.raises(SettingsError, match="not one of SQLite"):
        SQLiteEventStore("postgresql://localhost/shop")


@pytest.mark.parametrize("place", ["file", "memory"])
def test_threads_share_a_sqlite_store(tmp_path: Path, place: str) -> None:
    """Writers take turns; without an expected version all succeed, with one exactly one does (G12)."""
    where = ":memory:" if place == "memory" else str(tmp_path / "events.db")
    conflicts: list[ConcurrencyError] = []
    with SQLiteEventStore(where, registry=contract_registry()) as store:

        def write(number: int) -> None:
            for _ in range(10):
                store.save("a", [Deposited(number)])
                store.load("a")
            try:
                store.save("b", [Deposited(number)], 0)
            except ConcurrencyError as error:
                conflicts.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert store.current_version("a") == 50
        assert len(conflicts) == 4
        assert [each.version for each in store.read_all() if each.stream == "a"] == list(range(1, 51))
