"""The row of the outbox as users see it: what `register_outbox_message` returns and a repository's `get` finds.

A plain value, not an ORM entity: the write path and the relay read and write plain rows. A row that was just
registered has no position yet; the position is drawn when the row is written, right before commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

from message_bus.errors import InvalidOutboxMessage
from message_bus.messages.ids import uuid7
from message_bus.messages.keys import key_hash as hash_of


class OutboxMessage:
    """One outbox row: `id, type, message, payload, meta, version, key, headers`, and after reading `position, created_at`.

    `payload` is a JSON-ready dict (or JSON text or bytes, which are decoded when `payload` is first read).
    `delay`: the row waits in the schedule for that long, by the database's clock, before it enters the outbox.
    `processed` is computed when the row is read: every subscription has dealt with it; False for a new row.
    """

    def __init__(
        self,
        *,
        type: str,  # noqa: A002  (the ancestors' word)
        message: str,
        payload: Mapping[str, Any] | str | bytes,
        id: UUID | str | None = None,  # noqa: A002
        meta: Mapping[str, Any] | None = None,
        version: int = 1,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: timedelta | None = None,
        position: int | None = None,
        created_at: datetime | None = None,
        processed: bool = False,
    ) -> None:
        if id is None:
            self.id = uuid7()
        elif isinstance(id, UUID):
            self.id = id
        else:
            try:
                self.id = UUID(id)
            except (ValueError, AttributeError, TypeError):
                raise InvalidOutboxMessage(
                    f"the id of an outbox message is a UUID, not a {_type_name(id)} (leave it out to get a UUIDv7)"
                ) from None
        self.type = type
        self.message = message
        self.version = version
        self.key = key
        self.meta = dict(meta) if meta is not None else {}
        self.headers = dict(headers) if headers is not None else {}
        self.delay = delay
        self.position = position
        self.created_at = created_at
        self.processed = processed
        self._payload = payload

    @classmethod
    def stored(cls, row: Sequence[Any]) -> OutboxMessage:
        """Make a row of what the engine has read, in the order of its statements: nothing is checked.

        What handlers seldom look at is made when it is first asked for.
        """
        made = cls.__new__(cls)
        made._row = row
        made.position, made.message, made.version, made.key = row[0], row[3], row[4], row[5]
        made._payload = row[9]
        return made

    _row: Sequence[Any] = ()
    delay: timedelta | None = None
    processed: bool = False
    observer: Any = None
    """Who is told when this row is written; not stored."""

    @cached_property
    def id(self) -> UUID:
        """The message id."""
        found: UUID = self._row[1]
        return found

    @cached_property
    def type(self) -> str:
        """COMMAND or EVENT."""
        found: str = self._row[2]
        return found

    @cached_property
    def created_at(self) -> datetime | None:
        """When it was written, by the database's clock."""
        found: datetime = self._row[8]
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the user gave beside the message."""
        text = self._row[6]
        return {} if text is None else msgspec.json.decode(text, type=dict[str, Any])

    @cached_property
    def headers(self) -> dict[str, str]:
        """Correlation, causation, trace context."""
        text = self._row[7]
        return {} if text is None else msgspec.json.decode(text, type=dict[str, str])

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The message's fields, JSON-ready."""
        if isinstance(self._payload, str | bytes):
            decoded: dict[str, Any] = msgspec.json.decode(self._payload)
            return decoded
        return dict(self._payload)

    @property
    def payload_json(self) -> str:
        """The payload as it is stored: JSON text."""
        if isinstance(self._payload, str):
            return self._payload
        if isinstance(self._payload, bytes):
            return self._payload.decode()
        return msgspec.json.encode(self._payload).decode()

    @property
    def key_hash(self) -> int | None:
        """The stable hash of the key that chooses a partition; None without a key."""
        return None if self.key is None else hash_of(self.key)

    def __repr__(self) -> str:
        return f"OutboxMessage(id={str(self.id)!r}, type={self.type!r}, message={self.message!r}, position={self.position!r})"


def outbox_message_of(row: Any) -> OutboxMessage:
    """The same for a row of a user's own model, which need not have more than `id, type, message, payload, meta`."""
    if isinstance(row, OutboxMessage):
        return row
    try:
        message_id = row.id if isinstance(row.id, UUID) else UUID(str(row.id))
    except ValueError:  # an id of another kind: one UUID for each of them
        message_id = uuid5(NAMESPACE_OID, str(row.id))
    return OutboxMessage(
        id=message_id,
        type=row.type,
        message=row.message,
        payload=row.payload,
        meta=getattr(row, "meta", None),
        version=getattr(row, "version", None) or 1,
        key=getattr(row, "key", None),
        headers=getattr(row, "headers", None),
    )


def _type_name(value: object) -> str:
    return value.__class__.__name__
