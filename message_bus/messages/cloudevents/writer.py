"""`CloudEventWriter`: envelopes as CloudEvents 1.0, for webhooks, brokers and everybody who does not know this package.

The message's own JSON is put into the event as it is, not encoded again. What stays behind: `meta` (the application's own;
attributes are read and logged on the way), and baggage unless asked for. Pure; safe for
threads. `CloudEventReader` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from string import Formatter
from typing import Final
from urllib.parse import quote

import msgspec

from message_bus.errors import InvalidMessage, QueryNotSendable, SettingsError
from message_bus.messages.cloudevents.attributes import (
    MAX_BAGGAGE,
    MAX_CHARACTERS,
    SPEC_VERSION,
    Value,
    problem_of,
    sequence_of,
    timestamp,
)
from message_bus.messages.cloudevents.bindings import (
    CONTENT_TYPE,
    CloudEventMessage,
    Protocol,
    binding_of,
    headers_of,
)
from message_bus.messages.definition import MessageDefinition, definition_of
from message_bus.messages.envelope import BAGGAGE, CAUSATION_ID, CORRELATION_ID, Envelope

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
JSON: Final = "application/json"

_STORY: Final = (
    ("correlationid", CORRELATION_ID),
    ("causationid", CAUSATION_ID),
    ("traceparent", "traceparent"),
    ("tracestate", "tracestate"),
)
_REFERENCE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+")
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:.")
_to_json: Final = msgspec.json.Encoder().encode


class CloudEventWriter:
    """Writes envelopes as CloudEvents 1.0.

    `source`: who sends, a URI-reference; `sequence` tells the order of its events, so one source stands for one log.
    `dataschema`: where the schema of a message is found, an absolute URI with `{name}` and `{version}` in it.
    `send_baggage`: send the W3C baggage along, which may hold what others need not know.

    Raises: SettingsError.
    """

    def __init__(self, *, source: str, dataschema: str | None = None, send_baggage: bool = False) -> None:
        problems = [*_problems_of_source(source), *_problems_of_schema(dataschema)]
        if problems:
            raise SettingsError("CloudEventWriter", problems)
        self._source = source
        self._dataschema = dataschema
        self._send_baggage = send_baggage
        self._fixed: dict[type, dict[str, Value]] = {}  # two threads may both fill a place, with the same

    def to_structured(self, envelope: Envelope) -> CloudEventMessage:
        """Return the event as one JSON object, `application/cloudevents+json`.

        Raises: InvalidMessage if the message cannot be encoded, its key cannot be an attribute, or its time has no zone;
        QueryNotSendable.
        """
        return CloudEventMessage({CONTENT_TYPE: STRUCTURED}, self._json(envelope))

    def to_batch(self, envelopes: Iterable[Envelope]) -> CloudEventMessage:
        """Return a JSON array of events, `application/cloudevents-batch+json`. Raises: as `to_structured`."""
        body = b"[" + b",".join(self._json(envelope) for envelope in envelopes) + b"]"
        return CloudEventMessage({CONTENT_TYPE: BATCH}, body)

    def to_binary(self, envelope: Envelope, binding: Protocol = "http") -> CloudEventMessage:
        """Return the message's JSON as the body and everything else as headers, named as the protocol wants them.

        With "amqp" the header `content-type` stands for the property of that name. Raises: as `to_structured`.
        """
        definition = _definition_of(envelope)
        headers = headers_of(self._attributes(envelope, definition), binding_of(binding))
        return CloudEventMessage(headers, definition.encode(envelope.message))

    def _json(self, envelope: Envelope) -> bytes:
        definition = _definition_of(envelope)
        data = definition.encode(envelope.message)
        return b'%b,"data":%b}' % (_to_json(self._attributes(envelope, definition))[:-1], data)

    def _attributes(self, envelope: Envelope, definition: MessageDefinition) -> dict[str, Value]:
        fixed = self._fixed.get(definition.cls)
        if fixed is None:
            fixed = self._fixed[definition.cls] = self._fixed_attributes(definition)
        attributes: dict[str, Value] = {"id": str(envelope.id), **fixed}
        key, created_at, position = envelope.key, envelope.created_at, envelope.position
        if key:  # an attribute cannot be empty
            if (problem := problem_of(key)) is not None:
                raise InvalidMessage(
                    definition.name, f"its key, which a CloudEvent has as 'subject', {problem}"
                )
            attributes["subject"] = attributes["partitionkey"] = key
        if created_at is not None:
            attributes["time"] = _time(created_at, definition.name)
        if position is not None:
            attributes["sequence"] = sequence_of(position)
        return self._add_story(attributes, envelope.headers)

    def _fixed_attributes(self, definition: MessageDefinition) -> dict[str, Value]:
        """What all messages of a class have in common."""
        # Name and version are those of the class: a message that was stored as an older version is written as today's.
        name, version = definition.name, definition.version
        attributes: dict[str, Value] = {
            "specversion": SPEC_VERSION,
            "source": self._source,
            "type": name,
            "datacontenttype": JSON,
            "messagekind": definition.kind.lower(),
            "messageversion": version,
        }
        if self._dataschema is not None:
            attributes["dataschema"] = self._dataschema.format(name=quote(name, safe=""), version=version)
        for attribute, value in attributes.items():
            if isinstance(value, str) and (problem := problem_of(value)) is not None:
                raise InvalidMessage(name, f"as a CloudEvent its attribute {attribute!r} {problem}")
        return attributes

    def _add_story(self, attributes: dict[str, Value], headers: Mapping[str, str]) -> dict[str, Value]:
        # These come from web requests, too. One that is unfit stays behind: the message is not lost for it.
        for name, header in _STORY:
            value = headers.get(header)
            if value is not None and problem_of(value) is None:
                attributes[name] = value
        baggage = headers.get(BAGGAGE)
        if self._send_baggage and baggage is not None and problem_of(baggage, MAX_BAGGAGE) is None:
            attributes[BAGGAGE] = baggage
        return attributes


def _definition_of(envelope: Envelope) -> MessageDefinition:
    definition = definition_of(type(envelope.message))
    if definition.kind == "QUERY":
        raise QueryNotSendable(definition.name)
    return definition


def _time(created_at: datetime, message_name: str) -> str:
    try:
        if created_at.utcoffset() is not None:
            return timestamp(created_at)
    except OverflowError:  # a zone that leads out of the years 1 to 9999
        pass
    raise InvalidMessage(
        message_name, "created_at is no instant that can be written in UTC (give it a time zone)"
    )


def _problems_of_source(source: object) -> list[str]:
    if not isinstance(source, str) or not _REFERENCE.fullmatch(source) or len(source) > MAX_CHARACTERS:
        example = "source='https://shop.example/orders'"
        return [f"source is not a URI-reference of at most {MAX_CHARACTERS} characters (e.g. {example})"]
    return []


def _problems_of_schema(template: str | None) -> list[str]:
    if template is None:
        return []
    try:
        names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        example = template.format(name="name", version=1)
    except (ValueError, LookupError, AttributeError, TypeError):
        names, example = {""}, ""
    if names <= {"name", "version"} and _ABSOLUTE.match(example) and _REFERENCE.fullmatch(example):
        return []
    advice = "e.g. dataschema='https://shop.example/schemas/{name}/{version}.json'"
    return [f"dataschema is not an absolute URI with {{name}} and {{version}} in it ({advice})"]
