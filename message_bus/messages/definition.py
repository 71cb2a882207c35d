"""What the rest of the package knows of a message class: `definition_of(cls)`.

Encoding belongs to the class; which classes a bus knows belongs to its registry. Registration calls `check`,
which decodes what it has just encoded: a message that nobody could read later is refused while its author is
still there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from message_bus.errors import (
    InvalidMessage,
    MessageDecodeError,
    MessageDefinitionError,
    NotAMessage,
    ValidationError,
)
from message_bus.messages.checking import refuse_not_finite, unreadable
from message_bus.messages.codec import codec_of, explain_encoding, to_json
from message_bus.messages.finishing import finish, is_message_class, making_of
from message_bus.messages.misfits import decode_error, user_error
from message_bus.messages.shapes import overrides

if TYPE_CHECKING:
    from message_bus.messages.message import Kind, Message

Payload = bytes | str | Mapping[str, Any]

_TEXT: Final = (str, bytes)
MAX_PAYLOAD_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MessageDefinition:
    """One message class as the bus sees it. Immutable, made once per class, safe to share.

    `encode`: compact JSON, UTF-8, through an overridden `serialize()`. Raises: InvalidMessage.
    `decode`: from JSON or a dict, through an overridden `deserialize()`. Raises: MessageDecodeError.
    `key_of`: the key of a message, None if it has none. Raises: InvalidMessage.
    """

    cls: type[Message]
    kind: Kind
    name: str
    version: int
    key_of: Callable[[Message], str | None]
    renamed_from: tuple[str, ...]
    encode: Callable[[Message], bytes]
    decode: Callable[[Payload], Message]

    def check(self, message: Message, *, max_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
        """Return the payload of a message, having decoded it again.

        Raises: InvalidMessage naming the field that does not fit, or the size of the payload.
        """
        payload = self.encode(message)
        if len(payload) > max_bytes:
            size = f"its payload has {len(payload)} bytes, more than {max_bytes}"
            raise InvalidMessage(self.name, f"{size} (store the content elsewhere and send a reference)")
        try:
            again = self.decode(payload)
        except MessageDecodeError as error:
            raise unreadable(self.name, message, error) from error.__cause__
        if b"null" in payload and again != message:
            refuse_not_finite(self.name, message)
        return payload


def definition_of(cls: type[Message]) -> MessageDefinition:
    """Return the definition of a message class, making it at first. Safe for threads.

    Raises: NotAMessage for what derives from neither `Command` nor `Event`; MessageDefinitionError naming
    the field whose type cannot be encoded.
    """
    making = making_of(cls)
    if making.definition is None:
        making.definition = _define(cls)
    definition: MessageDefinition = making.definition
    return definition


def read_object(name: str, payload: bytes | str) -> dict[str, Any]:
    """Return a payload as a dict, before it becomes a message. Raises: MessageDecodeError."""
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise decode_error(name, error) from None


def _define(cls: type[Message]) -> MessageDefinition:
    making = making_of(cls)
    kind: Kind | None = getattr(cls, "__message_kind__", None)
    if kind is None:
        raise NotAMessage(cls)
    if inspect.isabstract(cls):
        raise MessageDefinitionError(cls.__name__, "it is abstract (define a class that derives from it)")
    finish(cls)
    name = making.name if making.name is not None else cls.__name__
    return MessageDefinition(
        cls=cls,
        kind=kind,
        name=name,
        version=making.version,
        key_of=_key_of(cls, name),
        renamed_from=making.renamed_from,
        encode=_encode(cls, name),
        decode=_decode(cls, name),
    )


def _encode(cls: type[Message], name: str) -> Callable[[Message], bytes]:
    if overrides(cls, "serialize"):
        return lambda message: _encode_overridden(message, name)
    encode_json = codec_of(cls).encode

    def encode(message: Message) -> bytes:
        try:
            return encode_json(message)
        except Exception as error:  # noqa: BLE001  (what a value's own functions may raise)
            raise explain_encoding(name, message, error) from None

    return encode


def _encode_overridden(message: Message, name: str) -> bytes:
    data: Any = message.serialize()
    if not isinstance(data, dict):
        raise InvalidMessage(name, f"serialize() returned {type(data).__name__} (return a dict)")
    try:
        return to_json(data)
    except Exception as error:  # noqa: BLE001
        raise explain_encoding(name, cast("object", data), error) from None


def _decode(cls: type[Message], name: str) -> Callable[[Payload], Message]:
    if overrides(cls, "deserialize"):
        return lambda payload: _decode_overridden(cls, name, payload)
    codec = codec_of(cls)
    decode_json: Callable[[Any], Any] = codec.decode
    revive = codec.revive

    def decode(payload: Payload) -> Message:
        try:
            if payload.__class__ in _TEXT or not isinstance(payload, Mapping):
                message: Message = decode_json(payload)
            else:
                message = revive(payload)
            return message
        except Exception as error:  # noqa: BLE001  (what __post_init__ may raise)
            raise decode_error(name, error) from user_error(error)

    return decode


def _decode_overridden(cls: type[Message], name: str, payload: Payload) -> Message:
    data = dict(payload) if isinstance(payload, Mapping) else read_object(name, payload)
    try:
        message: object = cls.deserialize(data)
    except MessageDecodeError:
        raise
    except ValidationError as error:
        raise decode_error(name, error) from error
    except Exception as error:
        raise MessageDecodeError(name, f"deserialize() raised {type(error).__name__}") from error
    if not isinstance(message, cls):
        given = type(message).__name__
        raise MessageDecodeError(name, f"deserialize() returned {given} (return a {cls.__name__})")
    return message


def _key_of(cls: type[Message], name: str) -> Callable[[Message], str | None]:
    keys = (making_of(base).key for base in cls.__mro__ if is_message_class(base))
    key = next((key for key in keys if key is not None), None)
    if key is None:
        return lambda _: None
    if isinstance(key, str) and key not in getattr(cls, "__dataclass_fields__", ()) and not hasattr(cls, key):
        raise MessageDefinitionError(
            cls.__name__, f"key={key!r} is no field of it (name a field or a property)"
        )

    def key_of(message: Message) -> str | None:
        try:
            value = getattr(message, key) if isinstance(key, str) else key(message)
        except Exception as error:
            raise InvalidMessage(name, f"its key cannot be read ({type(error).__name__})") from error
        if isinstance(value, Enum):
            value = value.value
        return None if value is None else str(value)

    return key_of
