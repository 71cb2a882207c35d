"""`CloudEventReader`: CloudEvents 1.0 from a webhook or a broker as envelopes, if they keep to the rules.

What it reads is not trusted. The type is looked up among the classes that are accepted, nothing is imported; sizes,
texts, instants and numbers are checked; attributes that mean nothing here are not even decoded. Errors name attributes
and fields, never values. Reads no clock and writes nothing: taking the same event in twice is for an inbox to notice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from message_bus.errors import (
    InvalidCloudEvent,
    InvalidMessage,
    MessageDefinitionError,
    NotAMessage,
    SettingsError,
    UnknownMessageType,
)
from message_bus.messages.cloudevents.attributes import (
    ID_HEADER,
    SOURCE_HEADER,
    SPEC_VERSION,
    Value,
    instant_of,
    message_id,
    position_of,
    problem_of,
    required,
    text_of,
    trace_of,
    version_of,
)
from message_bus.messages.cloudevents.bindings import (
    DATA_CONTENT_TYPE,
    Headers,
    Protocol,
    attributes_in,
    binding_of,
    content_type_in,
)
from message_bus.messages.cloudevents.json_format import bytes_of, events_in, parts_of
from message_bus.messages.definition import MAX_PAYLOAD_BYTES, definition_of
from message_bus.messages.envelope import BAGGAGE, CAUSATION_ID, CORRELATION_ID, Envelope
from message_bus.messages.message import Message
from message_bus.messages.registry import Registry

_CORE: Final = frozenset({"specversion", "id", "source", "type", "subject", "time", DATA_CONTENT_TYPE})
_EXTENSIONS: Final = frozenset(
    {
        *("correlationid", "causationid", "traceparent", "tracestate"),
        *("messagekind", "messageversion", "partitionkey", "sequence"),
    }
)
_JSON_TYPE: Final = re.compile(r"[!-.0-~]+/(?:[!-.0-~]+\+)?json", re.IGNORECASE)
_UTF8: Final = frozenset({"utf-8", "utf8", "us-ascii"})


class CloudEventReader:
    """Reads CloudEvents 1.0 from outside as envelopes. Safe for threads once it is made.

    `accepts`: the message classes that may come in, each named; commands, too. `registry`: where upcasters are looked
    up, e.g. `bus.registry`; the classes are registered there. `max_bytes`: how large a whole event, or a whole batch, may
    be. `keep_baggage`: keep the sender's W3C baggage.

    Raises: SettingsError.
    """

    def __init__(
        self,
        *,
        accepts: Collection[type[Message]],
        registry: Registry | None = None,
        max_bytes: int = MAX_PAYLOAD_BYTES,
        keep_baggage: bool = False,
    ) -> None:
        problems = _problems_of(accepts)
        if max_bytes < 1:
            problems.append("max_bytes is less than 1")
        if problems:
            raise SettingsError("CloudEventReader", problems)
        self._accepts = frozenset(accepts)
        self._registry = Registry() if registry is None else registry
        self._registry.register(*accepts)
        self._max_bytes = max_bytes
        self._keep_baggage = keep_baggage
        self._wanted = _CORE | _EXTENSIONS | ({BAGGAGE} if keep_baggage else set())

    def from_structured(self, event: bytes | str | Mapping[str, Any]) -> Envelope:
        """Return the envelope of one event in the JSON format; a mapping is what a JSON library has made of it.

        Raises: InvalidCloudEvent naming the attribute that is wrong; UnknownMessageType for a type that is not
        accepted, or of a version that its class has not reached; MessageDecodeError if the data does not fit.
        """
        return self._from_json(bytes_of(event, self._max_bytes))

    def from_batch(self, events: bytes | str | Collection[Any]) -> list[Envelope]:
        """Return the envelopes of a JSON array of events: all, or none. Raises: as `from_structured`."""
        return [self._from_json(event) for event in events_in(bytes_of(events, self._max_bytes))]

    def from_binary(self, headers: Headers, body: bytes | None, binding: Protocol = "http") -> Envelope:
        """Return the envelope of a message whose headers hold the attributes and whose body is the data.

        `headers`: a mapping, or pairs as ASGI and Kafka have them; `bytes` are decoded. With "amqp" the property
        `content-type` is expected among them. Raises: as `from_structured`.
        """
        attributes = attributes_in(headers, binding_of(binding), self._wanted)
        return self._envelope(attributes, bytes_of(body or b"", self._max_bytes) or None, is_json=False)

    def from_message(
        self, headers: Headers, body: bytes | None, binding: Protocol = "http"
    ) -> list[Envelope]:
        """Return the envelopes of a message in any of the three forms, which its content type tells apart.

        Raises: as `from_structured`; InvalidCloudEvent for an event format other than JSON.
        """
        headers = dict(headers) if isinstance(headers, Mapping) else list(headers)
        media_type = _media_type(content_type_in(headers) or "")
        if media_type == "application/cloudevents-batch+json":
            return self.from_batch(body or b"")
        if media_type in ("application/cloudevents+json", "application/cloudevents"):
            return [self.from_structured(body or b"")]
        if media_type.startswith("application/cloudevents"):
            raise InvalidCloudEvent(None, "its event format is not JSON (send application/cloudevents+json)")
        return [self.from_binary(headers, body, binding)]

    def _from_json(self, event: bytes) -> Envelope:
        parts = parts_of(event, self._wanted)
        return self._envelope(parts.attributes, parts.data, is_json=not parts.is_base64)

    def _envelope(self, attributes: Mapping[str, Value], data: bytes | None, *, is_json: bool) -> Envelope:
        """Make an envelope. `is_json`: data without a content type is JSON."""
        _check_version(attributes)
        event_id, source, name = (required(attributes, each) for each in ("id", "source", "type"))
        cls = self._registry.get(name)
        if cls is None or cls not in self._accepts:
            raise _not_accepted(None if cls is None else definition_of(cls).name)
        definition = definition_of(cls)
        if text_of(attributes, "messagekind") not in (None, definition.kind.lower()):
            raise InvalidCloudEvent("messagekind", "is not that of the class with this name")
        if data is not None:
            _check_content_type(attributes, is_json=is_json)
        own_id = message_id(event_id, source)
        headers = self._headers(attributes, str(own_id), event_id, source)
        created_at, position = instant_of(attributes, "time"), position_of(attributes, "sequence")
        version = version_of(attributes, "messageversion") or definition.version
        key = text_of(attributes, "partitionkey") or text_of(attributes, "subject")
        message = self._message(name, version, b"{}" if data is None else data)
        return Envelope(
            message=message,
            id=own_id,
            type=definition.kind,
            name=name,
            version=version,
            key=_own_key(message) if key is None else key,
            position=position,
            created_at=created_at,
            meta=MappingProxyType({}),
            headers=MappingProxyType(headers),
        )

    def _message(self, name: str, version: int, data: bytes) -> Message:
        try:
            return self._registry.decode(name, version, data)
        except RecursionError:  # the parser takes what is too deep for upcasters, whose payload is copied
            raise InvalidCloudEvent("data", "is nested too deeply") from None

    def _headers(
        self, attributes: Mapping[str, Value], own_id: str, event_id: str, source: str
    ) -> dict[str, str]:
        headers = {CORRELATION_ID: text_of(attributes, "correlationid") or own_id}
        causation = text_of(attributes, "causationid")
        if causation is not None:
            headers[CAUSATION_ID] = causation
        headers.update(trace_of(attributes, baggage=self._keep_baggage))
        headers[SOURCE_HEADER] = source
        if event_id != own_id:
            headers[ID_HEADER] = event_id
        return headers


def _check_version(attributes: Mapping[str, Value]) -> None:
    if required(attributes, "specversion") != SPEC_VERSION:
        raise InvalidCloudEvent("specversion", f"is not {SPEC_VERSION!r}, the one that is understood here")


def _own_key(message: Message) -> str | None:
    try:
        key = definition_of(type(message)).key_of(message)
    except InvalidMessage as error:
        raise InvalidCloudEvent("data", "gives the message no key that can be read") from error.__cause__
    if key and (problem := problem_of(key)) is not None:
        raise InvalidCloudEvent("data", f"gives the message a key that {problem}")
    return key


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip(" \t").lower()


def _check_content_type(attributes: Mapping[str, Value], *, is_json: bool) -> None:
    """Refuse data that is not JSON in UTF-8, or that nobody says is JSON."""
    content_type = text_of(attributes, DATA_CONTENT_TYPE)
    if content_type is None:
        if is_json:
            return
        raise InvalidCloudEvent(DATA_CONTENT_TYPE, "is missing (send application/json)")
    if not _JSON_TYPE.fullmatch(_media_type(content_type)):
        raise InvalidCloudEvent(DATA_CONTENT_TYPE, "is not one of JSON (send application/json)")
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip(" \t").lower() == "charset" and value.strip(' \t"').lower() not in _UTF8:
            raise InvalidCloudEvent(DATA_CONTENT_TYPE, "has a charset other than UTF-8 (send UTF-8)")


def _not_accepted(name: str | None) -> UnknownMessageType:
    """A type's name is told if this side knows it: what only a sender knows is a value."""
    error = UnknownMessageType("unknown" if name is None else name)
    what = (
        "attribute 'type' names no message type known here"
        if name is None
        else f"{name!r} is not accepted here"
    )
    error.args = (f"CloudEvent: {what} (name the class in accepts=[...])",)
    return error


def _problems_of(accepts: Collection[Any]) -> list[str]:
    if isinstance(accepts, str | type) or not accepts:
        return ["accepts names no classes (e.g. accepts=[OrderPlaced])"]
    problems: list[str] = []
    for cls in accepts:
        try:
            if definition_of(cls).kind == "QUERY":
                problems.append(f"accepts: {cls.__name__!r} is a query, whose answer nobody would get")
        except (NotAMessage, MessageDefinitionError) as error:
            problems.append(f"accepts: {error}")
    return problems
