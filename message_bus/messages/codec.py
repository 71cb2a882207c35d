"""From messages to JSON and back: one codec per message class, compiled once and kept with the class.

msgspec does the work alone for nearly every class; where it would bypass something of the user's, `assembly`
helps. A codec knows nothing of an overridden `serialize()` or `deserialize()` of its own class: those are
built on it, with
`super()`. Who honours them is `definition.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from message_bus.errors import InvalidMessage, MessageDecodeError, MessageDefinitionError
from message_bus.messages import foreign
from message_bus.messages.assembly import Assembler
from message_bus.messages.finishing import is_message_class, making_of
from message_bus.messages.misfits import decode_error, encode_error, user_error
from message_bus.messages.shapes import Survey, blame, survey

_from_json: Callable[[bytes | str], Any] = msgspec.json.Decoder().decode
to_json: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=foreign.encode).encode


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """One class to JSON, from JSON, and from a dict (`revive`). These raise whatever they meet."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes | str], Any]
    revive: Callable[[Mapping[str, Any]], Any]

    def serialize(self, message: Any) -> dict[str, Any]:
        """Return the fields of a message as JSON would give them back. Raises: InvalidMessage."""
        try:
            fields: dict[str, Any] = _from_json(self.encode(message))
        except Exception as error:  # noqa: BLE001  (what a value's own functions may raise)
            raise explain_encoding(self.name, message, error) from None
        return fields

    def deserialize(self, data: object) -> Any:
        """Return the message that a dict of fields describes. Raises: MessageDecodeError."""
        if not isinstance(data, Mapping):
            raise MessageDecodeError(self.name, f"expected a dict, got {type(data).__name__}")
        try:
            return self.revive(cast("Mapping[str, Any]", data))
        except Exception as error:  # noqa: BLE001  (what __post_init__ may raise)
            raise decode_error(self.name, error) from user_error(error)


def codec_of(cls: type) -> Codec:
    """Return the codec of a message class, compiling it at first.

    Raises: NotAMessage; MessageDefinitionError naming the field whose type cannot be encoded.
    """
    making = making_of(cls)
    if making.codec is None:
        making.codec = _compile(survey(cls))
    codec: Codec = making.codec
    return codec


def explain_encoding(name: str, message: object, error: Exception) -> InvalidMessage:
    """Say why a message cannot be encoded, and which of its fields is to blame."""
    if isinstance(error, InvalidMessage):
        return error
    fields = dataclasses.fields(message) if dataclasses.is_dataclass(message) else ()
    for field in fields:
        try:
            to_json(getattr(message, field.name, None))
        except Exception as its_error:  # noqa: BLE001  (the same error again, now with a name)
            return encode_error(name, its_error, field.name)
    return encode_error(name, error)


def _compile(found: Survey) -> Codec:
    cls = found.root
    name = making_of(cls).name or cls.__name__
    encode = _encoder(found)
    assembler = Assembler(found)
    try:
        if found.is_assembled(cls):
            return _assembled(name, found, assembler, encode)
        decode: Callable[[bytes | str], Any] = msgspec.json.Decoder(cls, dec_hook=foreign.decode).decode
    except MessageDefinitionError:
        raise
    except TypeError as error:
        raise blame(found, assembler.rewrite, error) from None
    return Codec(name, encode, decode, lambda data: _convert(data, cls, foreign.decode))


def _assembled(name: str, found: Survey, assembler: Assembler, encode: Callable[[Any], bytes]) -> Codec:
    cls, build = found.root, assembler.build
    for inner in found.hints:
        # Every draft now, so that a type msgspec refuses is refused at definition, not at the first payload.
        msgspec.json.Decoder(assembler.plan(inner).draft, dec_hook=assembler.dec_hook)
    draft = assembler.plan(cls).draft
    decode: Callable[[bytes | str], Any] = msgspec.json.Decoder(draft, dec_hook=assembler.dec_hook).decode
    return Codec(
        name,
        encode,
        lambda payload: build(cls, decode(payload)),
        lambda data: build(cls, _convert(data, draft, assembler.dec_hook)),
    )


def _convert(data: Mapping[str, Any], cls: type, dec_hook: Callable[[type, Any], Any]) -> Any:
    expected: Any = cls
    return msgspec.convert(data, expected, dec_hook=dec_hook, str_keys=True)


def _encoder(found: Survey) -> Callable[[Any], bytes]:
    if not found.overridden:
        return to_json
    overridden = tuple(found.overridden)
    return lambda message: to_json(_fields_in_full(message, overridden))


def _in_full(value: Any, overridden: tuple[type, ...]) -> Any:
    """Write out a value in plain terms, with the functions that belong to the types inside."""
    cls: type = value.__class__
    if issubclass(cls, overridden):
        if is_message_class(cls) and not foreign.is_registered(cls):
            return value.serialize()
        return foreign.encode(value)
    if dataclasses.is_dataclass(cls):
        return _fields_in_full(value, overridden)
    if isinstance(value, dict):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: _in_full(item, overridden) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_in_full(item, overridden) for item in cast("list[Any]", value)]
    return value


def _fields_in_full(value: Any, overridden: tuple[type, ...]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return {name: _in_full(getattr(value, name), overridden) for name in names if hasattr(value, name)}
