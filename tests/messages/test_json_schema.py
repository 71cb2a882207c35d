"""The JSON Schema of messages: what our codec writes fits it, and what it says is what reading needs."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from message_bus.errors import SettingsError
from message_bus.messages import Command, Event, Registry, definition_of
from message_bus.messages.schemas.json_schema import message_schemas, schema_of
from tests.messages.test_foreign import Isbn, Register, register
from tests.messages.test_foreign import Money as ForeignMoney
from tests.messages.test_overrides import OnlyTolerant, Outer, Renamed
from tests.messages.test_properties import messages
from tests.messages.test_types import CASES, Color, Size, Tree, message_class

__all__ = ["register"]  # the fixture


def value_schema(hint: Any) -> Any:
    """The schema of a field of this type."""
    found = schema_of(message_class(hint))
    Draft202012Validator.check_schema(found)
    value = found["properties"]["value"]
    return found["$defs"][value["$ref"].removeprefix("#/$defs/")] if "$ref" in value else value


def written(message: Any) -> Any:
    """The JSON of a message."""
    return msgspec.json.decode(definition_of(type(message)).encode(message))


@pytest.mark.parametrize(("hint", "value"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_what_is_written_fits(hint: Any, value: Any) -> None:
    """Every type that a field may have has a schema, which is one, and which its values fit."""
    cls = message_class(hint)
    schema = schema_of(cls)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(written(cls(value)))


@given(messages)
def test_whatever_is_written_fits(message: Event) -> None:
    """The same for whatever values Hypothesis finds."""
    Draft202012Validator(schema_of(type(message))).validate(written(message))


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (Any, {}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (UUID, {"type": "string", "format": "uuid"}),
        (date, {"type": "string", "format": "date"}),
        (datetime, {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date-time-local"}]}),
        (Annotated[datetime, msgspec.Meta(tz=True)], {"type": "string", "format": "date-time"}),
        (Annotated[datetime, msgspec.Meta(tz=False)], {"type": "string", "format": "date-time-local"}),
        (Decimal, {"type": "string", "format": "decimal"}),
        (Literal["a", 1], {"enum": [1, "a"]}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (list[Any], {"type": "array"}),
        (Annotated[str, msgspec.Meta(max_length=3, pattern="^a")], {"type": "string", "maxLength": 3, "pattern": "^a"}),
        (Annotated[list[int], msgspec.Meta(min_length=1)], {"type": "array", "items": {"type": "integer"}, "minItems": 1}),
        (Annotated[int, msgspec.Meta(description="in cents")], {"type": "integer", "description": "in cents"}),
        (dict[str, Any], {"type": "object"}),
        (dict[int, Any], {"type": "object", "propertyNames": {"pattern": "^-?[0-9]+$"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (dict[Size, Any], {"type": "object", "propertyNames": {"enum": ["1", "2"]}}),
        (dict[UUID, Any], {"type": "object", "propertyNames": {"format": "uuid"}}),
    ],
)  # fmt: skip
def test_what_a_type_becomes(hint: Any, schema: Any) -> None:
    """Types that JSON writes alike have schemas that differ, so that one that becomes the other is seen."""
    assert value_schema(hint) == schema


def test_an_enum_lists_its_values() -> None:
    """Sorted, so that the order of the class changes nothing."""
    assert value_schema(Color) == {"title": "Color", "enum": ["blue", "red"]}


def test_what_does_not_fit() -> None:
    """The schema refuses what decoding would: so it can be used to look at foreign messages."""

    class Ordered(Event):
        order_id: int
        lines: list[dict[str, Decimal]]
        note: str = ""

    valid = Draft202012Validator(schema_of(Ordered)).is_valid
    assert valid({"order_id": 1, "lines": [{"a": "1.0"}]})
    assert valid({"order_id": 1, "lines": [], "more": "is ignored"})
    assert not valid({"order_id": "1", "lines": []})
    assert not valid({"lines": []})
    assert not valid({"order_id": 1, "lines": [{"a": 1}]})


def test_fields_and_defaults() -> None:
    """Fields in the order of the class; required is what has no default; defaults without a form in JSON are left out."""

    class Odd:
        """No codec knows it."""

    @dataclass
    class Note:
        """What somebody said."""

        text: str = "nothing"

    class Ordered(Event):
        """An order.

        Of books.
        """

        order_id: int
        lines: list[int] = field(default_factory=list)
        color: Color = Color.RED
        ratio: float = float("nan")
        odd: Any = Odd()
        made: int = field(default_factory=lambda: 1 // 0)
        note: Note | None = None

    schema = schema_of(Ordered)
    assert schema["description"] == "An order.\n\nOf books."
    assert list(schema["properties"]) == ["order_id", "lines", "color", "ratio", "odd", "made", "note"]
    assert schema["required"] == ["order_id"]
    defaults = {name: its["default"] for name, its in schema["properties"].items() if "default" in its}
    assert defaults == {"lines": [], "color": "red", "note": None}
    assert schema["$defs"]["Note"] == {
        "title": "Note",
        "description": "What somebody said.",
        "type": "object",
        "properties": {"text": {"type": "string", "default": "nothing"}},
        "required": [],
    }


def test_a_hand_written_init() -> None:
    """Required is what it cannot do without; what it does not ask for is written, but not needed."""

    class ByHand(Event):
        def __init__(self, order_id: int, note: str = "") -> None:
            self.order_id, self.note = order_id, note

    class Counted(Event):
        items: list[int]
        count: int = field(init=False)

        def __post_init__(self) -> None:
            self.count = len(self.items)

    assert schema_of(ByHand)["required"] == ["order_id"]
    assert set(schema_of(ByHand)["properties"]) == {"order_id", "note"}
    assert schema_of(Counted)["required"] == ["items"]
    assert set(schema_of(Counted)["properties"]) == {"items", "count"}


class Comment(Event):
    """A message inside of itself."""

    text: str
    answers: list[Comment] = field(default_factory=list)


def test_a_class_inside_of_itself() -> None:
    """It refers to itself; a message to the whole document."""
    schema = schema_of(Comment)
    assert schema["properties"]["answers"]["items"] == {"$ref": "#"}
    valid = Draft202012Validator(schema).is_valid
    assert valid({"text": "a", "answers": [{"text": "b"}]})
    assert not valid({"text": "a", "answers": [{"text": 1}]})
    tree = schema_of(message_class(Tree))
    assert tree["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


class Link(NamedTuple):
    """A tuple inside of itself."""

    name: str
    others: list[Link] = []  # noqa: RUF012


class Options(TypedDict, total=False):
    """A dict with names, and a dataclass in it."""

    tree: Tree


class Closed(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A struct that takes nothing else."""

    first_name: str


@pytest.mark.parametrize(
    ("hint", "fits", "does_not"),
    [
        (Link, ["a", [["b", []]]], ["a", [["b", [1]]]]),
        (Options, {"tree": {"value": 1}}, {"tree": {"value": "x"}}),
        (Closed, {"firstName": "Ann"}, {"firstName": "Ann", "last": "Ames"}),
    ],
)
def test_other_classes_with_fields(hint: Any, fits: Any, does_not: Any) -> None:
    """NamedTuple, TypedDict and Struct, also with dataclasses inside and inside of themselves."""
    valid = Draft202012Validator(schema_of(message_class(hint))).is_valid
    assert valid({"value": fits})
    assert not valid({"value": does_not})
    definition_of(message_class(hint)).decode({"value": fits})


def test_two_classes_with_one_name() -> None:
    """Each has a schema of its own."""

    def money(hint: Any) -> Any:
        return dataclass(type("Money", (), {"__annotations__": {"amount": hint}}))

    Both = type("Both", (Event,), {"__annotations__": {"a": money(int), "b": money(str), "c": money(bool)}})  # noqa: N806
    schema = schema_of(Both)
    assert len(schema["$defs"]) == 3
    kinds = [
        schema["$defs"][schema["properties"][name]["$ref"].removeprefix("#/$defs/")]["properties"]["amount"]
        for name in "abc"
    ]
    assert kinds == [{"type": "integer"}, {"type": "string"}, {"type": "boolean"}]


# --- what is written by functions of the user's ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Renamed, OnlyTolerant])
def test_an_overridden_serialize_or_deserialize(cls: Any) -> None:
    """Any object fits, for nothing is known of it, and the export says so."""
    schema = schema_of(cls)
    assert schema["type"] == "object"
    assert "properties" not in schema
    registry = Registry()
    registry.register(cls, Comment)
    assert {name: its["by_hand"] for name, its in message_schemas(registry)["messages"].items()} == {
        cls.__name__: True,
        "Comment": False,
    }


def test_such_a_message_inside_another() -> None:
    """Anything fits in its place, and what is around it is known."""
    schema = schema_of(Outer)
    message = Outer(Renamed("a", 1), {"b": [Renamed("b", 2)]})
    Draft202012Validator(schema).validate(written(message))
    assert set(schema["properties"]["inner"]) == {"title", "$comment"}
    assert schema["properties"]["more"]["type"] == "object"


def test_types_registered_with_dataclasses_serialization(register: Register) -> None:
    """Anything fits, whether msgspec would know the type or not."""
    register(Isbn, lambda isbn: {"isbn": isbn.text}, lambda cls, data: cls(data["isbn"]))
    register(
        date,
        lambda day: {"day": day.isoformat()},
        lambda cls, data: date.fromisoformat(data["day"]),
    )
    register(ForeignMoney, lambda money: money.cents, lambda cls, data: cls(data))

    class Sold(Event):
        isbn: Isbn
        on: date
        prices: list[ForeignMoney]
        count: int = 1

    schema = schema_of(Sold)
    Draft202012Validator(schema).validate(written(Sold(Isbn("978-1"), date(2026, 1, 2), [ForeignMoney(5)])))
    assert set(schema["properties"]["isbn"]) == set(schema["properties"]["on"]) == {"title", "$comment"}
    assert set(schema["properties"]["prices"]["items"]) == {"title", "$comment"}
    assert schema["properties"]["count"] == {"type": "integer", "default": 1}


# --- the whole document ---------------------------------------------------------------------------------------------------


class OrderPlaced(
    Event, name="orders.placed", version=3, key="order_id", renamed_from=("OrderPlaced", "Placed")
):
    order_id: int


class OrderPaid(Event, key=lambda event: event.order_id):
    order_id: int


class PlaceOrder(Command):
    order_id: int


def registry_of(*classes: Any) -> Registry:
    """A registry of these classes."""
    made = Registry()
    made.register(*classes)
    return made


def test_the_document() -> None:
    """Commands and events by name, with all that is known of them beside their fields."""
    registry = registry_of(PlaceOrder, OrderPlaced, OrderPaid)
    registry.add_upcaster(OrderPlaced, dict, from_version=1)
    registry.add_upcaster("Placed", dict, from_version=2)
    document = message_schemas(registry)
    assert (document["$schema"], document["message_bus"]) == (
        "https://json-schema.org/draft/2020-12/schema",
        1,
    )
    assert list(document["messages"]) == ["OrderPaid", "PlaceOrder", "orders.placed"]
    placed = document["messages"]["orders.placed"]
    assert placed.pop("schema") == schema_of(OrderPlaced)
    assert placed == {
        "kind": "event",
        "version": 3,
        "key": "order_id",
        "renamed_from": ["OrderPlaced", "Placed"],
        "upcasters": [[1, 2], [2, 3]],
        "by_hand": False,
    }
    assert document["messages"]["OrderPaid"]["key"] == "<lambda>()"
    assert document["messages"]["PlaceOrder"]["key"] is None
    assert document["messages"]["PlaceOrder"]["kind"] == "command"


def test_several_registries() -> None:
    """Their classes and upcasters are put together; one name for two classes is refused."""
    one, other = registry_of(OrderPlaced), registry_of(OrderPlaced, PlaceOrder)
    one.add_upcaster(OrderPlaced, dict, from_version=1)
    other.add_upcaster(OrderPlaced, dict, from_version=1)
    other.add_upcaster(OrderPlaced, dict, from_version=2)
    messages = message_schemas(one, other)["messages"]
    assert list(messages) == ["PlaceOrder", "orders.placed"]
    assert messages["orders.placed"]["upcasters"] == [[1, 2], [2, 3]]
    with pytest.raises(SettingsError, match="'PlaceOrder' means both"):
        message_schemas(one, other, registry_of(type("PlaceOrder", (Command,), {})))


def test_the_order_of_registration_does_not_matter() -> None:
    """Two teams that register in another order commit the same file."""
    there = message_schemas(registry_of(PlaceOrder, OrderPlaced, OrderPaid))
    back = message_schemas(registry_of(OrderPaid, OrderPlaced, PlaceOrder))
    assert json.dumps(there) == json.dumps(back)


def test_the_same_text_in_every_process() -> None:
    """Neither hash seeds nor sets get into it."""
    program = (
        "import json; from tests.messages.test_properties import *; from message_bus.messages.schemas.json_schema import *;"
        "from message_bus.messages import Registry; r = Registry(); r.register(Nested, Scalars, Assembled);"
        "print(json.dumps(message_schemas(r)))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


def test_no_messages() -> None:
    """An empty document is one."""
    assert message_schemas(Registry())["messages"] == {}


class Weekday(enum.IntEnum):
    """Documented."""

    MONDAY = 1


def test_an_enum_with_a_docstring() -> None:
    """Its text is told, as that of every class."""
    assert value_schema(Weekday) == {"title": "Weekday", "description": "Documented.", "enum": [1]}
