"""Modules: parts of an application that register their own handlers."""

from __future__ import annotations

from typing import Any

import pytest

from message_bus import CommandHandler, Module, SettingsError
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import OrderPlaced, PlaceOrder


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


class _Place(CommandHandler[PlaceOrder]):
    def __init__(self, bus: Any, store: dict[str, Any]) -> None:
        self.bus, self.store = bus, store

    def handle(self, command: PlaceOrder) -> None:
        self.store["order"] = command.order_id
        self.emit_message(OrderPlaced(command.order_id))


class _Orders(Module):
    def __init__(self) -> None:
        self.mails: list[OrderPlaced] = []

    def register(self, bus: Any, store: Any) -> None:
        bus.subscribe(PlaceOrder, _Place(bus, store))
        bus.subscribe(OrderPlaced, self._send_mail)

    def _send_mail(self, event: OrderPlaced) -> None:
        self.mails.append(event)


async def test_a_module_registers_its_handlers(colour: Colour) -> None:
    """On any bus, with whatever its handlers keep their data in."""
    bus, module, store = colour.bus(), _Orders(), dict[str, Any]()
    module.register(bus, store)
    await colour.done(bus.publish(PlaceOrder(7)))
    assert (store, module.mails) == ({"order": 7}, [OrderPlaced(7)])


def test_a_module_that_is_registered_twice_is_noticed(colour: Colour) -> None:
    """Its commands have their handlers already; its events are not handled twice then."""
    bus, module = colour.bus(), _Orders()
    module.register(bus, {})
    with pytest.raises(SettingsError, match=r"'PlaceOrder'.*has a handler already"):
        module.register(bus, {})
    assert len(bus.get_event_handlers(OrderPlaced)) == 1


async def test_modules_share_a_bus(colour: Colour) -> None:
    """Each event reaches the handlers of all, in the order in which the modules were registered."""
    seen: list[str] = []

    class Listens(Module):
        def __init__(self, name: str) -> None:
            self.name = name

        def register(self, bus: Any, store: Any) -> None:
            bus.subscribe(OrderPlaced, lambda event: seen.append(self.name))

    bus = colour.bus()
    for module in (_Orders(), Listens("a"), Listens("b")):
        module.register(bus, {})
    await colour.done(bus.publish(PlaceOrder()))
    assert seen == ["a", "b"]


def test_a_module_must_say_what_it_registers() -> None:
    """`register` is abstract."""
    with pytest.raises(TypeError, match="register"):
        Module()  # type: ignore[abstract]
