"""Every event store of ours under one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from message_bus.eventsourcing.stores.in_memory_store import InMemoryAsyncEventStore, InMemoryEventStore
from message_bus.eventsourcing.stores.postgresql_store import PostgreSQLEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlite_store import SQLiteEventStore
from message_bus.messages.registry import Registry
from message_bus.storage.tables import MessageBusTables
from message_bus.testing.capabilities import AsyncStores, Capabilities, Stores
from message_bus.testing.event_store_contract import EventStoreContract
from message_bus.testing.event_store_contract_async import AsyncEventStoreContract

EACH_CALL_COMMITS = Capabilities(rolls_back=False)


class TestInMemory(EventStoreContract):
    capabilities = EACH_CALL_COMMITS

    @pytest.fixture
    def stores(self) -> Stores:
        """Stores with another registry over one log."""
        log = InMemoryEventStore()
        return lambda registry: nullcontext(with_registry(InMemoryEventStore(registry=registry), log))


class TestAsyncInMemory(AsyncEventStoreContract):
    capabilities = EACH_CALL_COMMITS

    @pytest.fixture
    def stores(self) -> AsyncStores:
        """Stores with another registry over one log."""
        log = InMemoryAsyncEventStore()
        return lambda registry: nullcontext(with_registry(InMemoryAsyncEventStore(registry=registry), log))


def with_registry(store: Any, log: Any) -> Any:
    """Let a store look at the events of another."""
    types = store._log._types
    store._log.__dict__.update(log._log.__dict__)
    store._log._types = types
    store._log._events = log._log._events
    return store


class TestOnASession(EventStoreContract):
    @pytest.fixture
    def stores(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Stores:
        """A session each, committed at its end."""

        @contextmanager
        def open_one(registry: Registry) -> Iterator[SQLAlchemyEventStore]:
            with session_factory.begin() as session:
                yield SQLAlchemyEventStore(session, tables=tables, registry=registry)

        return open_one


class TestOnAScopedSession(EventStoreContract):
    @pytest.fixture
    def stores(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Stores:
        """The session of this thread."""
        scoped = scoped_session(session_factory)

        @contextmanager
        def open_one(registry: Registry) -> Iterator[SQLAlchemyEventStore]:
            try:
                yield SQLAlchemyEventStore(scoped, tables=tables, registry=registry)
                scoped.commit()
            finally:
                scoped.remove()

        return open_one


class TestOnAConnection(EventStoreContract):
    @pytest.fixture
    def stores(self, engine: sa.Engine, tables: MessageBusTables) -> Stores:
        """A Core connection each."""

        @contextmanager
        def open_one(registry: Registry) -> Iterator[SQLAlchemyEventStore]:
            with engine.begin() as connection:
                yield SQLAlchemyEventStore(connection, tables=tables, registry=registry)

        return open_one


class TestOnAnObservedConnection(EventStoreContract):
    """Statements that somebody logs or rewrites go the ordinary way, and answer the same."""

    @pytest.fixture
    def stores(self, engine: sa.Engine, tables: MessageBusTables) -> Stores:
        """A Core connection each, whose statements are listened to."""
        sa.event.listen(engine, "before_cursor_execute", lambda *_: None)

        @contextmanager
        def open_one(registry: Registry) -> Iterator[SQLAlchemyEventStore]:
            with engine.begin() as connection:
                yield SQLAlchemyEventStore(connection, tables=tables, registry=registry)

        return open_one


class TestOnAnAsyncSession(AsyncEventStoreContract):
    @pytest.fixture
    def stores(
        self, async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
    ) -> AsyncStores:
        """A session each, committed at its end."""

        @asynccontextmanager
        async def open_one(registry: Registry) -> AsyncIterator[AsyncSQLAlchemyEventStore]:
            async with async_session_factory.begin() as session:
                yield AsyncSQLAlchemyEventStore(session, tables=async_tables, registry=registry)

        return open_one


class TestOnAnAsyncConnection(AsyncEventStoreContract):
    @pytest.fixture
    def stores(self, async_engine: AsyncEngine, async_tables: MessageBusTables) -> AsyncStores:
        """A Core connection each."""

        @asynccontextmanager
        async def open_one(registry: Registry) -> AsyncIterator[AsyncSQLAlchemyEventStore]:
            async with async_engine.begin() as connection:
                yield AsyncSQLAlchemyEventStore(connection, tables=async_tables, registry=registry)

        return open_one


@pytest.mark.postgresql
class TestStandAlonePostgreSQL(AsyncEventStoreContract):
    capabilities = EACH_CALL_COMMITS

    @pytest.fixture
    def stores(self, database_url: sa.URL, tables: MessageBusTables) -> AsyncStores:
        """A store with a pool each."""
        url = database_url.render_as_string(hide_password=False)
        return lambda registry: PostgreSQLEventStore(url, pool_min_size=1, registry=registry)


@pytest.mark.parametrize("place", ["path", "url", "memory"])
class TestStandAloneSQLite(EventStoreContract):
    capabilities = EACH_CALL_COMMITS

    @pytest.fixture
    def stores(self, tmp_path: Path, place: str) -> Iterator[Stores]:
        """A store on the same file each; in memory one store that is kept open."""
        path = tmp_path / "events.db"
        if place == "memory":
            with SQLiteEventStore(":memory:") as kept:

                def same(registry: Registry) -> Any:
                    kept.registry = registry
                    return nullcontext(kept)

                yield same
        else:
            where = path if place == "path" else f"sqlite:///{path}"
            yield lambda registry: SQLiteEventStore(where, registry=registry)
