"""What an event store is: the protocols `EventStore` and `AsyncEventStore`, and the `Snapshot` that both keep.

A *stream* holds the events of one aggregate. Its version is the number of its events: 0 is a new stream, and
`load(id, from_version=v)` gives the events after version v. Who writes a store of his own inherits the tests of
`message_bus.testing.EventStoreContract`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from message_bus.errors import SettingsError
from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent

Savable = Event | Envelope | RecordedEvent
"""What can be saved: an event, or one in an envelope whose id, meta and headers are to be kept."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an aggregate after its first `version` events.

    `state`: what JSON can hold; it comes back as JSON gives it. `schema_version`: of the state's form, so that a newer
    program can tell that it must not use an old one. `timestamp`: when it was taken, with a timezone.

    Raises: SettingsError with all that does not fit.
    """

    aggregate_id: str
    aggregate_type: str
    version: int
    state: Mapping[str, Any]
    timestamp: datetime = field(default_factory=_now)
    schema_version: int = 1

    def __post_init__(self) -> None:
        problems = [
            f"{name} is not a number from {least}"
            for name, value, least in (
                ("version", self.version, 0),
                ("schema_version", self.schema_version, 1),
            )
            if type(value) is not int or value < least
        ]
        if self.timestamp.tzinfo is None:
            problems.append("timestamp is naive (give it a timezone: datetime.now(UTC))")
        if problems:
            raise SettingsError("Snapshot", problems)


class EventStore(Protocol):
    """Keeps the events of aggregates, in order, for ever."""

    def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream; all or none. An Envelope around an event keeps its id, meta and headers.

        `expected_version`: the number of events that the caller has seen, 0 for a stream that must be new. Of two
        writers that expect the same version exactly one wins (G12). None appends whatever the version is.
        Positions follow the order of versions. Events without a correlation of their own inherit that of the message
        in hand. No events: the version is checked, nothing is written.

        Raises: ConcurrencyError; DuplicateEvent if an id is stored already; NotAMessage, InvalidMessage for what
        cannot be stored. Nothing is saved then, and the transaction, if there is one, can be used on.
        """
        ...

    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order; none if there is no such stream.

        The objects are the caller's own. Each offers `.envelope`, and `.id` and `.timestamp` unless it has a field of
        that name. Old payloads are upcast.

        Raises: UnknownEventType; MessageDecodeError.
        """
        ...

    def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next events of all streams after a position, in position order, at most `limit`.

        Only settled ones: nothing will ever appear before the last of them, so reading on from its position misses
        nothing (G2, G4). What the caller's own transaction has not committed is not settled. `types`: only these.
        """
        ...

    def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream; 0 if there is no such stream."""
        ...

    def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id, in position order."""
        ...

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of an earlier one; one of a lower version than the one that is kept is dropped.

        Raises: SettingsError if its state cannot be stored as JSON, or its stream has fewer events.
        """
        ...

    def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate; None if there is none. Its state is the caller's own."""
        ...


class AsyncEventStore(Protocol):
    """`EventStore`, to be awaited: what is said there holds here."""

    async def save(
        self, aggregate_id: str, events: Sequence[Savable], expected_version: int | None = None
    ) -> list[RecordedEvent]:
        """Append events to a stream; all or none."""
        ...

    async def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        """Return the events of a stream after `from_version`, in order."""
        ...

    async def read_all(
        self,
        after_position: int = 0,
        *,
        limit: int = 1_000,
        types: Collection[type[Event]] | None = None,
    ) -> list[RecordedEvent]:
        """Return the next settled events of all streams after a position, in position order."""
        ...

    async def current_version(self, aggregate_id: str) -> int:
        """Return the number of events in a stream."""
        ...

    async def load_by_trace(self, trace_id: str) -> list[Event]:
        """Return the events of all streams with this correlation id or W3C trace id, in position order."""
        ...

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept."""
        ...

    async def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
        """Return the newest snapshot of an aggregate."""
        ...
