"""`SQLiteEventStore`: an event store that owns its file, for programs without a SQLAlchemy session.

Each call is a transaction by itself; whoever wants events and other rows in one transaction takes
`SQLAlchemyEventStore` on his session. The code is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from message_bus.errors import SettingsError, WiringError
from message_bus.eventsourcing.stores.deleting import delete_stream
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.registry import Registry
from message_bus.observability.observer import Observer, guarded, nothing
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.migrations import upgrade
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import parse_url
from message_bus.storage.watermark import Watermark


class SQLiteEventStore:
    """An `EventStore` in a SQLite file, or in memory (":memory:").

        with SQLiteEventStore("shop.db") as store:
            store.save("order-7", [OrderPlaced(7)], 0)

    `path_or_url`: a path, or `sqlite:///shop.db`. `tables`, `registry`, `observer`: see `SQLAlchemyEventStore`. Each call is one
    transaction, committed when it returns. Safe to share between threads; several processes may open one file.

    Raises: SettingsError if it is the URL of another database.
    """

    def __init__(
        self,
        path_or_url: str | Path,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
        registry: Registry | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.tables = tables
        self.registry = registry
        self._url = _sqlite_url(path_or_url)
        self._engine: sa.Engine | None = None
        self._observer = guarded(observer)
        self._watermark = Watermark(tables.of_log(EVENT_LOG))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url.database!r})"

    def initialize(self) -> None:
        """Open the file and make or migrate the tables. Idempotent.

        Raises: SettingsError if the registry's upcasters leave gaps; SchemaError if other tables are in the way.
        """
        if self._engine is not None:
            return
        EventTypes(self.registry).check()
        # in memory all is gone with its connection: there is one, and it is handed from call to call
        options: dict[str, Any] = (
            {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0}
            if self._url.database == ":memory:"
            else {}
        )
        engine = configure_sqlite(
            sa.create_engine(self._url, connect_args={"check_same_thread": False}, **options)
        )
        try:
            upgrade(engine, tables=self.tables)
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine

    def close(self) -> None:
        """Close the file. Idempotent; what was in memory is gone."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def __enter__(self) -> SQLiteEventStore:
        self.initialize()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> bool:
        """Return whether the file can be read. Raises: WiringError if the store is not open."""
        try:
            with self._opened().connect() as connection:
                connection.execute(sa.select(sa.literal(1)))
        except SQLAlchemyError:
            return False
        return True

    def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream and commit; all or none. Errors as `SQLAlchemyEventStore.save` has them."""
        with self._store("save") as store:
            return store.save(aggregate_id, events, expected_version)

    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order."""
        with self._store("load", reads_only=True) as store:
            return store.load(aggregate_id, from_version)

    def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next settled events of all streams after a position."""
        with self._store("read_all", reads_only=True) as store:
            return store.read_all(after_position, limit=limit, types=types)

    def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream."""
        with self._store(None, reads_only=True) as store:
            return store.current_version(aggregate_id)

    def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id."""
        with self._store("load_by_trace", reads_only=True) as store:
            return store.load_by_trace(trace_id)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept, and commit."""
        with self._store("save_snapshot") as store:
            store.save_snapshot(snapshot)

    def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate."""
        with self._store("load_snapshot", reads_only=True) as store:
            return store.load_snapshot(aggregate_id)

    def delete_stream(self, aggregate_id: str, *, by: str) -> int:
        """Delete a stream for good and commit: see `delete_stream`."""
        with self._opened().begin() as connection:
            return delete_stream(connection, aggregate_id, by=by, tables=self.tables)

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            raise WiringError("SQLiteEventStore is not open (call store.initialize() first, or use `with`)")
        return self._engine

    @contextmanager
    def _store(self, operation: str | None, *, reads_only: bool = False) -> Iterator[SQLAlchemyEventStore]:
        """A store on a transaction of its own; an `operation` is told with its commit."""
        engine = self._opened()
        if reads_only:  # beside a writer, not in turn with it
            engine = engine.execution_options(sqlite_begin="DEFERRED")
        observer = self._observer
        told = None if observer is None or operation is None else observer.storing(operation)
        with told or nothing(), engine.begin() as connection:
            yield SQLAlchemyEventStore(
                connection, tables=self.tables, registry=self.registry, watermark=self._watermark
            )


def _sqlite_url(path_or_url: str | Path) -> sa.URL:
    if isinstance(path_or_url, str) and "://" in path_or_url:
        url = parse_url(path_or_url)
        if url.get_backend_name() != "sqlite":
            raise SettingsError("SQLiteEventStore", ["path_or_url is not one of SQLite (sqlite:///file.db)"])
        return url.set(drivername="sqlite", database=url.database or ":memory:")
    return sa.URL.create("sqlite", database=str(path_or_url))
