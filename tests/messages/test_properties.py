"""Properties of the codec: round trips for all types, and agreement with dataclasses-serialization."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Dict, List, Literal, Optional, Union  # noqa: UP035
from uuid import UUID

import msgspec
from dataclasses_serialization.json import JSONSerializer
from hypothesis import given
from hypothesis import strategies as st

from message_bus.errors import MessageDecodeError
from message_bus.messages import Command, Event, definition_of
from tests.messages.test_types import Color, InnerByHand, Money, Size, Unit

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
texts = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
datetimes = st.datetimes() | st.datetimes(timezones=offsets)
moneys = st.builds(Money, decimals, texts)
by_hands = st.builds(InnerByHand, st.integers())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@dataclass
class Line:
    sku: str
    price: Decimal
    at: datetime | None = None


class Scalars(Event):
    a_str: str
    a_int: int
    a_float: float
    a_bool: bool
    some_bytes: bytes
    a_uuid: UUID
    a_date: date
    a_datetime: datetime
    a_time: time
    a_timedelta: timedelta
    a_decimal: Decimal
    an_enum: Color
    an_int_enum: Size
    a_str_enum: Unit
    a_literal: Literal["a", 1]
    anything: Any


class Nested(Command):
    ints: list[int]
    pair: tuple[int, str]
    many: tuple[date, ...]
    unique: set[UUID]
    frozen: frozenset[str]
    by_name: dict[str, Decimal]
    by_number: dict[int, list[datetime]]
    by_id: dict[UUID, Money | None]
    by_color: Dict[Color, timedelta]  # noqa: UP006
    maybe: int | None
    perhaps: Optional[Money]  # noqa: UP045
    number_or_text: Union[int, str]  # noqa: UP007
    lines: list[Line]


class Assembled(Event):
    inner: InnerByHand
    more: dict[str, list[InnerByHand]]
    maybe: InnerByHand | None
    at: datetime
    total: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.total = len(self.more)


messages = st.one_of(
    st.builds(
        Scalars,
        texts,
        st.integers(),
        floats,
        st.booleans(),
        st.binary(),
        st.uuids(),
        st.dates(),
        datetimes,
        st.times() | st.times(timezones=offsets),
        st.timedeltas(),
        decimals,
        st.sampled_from(Color),
        st.sampled_from(Size),
        st.sampled_from(Unit),
        st.sampled_from(["a", 1]),
        json_values,
    ),
    st.builds(
        Nested,
        st.lists(st.integers()),
        st.tuples(st.integers(), texts),
        st.lists(st.dates()).map(tuple),
        st.sets(st.uuids()),
        st.frozensets(texts),
        st.dictionaries(texts, decimals),
        st.dictionaries(st.integers(-(2**63), 2**64 - 1), st.lists(datetimes, max_size=2)),
        st.dictionaries(st.uuids(), st.none() | moneys),
        st.dictionaries(st.sampled_from(Color), st.timedeltas()),
        st.none() | st.integers(),
        st.none() | moneys,
        st.integers() | texts,
        st.lists(st.builds(Line, texts, decimals, st.none() | datetimes)),
    ),
    st.builds(
        Assembled,
        by_hands,
        st.dictionaries(texts, st.lists(by_hands, max_size=2), max_size=3),
        st.none() | by_hands,
        datetimes,
    ),
)


@given(messages)
def test_round_trip(message: Event) -> None:
    """Whatever a message holds comes back, from JSON, from its text and from the dict."""
    definition = definition_of(type(message))
    payload = definition.check(message)
    assert definition.decode(payload) == message
    assert definition.decode(payload.decode()) == message
    assert definition.decode(message.serialize()) == message
    assert message.serialize() == msgspec.json.decode(payload)


def refusal(cls: type[Event], payload: bytes) -> MessageDecodeError | None:
    """Return the error of decoding, if there is one."""
    try:
        definition_of(cls).decode(payload)
    except MessageDecodeError as error:
        return error
    return None


@given(messages, st.data())
def test_a_damaged_payload_is_decoded_or_named(message: Event, data: st.DataObject) -> None:
    """Whatever is put in the place of a field: the message is decoded, or an error names that field."""
    fields = message.serialize()
    name = data.draw(st.sampled_from(sorted(fields)))
    payload = msgspec.json.encode({**fields, name: data.draw(json_values)})
    error = refusal(message.__class__, payload)
    assert error is None or (error.field or "").startswith(name)


@given(st.binary())
def test_any_bytes_are_decoded_or_refused(payload: bytes) -> None:
    """Decoding knows one error, whatever it is given."""
    error = refusal(Scalars, payload)
    assert error is None or error.message_name == "Scalars"


@dataclass
class Part:
    name: str
    count: int
    weight: Optional[float] = None  # noqa: UP045


class Common(Event):
    """The types that dataclasses-serialization knows, too."""

    a_str: str
    an_int: int
    a_float: float
    a_bool: bool
    a_list: list  # type: ignore[type-arg]
    a_dict: dict  # type: ignore[type-arg]
    ints: List[int]  # noqa: UP006
    lists: List[List[str]]  # noqa: UP006
    by_name: Dict[str, float]  # noqa: UP006
    maybe: Optional[int]  # noqa: UP045
    number_or_text: Union[int, str]  # noqa: UP007
    part: Part
    parts: Dict[str, List[Part]]  # noqa: UP006
    maybe_part: Optional[Part] = None  # noqa: UP045
    default: str = "x"


parts = st.builds(Part, texts, st.integers(), st.none() | floats)
commons = st.builds(
    Common,
    texts,
    st.integers(),
    floats,
    st.booleans(),
    st.lists(json_values, max_size=3),
    st.dictionaries(texts, json_values, max_size=3),
    st.lists(st.integers()),
    st.lists(st.lists(texts, max_size=2), max_size=2),
    st.dictionaries(texts, floats),
    st.none() | st.integers(),
    st.integers() | texts,
    parts,
    st.dictionaries(texts, st.lists(parts, max_size=2), max_size=2),
    st.none() | parts,
    texts,
)


@given(commons)
def test_the_same_json_as_dataclasses_serialization(message: Common) -> None:
    """For every type that both know, the two write the same JSON."""
    theirs = JSONSerializer.serialize(message)
    assert message.serialize() == theirs
    assert json.loads(definition_of(Common).encode(message)) == json.loads(json.dumps(theirs))


@given(commons)
def test_the_same_object_as_dataclasses_serialization(message: Common) -> None:
    """For every type that both know, each reads what the other has written, and reads the same."""
    ours, theirs = message.serialize(), JSONSerializer.serialize(message)
    assert Common.deserialize(theirs) == JSONSerializer.deserialize(Common, ours) == message
    stored = json.loads(json.dumps(theirs))
    assert definition_of(Common).decode(json.dumps(stored)) == JSONSerializer.deserialize(Common, stored)
