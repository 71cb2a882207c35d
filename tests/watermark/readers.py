"""A log to write to by hand, and readers that go through it as the engine does: look, read, record, commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from message_bus.storage.settled import Look
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from message_bus.storage.watermark_async import AsyncWatermark
from tests.waiting import wait_until


class Log:
    """The outbox table, written to with plain SQL; `begin` gives a connection whose transaction the test
    ends.
    """

    def __init__(self, engine: sa.Engine, tables: MessageBusTables) -> None:
        self.engine = engine
        self.tables = tables
        self.name = engine.dialect.identifier_preparer.format_table(tables.outbox)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def begin(self, **options: Any) -> sa.Connection:
        """A connection in a transaction of its own."""
        connection = self._stack.enter_context(self.engine.connect())
        if options:
            connection = connection.execution_options(**options)
        connection.begin()
        return connection

    def insert(self, rows: str = "1", *, into: str | None = None) -> str:
        """An INSERT of as many messages as `rows` says, in SQL."""
        return (
            f"INSERT INTO {into or self.name} (id, type, message, payload)"
            f" SELECT gen_random_uuid(), 'EVENT', 'm', '{{}}' FROM generate_series(1, {rows})"
        )

    def write(self, connection: sa.Connection, count: int = 1) -> list[int]:
        """Draw positions in this connection's transaction."""
        return list(connection.execute(sa.text(f"{self.insert(str(count))} RETURNING position")).scalars())

    def commit(self, count: int = 1) -> list[int]:
        """Write in a transaction of its own, and commit it."""
        with self.engine.begin() as connection:
            return self.write(connection, count)

    @property
    def rows(self) -> list[int]:
        """All that is committed."""
        with self.engine.connect() as connection:
            return positions(connection, self.tables)

    @property
    def sequence(self) -> str:
        """The full name of the sequence that positions are drawn from."""
        with self.engine.connect() as connection:
            found = connection.execute(
                sa.text("SELECT pg_get_serial_sequence(:name, 'position')"), {"name": self.name}
            )
            return str(found.scalar_one())

    def writers(self) -> set[str]:
        """The virtual transactions that hold the lock, as anybody may ask."""
        with self.engine.connect() as connection:
            return set(
                connection.execute(
                    sa.text(
                        "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted"
                        " AND relation = to_regclass(:name) AND mode = 'RowExclusiveLock'"
                        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    ),
                    {"name": self.name},
                ).scalars()
            )

    def wait_for_blocked(self, connection_pid: int) -> None:
        """Until this session waits for a lock."""

        def is_blocked() -> bool:
            with self.engine.connect() as connection:
                return bool(
                    connection.execute(
                        sa.text("SELECT cardinality(pg_blocking_pids(:pid)) > 0"), {"pid": connection_pid}
                    ).scalar()
                )

        wait_until(is_blocked, message=f"session {connection_pid} is not blocked")


def pid_of(connection: sa.Connection) -> int:
    """The server process behind a connection."""
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def positions(
    connection: sa.Connection, tables: MessageBusTables, *, after: int = 0, upto: int | None = None
) -> list[int]:
    """The positions that this connection sees now."""
    column = tables.outbox.c.position
    query = sa.select(column).where(column > after).order_by(column)
    if upto is not None:
        query = query.where(column <= upto)
    return list(connection.execute(query).scalars())


class Reader:
    """A subscription with its checkpoint in memory. `poll` is a whole step; the rest are its parts, for
    interleaving.
    """

    def __init__(
        self, engine: sa.Engine, tables: MessageBusTables, watermark: Watermark | None = None
    ) -> None:
        self.tables = tables
        self.checkpoint = 0
        self.seen: list[int] = []
        self.watermark = watermark or Watermark(tables)
        self._engine = engine
        self._connection: sa.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, isolation_level: str | None = None) -> None:
        """Check out a connection; its transaction begins with the first statement."""
        self._connection = self._engine.connect()
        if isolation_level:
            self._connection = self._connection.execution_options(isolation_level=isolation_level)

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call `function(connection, ...)` on the sync connection of the transaction in hand."""
        assert self._connection is not None
        return function(self._connection, *args, **options)

    def look(self) -> Look:
        """Look once, in the transaction in hand."""
        assert self._connection is not None
        return self.watermark.look(self._connection)

    def read(self, look: Look) -> list[int]:
        """Read what is settled by that look, and pass it."""
        found: list[int] = self.run(positions, self.tables, after=self.checkpoint, upto=look.settled)
        self.seen += found
        self.checkpoint = max(self.checkpoint, look.settled)
        return found

    def end(self) -> None:
        """Commit, and give the connection back."""
        if self._connection is not None:
            with self._connection as connection:
                connection.commit()
            self._connection = None

    def poll(self) -> list[int]:
        """One step: what is new and settled."""
        self.begin()
        try:
            return self.read(self.look())
        finally:
            self.end()


class AsyncReader(Reader):
    """The same through AsyncWatermark, its event loop run from outside for as long as each call takes."""

    def __init__(self, runner: asyncio.Runner, engine: AsyncEngine, tables: MessageBusTables) -> None:
        super().__init__(engine.sync_engine, tables)
        self._runner = runner
        self._async_engine = engine
        self._async_connection: AsyncConnection | None = None
        self.async_watermark = AsyncWatermark(tables)

    @classmethod
    def on(cls, url: sa.URL, schema: str, tables: MessageBusTables, *, driver: str) -> AsyncReader:
        """A reader with an engine and an event loop of its own."""
        if driver == "asyncpg":
            settings: dict[str, Any] = {"connect_args": {"server_settings": {"search_path": schema}}}
            url = url.set(drivername="postgresql+asyncpg")
        else:
            settings = {}
            url = url.update_query_dict({"options": f"-csearch_path={schema}"})
        return cls(asyncio.Runner(), create_async_engine(url, **settings), tables)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()
        self._runner.run(self._async_engine.dispose())
        self._runner.close()

    def begin(self, isolation_level: str | None = None) -> None:
        """Check out a connection."""

        async def connect() -> AsyncConnection:
            connection = await self._async_engine.connect()
            if isolation_level:
                await connection.execution_options(isolation_level=isolation_level)
            return connection

        self._async_connection = self._runner.run(connect())

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call `function(connection, ...)` through run_sync."""
        assert self._async_connection is not None
        return self._runner.run(self._async_connection.run_sync(function, *args, **options))

    def look(self) -> Look:
        """Look once, through the async watermark."""
        assert self._async_connection is not None
        return self._runner.run(self.async_watermark.look(self._async_connection))

    def end(self) -> None:
        """Commit, and give the connection back."""
        if self._async_connection is not None:
            connection, self._async_connection = self._async_connection, None

            async def give_back() -> None:
                await connection.commit()
                await connection.close()

            self._runner.run(give_back())


def lost(log: Log, seen: Sequence[int]) -> list[int]:
    """Committed rows that a reader which is done has never seen."""
    return sorted(set(log.rows) - set(seen))
