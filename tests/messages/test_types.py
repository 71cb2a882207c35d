"""Every type that a field may have comes back as it was; what cannot is refused by name."""

from __future__ import annotations

import collections
import enum
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Dict, Final, List, Literal, NamedTuple, NewType, Optional, TypedDict, Union  # noqa: UP035
from uuid import UUID

import msgspec
import pytest

from message_bus.errors import InvalidMessage, MessageDecodeError, MessageDefinitionError
from message_bus.messages import Command, Event, definition_of


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Unit(enum.StrEnum):
    PIECE = "piece"


class Ratio(enum.Enum):
    HALF = 0.5


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    gift: bool


class Address(msgspec.Struct):
    city: str


class Inner(Event):
    value: int


class InnerByHand(Event):
    def __init__(self, value: int) -> None:
        self.value = value
        self.made_by_init = True


OrderId = NewType("OrderId", int)

A_UUID = UUID("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b")
NAIVE = datetime(2025, 1, 2, 3, 4, 5, 678901)

CASES: list[tuple[Any, Any]] = [
    (str, "a\0b€😀"),
    (int, 2**80),
    (int, -1),
    (float, 0.1),
    (bool, True),
    (None, None),
    (bytes, b"\x00\xff"),
    (UUID, A_UUID),
    (date, date(2025, 1, 2)),
    (datetime, NAIVE),
    (datetime, NAIVE.replace(tzinfo=UTC)),
    (datetime, NAIVE.replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (time, time(1, 2, 3, 4)),
    (time, time(1, 2, tzinfo=UTC)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("1E+5")),
    (Color, Color.BLUE),
    (Size, Size.LARGE),
    (Unit, Unit.PIECE),
    (Literal["a", 1] | None, 1),
    (Any, {"a": [1, None, "x"]}),
    (list, [1, "a"]),
    (dict, {"a": 1}),
    (list[int], [1, 2]),
    (List[int], [1, 2]),  # noqa: UP006
    (Sequence[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (dict[str, int], {"a": 1}),
    (Dict[str, int], {"a": 1}),  # noqa: UP006
    (Mapping[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[float, str], {1.5: "a"}),
    (dict[UUID, int], {A_UUID: 1}),
    (dict[date, int], {date(2025, 1, 2): 1}),
    (dict[datetime, int], {NAIVE: 1}),
    (dict[Color, int], {Color.RED: 1}),
    (dict[Size, int], {Size.SMALL: 1}),
    (dict[Decimal, int], {Decimal("1.5"): 1}),
    (dict[Literal["a", "b"], int], {"a": 1}),
    (dict[str, list[Money]], {"a": [Money(Decimal(1))]}),
    (int | None, None),
    (int | None, 3),
    (Optional[UUID], A_UUID),  # noqa: UP045
    (Union[int, str, None], "a"),  # noqa: UP007
    (UUID | int, A_UUID),
    (int | list[int], [1]),
    (Money, Money(Decimal("1.5"), "USD")),
    (Money | None, None),
    (Tree, Tree(1, [Tree(2, [Tree(3)])])),
    (Inner, Inner(1)),
    (list[Inner], [Inner(1), Inner(2)]),
    (InnerByHand, InnerByHand(1)),
    (dict[str, InnerByHand | None], {"a": InnerByHand(1), "b": None}),
    (tuple[InnerByHand, ...], (InnerByHand(1),)),
    (Annotated[InnerByHand, "documented"], InnerByHand(1)),
    (Annotated[int, msgspec.Meta(ge=1)], 1),
    (Point, Point(1, 2)),
    (Options, {"gift": True}),
    (Address, Address("Rome")),
    (OrderId, OrderId(1)),
]


def message_class(hint: Any) -> Any:
    """Return a new message class with one field, `value`, of this type."""
    return type("Holder", (Event,), {"__annotations__": {"value": hint}})


@pytest.mark.parametrize(("hint", "value"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
class TestEveryType:
    def test_round_trip(self, hint: Any, value: Any) -> None:
        """A value of this type comes back equal and of the same type, from JSON and from the dict."""
        cls = message_class(hint)
        definition = definition_of(cls)
        message = cls(value)
        for decoded in (
            definition.decode(definition.check(message)),
            definition.decode(definition.encode(message).decode()),
            cls.deserialize(message.serialize()),
            definition.decode(message.serialize()),
        ):
            assert decoded == message
            assert type(decoded.value) is type(value)

    def test_serialize_is_what_json_says(self, hint: Any, value: Any) -> None:
        """The dict of `serialize` is the one that the payload holds: nothing but JSON's own types."""
        cls = message_class(hint)
        message = cls(value)
        assert message.serialize() == msgspec.json.decode(definition_of(cls).encode(message))


def test_a_made_by_init_message_inside_another() -> None:
    """A nested message with a hand-written __init__ gets it called, however deep it lies."""

    class Outer(Event):
        inner: InnerByHand
        more: dict[str, list[InnerByHand]]

    outer = Outer(InnerByHand(1), {"a": [InnerByHand(2)]})
    definition = definition_of(Outer)
    decoded: Any = definition.decode(definition.check(outer))
    assert decoded == outer
    assert decoded.inner.made_by_init
    assert decoded.more["a"][0].made_by_init
    with pytest.raises(
        MessageDecodeError, match=r"field 'more\[...\]\[1\].value' does not fit: expected `int`"
    ):
        definition.decode(b'{"inner":{"value":1},"more":{"k":[{"value":1},{"value":"x"}]}}')


def test_a_message_that_contains_its_own_kind() -> None:
    """A recursive message works, also where a part is put together by us."""

    class Node(Event):
        made: InnerByHand
        rest: Node | None = None

    node = Node(InnerByHand(1), Node(InnerByHand(2)))
    assert definition_of(Node).decode(definition_of(Node).check(node)) == node


class Foreign:
    """A class that nobody has registered."""


@pytest.mark.parametrize(
    ("hint", "what"),
    [
        (Foreign, "has type Foreign, which no codec knows (register it"),
        (list[Foreign], "has type Foreign"),
        (dict[str, Foreign | None], "has type Foreign"),
        (pathlib.Path, "has type Path"),
        (complex, "has type complex"),
        (object, "say typing.Any"),
        (Callable[[], int], "has type Callable"),
        (collections.deque[int], "has type deque"),
        (Ratio, "has an Enum whose values are neither all str nor all int"),
        (UUID | str, "has a union that JSON cannot tell apart"),
        (datetime | Decimal | None, "has a union that JSON cannot tell apart"),
        (Money | Tree, "has a union that JSON cannot tell apart"),
        (Inner | Money, "use one type, or a field for each, or override serialize() and deserialize()"),
        (list[int] | tuple[int, ...], "has a union that JSON cannot tell apart"),
        (InnerByHand | int, "has a union that JSON cannot tell apart"),
        (dict[tuple[int, int], int], "has keys of type tuple"),
        (dict[bool, int], "has keys of type bool"),
        (list[dict[Money, int]], "has keys of type Money"),
    ],
)
def test_what_cannot_be_encoded_is_refused_at_definition(hint: Any, what: str) -> None:
    """A type that no codec knows is refused before any message is made, with the field and the remedy."""
    with pytest.raises(MessageDefinitionError) as caught:
        definition_of(message_class(hint))
    assert str(caught.value).startswith("message class 'Holder': field 'value' has ")
    assert what in str(caught.value)
    assert caught.value.field == "value"
    assert "serialize()" in str(caught.value)


def test_a_field_inside_a_nested_dataclass_is_named_by_its_path() -> None:
    """The path leads to the field to blame."""

    @dataclass
    class Part:
        thing: Foreign

    class Whole(Event):
        parts: list[Part]

    with pytest.raises(MessageDefinitionError, match=r"field 'parts.thing' has type Foreign"):
        definition_of(Whole)


def test_both_methods_overridden_make_any_type_possible() -> None:
    """The remedy of the error text works: with both methods overridden types are the user's business."""

    class Moved(Command):
        path: pathlib.Path

        def serialize(self) -> dict[str, Any]:
            return {"path": str(self.path)}

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> Moved:
            return cls(pathlib.Path(data["path"]))

    message = Moved(pathlib.Path("a/b"))
    assert definition_of(Moved).decode(definition_of(Moved).check(message)) == message


class TestDecoding:
    class Placed(Event):
        order_id: int
        color: Color = Color.RED
        unit: Literal["kg", "g"] = "kg"
        at: datetime | None = None
        money: Money | None = None
        tags: list[str] = field(default_factory=list)
        scores: dict[int, int] = field(default_factory=dict)
        fixed: Final[int] = 3

    def test_extra_keys_are_ignored(self) -> None:
        """A payload of a newer writer may hold more."""
        assert definition_of(self.Placed).decode(b'{"order_id":1,"new":{"x":[1]}}') == self.Placed(1)
        assert self.Placed.deserialize({"order_id": 1, "new": 2}) == self.Placed(1)

    def test_missing_keys_take_the_default(self) -> None:
        """A payload of an older writer may hold less; two messages share no default."""
        first = self.Placed.deserialize({"order_id": 1})
        first.tags.append("x")
        assert self.Placed.deserialize({"order_id": 1}).tags == []

    @pytest.mark.parametrize(
        ("payload", "field", "reason"),
        [
            (b"{}", "order_id", "is missing"),
            (b'{"order_id":"geheim"}', "order_id", "expected `int`, got `str`"),
            (b'{"order_id":null}', "order_id", "expected `int`, got `null`"),
            (b'{"order_id":1,"color":"geheim"}', "color", "not one of the allowed values"),
            (b'{"order_id":1,"unit":"geheim"}', "unit", "not one of the allowed values"),
            (b'{"order_id":1,"at":"geheim"}', "at", "invalid RFC3339 encoded datetime"),
            (b'{"order_id":1,"money":{"amount":"geheim"}}', "money.amount", "invalid decimal string"),
            (b'{"order_id":1,"money":{}}', "money.amount", "is missing"),
            (b'{"order_id":1,"tags":["a",7]}', "tags[1]", "expected `str`, got `int`"),
            (b'{"order_id":1,"scores":{"geheim":7}}', "scores", "a key does not fit"),
            (b"[1]", None, "expected `object`, got `array`"),
            (b"geheim", None, "not valid JSON"),
            (b"", None, "not valid JSON"),
            (b'{"order_id":1} geheim', None, "not valid JSON"),
            (b'{"order_id":1,"tags":["\xff"]}', None, "UTF-8"),
        ],
    )
    def test_errors_name_the_field_and_no_value(self, payload: bytes, field: str | None, reason: str) -> None:
        """What does not fit is named by path and type; the payload is not quoted, not even in the cause."""
        with pytest.raises(MessageDecodeError) as caught:
            definition_of(self.Placed).decode(payload)
        error = caught.value
        assert error.field == field
        assert reason in str(error)
        assert error.message_name == "Placed"
        assert "geheim" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__

    def test_deserialize_of_something_else(self) -> None:
        """What is not a dict is refused as a payload, not as a programming error."""
        with pytest.raises(MessageDecodeError, match="expected a dict, got list"):
            self.Placed.deserialize([1])  # type: ignore[arg-type]


class TestCheck:
    class Registered(Command):
        order_id: int
        price: float = 0.0
        maybe: float | None = None
        note: str = ""
        anything: Any = None
        money: Money | None = None
        tags: list[str] = field(default_factory=list)

    def refusal(self, message: Any, **options: int) -> InvalidMessage:
        """Return why a message is refused."""
        with pytest.raises(InvalidMessage) as caught:
            definition_of(type(message)).check(message, **options)
        return caught.value

    def test_none_where_an_int_is_due(self) -> None:
        """The commonest mistake, an id before the flush, is told with its remedy."""
        error = self.refusal(self.Registered(None))  # type: ignore[arg-type]
        assert str(error) == "message 'Registered': order_id is None (flush the session first)"
        assert error.field == "order_id"

    def test_none_deeper_down(self) -> None:
        """None is found inside nested values, too."""
        money = Money(None)  # type: ignore[arg-type]
        assert "money.amount is None (flush" in str(self.refusal(self.Registered(1, money=money)))

    def test_a_value_of_the_wrong_type(self) -> None:
        """A wrong type is named, the value is not."""
        error = self.refusal(self.Registered("geheim"))  # type: ignore[arg-type]
        assert str(error) == "message 'Registered': field 'order_id' does not fit: expected `int`, got `str`"

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_numbers_that_json_does_not_have(self, number: float) -> None:
        """NaN and infinity would become null: refused, wherever they hide."""
        for message, name in [
            (self.Registered(1, price=number), "price"),
            (self.Registered(1, maybe=number), "maybe"),
            (self.Registered(1, anything=[{"x": number}]), "anything"),
        ]:
            assert f"{name} is not a finite number" in str(self.refusal(message))

    def test_a_lone_surrogate(self) -> None:
        """Text that is no Unicode is refused with the field's name."""
        assert "note: a text with a lone surrogate" in str(self.refusal(self.Registered(1, note="\ud800")))

    def test_a_value_that_nobody_knows(self) -> None:
        """A foreign object under `Any` is refused with field and type."""
        error = self.refusal(self.Registered(1, anything=Foreign()))
        assert "anything: values of type Foreign cannot be encoded (register" in str(error)
        assert error.field == "anything"

    def test_keys_that_json_does_not_have(self) -> None:
        """A dict under `Any` with odd keys is refused."""
        assert "anything: keys of type tuple cannot be encoded" in str(
            self.refusal(self.Registered(1, anything={(1, 2): 3}))
        )

    def test_a_value_that_contains_itself(self) -> None:
        """A circle is refused, not followed."""
        circle: list[Any] = []
        circle.append(circle)
        assert "anything: it contains itself" in str(self.refusal(self.Registered(1, anything=circle)))

    def test_the_limit_of_size(self) -> None:
        """Payloads over 1 MiB are refused with their size and the remedy; the limit can be set."""
        definition = definition_of(self.Registered)
        empty = len(definition.encode(self.Registered(1)))
        assert len(definition.check(self.Registered(1, note="x" * (1024 * 1024 - empty)))) == 1024 * 1024
        error = self.refusal(self.Registered(1, note="x" * (1024 * 1024 - empty + 1)))
        assert "has 1048577 bytes, more than 1048576 (store the content elsewhere" in str(error)
        assert "more than 10 " in str(self.refusal(self.Registered(1), max_bytes=10))
        assert definition.check(self.Registered(1), max_bytes=2_000_000)
