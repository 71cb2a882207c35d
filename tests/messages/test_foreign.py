"""Types registered with dataclasses-serialization keep working, and so does the JSON they had."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from message_bus import types
from message_bus.errors import InvalidMessage, MessageDecodeError, MessageDefinitionError
from message_bus.messages import Event, definition_of

Register = Callable[[Any, Callable[[Any], Any], Callable[[Any, Any], Any]], None]


class Isbn:
    def __init__(self, text: str) -> None:
        if not text.startswith("978"):
            raise ValueError(f"not an ISBN: {text}")
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Isbn) and other.text == self.text

    __hash__ = None  # type: ignore[assignment]


class Isbn13(Isbn):
    pass


@dataclass
class Money:
    cents: int


class Ratio(enum.Enum):
    HALF = 0.5


@pytest.fixture
def register() -> Iterator[Register]:
    """Register types for the length of one test."""
    serializer = types.serializer
    tables = (serializer.serialization_functions, serializer.deserialization_functions)
    before = [dict(table.lookup) for table in tables]
    yield serializer.register
    for table, lookup in zip(tables, before, strict=True):
        table.lookup.clear()
        table.lookup.update(lookup)
        del table.dependencies


def again(message: Event) -> Any:
    """Encode and decode."""
    definition = definition_of(type(message))
    return definition.decode(definition.check(message))


def test_the_serializer_is_the_one_of_the_library() -> None:
    """`message_bus.types.serializer` is dataclasses-serialization's JSONSerializer."""
    from dataclasses_serialization.json import JSONSerializer

    assert types.serializer is JSONSerializer
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = types.nothing  # type: ignore[attr-defined]


def test_a_class_that_msgspec_does_not_know(register: Register) -> None:
    """A registered class works as a field, in containers, and through its base class's functions."""
    register(Isbn, lambda isbn: isbn.text, lambda cls, text: cls(text))

    class BookSold(Event):
        isbn: Isbn
        others: dict[str, list[Isbn13]]
        maybe: Isbn | None = None

    message = BookSold(Isbn("978-1"), {"x": [Isbn13("978-2")]})
    assert again(message) == message
    assert type(again(message).others["x"][0]) is Isbn13
    assert message.serialize() == {"isbn": "978-1", "others": {"x": ["978-2"]}, "maybe": None}
    assert BookSold.deserialize(message.serialize()) == message


def test_the_registered_functions_win_over_msgspec(register: Register) -> None:
    """Types that msgspec knows keep the JSON of the user's functions: rows of old stay readable."""
    register(
        date, lambda day: day.strftime("%d.%m.%Y"), lambda _, text: date(*map(int, reversed(text.split("."))))
    )
    register(Decimal, float, lambda _, number: Decimal(str(number)))
    register(Money, lambda money: f"{money.cents} ct", lambda _, text: Money(int(text.split()[0])))
    register(Ratio, lambda ratio: ratio.name, lambda cls, name: cls[name])

    class Billed(Event):
        day: date
        total: Decimal
        money: list[Money]
        ratio: Ratio
        due: date | None = None

    message = Billed(date(2025, 12, 31), Decimal("1.5"), [Money(7)], Ratio.HALF)
    assert message.serialize() == {
        "day": "31.12.2025",
        "total": 1.5,
        "money": ["7 ct"],
        "ratio": "HALF",
        "due": None,
    }
    assert message.serialize() == types.serializer.serialize(message)
    assert again(message) == message
    assert Billed.deserialize(message.serialize()) == message


def test_a_registered_type_inside_a_plain_dataclass(register: Register) -> None:
    """The functions are found however deep the type lies."""
    register(Money, lambda money: money.cents, lambda _, cents: Money(cents))

    @dataclass
    class Line:
        price: Money

    class Placed(Event):
        lines: tuple[Line, ...]

    message = Placed((Line(Money(1)), Line(Money(2))))
    assert message.serialize() == {"lines": [{"price": 1}, {"price": 2}]}
    assert again(message) == message


def test_errors_of_the_functions_quote_nothing(register: Register) -> None:
    """What a registered function raises may quote the payload: only its type gets out."""
    register(Isbn, lambda isbn: isbn.text, lambda cls, text: cls(text))

    class BookSold(Event):
        isbn: Isbn

    with pytest.raises(MessageDecodeError, match="field 'isbn'") as caught:
        definition_of(BookSold).decode(b'{"isbn":"geheim"}')
    assert "geheim" not in str(caught.value)
    assert "ValueError" in str(caught.value)
    assert caught.value.__cause__ is None


def test_unregistered_types_are_refused() -> None:
    """Without a registration the class is refused at definition, and a value of it at registration."""

    class BookSold(Event):
        isbn: Isbn

    class Anything(Event):
        value: Any

    with pytest.raises(MessageDefinitionError, match=r"register it with message_bus.types.serializer"):
        definition_of(BookSold)
    with pytest.raises(InvalidMessage, match="value: values of type Isbn cannot be encoded"):
        definition_of(Anything).check(Anything(Isbn("978")))
