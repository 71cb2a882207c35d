"""The outbox in memory: `InMemoryOutBox` is the log that is shared, `UnitOfWork` one transaction on it.

For tests and prototypes: it ends with the process, and knows no checkpoints, attempts or dead letters. One colour;
the repositories of both colours (`in_memory_async.py`) hand their calls on to a `UnitOfWork`.

    add ──► UnitOfWork ──save──► log (a position each, in the order of the commits)
              │                   ▲
              │ rollback          │ due
              ▼                   │
            gone    delayed: ──► waiting
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from message_bus.errors import InvalidOutboxMessage
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.waiting import encoded
from message_bus.storage.record import Record


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Stored:
    """One committed row; immutable, so that nothing that is handed out can change it."""

    record: Record
    created_at: datetime
    position: int | None = None
    due_at: datetime | None = None
    processed: bool = False

    def row(self) -> OutboxMessage:
        """A row object of its own for whoever reads it."""
        record = self.record
        return OutboxMessage(
            id=record.id,
            type=record.type,
            message=record.message,
            version=record.version,
            key=record.key,
            payload=record.payload,
            meta=_decoded(record.meta),
            headers=_decoded(record.headers),
            position=self.position,
            created_at=self.created_at,
            processed=self.processed,
        )


class InMemoryOutBox:
    """What several repositories share: give the same one to each. Safe for threads and tasks; gone with the process.

    `clock` says when delayed messages are due, and when a row was created; it returns a datetime with a time zone.
    """

    def __init__(self, *, clock: Callable[[], datetime] = _now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._position = 0
        self._log: dict[UUID, _Stored] = {}  # in position order
        self._waiting: dict[UUID, _Stored] = {}  # delayed, not yet due

    def _commit(self, added: Iterable[tuple[Record, bool]], processed: Mapping[UUID, bool]) -> None:
        """Store rows, each with whether it is processed, and marks of rows that are stored; all of it or nothing."""
        added = list(added)
        with self._lock:
            known = self._log.keys() | self._waiting.keys()
            for record, _ in added:
                if record.id in known:
                    raise InvalidOutboxMessage(
                        f"a message with the id {str(record.id)!r} is in the outbox already "
                        "(leave the id out to get a new one)"
                    )
                known.add(record.id)
            now = self._clock()
            for record, done in added:
                if record.delay is None:
                    self._append(_Stored(record, now, processed=done))
                else:
                    due_at = now + timedelta(seconds=record.delay)
                    self._waiting[record.id] = _Stored(record, now, due_at=due_at, processed=done)
            for message_id, done in processed.items():
                rows = self._log if message_id in self._log else self._waiting
                rows[message_id] = replace(rows[message_id], processed=done)

    def _find(self, message_id: UUID) -> _Stored | None:
        with self._lock:
            self._promote()
            return self._log.get(message_id) or self._waiting.get(message_id)

    def _in_order(self) -> list[_Stored]:
        with self._lock:
            self._promote()
            return list(self._log.values())

    def _append(self, row: _Stored) -> None:
        self._position += 1
        self._log[row.record.id] = replace(row, position=self._position, due_at=None)

    def _promote(self) -> None:
        if not self._waiting:
            return
        now = self._clock()
        due = [row for row in self._waiting.values() if row.due_at is not None and row.due_at <= now]
        for row in sorted(due, key=lambda each: (each.due_at, each.record.id)):
            del self._waiting[row.record.id]
            self._append(row)


class UnitOfWork:
    """What one repository has added and read since its last `save` or `rollback`. Not for several threads at once.

    Of the rows that it knows, `save` stores the attribute `processed`; the rest of a row cannot be changed.
    """

    def __init__(self, outbox: InMemoryOutBox) -> None:
        self._outbox = outbox
        self._added: dict[UUID, tuple[Record, OutboxMessage]] = {}
        self._known: dict[UUID, tuple[OutboxMessage, bool]] = {}  # with `processed` as it is stored

    def add(self, row: OutboxMessage) -> None:
        """Take a row in, as it is now. Raises: InvalidOutboxMessage."""
        record = encoded(row)
        if record.id in self._added:
            raise InvalidOutboxMessage(
                f"a message with the id {str(record.id)!r} was added twice (leave the id out to get a new one)"
            )
        self._added[record.id] = (record, row)

    def get(self, message_id: UUID | str) -> OutboxMessage | None:
        """The row with this id, its own ones before they are saved included."""
        wanted = message_id if isinstance(message_id, UUID) else UUID(message_id)
        if wanted in self._added:
            return self._added[wanted][1]
        found = self._outbox._find(wanted)
        return None if found is None else self._handed_out(found)

    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """The rows in the order of their positions, then its own that are not saved."""
        stored = [
            self._handed_out(each)
            for each in self._outbox._in_order()
            if not each.processed or each.record.id in self._known
        ]
        own = [row for _, row in self._added.values() if not row.delay]
        return [row for row in [*stored, *own] if not row.processed][:limit]

    def save(self) -> None:
        """Store what was added and marked. Raises: InvalidOutboxMessage for an id that is taken; nothing is stored."""
        marked = {
            message_id: bool(row.processed)
            for message_id, (row, as_stored) in self._known.items()
            if bool(row.processed) != as_stored
        }
        self._outbox._commit([(record, bool(row.processed)) for record, row in self._added.values()], marked)
        self._known |= {
            message_id: (self._known[message_id][0], processed) for message_id, processed in marked.items()
        }
        self._known |= {
            message_id: (row, bool(row.processed)) for message_id, (_, row) in self._added.items()
        }
        self._added.clear()

    def rollback(self) -> None:
        """Forget what was added and marked; row objects read so far are as stored again, and no longer watched."""
        for row, as_stored in self._known.values():
            row.processed = as_stored
        self._known.clear()
        self._added.clear()

    def _handed_out(self, stored: _Stored) -> OutboxMessage:
        """One object for one row; it shows what is stored unless its mark was changed here."""
        row, as_stored = self._known.get(stored.record.id) or (stored.row(), stored.processed)
        if bool(row.processed) == as_stored:
            row.processed = as_stored = stored.processed
        row.position, row.created_at = stored.position, stored.created_at
        self._known[stored.record.id] = (row, as_stored)
        return row


def _decoded(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    value: dict[str, Any] = msgspec.json.decode(text)
    return value
