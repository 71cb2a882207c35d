"""`serialize` and `deserialize`, overridden as the ancestor's documentation shows."""

# ruff: noqa: D102  (the classes here are samples)

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from message_bus.errors import InvalidMessage, MessageDecodeError
from message_bus.messages import Command, Event, definition_of


class Renamed(Event):
    name: str
    value: int

    def serialize(self) -> dict[str, Any]:
        data = super().serialize()
        data["label"] = data.pop("name")
        return data

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Renamed:
        return super().deserialize({"name": data["label"], **data})


class OnlyTolerant(Event):
    value: int

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> OnlyTolerant:
        return super().deserialize({"value": 0, **data})


class Outer(Event):
    inner: Renamed
    more: dict[str, list[Renamed]]


def test_encode_and_decode_go_through_the_overrides() -> None:
    """The definition honours both methods, from JSON and from a dict."""
    definition = definition_of(Renamed)
    payload = definition.check(Renamed("a", 1))
    assert msgspec.json.decode(payload) == {"label": "a", "value": 1}
    assert definition.decode(payload) == Renamed("a", 1)
    assert definition.decode({"label": "a", "value": 1}) == Renamed("a", 1)


def test_one_of_the_two() -> None:
    """Overriding only one leaves the other as it was."""
    definition = definition_of(OnlyTolerant)
    assert definition.decode(b"{}") == OnlyTolerant(0)
    assert definition.check(OnlyTolerant(1)) == b'{"value":1}'


def test_the_data_of_the_caller_stays() -> None:
    """deserialize gets a dict of its own."""

    class Taking(Event):
        value: int

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> Taking:
            return cls(data.pop("value"))

    data = {"value": 1}
    assert definition_of(Taking).decode(data) == Taking(1)
    assert data == {"value": 1}


def test_inherited_overrides() -> None:
    """A descendant inherits the overrides, and so does one that gets them from a mixin."""

    class Derived(Renamed):
        more: int = 0

    class Upper:
        def serialize(self) -> dict[str, Any]:
            return {key.upper(): value for key, value in super().serialize().items()}  # type: ignore[misc]

    class Mixed(Upper, Event):
        a: int

    assert definition_of(Derived).decode(definition_of(Derived).check(Derived("a", 1, 2))) == Derived(
        "a", 1, 2
    )
    assert definition_of(Mixed).encode(Mixed(1)) == b'{"A":1}'


def test_nested_overrides_are_honoured() -> None:
    """A message inside another is encoded and decoded by its own methods."""
    outer = Outer(Renamed("a", 1), {"k": [Renamed("b", 2)]})
    definition = definition_of(Outer)
    payload = definition.check(outer)
    assert msgspec.json.decode(payload)["more"] == {"k": [{"label": "b", "value": 2}]}
    assert definition.decode(payload) == outer
    assert Outer.deserialize(outer.serialize()) == outer


def test_errors_inside_a_nested_deserialize() -> None:
    """The field of the outer message is named, the error of the user's method is the cause."""
    with pytest.raises(MessageDecodeError, match=r"field 'inner'.*KeyError") as caught:
        definition_of(Outer).decode(b'{"inner":{"geheim":1},"more":{}}')
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(MessageDecodeError, match="field 'inner' does not fit: field 'value' is missing"):
        definition_of(Outer).decode(b'{"inner":{"label":"x"},"more":{}}')


def test_what_the_methods_return_is_checked() -> None:
    """A serialize without dict and a deserialize without message are told apart from bad data."""

    class Wrong(Command):
        a: int

        def serialize(self) -> dict[str, Any]:
            return None  # type: ignore[return-value]

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> Wrong:
            if "raise" in data:
                raise LookupError("geheim")
            return data  # type: ignore[return-value]

    with pytest.raises(InvalidMessage, match=r"serialize\(\) returned NoneType \(return a dict\)"):
        definition_of(Wrong).encode(Wrong(1))
    with pytest.raises(MessageDecodeError, match=r"deserialize\(\) returned dict \(return a Wrong\)"):
        definition_of(Wrong).decode(b"{}")
    with pytest.raises(MessageDecodeError, match=r"deserialize\(\) raised LookupError") as caught:
        definition_of(Wrong).decode(b'{"raise":1}')
    assert "geheim" not in str(caught.value)


def test_serialize_may_return_what_json_does_not_know() -> None:
    """Values that the codec knows are written as it writes them; others are refused by key."""

    class Loose(Command):
        a: Any

        def serialize(self) -> dict[str, Any]:
            return {"a": self.a}

    assert definition_of(Loose).encode(Loose({1, 2} and b"x")) == b'{"a":"eA=="}'
    with pytest.raises(InvalidMessage, match="values of type object cannot be encoded"):
        definition_of(Loose).encode(Loose(object()))
