"""Which message types a bus knows (G7): those with handlers, those it was told, those it has put into an outbox itself."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from message_bus import (
    AsyncInMemoryOutBoxRepo,
    DispatchOutboxHandler,
    Event,
    InMemoryOutBoxRepo,
    InvalidMessage,
    MessageBus,
    UnknownMessageType,
)
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import OrderPaid, OrderPlaced, PlaceOrder


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


def _outbox(colour: Colour) -> Any:
    return AsyncInMemoryOutBoxRepo() if colour.is_async else InMemoryOutBoxRepo()


async def test_an_event_that_nobody_handles_is_passed_over_by_the_bus_that_registered_it(
    colour: Colour,
) -> None:
    """Its type is known then: the outbox handler decodes the row and finds nobody to give it to."""
    bus, outbox = colour.bus(), _outbox(colour)
    row = bus.register_outbox_message(outbox, OrderPlaced(1), key="a")
    assert (row.message, row.key, OrderPlaced in bus.registry) == ("OrderPlaced", "a", True)
    handler = DispatchOutboxHandler(bus)
    assert type(await colour.done(handler.handle(row, {}))).__name__ == "PassedOver"


async def test_a_bus_elsewhere_does_not_know_it(colour: Colour) -> None:
    """The class method tells no bus, and each bus has a registry of its own; `register_messages` tells it."""
    bus, outbox = colour.bus(), _outbox(colour)
    row = colour.make.register_outbox_message(outbox, OrderPlaced(1))
    handler = DispatchOutboxHandler(bus)
    with pytest.raises(UnknownMessageType):
        await colour.done(handler.handle(row, {}))
    bus.register_messages(OrderPlaced)
    assert type(await colour.done(handler.handle(row, {}))).__name__ == "PassedOver"


async def test_what_handlers_emit_into_an_outbox_is_known(colour: Colour) -> None:
    """Also by way of an outbox that a middleware has brought, and behind the outbox."""
    outbox = _outbox(colour)

    def bring(message: Any, context: Any) -> Any:
        return (yield message, {**context, "outbox": outbox})

    def emit(command: Any, context: Any) -> None:
        context.emit(OrderPlaced(1))

    for options, context in (({}, {"outbox": outbox}), ({"middleware": [bring]}, {})):
        bus = colour.bus(**options)
        bus.set_command_handler(PlaceOrder, emit)
        assert OrderPlaced not in bus.registry
        await colour.done(bus.handle(PlaceOrder(1), context=context))
        assert OrderPlaced in bus.registry


def test_what_was_refused_is_not_known(colour: Colour) -> None:
    """A message that cannot be stored tells nothing."""

    class Broken(Event):
        n: int

    bus = colour.bus()
    with pytest.raises(InvalidMessage):
        bus.register_outbox_message(_outbox(colour), Broken(None))  # type: ignore[arg-type]
    assert Broken not in bus.registry


def test_a_name_that_means_another_class_is_logged_and_registers(
    colour: Colour, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller's transaction goes on; the name keeps its meaning; one line for each class."""

    class Other(Event, name="OrderPaid"):
        n: int

    bus, outbox = colour.bus(), _outbox(colour)
    bus.register_messages(OrderPaid)
    with caplog.at_level(logging.WARNING, logger="message_bus"):
        for n in (1, 2):
            assert bus.register_outbox_message(outbox, Other(n)).message == "OrderPaid"
    assert bus.registry.get("OrderPaid") is OrderPaid
    [line] = [record.getMessage() for record in caplog.records]
    assert "'OrderPaid' means both" in line


def test_the_class_method_can_be_overridden() -> None:
    """`super()` works in a class method and in a method; the latter tells the bus."""

    class OfTheClass(MessageBus):
        @classmethod
        def register_outbox_message(cls, *args: Any, **kwargs: Any) -> Any:
            return super().register_outbox_message(*args, **kwargs)

    class OfTheInstance(MessageBus):
        def register_outbox_message(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            return super().register_outbox_message(*args, **kwargs)

    outbox = InMemoryOutBoxRepo()
    assert OfTheClass.register_outbox_message(outbox, OrderPlaced(1)).message == "OrderPlaced"
    assert OfTheClass().register_outbox_message(outbox, OrderPlaced(1)).message == "OrderPlaced"
    bus = OfTheInstance()
    bus.register_outbox_message(outbox, OrderPlaced(1))
    assert OrderPlaced in bus.registry
