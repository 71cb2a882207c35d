"""Events on their way into a store: checked, encoded, and given ids and headers. Pure.

What a database would refuse is refused here, so that every store, in memory or not, refuses the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from message_bus.errors import InvalidMessage, NotAMessage, SettingsError
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.definition import definition_of
from message_bus.messages.envelope import CAUSATION_ID, CORRELATION_ID, TRACE_HEADERS, Envelope
from message_bus.messages.ids import uuid7
from message_bus.messages.keys import LONGEST_KEY, is_too_long
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent

TRACEPARENT: Final = "traceparent"
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class EncodedEvent(NamedTuple):
    """One event as it will be stored."""

    id: UUID
    message: str
    schema_version: int
    payload: str
    meta: str | None
    headers: str
    correlation_id: str
    trace_id: str | None


class Batch(NamedTuple):
    """The events of one `save`, and whether some of their ids were given by the caller."""

    messages: list[Event]
    records: list[EncodedEvent]
    has_given_ids: bool


def check_stream(aggregate_id: str) -> None:
    """Raise SettingsError unless a stream can have this id."""
    problem = None
    if not isinstance(aggregate_id, str):
        problem = f"is a str, not a {type(aggregate_id).__name__} (give str(...))"
    elif not aggregate_id:
        problem = "is empty"
    elif not _is_storable(aggregate_id):
        problem = "contains a NUL character or a lone surrogate, which cannot be stored"
    elif is_too_long(aggregate_id):
        problem = f"has more than {LONGEST_KEY} bytes (use an id or a hash)"
    if problem is not None:
        raise SettingsError("aggregate_id", [problem])


def check_number(name: str, value: int | None, least: int = 0) -> None:
    """Raise SettingsError unless `value` is a number from `least`, or None."""
    if value is not None and (type(value) is not int or value < least):
        raise SettingsError(name, [f"is not a number from {least}"])


def encode_events(
    events: Sequence[Savable], *, inherited: Mapping[str, str], correlation_id: str | None
) -> Batch:
    """Check and encode events. What is saved together without a message in hand is one story: one correlation id.

    `inherited`: headers that events get which have none of these of their own. One with a trace of its own gets no part
    of another.

    Raises: NotAMessage; InvalidMessage naming the field that does not fit (never its value).
    """
    if isinstance(events, Event | Envelope | RecordedEvent):
        raise NotAMessage(events, "is one event (give a list of events)")
    messages: list[Event] = []
    records: list[EncodedEvent] = []
    has_given_ids = False
    shared: _Headers | None = None
    for each in events:
        message: Any = each.message if isinstance(each, Envelope | RecordedEvent) else each
        if not isinstance(message, Event):
            raise NotAMessage(message, "is not an event (only events are kept in an event store)")
        definition = definition_of(type(message))
        payload = definition.check(message).decode()
        if not isinstance(each, Envelope | RecordedEvent):
            event_id = uuid7()
            if shared is None:
                shared = _headers(
                    {CORRELATION_ID: correlation_id or str(event_id), **inherited}, definition.name
                )
            headers, meta = shared, None
        else:
            event_id, has_given_ids = each.id, True
            others = _untraced(inherited) if TRACEPARENT in each.headers else inherited
            headers = _headers(
                {CORRELATION_ID: correlation_id or str(event_id), **others, **each.headers},
                definition.name,
            )
            meta = _json(each.meta, "meta", definition.name) if each.meta else None
        messages.append(message)
        records.append(EncodedEvent(event_id, definition.name, definition.version, payload, meta, *headers))
    return Batch(messages, records, has_given_ids)


def repeated_id(records: Sequence[EncodedEvent]) -> UUID | None:
    """An id that two of these events have."""
    seen: set[UUID] = set()
    for record in records:
        if record.id in seen:
            return record.id
        seen.add(record.id)
    return None


def encode_state(snapshot: Snapshot) -> str:
    """The state of a snapshot as it will be stored. Raises: SettingsError."""
    check_stream(snapshot.aggregate_id)
    try:
        return msgspec.json.encode(dict(snapshot.state)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"snapshot of {snapshot.aggregate_type!r}",
            [f"state cannot be stored as JSON ({type(error).__name__}: give str keys and plain values)"],
        ) from None


def refuse_beyond(snapshot: Snapshot, version: int) -> None:
    """Raise SettingsError for a snapshot after more events than its stream has, or of none: it could not be loaded right."""
    if not version or snapshot.version > version:
        raise SettingsError(
            f"snapshot of {snapshot.aggregate_type!r}",
            [
                (
                    f"version {snapshot.version} is beyond its stream, which has {version} events (save the events first, and "
                    "give the number of those that have made the state)"
                )
            ],
        )


def names_of_types(types: Collection[type[Event]] | None) -> tuple[str, ...] | None:
    """The names under which events of these types may be stored."""
    if types is None:
        return None
    if isinstance(types, type):
        raise SettingsError("types", [f"is a class, not a list of classes (write types=[{types.__name__}])"])
    definitions = [definition_of(each) for each in types]
    return tuple(dict.fromkeys(name for each in definitions for name in (each.name, *each.renamed_from)))


class _Headers(NamedTuple):
    headers: str
    correlation_id: str
    trace_id: str | None


def _untraced(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in TRACE_HEADERS}


def _headers(headers: Mapping[str, str], name: str) -> _Headers:
    for header in (CORRELATION_ID, CAUSATION_ID):
        value: Any = headers.get(header, "")
        if not isinstance(value, str) or not _is_storable(value):
            raise InvalidMessage(name, f"header {header!r} is not a text that can be stored")
    traced = _TRACEPARENT.fullmatch(str(headers.get(TRACEPARENT, "")))
    return _Headers(
        _json(headers, "headers", name), headers[CORRELATION_ID], None if traced is None else traced[1]
    )


def _json(value: Mapping[str, Any], what: str, name: str) -> str:
    try:
        return msgspec.json.encode(dict(value)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(name, f"its {what} cannot be stored as JSON ({type(error).__name__})") from None


def _is_storable(value: str) -> bool:
    if "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
