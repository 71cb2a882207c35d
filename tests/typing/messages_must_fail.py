"""What type checkers must refuse. An error that disappears leaves an unused ignore, which mypy reports."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from message_bus.commands import Command
from message_bus.events import Event
from message_bus.messages import Registry, definition_of, new_envelope


class ProcessOrder(Command):
    order_id: int


class FrozenByKeyword(Event, frozen=True, kw_only=True):
    order_id: int


class NotAMessage:
    order_id: int


ProcessOrder()  # type: ignore[call-arg]
ProcessOrder("1")  # type: ignore[arg-type]
ProcessOrder(1, 2)  # type: ignore[call-arg]
ProcessOrder(oder_id=1)  # type: ignore[call-arg]
FrozenByKeyword(1)  # type: ignore[call-arg]
FrozenByKeyword(order_id=1).order_id = 2  # type: ignore[misc]
ProcessOrder.deserialize([1])  # type: ignore[arg-type]
definition_of(NotAMessage)  # type: ignore[arg-type]
new_envelope(NotAMessage())  # type: ignore[arg-type]
Registry().register(NotAMessage)  # type: ignore[arg-type]
Registry().upcast(ProcessOrder, from_version=1)(print)  # type: ignore[type-var]


# mypy does not look at class keywords: these two are for pyright alone.
class WrongVersion(Event, version="2"):  # pyright: ignore[reportArgumentType]
    order_id: int


class UnknownOption(Event, nmae="x"):  # pyright: ignore[reportGeneralTypeIssues]
    order_id: int
