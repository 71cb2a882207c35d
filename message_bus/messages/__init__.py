"""Messages: what is sent, how it becomes JSON and back, and which types a bus knows.

    Message ──definition_of()──► MessageDefinition ──encode/check──► payload ──► log, broker
       ▲                                                               │
       └── decode ◄── upcasting (old versions) ◄── Registry (by name) ◄┘

Encoding belongs to the class, the registry to the bus. Pure: no database, no event loop, no logging, and no
clock except in `ids`. How a class becomes a dataclass without a decorator is told in `finishing`.
"""

from __future__ import annotations

from message_bus.messages.definition import MAX_PAYLOAD_BYTES, MessageDefinition, definition_of
from message_bus.messages.envelope import Envelope, child_headers, new_envelope
from message_bus.messages.ids import uuid7
from message_bus.messages.keys import key_hash
from message_bus.messages.message import Command, Event, Message
from message_bus.messages.registry import Registry

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Command",
    "Envelope",
    "Event",
    "Message",
    "MessageDefinition",
    "Registry",
    "child_headers",
    "definition_of",
    "key_hash",
    "new_envelope",
    "uuid7",
]
