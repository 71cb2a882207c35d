"""CloudEvents: what is written, what is read, and that the official package reads and writes the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from cloudevents.core.bindings import amqp, http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from message_bus import (
    CloudEventMessage,
    CloudEventReader,
    CloudEventWriter,
    Command,
    Envelope,
    Event,
    InvalidMessage,
    Query,
    QueryNotSendable,
    Registry,
    SettingsError,
)
from message_bus.messages import definition_of, new_envelope
from message_bus.messages.cloudevents.bindings import BINDINGS
from message_bus.messages.cloudevents.json_format import parts_of
from tests.messages.test_properties import Assembled, Nested, Scalars, messages, offsets

SOURCE = "https://shop.example/orders"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"
MESSAGE_ID = UUID("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b")


class OrderPlaced(Event, name="orders.placed", version=2, key="order_id", renamed_from="OrderMade"):
    order_id: int
    note: str = ""


class ShipOrder(Command, name="orders.ship"):
    order_id: int


class Ping(Event):
    pass


class Price(Query):
    sku: str


writer = CloudEventWriter(source=SOURCE)
reader = CloudEventReader(accepts=[OrderPlaced, ShipOrder, Ping, Scalars, Nested, Assembled])


def read_http(message: CloudEventMessage) -> CloudEvent:
    """What the official package makes of an HTTP message."""
    event = http.from_http_event(http.HTTPMessage(message.headers, message.body))
    assert isinstance(event, CloudEvent)
    return event


def official(data: dict[str, Any] | None = None, **attributes: Any) -> CloudEvent:
    """An event made with the official package."""
    event: dict[str, Any] = {"id": "A-1", "source": "/till/7", "type": "orders.placed", **attributes}
    return CloudEvent(event, {"order_id": 7} if data is None else data)


# --- writing -------------------------------------------------------------------------------------------------------


def test_an_event_in_full() -> None:
    """Everything that an envelope knows has an attribute of the specification or of one of its extensions."""
    envelope = Envelope(
        message=OrderPlaced(7, "größer"),
        id=MESSAGE_ID,
        type="EVENT",
        name="orders.placed",
        version=2,
        key="7",
        position=42,
        created_at=datetime(2025, 11, 1, 13, 30, 0, 17, tzinfo=timezone(timedelta(hours=1))),
        meta={"user": "ann"},
        headers={
            "correlation_id": "checkout-1",
            "causation_id": "cause-1",
            "traceparent": TRACEPARENT,
            "tracestate": "congo=t61rcWkgMzE",
            "baggage": "user=ann",
        },
    )
    schemas = CloudEventWriter(source=SOURCE, dataschema="https://shop.example/schemas/{name}/{version}.json")
    headers, body = schemas.to_structured(envelope)
    assert headers == {"content-type": "application/cloudevents+json"}
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b",
        "source": SOURCE,
        "type": "orders.placed",
        "subject": "7",
        "time": "2025-11-01T12:30:00.000017Z",
        "datacontenttype": "application/json",
        "dataschema": "https://shop.example/schemas/orders.placed/2.json",
        "correlationid": "checkout-1",
        "causationid": "cause-1",
        "traceparent": TRACEPARENT,
        "tracestate": "congo=t61rcWkgMzE",
        "partitionkey": "7",
        "sequence": "0000000000000000042",
        "messagekind": "event",
        "messageversion": 2,
        "data": {"order_id": 7, "note": "größer"},
    }


def test_what_an_envelope_does_not_have() -> None:
    """A message that no log has taken in has no time and no sequence, one without a key no subject."""
    event = json.loads(writer.to_structured(new_envelope(Ping())).body)
    assert event.keys().isdisjoint(
        {"time", "sequence", "subject", "partitionkey", "dataschema", "traceparent"}
    )
    assert event["data"] == {}


def test_the_names_of_attributes() -> None:
    """Attribute names have at most 20 lower-case letters, as the specification wants."""
    envelope = dataclasses.replace(new_envelope(OrderPlaced(7)), position=1, created_at=datetime.now(UTC))
    names = json.loads(writer.to_structured(envelope).body).keys() - {"data"}
    assert all(name.isalpha() and name.islower() and len(name) <= 20 for name in names)


def test_the_message_is_put_in_as_it_is() -> None:
    """The data of all forms is the JSON that the outbox stores, byte for byte."""
    envelope = new_envelope(OrderPlaced(7, "größer"))
    payload = definition_of(OrderPlaced).encode(envelope.message)
    assert writer.to_structured(envelope).body.endswith(b',"data":' + payload + b"}")
    assert writer.to_binary(envelope).body == payload


def test_an_older_message_is_written_as_today_s() -> None:
    """A message that was stored under a former name and version is written with those that its data has by now."""
    envelope = dataclasses.replace(new_envelope(OrderPlaced(7)), name="OrderMade", version=1)
    event = json.loads(writer.to_structured(envelope).body)
    assert (event["type"], event["messageversion"]) == ("orders.placed", 2)


@pytest.mark.parametrize(
    ("binding", "headers"),
    [
        (
            "http",
            {
                "ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80",
                "ce-type": "orders.placed",
                "content-type": "application/json",
            },
        ),
        ("kafka", {"ce_subject": "Euro € 😀", "content-type": "application/json"}),
        ("amqp", {"cloudEvents_subject": "Euro € 😀", "content-type": "application/json"}),
        (
            "nats",
            {"ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80", "ce-datacontenttype": "application/json"},
        ),
    ],
)
def test_headers_of_each_binding(binding: Any, headers: dict[str, str]) -> None:
    """Each protocol has its prefix, its header for the content type and its form of texts that are not ASCII."""
    envelope = new_envelope(OrderPlaced(7), key="Euro € 😀")
    written = writer.to_binary(envelope, binding).headers
    assert headers.items() <= written.items()
    assert ("content-type" in written) == ("content-type" in headers)
    [read] = reader.from_message(written, b'{"order_id":7}', binding)
    assert read.key == "Euro € 😀"


def test_sequences_sort_like_positions() -> None:
    """The texts of positions compare as the positions do, also where these get a digit more."""
    positions = [1, 9, 10, 99, 1000, 2**63 - 1]
    envelopes = [dataclasses.replace(new_envelope(Ping()), position=position) for position in positions]
    sequences = [writer.to_binary(envelope).headers["ce-sequence"] for envelope in envelopes]
    assert sequences == sorted(sequences)
    assert len(set(sequences)) == len(positions)


def test_a_query_is_no_event() -> None:
    """A query cannot be sent to where nobody answers."""
    with pytest.raises(QueryNotSendable):
        writer.to_structured(new_envelope(Price("a")))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("a\nb", "control character"),
        ("\ud800", "lone surrogate"),
        ("k" * 1025, "more than 1024"),
        ("\ufffe", "not allow"),
    ],
)
def test_a_key_that_no_attribute_can_hold(key: str, problem: str) -> None:
    """Order depends on the key, so a key that CloudEvents cannot carry is an error, which does not hold it."""
    with pytest.raises(InvalidMessage, match="'subject'") as caught:
        writer.to_binary(new_envelope(OrderPlaced(7), key=key))
    assert problem in str(caught.value)
    assert key not in str(caught.value)


def test_a_correlation_id_that_no_attribute_can_hold() -> None:
    """Ids that came with a web request may be anything: an unfit one stays behind, the message is sent."""
    headers = {"correlation_id": "a\nb", "causation_id": "", "traceparent": TRACEPARENT * 50}
    event = json.loads(writer.to_structured(new_envelope(Ping(), headers=headers)).body)
    assert event.keys().isdisjoint({"correlationid", "causationid", "traceparent"})


@pytest.mark.parametrize(
    "at", [datetime(2025, 1, 1), datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))]
)
def test_a_time_without_a_zone(at: datetime) -> None:
    """A naive time could mean anything, and one before the year 1 cannot be written."""
    with pytest.raises(InvalidMessage, match="created_at"):
        writer.to_structured(dataclasses.replace(new_envelope(Ping()), created_at=at))


@pytest.mark.parametrize(
    "settings",
    [
        {"source": ""},
        {"source": "two words"},
        {"source": "/größer"},
        {"source": "a" * 1025},
        {"source": "/a", "dataschema": "/relative/{name}"},
        {"source": "/a", "dataschema": "https://a.example/{nmae}"},
        {"source": "/a", "dataschema": "https://a.example/{name"},
        {"source": "/a", "dataschema": "https://a.example/{name.__class__}"},
    ],
)
def test_settings_of_a_writer(settings: dict[str, str]) -> None:
    """A source that is no URI-reference and a template that gives no URI are refused when the writer is made."""
    with pytest.raises(SettingsError):
        CloudEventWriter(**settings)


def test_an_unknown_binding() -> None:
    """The error names the bindings that there are."""
    with pytest.raises(SettingsError, match="'amqp', 'http', 'kafka', 'nats'"):
        writer.to_binary(new_envelope(Ping()), "mqtt")  # type: ignore[arg-type]


def test_baggage_is_sent_and_kept_on_request() -> None:
    """W3C baggage stays on both sides unless each asks for it."""
    envelope = new_envelope(Ping(), headers={"traceparent": TRACEPARENT, "baggage": "user=ann"})
    assert b"baggage" not in writer.to_structured(envelope).body
    generous = CloudEventWriter(source=SOURCE, send_baggage=True).to_binary(envelope)
    assert "baggage" not in reader.from_binary(*generous).headers
    keeping = CloudEventReader(accepts=[Ping], keep_baggage=True)
    assert keeping.from_binary(*generous).headers["baggage"] == "user=ann"


# --- reading -------------------------------------------------------------------------------------------------------


def test_an_event_of_strangers() -> None:
    """The least that a CloudEvent has is enough: an id of ours is made of source and id, the story begins here."""
    event = {
        "specversion": "1.0",
        "id": "A-1",
        "source": "/till/7",
        "type": "orders.placed",
        "data": {"order_id": 7},
    }
    envelope = reader.from_structured(event)
    assert envelope == Envelope(
        message=OrderPlaced(7),
        id=envelope.id,
        type="EVENT",
        name="orders.placed",
        version=2,
        key="7",
        headers={
            "correlation_id": str(envelope.id),
            "cloudevents_id": "A-1",
            "cloudevents_source": "/till/7",
        },
    )
    assert envelope.id.version == 5


def test_ids_made_of_source_and_id() -> None:
    """The same event has the same id whenever it comes, another source or another id gives another."""
    event = {"specversion": "1.0", "type": "orders.placed", "data": {"order_id": 7}}
    pairs = [
        ("a", "bc"),
        ("a", "bc"),
        ("ab", "c"),
        ("a", "bC"),
        ("a", str(MESSAGE_ID)),
        ("a", str(MESSAGE_ID).upper()),
    ]
    ids = [reader.from_structured({**event, "source": source, "id": id_}).id for source, id_ in pairs]
    assert ids[0] == ids[1] == UUID("f211bab5-a79e-55e0-8f41-05e058c78037")
    assert ids[4] == MESSAGE_ID
    assert len(set(ids)) == len(ids) - 1


@pytest.mark.parametrize(
    ("attributes", "key"),
    [
        ({"partitionkey": "p", "subject": "s"}, "p"),
        ({"subject": "s"}, "s"),
        ({"subject": None}, "7"),
        ({}, "7"),
    ],
)
def test_the_key(attributes: dict[str, str], key: str) -> None:
    """The key is the partition key, else the subject, else what the class says."""
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/a",
        "type": "orders.placed",
        "data": {"order_id": 7},
    }
    assert reader.from_structured({**event, **attributes}).key == key


@pytest.mark.parametrize(
    ("time", "instant"),
    [
        ("2018-04-05T17:31:00Z", datetime(2018, 4, 5, 17, 31, tzinfo=UTC)),
        ("2018-04-05t17:31:00z", datetime(2018, 4, 5, 17, 31, tzinfo=UTC)),
        ("2018-04-05T17:31:00.1234567+05:30", datetime(2018, 4, 5, 12, 1, 0, 123456, tzinfo=UTC)),
        ("2018-04-05T17:31:00-00:00", datetime(2018, 4, 5, 17, 31, tzinfo=UTC)),
    ],
)
def test_times(time: str, instant: datetime) -> None:
    """Every form of RFC 3339 is understood; the envelope's time is in UTC."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "Ping", "time": time}
    created_at = reader.from_structured(event).created_at
    assert created_at == instant
    assert created_at is not None
    assert created_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({"traceparent": TRACEPARENT, "tracestate": "a=b, c@d=e"}, {"traceparent", "tracestate"}),
        ({"traceparent": TRACEPARENT, "tracestate": "nonsense"}, {"traceparent"}),
        ({"traceparent": TRACEPARENT, "tracestate": ""}, {"traceparent"}),
        ({"traceparent": TRACEPARENT, "tracestate": ",".join(f"a{i}=b" for i in range(33))}, {"traceparent"}),
        (
            {"traceparent": "cc" + TRACEPARENT[2:] + "-more", "tracestate": "a=b"},
            {"traceparent", "tracestate"},
        ),
        ({"traceparent": TRACEPARENT + "-more", "tracestate": "a=b"}, set()),
        ({"traceparent": "ff" + TRACEPARENT[2:], "tracestate": "a=b"}, set()),
        ({"traceparent": f"00-{'0' * 32}-b9c7c989f97918e1-01"}, set()),
        ({"traceparent": TRACEPARENT.upper()}, set()),
        ({"tracestate": "a=b"}, set()),
    ],
)
def test_trace_contexts(attributes: dict[str, str], kept: set[str]) -> None:
    """A trace context that breaks the rules of W3C is dropped, and the event taken in, as W3C says."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "Ping", **attributes}
    headers = reader.from_structured(event).headers
    assert headers.keys() & {"traceparent", "tracestate"} == kept
    assert all(headers[name] == attributes[name] for name in kept)


@pytest.mark.parametrize("sequence", ["42", "000000000000000000x", "0" * 19, "9" * 19, "0" * 18 + "٣"])
def test_sequences_of_others(sequence: str) -> None:
    """A sequence that is not in the form of a position of ours means nothing here."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "Ping", "sequence": sequence}
    assert reader.from_structured(event).position is None


def test_data_in_base64() -> None:
    """JSON that somebody has sent as bytes is JSON all the same, if they say so."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "orders.placed"}
    encoded = {"datacontenttype": "application/json", "data_base64": "eyJvcmRlcl9pZCI6IDd9", "data": ...}
    del encoded["data"]
    assert reader.from_structured({**event, **encoded}).message == OrderPlaced(7)
    absent = {"data_base64": None, "data": {"order_id": 7}}
    assert reader.from_structured({**event, **absent}).message == OrderPlaced(7)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "TEXT/JSON", "application/vnd.shop+json;v=1", 'application/json; Charset="UTF-8"'],
)
def test_content_types_of_json(content_type: str) -> None:
    """What declares JSON in UTF-8 is read, in the forms that the specification calls JSON."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/a",
        "ce-type": "Ping",
        "Content-Type": content_type,
    }
    assert reader.from_binary(headers, b"{}").message == Ping()


def test_headers_as_frameworks_give_them() -> None:
    """Names in any case, pairs of bytes as ASGI and Kafka clients have them, quotes as old senders put them."""
    body = b'{"order_id": 7}'
    pairs = [
        (b"CE-SpecVersion", b"1.0"),
        (b"ce-id", b'"A \\"1\\" %e2%82%ac"'),
        (b"ce-source", b"%2Ftill/7"),
        (b"ce-type", b" orders.placed "),
        (b"ce-other", b"\xff"),
        (b"x-\xff", b"\xff"),
        (b"content-type", b"application/json"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
    ]
    headers = reader.from_binary(pairs, body).headers
    assert (headers["cloudevents_id"], headers["cloudevents_source"]) == ('A "1" €', "/till/7")
    assert headers.keys() == {"correlation_id", "cloudevents_id", "cloudevents_source"}
    kafka_pairs = [
        ("ce_id", "größer".encode()),
        ("ce_source", b"/a%20"),
        ("ce_type", b"Ping"),
        ("ce_specversion", b"1.0"),
    ]
    headers = reader.from_binary([*kafka_pairs, ("ce_time", None)], None, "kafka").headers
    assert (headers["cloudevents_id"], headers["cloudevents_source"]) == ("größer", "/a%20")


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:"])
@pytest.mark.parametrize("time", [datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1), 1735689600000])
def test_native_values_of_amqp(prefix: str, time: object) -> None:
    """AMQP has timestamps and numbers of its own, and two separators."""
    event = {
        "id": "1",
        "source": "/a",
        "type": "Ping",
        "specversion": "1.0",
        "time": time,
        "messageversion": 1,
    }
    envelope = reader.from_binary({prefix + name: value for name, value in event.items()}, b"", "amqp")
    assert (envelope.created_at, envelope.version) == (datetime(2025, 1, 1, tzinfo=UTC), 1)


def test_batches() -> None:
    """A batch is written and read as one JSON array, of no events, too."""
    envelopes = [new_envelope(OrderPlaced(number)) for number in range(3)]
    message = writer.to_batch(envelopes)
    assert message.headers == {"content-type": "application/cloudevents-batch+json"}
    assert [each.message for each in reader.from_batch(message.body)] == [each.message for each in envelopes]
    assert reader.from_message(*message) == reader.from_batch(json.loads(message.body))
    assert reader.from_batch(writer.to_batch([]).body) == []


def test_the_form_is_told_by_the_content_type() -> None:
    """Whoever receives all three forms need not look at headers."""
    envelope = new_envelope(OrderPlaced(7))
    for message in (writer.to_structured(envelope), writer.to_batch([envelope]), writer.to_binary(envelope)):
        [read] = reader.from_message({"Host": "a", **message.headers}, message.body)
        assert (read.id, read.message) == (envelope.id, envelope.message)
    body = writer.to_structured(envelope).body
    [read] = reader.from_message([(b"Content-Type", b"Application/CloudEvents+JSON; charset=utf-8")], body)
    assert read.id == envelope.id


def test_old_versions_are_upcast() -> None:
    """Data of an older version goes through the upcasters of the registry; without a version it is today's."""
    registry = Registry()

    @registry.upcast(OrderPlaced, from_version=1)
    def with_note(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "note": "upcast"}

    upcasting = CloudEventReader(accepts=[OrderPlaced], registry=registry)
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "OrderMade", "data": {"order_id": 7}}
    old = upcasting.from_structured({**event, "messageversion": 1})
    assert (old.message, old.name, old.version) == (OrderPlaced(7, "upcast"), "OrderMade", 1)
    assert upcasting.from_structured(event).message == OrderPlaced(7)


@pytest.mark.parametrize("accepts", [[], OrderPlaced, "OrderPlaced", [Price], [Event], [int], [7], [[]]])
def test_settings_of_a_reader(accepts: Any) -> None:
    """What is accepted is named, class by class: no base class, no query, and never nothing."""
    with pytest.raises(SettingsError, match="accepts"):
        CloudEventReader(accepts=accepts)
    with pytest.raises(SettingsError, match="max_bytes"):
        CloudEventReader(accepts=[Ping], max_bytes=0)


# --- there and back ------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1)
states = st.lists(
    st.from_regex(r"[a-z][a-z0-9@]{0,9}=[!-+\--<>-~]{1,9}", fullmatch=True), min_size=1, max_size=32
)
envelopes = st.builds(
    lambda message, id_, key, position, created_at, headers: dataclasses.replace(
        new_envelope(message, id=id_, key=key, headers=headers), position=position, created_at=created_at
    ),
    messages,
    st.uuids(),
    st.none() | texts,
    st.none() | st.integers(1, 2**63 - 1),
    st.none() | st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=offsets),
    st.fixed_dictionaries(
        {},
        optional={
            "correlation_id": texts,
            "causation_id": texts,
            "traceparent": st.just(TRACEPARENT),
        },
    )
    | st.builds(lambda state: {"traceparent": TRACEPARENT, "tracestate": ",".join(state)}, states),
)


@settings(max_examples=40)
@given(envelopes)
def test_there_and_back(envelope: Envelope) -> None:
    """Whatever a message and its envelope hold comes back, in every form and through every binding."""
    expected = dataclasses.replace(envelope, headers={**envelope.headers, "cloudevents_source": SOURCE})
    assert reader.from_structured(writer.to_structured(envelope).body) == expected
    assert reader.from_structured(json.loads(writer.to_structured(envelope).body)) == expected
    assert reader.from_batch(writer.to_batch([envelope, envelope]).body) == [expected, expected]
    for binding in BINDINGS:
        name: Any = binding
        assert reader.from_binary(*writer.to_binary(envelope, name), name) == expected


@settings(max_examples=40)
@given(envelopes)
def test_the_official_package_reads_what_we_write(envelope: Envelope) -> None:
    """The official package finds the same attributes and the same data in both forms of each of its bindings."""
    structured = writer.to_structured(envelope)
    parts = parts_of(structured.body, frozenset(json.loads(structured.body)))
    data = json.loads(definition_of(type(envelope.message)).encode(envelope.message))
    binary = {name: writer.to_binary(envelope, name) for name in ("http", "kafka", "amqp")}
    events = [
        JSONFormat().read(CloudEvent, structured.body),
        read_http(binary["http"]),
        kafka.from_kafka_event(
            kafka.KafkaMessage(
                {name: value.encode() for name, value in binary["kafka"].headers.items()},
                envelope.key,
                binary["kafka"].body,
            )
        ),
        amqp.from_amqp_event(as_amqp(binary["amqp"])),
    ]
    for event in events:
        attributes = dict(event.get_attributes())
        time = attributes.pop("time")  # it gives an event without a time that of its reading
        assert envelope.created_at is None or time == envelope.created_at
        assert str(attributes.pop("messageversion")) == str(parts.attributes["messageversion"])
        assert attributes == {
            name: value for name, value in parts.attributes.items() if name not in ("time", "messageversion")
        }
        assert event.get_data() == data


def as_amqp(message: CloudEventMessage) -> amqp.AMQPMessage:
    """Headers as AMQP has them: the content type is a property."""
    headers: dict[str, Any] = dict(message.headers)
    return amqp.AMQPMessage({"content-type": headers.pop("content-type")}, headers, message.body)


SENDERS: list[Callable[[CloudEvent], tuple[Any, Any, Any]]] = [
    lambda event: (*dataclasses.astuple(http.to_structured_event(event)), "http"),
    lambda event: (*dataclasses.astuple(http.to_binary_event(event)), "http"),
    lambda event: ((sent := kafka.to_structured_event(event)).headers, sent.value, "kafka"),
    lambda event: ((sent := kafka.to_binary_event(event)).headers, sent.value, "kafka"),
    lambda event: (
        {**(sent := amqp.to_structured_event(event)).properties, **sent.application_properties},
        sent.application_data,
        "amqp",
    ),
    lambda event: (
        {**(sent := amqp.to_binary_event(event)).properties, **sent.application_properties},
        sent.application_data,
        "amqp",
    ),
]


@pytest.mark.parametrize("send", SENDERS)
def test_we_read_what_the_official_package_writes(send: Callable[[CloudEvent], tuple[Any, Any, Any]]) -> None:
    """Events of the official package are taken in, in both forms of each of its bindings."""
    time = datetime(2025, 11, 1, 13, 30, 0, 17000, tzinfo=timezone(timedelta(hours=1)))
    story = {
        "correlationid": "größer als %20",
        "causationid": "c",
        "traceparent": TRACEPARENT,
        "tracestate": "a=b",
    }
    event = official(
        time=time,
        subject="Euro € 😀",
        datacontenttype="application/json; charset=utf-8",
        severitynumber=5,
        **story,
    )
    [envelope] = reader.from_message(*send(event))
    assert (envelope.message, envelope.key, envelope.created_at) == (OrderPlaced(7), "Euro € 😀", time)
    assert envelope.headers == {
        "correlation_id": "größer als %20",
        "causation_id": "c",
        "traceparent": TRACEPARENT,
        "tracestate": "a=b",
        "cloudevents_source": "/till/7",
        "cloudevents_id": "A-1",
    }
    assert (envelope.correlation_id, envelope.causation_id) == ("größer als %20", "c")


def test_a_command_travels_as_one() -> None:
    """A command is written as a command and read as one, if it is accepted."""
    message = writer.to_structured(new_envelope(ShipOrder(7), id=uuid4()))
    assert read_http(CloudEventMessage({}, message.body)).get_extension("messagekind") == "command"
    assert reader.from_structured(message.body).type == "COMMAND"
