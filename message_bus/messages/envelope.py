"""The envelope: a message with what is known about it besides its content.

Handlers get it as `context.envelope`, brokers are sent it. A message that a handler emits or registers
inherits from the one in hand: the same correlation id, and that one's id as its causation id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from message_bus.messages.definition import definition_of
from message_bus.messages.ids import uuid7
from message_bus.messages.message import Message

CORRELATION_ID: Final = "correlation_id"
CAUSATION_ID: Final = "causation_id"
BAGGAGE: Final = "baggage"
TRACE_HEADERS: Final = ("traceparent", "tracestate", BAGGAGE)
"""The headers of W3C Trace Context and Baggage: a message that is made while another is in hand belongs to its trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message and what surrounds it. `position` and `created_at` are None until a log has taken it in."""

    message: Message
    id: UUID
    type: str
    name: str
    version: int = 1
    key: str | None = None
    position: int | None = None
    created_at: datetime | None = None
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    _row: Any = field(default=None, init=False, repr=False, compare=False)
    _undecoded: Any = field(default=None, init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        # Reached only while fields are missing: most handlers never look into the envelope of a stored message.
        if name == "_undecoded":
            return None
        if name == "message" and (undecoded := self._undecoded) is not None:
            registry, row = undecoded
            _set(self, "message", registry.decode(row.message, row.version, row.payload_json))
            _set(self, "_undecoded", None)  # a copy, or a pickled one, needs no registry
        elif name in _FILLED and (row := self._row) is not None:
            _fill(self, row)
        return object.__getattribute__(self, name)  # another thread may have filled it

    @property
    def correlation_id(self) -> str | None:
        """What all messages of one story have in common."""
        return self.headers.get(CORRELATION_ID)

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handling brought this one about."""
        return self.headers.get(CAUSATION_ID)


_FILLED: Final = frozenset(
    each.name for each in fields(Envelope) if each.name not in ("message", "_row", "_undecoded")
)
_set: Final = object.__setattr__


def stored_envelope(message: Message, row: Any) -> Envelope:
    """The envelope of a message that a log has stored as `row`; its fields are taken from there when they are needed."""
    envelope = object.__new__(Envelope)
    _set(envelope, "message", message)
    _set(envelope, "_row", row)
    return envelope


def undecoded_envelope(registry: Any, row: Any) -> Envelope:
    """The same for a row whose message is decoded when somebody asks for it. `.message` raises what `registry.decode` does."""
    envelope = object.__new__(Envelope)
    _set(envelope, "_row", row)
    _set(envelope, "_undecoded", (registry, row))
    return envelope


def is_of(envelope: Envelope, message: Message) -> bool:
    """Whether it is the envelope of this very object; one that is not decoded yet is not."""
    try:
        held: Message = object.__getattribute__(envelope, "message")
    except AttributeError:
        return False
    return held is message


def _fill(envelope: Envelope, row: Any) -> None:
    for name in ("id", "type", "version", "key", "position", "created_at", "meta", "headers"):
        _set(envelope, name, getattr(row, name))
    _set(envelope, "name", row.message)
    _set(envelope, "_row", None)


def child_headers(parent: Envelope | None) -> dict[str, str]:
    """Return the headers that a message made while `parent` is in hand inherits; none without a parent."""
    if parent is None:
        return {}
    inherited = {CORRELATION_ID: parent.correlation_id or str(parent.id), CAUSATION_ID: str(parent.id)}
    headers = parent.headers
    for name in TRACE_HEADERS:
        if name in headers:
            inherited[name] = headers[name]
    return inherited


def new_envelope(
    message: Message,
    *,
    id: UUID | None = None,  # noqa: A002  (the field's word)
    parent: Envelope | None = None,
    key: str | None = None,
    meta: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Envelope:
    """Put a message into a new envelope. `headers` win over what is inherited from `parent`.

    Without a parent a message begins a story of its own: its correlation id is its id.

    Raises: NotAMessage; InvalidMessage if the key cannot be read.
    """
    definition = definition_of(type(message))
    own_id = uuid7() if id is None else id
    inherited = child_headers(parent) or {CORRELATION_ID: str(own_id)}
    return Envelope(
        message=message,
        id=own_id,
        type=definition.kind,
        name=definition.name,
        version=definition.version,
        key=definition.key_of(message) if key is None else key,
        meta=MappingProxyType(dict(meta or {})),
        headers=MappingProxyType({**inherited, **(headers or {})}),
    )
