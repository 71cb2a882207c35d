"""A value in a message class that has no annotation is no field: refused where it is written."""

from __future__ import annotations

import dataclasses
import enum
import logging
import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar
from uuid import UUID

import pytest

from message_bus import Command, Event, Message, MessageDefinitionError, Query


class _State(enum.Enum):
    NEW = "new"


def test_the_attribute_is_named() -> None:
    """The error says what to write, and where a constant goes."""
    with pytest.raises(
        MessageDefinitionError,
        match=r"'Forgot': a has no annotation, so it is no field \(write a: int = 3; a ClassVar for a constant\)",
    ) as caught:

        class Forgot(Event):
            a = 3

    assert caught.value.field == "a"
    with pytest.raises(MessageDefinitionError, match="a, c have no annotation, so they are no fields"):

        class ForgotTwo(Event):
            a = 3
            b: int = 4
            c = "x"


@pytest.mark.parametrize("base", [Command, Event, Query, Message])
@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, 1.5, "x" * 100, b"", [], {}, set(), (), frozenset(), Decimal(1), _State.NEW),
        *(datetime(2026, 1, 1, tzinfo=UTC), UUID(int=1), dataclasses.field(default=1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_are_refused(base: type[Any], value: object) -> None:
    """Whatever a field could hold."""
    with pytest.raises(MessageDefinitionError, match="a has no annotation"):
        type("Forgot", (base,), {"a": value})


def test_a_decorated_class_is_refused_as_well() -> None:
    """`@dataclass` would not take it for a field either."""
    with pytest.raises(MessageDefinitionError, match="b has no annotation"):

        @dataclasses.dataclass(frozen=True, slots=True)
        class Forgot(Event):
            a: int
            b = 2


def test_what_is_no_value_is_left_alone() -> None:
    """Methods, properties, descriptors, nested classes, class variables, private names, other objects."""

    class Fine(Event):
        n: int
        limit: ClassVar[int] = 3
        text: ClassVar = "x"
        _private = 4
        log = logging.getLogger("fine")
        pattern = re.compile("x")
        double = property(lambda self: 2 * self.n)

        class Kind(enum.Enum):
            A = "a"

        @cached_property
        def triple(self) -> int:
            return 3 * self.n

        @classmethod
        def make(cls) -> Any:
            return cls(1)

        @staticmethod
        def helper() -> int:
            return 1

        short = lambda self: self.n  # noqa: E731

    assert [field.name for field in dataclasses.fields(Fine)] == ["n"]
    assert Fine(2).double == 4


def test_another_value_for_what_a_base_class_has() -> None:
    """A constant of a base class may be set again; a field may not, because its default would stay as it is."""

    class Mixin:
        retries = 3

    class Base(Event):
        topic: ClassVar[str] = "base"
        n: int = 1

    class Derived(Base, Mixin):
        topic = "derived"
        retries = 5

    assert (Derived.topic, Derived.retries, Derived(n=2).n) == ("derived", 5, 2)
    with pytest.raises(
        MessageDefinitionError, match=r"n has no annotation, so it is no field \(write n: int = 2"
    ):

        class Wrong(Base):
            n = 2


def test_a_class_with_a_hand_written_init_is_left_alone() -> None:
    """Its fields are what `__init__` asks for."""

    class ByHand(Event):
        table = "orders"

        def __init__(self, n: int) -> None:
            self.n = n

    assert [field.name for field in dataclasses.fields(ByHand)] == ["n"]
    assert ByHand(1).n == 1
