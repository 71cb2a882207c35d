"""`RecordedEvent`: an event and what its store knows of it. Pure; every store makes them, of rows of its own.

Events that are loaded keep the row they came from and make the envelope when it is asked for: most are only replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from message_bus.messages.envelope import CAUSATION_ID, CORRELATION_ID
from message_bus.messages.message import STORED, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event as a store has recorded it. Immutable; compares by value.

    `position`: its place in the order of all events. `version`: its number in its stream, from 1. `stream`: the id of
    the aggregate. `timestamp`: when the store took it in (UTC). `meta`: the user's own.
    """

    message: Event
    position: int
    stream: str
    version: int
    id: UUID
    timestamp: datetime
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _row: Any = field(default=None, init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        # Reached only while fields are missing: a reader of the whole log hardly looks at more than the message.
        if name in _FILLED and (row := self._row) is not None:
            _fill(self, row)
        return object.__getattribute__(self, name)  # another thread may have filled it

    @property
    def correlation_id(self) -> str | None:
        """What all messages of one story have in common."""
        return self.headers.get(CORRELATION_ID)

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handling brought this event about."""
        return self.headers.get(CAUSATION_ID)


class StoredRow(NamedTuple):
    """What a store keeps besides the message, as its driver gives it: converted when somebody asks."""

    position: int
    stream: str
    version: int
    id: UUID | str  # SQLite: 32 hex digits
    timestamp: datetime | str
    headers: str | None  # JSON
    meta: str | None

    def envelope_of(self, message: Event) -> RecordedEvent:
        """The envelope of the message that this row holds."""
        return envelope_of(message, self)


class PackedRow(bytes):
    """The same as PostgreSQL's `record_send` packs it: for each field its type, its length and its bytes.

    Sixteen bytes of an id are cheaper than a UUID, and the garbage collector need not look at them.
    """

    __slots__ = ()

    def envelope_of(self, message: Event) -> RecordedEvent:
        """The envelope of the message that this row holds."""
        return envelope_of(message, self)

    def unpacked(self) -> StoredRow:
        """The row."""
        fields: list[bytes | None] = []
        start = 4  # after the number of fields
        while start < len(self):
            length = int.from_bytes(self[start + 4 : start + 8], signed=True)
            start += 8
            fields.append(None if length < 0 else self[start : start + length])
            start += max(length, 0)
        position, stream, version, event_id, recorded_at, headers, meta = fields
        assert position is not None
        assert stream is not None
        assert version is not None
        assert event_id is not None
        assert recorded_at is not None
        return StoredRow(
            int.from_bytes(position),
            stream.decode(),
            int.from_bytes(version),
            UUID(bytes=event_id),
            _EPOCH + timedelta(microseconds=int.from_bytes(recorded_at, signed=True)),
            None if headers is None else headers.decode(),
            None if meta is None else meta.decode(),
        )


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL
_FILLED: Final = frozenset(
    each.name for each in fields(RecordedEvent) if each.name not in ("message", "_row")
)
_new: Final = object.__new__
_set: Final = object.__setattr__
_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


def has_place(cls: type) -> bool:
    """Whether an event of this class can know where it came from. One with slots has no place for it."""
    return cls.__dictoffset__ != 0


def mark_stored(message: Event, row: StoredRow | PackedRow) -> None:
    """Let a message that was just decoded know where it came from, if it has a place for it."""
    if has_place(type(message)):
        _set(message, STORED, row)


def envelope_of(message: Event, row: StoredRow | PackedRow) -> RecordedEvent:
    """The envelope of the message that this row holds; its fields are taken from there when they are needed."""
    envelope = _new(RecordedEvent)
    _set(envelope, "message", message)
    _set(envelope, "_row", row)
    return envelope


def _fill(envelope: RecordedEvent, row: StoredRow | PackedRow) -> None:
    if isinstance(row, PackedRow):
        row = row.unpacked()
    _set(envelope, "position", row.position)
    _set(envelope, "stream", row.stream)
    _set(envelope, "version", row.version)
    _set(envelope, "id", row.id if type(row.id) is UUID else UUID(str(row.id)))
    _set(envelope, "timestamp", instant(row.timestamp))
    _set(envelope, "headers", _mapping(row.headers))
    _set(envelope, "meta", _mapping(row.meta))


def instant(value: datetime | str) -> datetime:
    """An instant as a driver gives it, in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _mapping(value: str | None) -> Mapping[str, Any]:
    return {} if value is None else _object(value)
