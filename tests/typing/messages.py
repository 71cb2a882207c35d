"""Messages as type checkers see them: mypy and pyright read this file, nothing runs it.

A line that must be refused carries a `type: ignore`; both report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from dataclasses import dataclass
from typing import Any, assert_type

import message_bus
from message_bus import Command, Event

assert_type(message_bus.__version__, str)


class ProcessOrder(Command):
    """The undecorated form: the base class is a dataclass_transform."""

    order_id: int
    note: str = ""


class OrderPlaced(Event, name="orders.placed", version=2, key="order_id"):
    """With class arguments."""

    order_id: int


@dataclass(frozen=True, kw_only=True)
class OrderPaid(Event):
    """The decorated form."""

    order_id: int


assert_type(ProcessOrder(order_id=1).order_id, int)
assert_type(ProcessOrder(1, note="x").note, str)
assert_type(OrderPlaced(order_id=1).order_id, int)
assert_type(OrderPaid(order_id=1).serialize(), dict[str, Any])
assert_type(OrderPaid.deserialize({"order_id": 1}), OrderPaid)

ProcessOrder()  # type: ignore[call-arg]
ProcessOrder(order_id="1")  # type: ignore[arg-type]
ProcessOrder(order=1)  # type: ignore[call-arg]
