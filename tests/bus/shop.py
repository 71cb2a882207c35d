"""Messages that the tests of the bus share."""

from __future__ import annotations

from message_bus.messages.message import Command, Event


class PlaceOrder(Command):
    order_id: int = 1


class CancelOrder(Command):
    order_id: int = 1


class OrderPlaced(Event):
    order_id: int = 1


class OrderPaid(Event):
    order_id: int = 1


class OrderShipped(Event, key="order_id"):
    order_id: int = 1
