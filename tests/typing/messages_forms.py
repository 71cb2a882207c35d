"""What type checkers make of message classes. Never run: checked by mypy --strict and pyright."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, assert_type
from uuid import UUID

from message_bus.commands import Command
from message_bus.events import Event
from message_bus.messages import (
    Envelope,
    Registry,
    child_headers,
    definition_of,
    key_hash,
    new_envelope,
    uuid7,
)
from message_bus.types import Message


class ProcessOrder(Command):
    order_id: int
    tags: list[str] = field(default_factory=list[str])


class OrderPlaced(Event, name="orders.placed", version=2, key="order_id", renamed_from=("OrderMade",)):
    order_id: int


def key_of(message: OrderPlaced) -> int:
    """Return what orders messages."""
    return message.order_id


class Keyed(OrderPlaced, key=key_of, renamed_from="Other", frozen=False, kw_only=True):
    more: str


@dataclass
class Decorated(Command):
    order_id: int


@dataclass(frozen=True, kw_only=True)
class Frozen(Event):
    order_id: int


@dataclass(slots=True)
class Slotted(Event):
    order_id: int

    def __post_init__(self) -> None:
        super().__post_init__()


class FrozenByKeyword(Event, frozen=True):
    order_id: int


class ByHand(Command):
    def __init__(self, data: str) -> None:
        self.data = data


class AsInTheAncestorsDocumentation(Message):
    name: str
    value: int

    def serialize(self) -> dict:  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        return super().serialize()

    @classmethod
    def deserialize(cls, data: dict) -> AsInTheAncestorsDocumentation:  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        return super().deserialize(data)  # pyright: ignore[reportUnknownArgumentType]


class Typed(Event):
    name: str

    def serialize(self) -> dict[str, Any]:
        return super().serialize()

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        return super().deserialize(data)


ProcessOrder(1)
ProcessOrder(order_id=1, tags=["x"])
Keyed(1, more="x")
Decorated(1)
Frozen(order_id=1)
Slotted(1)
FrozenByKeyword(1)
ByHand("x")

assert_type(ProcessOrder(1).order_id, int)
assert_type(ProcessOrder(1).tags, list[str])
assert_type(OrderPlaced.deserialize({"order_id": 1}), OrderPlaced)
assert_type(OrderPlaced(1).serialize(), dict[str, Any])
assert_type(dataclasses.replace(ProcessOrder(1), order_id=2), ProcessOrder)
assert_type(dataclasses.asdict(ProcessOrder(1)), dict[str, Any])
assert_type(Keyed.deserialize({}).order_id, int)


def describe(message: Message) -> str:
    match message:
        case ProcessOrder(order_id):
            assert_type(order_id, int)
            return str(order_id)
        case OrderPlaced(order_id=order_id):
            return str(order_id)
        case _:
            return message.__class__.__name__


definition = definition_of(OrderPlaced)
assert_type(definition.check(OrderPlaced(1)), bytes)
assert_type(definition.decode(b"{}"), Message)
assert_type(definition.key_of(OrderPlaced(1)), str | None)

registry = Registry()
registry.register(OrderPlaced, ProcessOrder)
assert_type(registry.get("x"), type[Message] | None)
assert_type(registry.decode("x", 1, b"{}"), Message)


@registry.upcast(OrderPlaced, from_version=1)
def upcast(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


assert_type(upcast({}), dict[str, Any])
assert_type(list(registry), list[type[Message]])

envelope = new_envelope(OrderPlaced(1), meta={"a": 1}, headers={"b": "c"})
assert_type(envelope, Envelope)
assert_type(envelope.correlation_id, str | None)
assert_type(child_headers(envelope), dict[str, str])
assert_type(uuid7(), UUID)
assert_type(key_hash("x"), int)
