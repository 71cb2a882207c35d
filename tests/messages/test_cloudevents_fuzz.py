"""CloudEvents from hostile senders: whatever comes, an envelope or an error of ours that does not say what came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from message_bus import (
    CloudEventReader,
    CloudEventWriter,
    Envelope,
    Event,
    InvalidCloudEvent,
    MessageDecodeError,
    Registry,
    UnknownMessageType,
)
from message_bus.messages import new_envelope
from message_bus.messages.cloudevents.attributes import problem_of
from message_bus.messages.cloudevents.bindings import BINDINGS
from tests.messages.test_properties import Assembled, Nested, Scalars, messages

MARK = "xyzzy"
"""In every hostile value: an error that holds it has told what was sent."""
LIMIT = 50_000

reader = CloudEventReader(accepts=[Scalars, Nested, Assembled], max_bytes=LIMIT, keep_baggage=True)
writer = CloudEventWriter(source="/fuzz", send_baggage=True)
bindings = st.sampled_from(sorted(BINDINGS))


class Deep(Event, version=2):
    anything: Any = None


registry = Registry()
registry.add_upcaster(Deep, lambda payload: payload, from_version=1)
deep = CloudEventReader(accepts=[Deep], registry=registry, keep_baggage=True)

hostile_texts = st.builds(
    lambda before, after: f"{before}{MARK}{after}",
    st.text(max_size=20)
    | st.sampled_from(["\x00", "\ud800", "%", "%00", '"', "../", "'; drop table", "${jndi:", "\x1b[31m"]),
    st.text(max_size=20) | st.just("a" * 5_000),
)
hostile_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -(10**400)])
    | st.floats()
    | hostile_texts
    | st.sampled_from(["", "1.0", "application/json", "e30=", "2025-01-01T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile_texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"),
        *("correlationid", "causationid", "traceparent", "tracestate", "baggage", "partitionkey", "sequence"),
        *("messagekind", "messageversion", "data_base64", "Id", "other"),
    ]
)
changes = st.dictionaries(names, hostile_values, max_size=3)


def read(how: Callable[..., Any], *given: Any) -> list[Envelope]:
    """What is read; nothing if it is refused, by an error of ours that tells nothing and comes soon."""
    begun = time.perf_counter()
    try:
        result = how(*given)
    except (InvalidCloudEvent, MessageDecodeError, UnknownMessageType) as error:
        assert MARK not in str(error)  # noqa: PT017
        assert MARK not in repr(error)  # noqa: PT017
        assert len(str(error)) < 400  # noqa: PT017
        return []
    finally:
        assert time.perf_counter() - begun < 5
    envelopes: list[Envelope] = result if isinstance(result, list) else [result]
    for envelope in envelopes:
        assert type(envelope.message) in (Scalars, Nested, Assembled)
        texts = [envelope.name, *envelope.headers.values(), *([envelope.key] if envelope.key else [])]
        assert not any(problem_of(text, 8192) for text in texts)
        assert envelope.headers.keys() <= {
            *("correlation_id", "causation_id", "traceparent", "tracestate", "baggage"),
            *("cloudevents_id", "cloudevents_source"),
        }
    return envelopes


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
@example(b"[" * 49_000)
@example(b'{"a":' * 8_000)
@example(b'{"id":' + b"9" * 49_000 + b"}")
@example(b'{"id":"' + b"\\u0000" * 8_000 + b'"}')
@example(b"{" + b",".join(b'"%d":0' % number for number in range(5_000)) + b"}")
def test_any_bytes(body: bytes) -> None:
    """Any bytes, in every form."""
    for how in (reader.from_structured, reader.from_batch):
        assert read(how, body) in ([], [])
    for content_type in (
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "application/json",
    ):
        read(reader.from_message, {"content-type": content_type}, body)


@given(hostile_values)
def test_any_json(value: Any) -> None:
    """Any JSON, and what Python takes for JSON."""
    read(reader.from_structured, value)
    read(reader.from_batch, value)
    text = json.dumps(value)
    read(reader.from_structured, text)
    read(reader.from_batch, f"[{text}]")


@pytest.mark.slow
@given(messages, changes, st.booleans())
def test_valid_events_with_hostile_members(message: Any, changed: dict[str, Any], escaped: bool) -> None:
    """A valid event whose attributes or data were exchanged."""
    event = {**json.loads(writer.to_structured(new_envelope(message)).body), **changed}
    read(reader.from_structured, event)
    try:
        text = json.dumps(event, ensure_ascii=escaped)
    except ValueError:  # a number with more digits than Python writes
        return
    read(reader.from_structured, text)
    read(reader.from_batch, f"[{text},{text}]")


@pytest.mark.slow
@given(messages, st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=3))
def test_valid_events_with_other_bytes(message: Any, damages: list[tuple[int, bytes]]) -> None:
    """A valid event with a few bytes exchanged, somewhere."""
    body = bytearray(writer.to_structured(new_envelope(message)).body)
    for place, other in damages:
        start = place % len(body)
        body[start : start + len(other)] = other
    read(reader.from_structured, bytes(body))


@pytest.mark.slow
@given(
    messages,
    st.dictionaries(names, hostile_texts | st.binary(max_size=20) | hostile_values),
    st.binary(),
    bindings,
)
def test_hostile_headers(message: Any, changed: dict[str, Any], body: bytes, binding: Any) -> None:
    """A valid message whose headers or body were exchanged, through every binding."""
    sent = writer.to_binary(new_envelope(message), binding)
    headers: dict[str, Any] = dict(sent.headers)
    for name, value in changed.items():
        headers[BINDINGS[binding].prefix + name] = value
    read(reader.from_binary, headers, sent.body, binding)
    read(reader.from_binary, headers, body, binding)
    read(reader.from_message, list(headers.items()), sent.body, binding)


@given(
    st.lists(st.tuples(st.text() | st.binary(), st.text() | st.binary() | st.none())), st.binary(), bindings
)
def test_any_headers(headers: list[tuple[str | bytes, Any]], body: bytes, binding: Any) -> None:
    """Any pairs of texts or bytes for headers."""
    assert read(reader.from_binary, headers, body, binding) == []


@pytest.mark.parametrize("depth", [10, 200, 500, 900, 1_000, 5_000, 20_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("version", [1, 2])
def test_nesting(version: int, opened: str, closed: str, depth: int) -> None:
    """However deep the data of a valid event is nested, also one to be upcast, it is taken in or refused."""
    nested = opened * depth + "1" + closed * depth
    event = json.dumps(
        {"specversion": "1.0", "id": "1", "source": "/a", "type": "Deep", "messageversion": version}
    )[:-1]
    taken = []
    for members in (
        f'"data": {{"anything": {nested}}}',
        f'"data": {{"other": {nested}}}',
        f'"other": {nested}',
    ):
        try:
            taken += [deep.from_structured(f"{event}, {members}}}")]
        except (InvalidCloudEvent, MessageDecodeError) as error:
            assert depth > 100, error  # noqa: PT017
    assert depth > 100 or len(taken) == 3


@pytest.mark.parametrize(
    "value",
    [
        "=" * 8192,
        "=" * 8000 + "%C3%A9",
        "a=b," * 2000,
        " " * 8192,
        "%25" * 2700,
        '"' + "\\" * 8000,
        "a" * 8191 + "\t",
        "-" * 1024,
        "[" * 8000,
    ],
)
@pytest.mark.parametrize("name", ["baggage", "tracestate", "traceparent", "time", "datacontenttype", "id"])
def test_long_values_are_looked_at_once(name: str, value: str) -> None:
    """No attribute makes the reader slow: what a regular expression could choke on takes no time."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/a",
        "ce-type": "Deep",
        f"ce-{name}": value,
    }
    begun = time.process_time()
    for _ in range(10):
        with suppress(InvalidCloudEvent):
            deep.from_binary(headers, b"")
    assert time.process_time() - begun < 1
