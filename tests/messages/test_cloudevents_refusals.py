"""CloudEvents from outside that are refused: which error, naming what, and never saying what was sent."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Mapping
from typing import Any

import pytest

from message_bus import (
    CloudEventReader,
    Command,
    Event,
    InvalidCloudEvent,
    MessageDecodeError,
    Registry,
    UnknownMessageType,
)

SECRET = "hunter2"
LONG = f"{SECRET}-" * 150
NOT_TEXTS = (
    f"{SECRET}\n",
    f"{SECRET}\x00",
    f"{SECRET}\x85",
    f"{SECRET}\ufffe",
    f"{SECRET}\U0010ffff",
    "",
    LONG,
)
TEXTS = (
    *(
        "id",
        "source",
        "type",
        "specversion",
        "subject",
        "time",
        "datacontenttype",
        "partitionkey",
        "sequence",
    ),
    *("correlationid", "causationid", "traceparent", "tracestate", "messagekind"),
)


class Paid(Event, name="till.paid", key="account"):
    account: str = "a"
    cents: int = 0


class Refund(Command, name="till.refund"):
    cents: int = 0


reader = CloudEventReader(accepts=[Paid], max_bytes=100_000)
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A-1",
    "source": "/till",
    "type": "till.paid",
    "datacontenttype": "application/json",
    "data": {"account": "b", "cents": 5},
}


def refused(read: Any, *given: Any) -> InvalidCloudEvent:
    """The error that `read` raises, which tells nothing of what was sent, not even in its traceback."""
    with pytest.raises(InvalidCloudEvent) as caught:
        read(*given)
    error = caught.value
    assert SECRET not in str(error)
    assert error.__cause__ is None
    last = "".join(traceback.format_exception_only(error))
    assert SECRET not in last
    assert error.__suppress_context__ or error.__context__ is None
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.args, again.attribute, again.reason) == (error.args, error.attribute, error.reason)
    return error


def as_binary(event: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
    """The same event as headers and body, of Kafka, whose values are not encoded."""
    names = [name for name in event if name not in ("data", "datacontenttype")]
    headers = {f"ce_{name}": event[name] for name in names}
    return {**headers, "content-type": event["datacontenttype"]}, json.dumps(event["data"]).encode()


def test_the_event_without_a_fault() -> None:
    """What the other tests break is taken in as it is."""
    assert reader.from_structured(EVENT).message == Paid("b", 5)
    assert reader.from_binary(*as_binary(EVENT), "kafka").message == Paid("b", 5)


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
def test_a_required_attribute_is_missing(name: str) -> None:
    """Each of the four required attributes is asked for by name; null is the same as none."""
    event = {key: value for key, value in EVENT.items() if key != name}
    for each in (
        refused(reader.from_structured, event),
        refused(reader.from_structured, {**event, name: None}),
    ):
        assert (each.attribute, each.reason) == (name, "is missing")
    assert refused(reader.from_binary, *as_binary(event), "kafka").attribute == name


@pytest.mark.parametrize("value", NOT_TEXTS)
@pytest.mark.parametrize("name", TEXTS)
def test_no_text_of_cloudevents(name: str, value: str) -> None:
    """Every attribute that is read is a text: not empty, not too long, without control characters."""
    event = {**EVENT, name: value}
    if (name, value) == ("tracestate", ""):  # the one that may be empty
        assert reader.from_structured(event).headers.keys().isdisjoint({"tracestate"})
        return
    assert refused(reader.from_structured, event).attribute == name
    assert refused(reader.from_binary, *as_binary(event), "kafka").attribute == name


@pytest.mark.parametrize("value", [5, True, 1.5, [SECRET], {SECRET: SECRET}])
@pytest.mark.parametrize("name", TEXTS)
def test_no_text_at_all(name: str, value: object) -> None:
    """A number, a list or an object is no text."""
    assert refused(reader.from_structured, {**EVENT, name: value}).attribute == name


@pytest.mark.parametrize(
    "value", [0, -1, 2**31, 2**70, True, 1.5, "0", "01", "+1", " 1", "١", "9" * 5000, SECRET, [1]]
)
def test_no_version(value: object) -> None:
    """A version is a whole number of 31 bits, or its text."""
    assert refused(reader.from_structured, {**EVENT, "messageversion": value}).attribute == "messageversion"


@pytest.mark.parametrize("version", ["0.3", "1", "1.0.2", "2.0", SECRET])
def test_another_specversion(version: str) -> None:
    """Only 1.0 is understood."""
    assert refused(reader.from_structured, {**EVENT, "specversion": version}).attribute == "specversion"


@pytest.mark.parametrize(
    "time",
    [
        SECRET,
        "2025-11-01T12:30:00",
        "2025-11-01 12:30:00Z",
        "2025-02-30T12:30:00Z",
        "2025-11-01T12:30:60Z",
        "2025-11-01T12:30:00+0100",
        "2025-11-01T12:30:00+24:00",
        "2025-11-01T12:30:00.Z",
        "20251101T123000Z",
        "2025-W44-6T12:30:00Z",
        "٢٠٢٥-11-01T12:30:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
def test_no_instant(time: str) -> None:
    """A time that is not an instant of RFC 3339, or lies outside of what can be stored."""
    assert refused(reader.from_structured, {**EVENT, "time": time}).attribute == "time"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "json",
        "application/json2",
        "application/json; charset=latin-1",
        SECRET,
    ],
)
def test_data_that_is_no_json(content_type: str) -> None:
    """Data of another content type, or in another charset, is refused in every form."""
    event = {**EVENT, "datacontenttype": content_type}
    assert refused(reader.from_structured, event).attribute == "datacontenttype"
    assert refused(reader.from_binary, *as_binary(event), "kafka").attribute == "datacontenttype"


def test_data_of_which_nobody_says_what_it_is() -> None:
    """Only the JSON format has a content type of its own; a body and bytes in Base64 have none."""
    headers, body = as_binary(EVENT)
    del headers["content-type"]
    assert refused(reader.from_binary, headers, body, "kafka").attribute == "datacontenttype"
    event = {key: value for key, value in EVENT.items() if key not in ("data", "datacontenttype")}
    assert refused(reader.from_structured, {**event, "data_base64": "e30="}).attribute == "datacontenttype"
    assert reader.from_structured({**event, "data": {}}).message == Paid()


@pytest.mark.parametrize("data", ["e30", "e3 0=", 5, SECRET, "é"])
def test_no_base64(data: object) -> None:
    """What is said to be Base64 has to be Base64, and to be alone."""
    event = {key: value for key, value in EVENT.items() if key != "data"}
    assert refused(reader.from_structured, {**event, "data_base64": data}).attribute == "data_base64"
    assert refused(reader.from_structured, {**EVENT, "data_base64": "e30="}).attribute == "data_base64"


@pytest.mark.parametrize("name", [*TEXTS, "messageversion", "data"])
def test_an_attribute_is_there_twice(name: str) -> None:
    """Two members of one name mean two things to two parsers, also if one of them is spelt with an escape."""
    members = {**EVENT, name: "x"}
    body = json.dumps(members).encode()[:-1]
    for spelling in (name, f"\\u{ord(name[0]):04x}{name[1:]}"):
        again = body + f', "{spelling}": "{SECRET}"}}'.encode()
        assert refused(reader.from_structured, again).attribute == name


def test_a_member_of_others_is_there_twice() -> None:
    """The same holds for extensions that mean nothing here, whose names are not told."""
    body = json.dumps(EVENT).encode()[:-1] + f', "{SECRET}": 1, "{SECRET}": 1}}'.encode()
    assert refused(reader.from_structured, body).attribute is None


@pytest.mark.parametrize(
    ("binding", "headers"),
    [
        ("http", [("ce-id", SECRET), ("Ce-Id", SECRET)]),
        ("http", [("content-type", "application/json"), ("ce-datacontenttype", SECRET)]),
        ("kafka", [("ce_id", SECRET.encode()), ("ce_id", SECRET.encode())]),
        ("amqp", [("cloudEvents_id", SECRET), ("cloudEvents:id", SECRET)]),
        ("nats", [("ce-id", SECRET), ("CE-ID", SECRET)]),
    ],
)
def test_a_header_is_there_twice(binding: Any, headers: list[tuple[str, str | bytes]]) -> None:
    """Headers are compared without regard to case; both separators of AMQP mean the same attribute."""
    error = refused(reader.from_binary, headers, b"", binding)
    assert (error.attribute, error.reason) in {
        ("id", "is there twice"),
        ("datacontenttype", "is there twice"),
    }


@pytest.mark.parametrize(
    "value",
    [
        f"{SECRET}%",
        f"{SECRET}%4",
        f"{SECRET}%zz",
        "%C0%A0",
        "%ED%A0%80",
        "%FF",
        "größer",
        b"\xff",
        '"open',
        '"a"b"',
        5,
        None,
    ],
)
@pytest.mark.parametrize("binding", ["http", "nats"])
def test_values_that_no_header_has(binding: Any, value: object) -> None:
    """Percent-encoding that is none, bytes that are no UTF-8 and what is not ASCII are refused."""
    headers = {"ce-specversion": "1.0", "ce-id": value, "ce-source": "/a", "ce-type": "till.paid"}
    assert refused(reader.from_binary, headers, b"", binding).attribute == "id"


@pytest.mark.parametrize(
    ("binding", "value"), [("kafka", b"\xff"), ("kafka", 5), ("amqp", 10**30), ("amqp", [1])]
)
def test_values_that_no_message_has(binding: Any, value: object) -> None:
    """The same for protocols whose values are not encoded."""
    prefix = {"kafka": "ce_", "amqp": "cloudEvents_"}[binding]
    assert refused(reader.from_binary, {f"{prefix}time": value}, b"", binding).attribute == "time"


def test_control_characters_hide_in_percent_encoding() -> None:
    """What is encoded is checked once it is decoded, and decoded once."""
    headers = {"ce-specversion": "1.0", "ce-id": f"{SECRET}%0D%0A", "ce-source": "/a", "ce-type": "till.paid"}
    assert refused(reader.from_binary, headers, b"").attribute == "id"
    headers["ce-id"] = "%250A"
    assert reader.from_binary(headers, b"").headers["cloudevents_id"] == "%0A"


@pytest.mark.parametrize(
    "name", ["till.refund", "OrderPlaced", "os.system", "message_bus.Event", "builtins:eval"]
)
def test_a_type_that_is_not_accepted(name: str) -> None:
    """A type is looked up among those that are accepted, nothing is imported; one that only a sender knows is not told."""
    registry = Registry()
    registry.register(Refund)
    choosy = CloudEventReader(accepts=[Paid], registry=registry)
    with pytest.raises(UnknownMessageType) as caught:
        choosy.from_structured({**EVENT, "type": name})
    assert (name in str(caught.value)) == (name == "till.refund")
    assert caught.value.message_name == ("till.refund" if name == "till.refund" else "unknown")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_version_that_the_class_has_not_reached() -> None:
    """In a rolling deploy an old worker meets new versions: that is an unknown type, to be tried again elsewhere."""
    with pytest.raises(UnknownMessageType, match=r"till\.paid.* was written in version 2"):
        reader.from_structured({**EVENT, "messageversion": 2})


@pytest.mark.parametrize("kind", ["command", "EVENT", SECRET])
def test_a_command_in_the_name_of_an_event(kind: str) -> None:
    """What is sent as one kind is not handled as another."""
    assert refused(reader.from_structured, {**EVENT, "messagekind": kind}).attribute == "messagekind"


@pytest.mark.parametrize("data", [None, SECRET, [SECRET], {"cents": SECRET}, {"account": {"a": SECRET}}, 5])
def test_data_that_does_not_fit(data: object) -> None:
    """Data that does not fit the class is an error of decoding, which names the field at most."""
    with pytest.raises(MessageDecodeError) as caught:
        reader.from_structured({**EVENT, "data": data})
    assert SECRET not in str(caught.value)
    assert caught.value.message_name == "till.paid"


@pytest.mark.parametrize("account", NOT_TEXTS)
def test_a_key_that_the_data_gives(account: str) -> None:
    """A key made of the data is checked like one that was sent; an empty one is a key like any other."""
    event = {**EVENT, "data": {"account": account}}
    if account:
        assert refused(reader.from_structured, event).attribute == "data"
    else:
        assert reader.from_structured(event).key == ""


class Sum(Event, name="till.sum", key="share"):
    cents: int
    shares: int

    @property
    def share(self) -> float:
        """Cannot be told of no shares."""
        return self.cents / self.shares


def test_a_key_that_the_data_does_not_give() -> None:
    """A key that cannot be made of the data is the sender's fault, not that of the application's wiring."""
    event = {**EVENT, "type": "till.sum", "data": {"cents": 1, "shares": 0}}
    with pytest.raises(InvalidCloudEvent) as caught:
        CloudEventReader(accepts=[Sum]).from_structured(event)
    assert caught.value.attribute == "data"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_is_too_large() -> None:
    """The limit is for the whole: an event, a batch, a body."""
    large = {**EVENT, "data": {"account": SECRET * 20_000}}
    for error in (
        refused(reader.from_structured, large),
        refused(reader.from_structured, json.dumps(large)),
        refused(reader.from_batch, [EVENT] * 1000),
        refused(reader.from_binary, *as_binary(large), "kafka"),
        refused(
            reader.from_message, {"content-type": "application/cloudevents+json"}, json.dumps(large).encode()
        ),
    ):
        assert (error.attribute, error.reason) == (None, "it has more than 100000 bytes")


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        f'{{"{SECRET}"'.encode(),
        b"\xef\xbb\xbf{}",
        b'{"id": NaN}',
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b'{"\xff": 1}',
        b'{"data": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        '{"id": "\ud800"}',
        {"id": float("nan")},
        {"id": "\ud800"},
        {"id": {SECRET}},
        {(1, 2): 3},
        {"id": 10**5000},
        [],
        5,
        None,
    ],
)
def test_no_json_object(event: Any) -> None:
    """What is no JSON object is refused as a whole: broken, nested too deeply, with numbers and texts JSON has not."""
    assert refused(reader.from_structured, event).attribute in (None, "id")
    if not isinstance(event, list) and event != b"[]":  # an empty batch
        assert refused(reader.from_batch, event).attribute is None


def test_a_batch_is_taken_in_whole_or_not_at_all() -> None:
    """One bad event refuses the batch."""
    assert refused(reader.from_batch, [EVENT, {**EVENT, "id": ""}]).attribute == "id"
    for batch in (b"", b"{}", b"[", b"[1]", [[]]):
        assert refused(reader.from_batch, batch).attribute is None


@pytest.mark.parametrize(
    "content_type",
    ["application/cloudevents+avro", "application/cloudevents-batch+xml", "Application/CloudEventsX"],
)
def test_event_formats_that_are_not_json(content_type: str) -> None:
    """An event in Avro or XML is told what to be instead."""
    error = refused(reader.from_message, {"Content-Type": content_type}, b"")
    assert (error.attribute, "send application/cloudevents+json" in error.reason) == (None, True)


def test_two_content_types() -> None:
    """A message whose form cannot be told is refused."""
    headers = [("content-type", "application/json"), ("Content-Type", "application/cloudevents+json")]
    assert refused(reader.from_message, headers, b"{}").attribute == "datacontenttype"
