"""What mypy must refuse and pyright lets pass. An error that disappears leaves an unused ignore, which mypy reports."""

from __future__ import annotations

from dataclasses import dataclass

from message_bus import Command, CommandHandler, Event


class ProcessOrder(Command):
    order_id: int


# pyright sees frozen and kw_only in the class statement alone: class Frozen(Event, frozen=True, kw_only=True).
@dataclass(frozen=True)
class Frozen(Event):
    order_id: int


Frozen(order_id=1).order_id = 2  # type: ignore[misc]


# To pyright a base that takes *args: Any, **kwargs: Any may be overridden with anything.
class HandlesSomethingElse(CommandHandler[ProcessOrder]):
    def handle(self, command: Frozen) -> int:  # type: ignore[override]
        return command.order_id
