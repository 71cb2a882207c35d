"""How the binary form of CloudEvents puts attributes into the headers of HTTP, Kafka, AMQP and NATS, and takes them out.

One row of a table for each protocol. Headers are plain dicts of texts here; turning them into what a client library
wants (bytes for Kafka, the property `content-type` of AMQP) is the caller's business. Pure; called by
`writer` and `reader`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from message_bus.errors import InvalidCloudEvent, SettingsError, names_of
from message_bus.messages.cloudevents.attributes import Value, timestamp, timestamp_of_milliseconds

CONTENT_TYPE: Final = "content-type"
DATA_CONTENT_TYPE: Final = "datacontenttype"

Protocol = Literal["http", "kafka", "amqp", "nats"]
Headers = Mapping[str, object] | Iterable[tuple[str | bytes, object]]


class CloudEventMessage(NamedTuple):
    """What is sent: headers, with the content type among them, and a body."""

    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One protocol: the prefix it writes and those it reads (in lower case), and the form of its values."""

    prefix: str
    read: tuple[str, ...]
    percent_encoded: bool = False
    native: bool = False
    content_type: str = CONTENT_TYPE
    """The header of `datacontenttype`."""


BINDINGS: Final[Mapping[str, Binding]] = {
    "http": Binding(prefix="ce-", read=("ce-",), percent_encoded=True),
    "kafka": Binding(prefix="ce_", read=("ce_",)),
    "amqp": Binding(prefix="cloudEvents_", read=("cloudevents_", "cloudevents:"), native=True),
    "nats": Binding(
        prefix="ce-", read=("ce-",), percent_encoded=True, content_type=f"ce-{DATA_CONTENT_TYPE}"
    ),
}

_PLAIN: Final = "".join(char for char in map(chr, range(0x21, 0x7F)) if char not in '"%')
_STRAY_PERCENT: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def binding_of(protocol: str) -> Binding:
    """The row of the table for a protocol. Raises: SettingsError."""
    if protocol not in BINDINGS:
        raise SettingsError("CloudEvents", [f"no binding {protocol!r} (there are {names_of(BINDINGS)})"])
    return BINDINGS[protocol]


def headers_of(attributes: Mapping[str, Value], binding: Binding) -> dict[str, str]:
    """The headers that carry these attributes."""
    headers: dict[str, str] = {}
    for name, value in attributes.items():
        if name == DATA_CONTENT_TYPE:
            headers[binding.content_type] = str(value)
        else:
            text = str(value)
            headers[binding.prefix + name] = quote(text, safe=_PLAIN) if binding.percent_encoded else text
    return headers


def attributes_in(headers: Headers, binding: Binding, wanted: frozenset[str]) -> dict[str, Value]:
    """The wanted attributes that these headers carry; every other header is passed by unread.

    Raises: InvalidCloudEvent for an attribute that is there twice, or whose value cannot be decoded.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    found: dict[str, Value] = {}
    for header, value in pairs:
        name = _attribute_of(header, binding)
        if name not in wanted or value is None:
            continue
        if name in found:
            raise InvalidCloudEvent(name, "is there twice")
        found[name] = _value_of(name, value, binding)
    return found


def content_type_in(headers: Headers) -> str | None:
    """The content type of a message, which tells in what form it is. Raises: InvalidCloudEvent if it is there twice."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    types = [value for header, value in pairs if _lower(header) == CONTENT_TYPE and value is not None]
    if len(types) > 1:
        raise InvalidCloudEvent(DATA_CONTENT_TYPE, "is there twice")
    return _text_of(DATA_CONTENT_TYPE, types[0], ascii_only=True) if types else None


def _attribute_of(header: object, binding: Binding) -> str:
    name = _lower(header)
    if name == binding.content_type:
        return DATA_CONTENT_TYPE
    for prefix in binding.read:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return ""


def _lower(header: object) -> str:
    """The name of a header, as it is compared; a name that is no ASCII is no name of ours."""
    if isinstance(header, bytes):
        header = header.decode("latin-1")
    return header.lower() if isinstance(header, str) and header.isascii() else ""


def _value_of(name: str, value: object, binding: Binding) -> Value:
    if binding.native and isinstance(value, bool | int | datetime):
        return _native(name, value)
    text = _text_of(name, value, ascii_only=binding.percent_encoded)
    is_header_of_http = name == DATA_CONTENT_TYPE and binding.content_type == CONTENT_TYPE
    return _percent_decoded(name, text) if binding.percent_encoded and not is_header_of_http else text


def _native(name: str, value: bool | int | datetime) -> Value:
    """A value of AMQP's own types: a timestamp is given as a datetime or as milliseconds, other numbers stay."""
    try:
        if isinstance(value, datetime):
            return timestamp(value.replace(tzinfo=UTC) if value.tzinfo is None else value)
        if name == "time" and not isinstance(value, bool):
            return timestamp_of_milliseconds(value)
    except (OverflowError, ValueError):
        raise InvalidCloudEvent(name, "is not an instant of the years 1 to 9999") from None
    return value


def _text_of(name: str, value: object, *, ascii_only: bool) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise InvalidCloudEvent(name, "is not valid UTF-8") from None
    if not isinstance(text, str):
        raise InvalidCloudEvent(name, "is not a text")
    if ascii_only and not text.isascii():
        raise InvalidCloudEvent(name, "holds what is not ASCII (percent-encode it)")
    return text


def _percent_decoded(name: str, text: str) -> str:
    """Undo quotes, which old senders use, then percent-encoding: once."""
    text = text.strip(" \t")
    if text.startswith('"'):
        if not _QUOTED.fullmatch(text):
            raise InvalidCloudEvent(name, "begins with a quotation mark that is not closed")
        text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    if "%" not in text:
        return text
    if _STRAY_PERCENT.search(text):
        raise InvalidCloudEvent(name, "holds a percent sign that encodes nothing (write it as %25)")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidCloudEvent(name, "is not valid UTF-8 once its percent-encoding is undone") from None
