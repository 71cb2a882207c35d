"""`PostgreSQLEventStore`: an event store that owns a pool of connections, for asyncio programs without a session.

Each call is a transaction by itself; whoever wants events and other rows in one transaction takes
`AsyncSQLAlchemyEventStore` on his session. The code is the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from message_bus.errors import SettingsError, WiringError
from message_bus.eventsourcing.stores.deleting_async import delete_stream_async
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.registry import Registry
from message_bus.observability.observer import Observer, guarded, nothing
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.migrations import upgrade
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import missing_driver, parse_url
from message_bus.storage.watermark_async import AsyncWatermark

_ASYNC_DRIVERS: Final = {"postgresql+psycopg": "postgresql+psycopg_async"}


@dataclass(frozen=True)
class PostgreSQLEventStore:
    """An `AsyncEventStore` on PostgreSQL with a pool of its own; async although its name does not say so.

        async with PostgreSQLEventStore("postgresql://localhost/shop") as store:
            await store.save("order-7", [OrderPlaced(7)], 0)

    `connection_string`: without a driver psycopg 3. `pool_min_size` connections are kept, up to `pool_max_size` are
    opened, whoever finds none free waits `pool_timeout` seconds. `tables`, `registry`, `observer`: see
    `AsyncSQLAlchemyEventStore`. Each call is one transaction, committed when it returns. Safe to share between the tasks
    of one event loop.

    Raises: SettingsError with everything that does not fit.
    """

    connection_string: str = field(repr=False)  # it holds a password
    pool_min_size: int = 10
    pool_max_size: int = 50
    pool_timeout: float = 30.0
    tables: MessageBusTables = field(default=DEFAULT_TABLES, kw_only=True)
    registry: Registry | None = field(default=None, kw_only=True)
    observer: Observer | None = field(default=None, kw_only=True, repr=False, compare=False)
    _engine: AsyncEngine | None = field(default=None, init=False, repr=False, compare=False)
    _watermark: AsyncWatermark = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not 1 <= self.pool_min_size <= self.pool_max_size:
            problems.append("pool_min_size is not between 1 and pool_max_size")
        if self.pool_timeout <= 0:
            problems.append("pool_timeout is not a number of seconds above 0")
        if parse_url(self.connection_string).get_backend_name() != "postgresql":
            problems.append("connection_string is not one of PostgreSQL (postgresql://user@host/name)")
        if problems:
            raise SettingsError(type(self).__name__, problems)
        object.__setattr__(self, "_watermark", AsyncWatermark(self.tables.of_log(EVENT_LOG)))

    async def initialize(self) -> None:
        """Open the pool and make or migrate the tables. Idempotent; several processes may do so at once.

        Raises: SettingsError if the registry's upcasters leave gaps; SchemaError if other tables are in the way.
        """
        if self._engine is not None:
            return
        EventTypes(self.registry).check()
        engine = self._make_engine()
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade, tables=self.tables)
        except BaseException:
            await engine.dispose()
            raise
        object.__setattr__(self, "_engine", engine)

    async def close(self) -> None:
        """Close the pool. Idempotent; `initialize` opens it again."""
        engine = self._engine
        object.__setattr__(self, "_engine", None)
        if engine is not None:
            await engine.dispose()

    async def aclose(self) -> None:
        """Close the pool, as `close` does."""
        await self.close()

    async def __aenter__(self) -> PostgreSQLEventStore:
        await self.initialize()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def ping(self) -> bool:
        """Return whether the database answers. Raises: WiringError if the store is not open."""
        try:
            async with self._opened().connect() as connection:
                await connection.execute(sa.select(sa.literal(1)))
        except (SQLAlchemyError, OSError):
            return False
        return True

    async def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream and commit; all or none. Errors as `AsyncSQLAlchemyEventStore.save` has them."""
        async with self._store("save") as store:
            return await store.save(aggregate_id, events, expected_version)

    async def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order."""
        async with self._store("load") as store:
            return await store.load(aggregate_id, from_version)

    async def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next settled events of all streams after a position."""
        async with self._store("read_all") as store:
            return await store.read_all(after_position, limit=limit, types=types)

    async def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream."""
        async with self._store(None) as store:
            return await store.current_version(aggregate_id)

    async def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id."""
        async with self._store("load_by_trace") as store:
            return await store.load_by_trace(trace_id)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept, and commit."""
        async with self._store("save_snapshot") as store:
            await store.save_snapshot(snapshot)

    async def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate."""
        async with self._store("load_snapshot") as store:
            return await store.load_snapshot(aggregate_id)

    async def save_snapshot_async(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, as `save_snapshot` does."""
        await self.save_snapshot(snapshot)

    async def load_snapshot_async(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot, as `load_snapshot` does."""
        return await self.load_snapshot(aggregate_id)

    async def delete_stream(self, aggregate_id: str, *, by: str) -> int:
        """Delete a stream for good and commit: see `delete_stream_async`."""
        async with self._opened().begin() as connection:
            return await delete_stream_async(connection, aggregate_id, by=by, tables=self.tables)

    def _make_engine(self) -> AsyncEngine:
        url = parse_url(self.connection_string)
        try:
            return create_async_engine(
                url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername)),
                pool_size=self.pool_min_size,
                max_overflow=self.pool_max_size - self.pool_min_size,
                pool_timeout=self.pool_timeout,
                pool_pre_ping=True,
                isolation_level="READ COMMITTED",
            )
        except ImportError as error:
            raise WiringError(missing_driver(error, url)) from error

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise WiringError(
                "PostgreSQLEventStore is not open (await store.initialize() first, or use `async with`)"
            )
        return self._engine

    @asynccontextmanager
    async def _store(self, operation: str | None) -> AsyncIterator[AsyncSQLAlchemyEventStore]:
        """A store on a transaction of its own; an `operation` is told with its commit."""
        observer = guarded(self.observer)
        told = None if observer is None or operation is None else observer.storing(operation)
        with told or nothing():
            async with self._opened().begin() as connection:
                yield AsyncSQLAlchemyEventStore(
                    connection, tables=self.tables, registry=self.registry, watermark=self._watermark
                )
