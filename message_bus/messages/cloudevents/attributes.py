"""What the attributes of a CloudEvent may hold: texts, instants, ids and trace contexts, checked in both directions.

Written after CloudEvents 1.0.3 and its extensions Correlation, Distributed Tracing, Partitioning and Sequence. What
comes from outside is neither trusted nor repaired: each function returns a value that is fit to be stored or says what
is wrong, in words that never hold the value. Pure; called by `writer` and `reader`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

from message_bus.errors import InvalidCloudEvent
from message_bus.messages.envelope import BAGGAGE

SPEC_VERSION: Final = "1.0"
MAX_CHARACTERS: Final = 1024
"""How long an attribute may be, in characters."""
MAX_BAGGAGE: Final = 8192  # what W3C Baggage asks everybody to pass on

SOURCE_HEADER: Final = "cloudevents_source"
ID_HEADER: Final = "cloudevents_id"

Value = str | int | bool
"""What an attribute is on the wire: bool and int are for extensions."""

# The "String" of CloudEvents: no control characters, no surrogates, no code points that Unicode calls noncharacters.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d(?:\.\d{1,30})?)([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!\A00.{53})-[!-~]*)?"
)
_TRACESTATE: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,256}")
_TRACESTATE_MEMBERS: Final = 32
_BAGGAGE: Final = re.compile(r"[ -~]+")
_POSITION: Final = re.compile(r"[0-9]{19}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Of ids that are no UUIDs: changing it would make old events look new to every inbox.
_NAMESPACE: Final = UUID("610db9f4-9a8c-4728-b7e3-7167d905c554")


def problem_of(value: str, limit: int = MAX_CHARACTERS) -> str | None:
    """What makes a text unfit to be an attribute; None if nothing does."""
    if not value:
        return "is empty"
    if len(value) > limit:
        return f"has more than {limit} characters"
    is_plain = value.isascii() and value.isprintable()  # much faster to find out
    if not is_plain and _FORBIDDEN.search(value):
        return "holds a character that CloudEvents does not allow (a control character, a lone surrogate)"
    return None


def text_of(attributes: Mapping[str, Value], name: str, limit: int = MAX_CHARACTERS) -> str | None:
    """The text of an attribute, None if it is unset. Raises: InvalidCloudEvent."""
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidCloudEvent(name, "is not a text")
    problem = problem_of(value, limit)
    if problem is not None:
        raise InvalidCloudEvent(name, problem)
    return value


def required(attributes: Mapping[str, Value], name: str) -> str:
    """The text of an attribute that every event has. Raises: InvalidCloudEvent."""
    value = text_of(attributes, name)
    if value is None:
        raise InvalidCloudEvent(name, "is missing")
    return value


def version_of(attributes: Mapping[str, Value], name: str) -> int | None:
    """The number of a schema's version: an Integer or its canonical text. Raises: InvalidCloudEvent."""
    value = attributes.get(name)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,9}", value):
        value = int(value)
    if type(value) is not int or not 0 < value < 2**31:
        raise InvalidCloudEvent(name, "is not a whole number from 1 to 2147483647")
    return value


def timestamp(instant: datetime) -> str:
    """An aware instant as RFC 3339, in UTC: `2025-11-01T12:30:00.000001Z`."""
    return f"{instant.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"


def instant_of(attributes: Mapping[str, Value], name: str) -> datetime | None:
    """An instant, in UTC; what is finer than microseconds is cut off. Raises: InvalidCloudEvent."""
    text = text_of(attributes, name)
    if text is None:
        return None
    match = _RFC3339.fullmatch(text)
    try:
        if match is not None:
            day, clock, zone = match.groups()
            return datetime.fromisoformat(f"{day}T{clock}{zone.upper()}").astimezone(UTC)
    except (ValueError, OverflowError):  # no such day; a zone that leads out of the years 1 to 9999
        pass
    raise InvalidCloudEvent(name, "is not an instant of RFC 3339 with a zone, like 2025-11-01T12:30:00Z")


def timestamp_of_milliseconds(milliseconds: int) -> str:
    """AMQP's own timestamp, counted from 1970, as RFC 3339. Raises: OverflowError."""
    return timestamp(_EPOCH + timedelta(milliseconds=milliseconds))


def sequence_of(position: int) -> str:
    """A position as text that sorts like the number: what the extension Sequence asks for."""
    return f"{position:019d}"


def position_of(attributes: Mapping[str, Value], name: str) -> int | None:
    """The position that `sequence_of` has written; None for a sequence of another form, which means nothing here."""
    text = text_of(attributes, name)
    if text is None or not _POSITION.fullmatch(text):
        return None
    position = int(text)
    return position if 0 < position < 2**63 else None


def message_id(event_id: str, source: str) -> UUID:
    """The id of an envelope: the event's own if that is a UUID in its usual form, else one made of source and id.

    Always the same for the same event, so an inbox recognises what is sent twice.
    """
    try:
        own = UUID(event_id)
    except ValueError:
        own = None
    if own is not None and str(own) == event_id:
        return own
    return uuid5(_NAMESPACE, f"{source}\n{event_id}")  # neither holds a line break


def trace_of(attributes: Mapping[str, Value], *, baggage: bool) -> dict[str, str]:
    """The headers of the trace that an event belongs to.

    A traceparent that cannot be parsed begins a new trace, as W3C Trace Context says, and takes tracestate with it: an
    event is not lost for it. Raises: InvalidCloudEvent for what is no attribute at all.
    """
    parent = text_of(attributes, "traceparent")
    state = text_of(attributes, "tracestate") if attributes.get("tracestate") != "" else None
    trace: dict[str, str] = {}
    if parent is not None and _TRACEPARENT.fullmatch(parent):
        trace["traceparent"] = parent
        if state is not None and _is_tracestate(state):
            trace["tracestate"] = state
    if baggage:
        carried = text_of(attributes, BAGGAGE, MAX_BAGGAGE)
        if carried is not None and "=" in carried and _BAGGAGE.fullmatch(carried):
            trace[BAGGAGE] = carried
    return trace


def _is_tracestate(text: str) -> bool:
    members = [member for each in text.split(",") if (member := each.strip(" "))]
    return 0 < len(members) <= _TRACESTATE_MEMBERS and all(map(_TRACESTATE.fullmatch, members))
