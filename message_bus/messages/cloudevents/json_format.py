"""The JSON format of CloudEvents, read with suspicion: its members by name, its data as bytes, nothing decoded in vain.

A JSON parser gives the last of two members with one name, another parser the first: such an event could mean one thing
to a gateway and another here, so it is refused. Pure; called by `reader`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import msgspec

from message_bus.errors import InvalidCloudEvent
from message_bus.messages.cloudevents.attributes import Value

_DATA: Final = "data"
_DATA_BASE64: Final = "data_base64"
# what msgspec raises at text that is hostile, besides its own
_REFUSALS: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


class _Name(str):
    """The name of a member, equal to nothing but itself: a dict of them keeps what is there twice."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


_members: Final = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=lambda _, name: _Name(name)).decode
_elements: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text: Final = msgspec.json.Decoder(str).decode
_scalar: Final = msgspec.json.Decoder(str | int | bool | None)


class Parts(NamedTuple):
    """An event in pieces. `data` is None if it has none; `is_base64`: it came as `data_base64`."""

    attributes: dict[str, Value]
    data: bytes | None
    is_base64: bool


def bytes_of(given: object, max_bytes: int) -> bytes:
    """JSON as bytes, whatever it was given as. Raises: InvalidCloudEvent if it is too large or no JSON."""
    try:
        if isinstance(given, bytes | bytearray | memoryview):
            data = bytes(given)
        elif isinstance(given, str):
            data = given.encode()
        else:
            plain = dict(cast("Mapping[str, Any]", given)) if isinstance(given, Mapping) else given
            data = json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidCloudEvent(None, "it holds what JSON does not have") from None
    if len(data) > max_bytes:
        raise InvalidCloudEvent(None, f"it has more than {max_bytes} bytes")
    return data


def events_in(batch: bytes) -> list[bytes]:
    """The events of a batch, each by itself. Raises: InvalidCloudEvent."""
    try:
        return [bytes(element) for element in _elements(batch)]
    except _REFUSALS:
        raise InvalidCloudEvent(None, "it is not a JSON array of events") from None


def parts_of(event: bytes, wanted: frozenset[str]) -> Parts:
    """The wanted attributes of an event, and its data. Raises: InvalidCloudEvent."""
    attributes: dict[str, Value] = {}
    data: dict[str, bytes] = {}
    for name, raw in _members_of(event, wanted).items():
        if name in (_DATA, _DATA_BASE64):
            data[name] = bytes(raw)
        elif name in wanted and (value := _value_of(name, raw)) is not None:
            attributes[name] = value
    if data.get(_DATA_BASE64, b"null") == b"null":
        return Parts(attributes, data.get(_DATA), False)
    if _DATA in data:
        raise InvalidCloudEvent(_DATA_BASE64, "is there beside 'data' (send one of them)")
    return Parts(attributes, _from_base64(data[_DATA_BASE64]), True)


def _members_of(event: bytes, wanted: frozenset[str]) -> Mapping[str, msgspec.Raw]:
    try:
        found = _members(event)
    except _REFUSALS:
        raise InvalidCloudEvent(None, "it is not a JSON object") from None
    members: dict[str, msgspec.Raw] = {}
    for own_name, raw in found.items():
        name = str.__str__(own_name)
        if name in members:
            if name in wanted or name in (_DATA, _DATA_BASE64):
                raise InvalidCloudEvent(name, "is there twice")
            raise InvalidCloudEvent(None, "a member is there twice")
        members[name] = raw
    return members


def _value_of(name: str, raw: msgspec.Raw) -> Value | None:
    try:
        value: Value | None = _scalar.decode(raw)
    except _REFUSALS:
        raise InvalidCloudEvent(name, "is neither a text nor a whole number nor a boolean") from None
    return value


def _from_base64(raw: bytes) -> bytes:
    try:
        return base64.b64decode(_text(raw), validate=True)
    except (*_REFUSALS, ValueError):
        raise InvalidCloudEvent(_DATA_BASE64, "is not Base64") from None
