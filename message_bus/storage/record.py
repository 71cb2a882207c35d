"""One outbox row as it will be stored: validated and encoded when it is registered, so that the commit cannot fail on it.

What the database would refuse (NUL characters, lone surrogates, what is not JSON) is refused here, with the field's
name. Pure. The repositories call it at registration (L6), `writer.py` stores what it gives.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import msgspec

from message_bus.errors import InvalidOutboxMessage
from message_bus.messages.keys import LONGEST_KEY, is_too_long
from message_bus.storage.tables import COMMAND, EVENT

if TYPE_CHECKING:
    from message_bus.repositories.outbox_message import OutboxMessage

_MAX_INTEGER: Final = 2**31 - 1
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])  # checks the syntax, keeps nothing


class Record(NamedTuple):
    """One encoded row: exactly what is stored; immutable, so that nothing changed after registration is written."""

    id: UUID
    type: str
    message: str
    version: int
    key: str | None
    key_hash: int | None
    payload: str
    meta: str | None
    headers: str | None
    delay: float | None  # seconds


def encode(row: OutboxMessage) -> Record:
    """Validate a row and freeze it as it will be stored.

    Raises: InvalidOutboxMessage naming the field that does not fit (never its value).
    """
    if row.type not in (COMMAND, EVENT):
        raise InvalidOutboxMessage(
            f"the type of an outbox message is {COMMAND!r} or {EVENT!r}, not something else"
        )
    if not row.message:
        raise InvalidOutboxMessage("the message field is empty (it holds the name of the message's type)")
    if type(row.version) is not int or not 1 <= row.version <= _MAX_INTEGER:
        raise InvalidOutboxMessage("the version of an outbox message is an integer from 1")
    return Record(
        row.id,
        row.type,
        _text("message", row.message),
        row.version,
        None if row.key is None else _key(row.key),
        row.key_hash,
        _payload(row),
        _json("meta", row.meta),
        _json("headers", row.headers),
        _seconds(row.delay),
    )


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidOutboxMessage(f"{field} is a str, not a {type(value).__name__}")
    if "\0" in value:
        raise InvalidOutboxMessage(f"{field} contains a NUL character, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidOutboxMessage(
                f"{field} contains a lone surrogate, which is not valid Unicode"
            ) from None
    return value


def _key(key: object) -> str:
    text = _text("key", key)
    if is_too_long(text):
        raise InvalidOutboxMessage(f"key has more than {LONGEST_KEY} bytes (use an id or a hash as the key)")
    return text


def _payload(row: OutboxMessage) -> str:
    try:
        payload = row.payload_json
        _OBJECT.decode(payload)
    except (TypeError, ValueError, msgspec.DecodeError) as exc:  # a UnicodeError is a ValueError
        raise InvalidOutboxMessage(f"payload is not a JSON object ({type(exc).__name__})") from exc
    return payload


def _json(field: str, value: object) -> str | None:
    if not value:
        return None
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError) as exc:
        raise InvalidOutboxMessage(f"{field} is not JSON-ready ({type(exc).__name__})") from exc


def _seconds(delay: timedelta | None) -> float | None:
    if delay is None:
        return None
    if not isinstance(delay, timedelta):
        raise InvalidOutboxMessage(f"delay is a timedelta, not a {type(delay).__name__}")
    if delay < timedelta(0):
        raise InvalidOutboxMessage("delay is negative (leave it out to send at once)")
    return delay.total_seconds() or None
