"""Event stores in memory, for tests and prototypes: `InMemoryEventStore` and `InMemoryAsyncEventStore`.

They keep what a database would keep, encoded events, so whatever is loaded is a fresh object and what cannot be stored
is refused. No transaction: what is saved is there at once, for everybody. Nothing survives the process.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from message_bus.bus.context import correlation_id, in_hand
from message_bus.errors import ConcurrencyError, DuplicateEvent
from message_bus.eventsourcing.stores.encoding import (
    EncodedEvent,
    check_number,
    check_stream,
    encode_events,
    encode_state,
    names_of_types,
    refuse_beyond,
    repeated_id,
)
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent, StoredRow, mark_stored
from message_bus.messages.registry import Registry
from message_bus.observability.trace_context import inherited_headers


class _Stored(NamedTuple):
    record: EncodedEvent
    row: StoredRow


class _Kept(NamedTuple):
    snapshot: Snapshot
    state: str


class _Log:
    """The events of one store, encoded. Safe for threads."""

    def __init__(self, registry: Registry | None) -> None:
        self._types = EventTypes(registry)
        self._lock = threading.Lock()
        self._events: list[_Stored] = []
        self._streams: dict[str, list[_Stored]] = {}
        self._ids: set[UUID] = set()
        self._snapshots: dict[str, _Kept] = {}

    def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None
    ) -> list[RecordedEvent]:
        check_stream(aggregate_id)
        check_number("expected_version", expected_version)
        batch = encode_events(events, inherited=inherited_headers(in_hand()), correlation_id=correlation_id())
        self._types.notice(batch.messages)
        with self._lock:
            stream = self._streams.get(aggregate_id, [])
            if expected_version is not None and expected_version != len(stream):
                raise ConcurrencyError(aggregate_id, expected_version, len(stream))
            taken = repeated_id(batch.records) or next(
                (each.id for each in batch.records if each.id in self._ids), None
            )
            if taken is not None:
                raise DuplicateEvent(aggregate_id, taken)
            if not batch.records:
                return []
            new = [
                _Stored(each, self._row(aggregate_id, len(stream) + number, len(self._events) + number, each))
                for number, each in enumerate(batch.records, 1)
            ]
            self._streams.setdefault(aggregate_id, []).extend(new)
            self._events.extend(new)
            self._ids.update(each.id for each in batch.records)
        return [each.row.envelope_of(message) for each, message in zip(new, batch.messages, strict=True)]

    def load(self, aggregate_id: str, from_version: int) -> list[Event]:
        check_stream(aggregate_id)
        check_number("from_version", from_version)
        with self._lock:
            stored = self._streams.get(aggregate_id, [])[from_version:]
        return self._decoded(stored)

    def read_all(
        self, after_position: int, limit: int, types: Collection[type[Event]] | None
    ) -> list[RecordedEvent]:
        check_number("after_position", after_position)
        check_number("limit", limit, 1)
        names = names_of_types(types)
        with self._lock:
            stored = self._events[after_position:]
        if names is not None:
            stored = [each for each in stored if each.record.message in names]
        stored = stored[:limit]
        return [
            each.row.envelope_of(message) for each, message in zip(stored, self._decoded(stored), strict=True)
        ]

    def current_version(self, aggregate_id: str) -> int:
        check_stream(aggregate_id)
        with self._lock:
            return len(self._streams.get(aggregate_id, ()))

    def load_by_trace(self, trace_id: str) -> list[Event]:
        with self._lock:
            found = [
                each
                for each in self._events
                if trace_id in (each.record.correlation_id, each.record.trace_id)
            ]
        return self._decoded(found)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        state = encode_state(snapshot)
        with self._lock:
            refuse_beyond(snapshot, len(self._streams.get(snapshot.aggregate_id, ())))
            kept = self._snapshots.get(snapshot.aggregate_id)
            if kept is None or kept.snapshot.version <= snapshot.version:
                self._snapshots[snapshot.aggregate_id] = _Kept(snapshot, state)

    def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        check_stream(aggregate_id)
        with self._lock:
            kept = self._snapshots.get(aggregate_id)
        if kept is None:
            return None
        taken, state = kept
        return Snapshot(
            taken.aggregate_id,
            taken.aggregate_type,
            taken.version,
            msgspec.json.decode(state),
            taken.timestamp.astimezone(UTC),
            taken.schema_version,
        )

    def _row(self, aggregate_id: str, version: int, position: int, record: EncodedEvent) -> StoredRow:
        return StoredRow(
            position, aggregate_id, version, record.id, datetime.now(UTC), record.headers, record.meta
        )

    def _decoded(self, stored: Iterable[_Stored]) -> list[Event]:
        events: list[Event] = []
        for record, row in stored:
            event: Any = self._types.decoder(record.message, record.schema_version)(record.payload)
            mark_stored(event, row)
            events.append(event)
        return events


class InMemoryEventStore:
    """An `EventStore` in memory. Safe for threads. `registry`: see `SQLAlchemyEventStore`."""

    def __init__(self, *, registry: Registry | None = None) -> None:
        self._log = _Log(registry)

    def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream; all or none."""
        return self._log.save(aggregate_id, events, expected_version)

    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order."""
        return self._log.load(aggregate_id, from_version)

    def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next events of all streams after a position."""
        return self._log.read_all(after_position, limit, types)

    def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream."""
        return self._log.current_version(aggregate_id)

    def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id."""
        return self._log.load_by_trace(trace_id)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept."""
        self._log.save_snapshot(snapshot)

    def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate."""
        return self._log.load_snapshot(aggregate_id)


class InMemoryAsyncEventStore:
    """An `AsyncEventStore` in memory: `InMemoryEventStore`, to be awaited."""

    def __init__(self, *, registry: Registry | None = None) -> None:
        self._log = _Log(registry)

    async def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream; all or none."""
        return self._log.save(aggregate_id, events, expected_version)

    async def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order."""
        return self._log.load(aggregate_id, from_version)

    async def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next events of all streams after a position."""
        return self._log.read_all(after_position, limit, types)

    async def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream."""
        return self._log.current_version(aggregate_id)

    async def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id."""
        return self._log.load_by_trace(trace_id)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept."""
        self._log.save_snapshot(snapshot)

    async def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate."""
        return self._log.load_snapshot(aggregate_id)
