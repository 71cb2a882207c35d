"""What type checkers must refuse. An error that disappears leaves an unused ignore, which mypy reports."""

from __future__ import annotations

from dataclasses import dataclass

from message_bus.commands import Command
from message_bus.events import Event
from message_bus.messages import Registry, definition_of, new_envelope


class ProcessOrder(Command):
    order_id: int


@dataclass(frozen=True, kw_only=True)
class Frozen(Event):
    order_id: int


class FrozenByKeyword(Event, frozen=True, kw_only=True):
    order_id: int


class NotAMessage:
    order_id: int


ProcessOrder()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
ProcessOrder("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ProcessOrder(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
ProcessOrder(oder_id=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Frozen(1)  # mypy lets it pass  # pyright: ignore[reportCallIssue]
Frozen(order_id=1).order_id = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
FrozenByKeyword(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
FrozenByKeyword(order_id=1).order_id = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
ProcessOrder.deserialize([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
definition_of(NotAMessage)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
new_envelope(NotAMessage())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Registry().register(NotAMessage)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Registry().upcast(ProcessOrder, from_version=1)(print)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


# mypy does not look at class keywords: these two are for pyright alone.
class WrongVersion(Event, version="2"):  # pyright: ignore[reportArgumentType]
    order_id: int


class UnknownOption(Event, nmae="x"):  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    order_id: int
