"""The event store on the caller's session or connection: what it saves commits with everything else (G1, G10).

`save` writes at once, it does not wait for the commit as outbox messages do: only so can it say who was first. Do it
late: from here to its end the transaction holds back every reader of the event log. One store per session, one thread or
task at a time, as with the session itself.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from message_bus._compat import on_sync_connection_async, pause_async, plain_session_async
from message_bus.errors import WiringError
from message_bus.eventsourcing.stores.encoding import check_number, names_of_types
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.sql_log import COLOURS, SQLLog, refuse_other_log
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.registry import Registry
from message_bus.observability.observer import Observer, guarded, nothing
from message_bus.repositories import bells
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.settled import pause_before_next_look
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark


class AsyncSQLAlchemyEventStore:
    """An `AsyncEventStore` in message_bus's own tables, on the caller's session or connection.

    `tables`: which set of tables; the default is the one that `message-bus db upgrade` makes. `registry`: what stored
    events are read with: their classes, and upcasters; None: every `Event` class that is defined by then. `watermark`:
    what `read_all` knows of open writers; give stores that are made again and again the same one. `observer`: is told of
    each operation.

    It never commits, rolls back or flushes (G10). What is pending in the session is written when the session says so.

    Raises: WiringError for a session of the other colour, or anything else; for a watermark of another log or other tables.
    """

    def __init__(
        self,
        session_or_connection: AsyncSession | async_scoped_session[Any] | AsyncConnection,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
        registry: Registry | None = None,
        watermark: AsyncWatermark | None = None,
        observer: Observer | None = None,
    ) -> None:
        if not isinstance(session_or_connection, AsyncSession | async_scoped_session | AsyncConnection):
            raise WiringError(
                f"{type(self).__name__} works on {AsyncSession.__name__} or {AsyncConnection.__name__}, not on "
                f"{type(session_or_connection).__name__!r} ({COLOURS})"
            )
        self._given = session_or_connection
        self._log = SQLLog(tables, EventTypes(registry))
        if watermark is not None:
            refuse_other_log(watermark, tables, AsyncWatermark)
        self._watermark = watermark
        self._observer = guarded(observer)
        self._looked: tuple[Any, int] = (None, 0)  # in which transaction, and what was settled then

    @property
    def tables(self) -> MessageBusTables:
        """The set of tables."""
        return self._log.tables

    @property
    def session(self) -> AsyncSession | AsyncConnection:
        """The session or connection; behind a scoped session the one of this moment."""
        return self._given() if isinstance(self._given, async_scoped_session) else self._given

    async def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream, in the caller's transaction; all or none. Two statements.

        Of two writers that expect the same version one wins (G12): the second waits for the first to end. A transaction
        that saves to several streams should do so in one order, or it may meet a deadlock. In READ COMMITTED the
        transaction is usable after every error below; in REPEATABLE READ and SERIALIZABLE a ConcurrencyError without
        `actual_version` says that it must be rolled back.

        Raises: ConcurrencyError; DuplicateEvent if an id is stored already; NotAMessage, InvalidMessage,
        SettingsError for what cannot be stored; UnsupportedDatabase on an AUTOCOMMIT connection; SchemaError if the
        tables are missing.
        """
        with self._storing("save"):
            connection = await self._connection()
            recorded = await on_sync_connection_async(
                connection, self._log.append, aggregate_id, events, expected_version
            )
        if isinstance(target := self.session, AsyncSession):
            bells.ring_after_commits(plain_session_async(target))
        return recorded

    async def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order; none if there is no such stream.

        One statement. Finds what this transaction has saved. Each event offers `.envelope`, and `.id` and `.timestamp`
        unless it has a field of that name. Old payloads are upcast.

        Raises: UnknownEventType; MessageDecodeError; SettingsError if the name of a type is ambiguous.
        """
        with self._storing("load"):
            return await on_sync_connection_async(
                await self._connection(), self._log.load, aggregate_id, from_version
            )

    async def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next settled events of all streams after a position, in position order, at most `limit`.

        Settled: nothing will ever appear before the last of them (G2, G4). The transaction must be READ COMMITTED.
        What it has saved itself is not settled, nor what comes after that. If there are events, but none that is
        settled, this waits for their writers, 2 seconds at most; with a `watermark` that others share, hardly ever.

        Raises: UnknownEventType; MessageDecodeError; UnsupportedDatabase if the log cannot be read safely here.
        """
        check_number("after_position", after_position)
        check_number("limit", limit, 1)
        names = names_of_types(types)
        with self._storing("read_all"):
            connection = await self._connection()
            settled = await self._settled(connection, after_position, limit)
            if settled <= after_position:
                return []
            return await on_sync_connection_async(
                connection, self._log.read, after_position, settled, limit, names
            )

    async def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream; 0 if there is no such stream."""
        return await on_sync_connection_async(await self._connection(), self._log.version, aggregate_id)

    async def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id, in position order."""
        with self._storing("load_by_trace"):
            return await on_sync_connection_async(await self._connection(), self._log.load_by_trace, trace_id)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of an earlier one, in the caller's transaction; an older one is dropped.

        Raises: SettingsError if its state cannot be stored as JSON, or its stream has fewer events.
        """
        with self._storing("save_snapshot"):
            await on_sync_connection_async(await self._connection(), self._log.save_snapshot, snapshot)

    async def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate; None if there is none."""
        with self._storing("load_snapshot"):
            return await on_sync_connection_async(
                await self._connection(), self._log.load_snapshot, aggregate_id
            )

    def _storing(self, operation: str) -> AbstractContextManager[Any]:
        return nothing() if self._observer is None else self._observer.storing(operation) or nothing()

    async def _connection(self) -> AsyncConnection:
        target = self.session
        if isinstance(target, AsyncConnection):
            return target
        return await target.connection(bind_arguments={"clause": self.tables.event})

    async def _settled(self, connection: AsyncConnection, after: int, limit: int) -> int:
        """Up to where there is something to read; `after` if there is nothing."""
        watermark = self._watermark
        if watermark is None:
            watermark = self._watermark = AsyncWatermark(self.tables.of_log(EVENT_LOG))
        transaction, own = await on_sync_connection_async(connection, self._log.transaction)
        known, settled = self._looked
        if (
            known is transaction and after + limit <= settled
        ):  # a backlog: as long as this connection lives, it holds
            return settled
        if own is not None and own <= after + 1:
            return after
        started, goal = time.monotonic(), None
        while True:
            look = await watermark.look(connection)
            goal = look.high if goal is None else goal
            settled = look.settled if own is None else min(look.settled, own - 1)
            seconds = pause_before_next_look(look, goal=goal, waited=time.monotonic() - started)
            if settled > after or look.high <= after or seconds is None:
                self._looked = (transaction, settled)
                return max(settled, after)
            await pause_async(seconds)
