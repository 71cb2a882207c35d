"""`AggregateScenario`: what it accepts, what it refuses, and how it says so."""

from __future__ import annotations

from decimal import Decimal

import pytest

from message_bus import AggregateRoot, Event, EventNotHandled, InvalidMessage
from message_bus.testing import AggregateScenario
from tests.eventsourcing.orders import (
    Order,
    OrderLost,
    OrderPaid,
    OrderPlaced,
    OrderShippedEvent,
    OrderViewed,
    ShippedTwice,
)

placed = AggregateScenario(Order).given(OrderPlaced("o-1"))
shipped = placed.given(OrderShippedEvent("dhl"))


def test_events_that_come_of_a_call() -> None:
    """Of a new aggregate, and of one with a history; result and aggregate are at hand."""
    AggregateScenario(Order).when(lambda order: order.place("o-1")).then(OrderPlaced("o-1"))
    outcome = placed.when(lambda order: order.ship("dhl")).then(OrderShippedEvent("dhl"))
    assert outcome.aggregate.carriers == {"dhl"}
    assert (outcome.result, outcome.error) == (None, None)
    assert placed.when(lambda order: order.version).then_nothing().result == 1


def test_an_error_that_comes_of_a_call() -> None:
    """Of a type, with a text; and nothing else is taken for it."""
    again = shipped.when(lambda order: order.ship())
    again.then_raises(ShippedTwice, match="on its way").then_raises(Exception)
    with pytest.raises(AssertionError, match="should match 'lost', but its text is 'it is on its way'"):
        again.then_raises(ShippedTwice, match="lost")
    with pytest.raises(ShippedTwice):
        again.then_raises(KeyError)
    with pytest.raises(ShippedTwice):
        again.then(OrderShippedEvent())
    with pytest.raises(ShippedTwice):
        again.then_nothing()


def test_no_error_where_one_is_expected() -> None:
    """The failure shows what was applied instead."""
    with pytest.raises(AssertionError) as caught:
        placed.when(lambda order: order.ship()).then_raises(ShippedTwice)
    assert str(caught.value) == (
        "ShippedTwice should have been raised, but these were applied:\n"
        "    OrderShippedEvent\n"
        "        carrier = 'post'"
    )


def test_other_events_are_shown_side_by_side() -> None:
    """By field names, with a mark at what differs."""

    def pay_and_ship(order: Order) -> None:
        order.pay(2)
        order.ship("dhl")

    with pytest.raises(AssertionError) as caught:
        placed.when(pay_and_ship).then(OrderPaid(Decimal(1)), OrderLost(), OrderLost())
    assert str(caught.value) == (
        "expected\n"
        "    OrderPaid\n"
        "  !     amount = Decimal('1')\n"
        "  ! OrderLost\n"
        "  ! OrderLost\n"
        "but there came\n"
        "    OrderPaid\n"
        "  !     amount = Decimal('2')\n"
        "  ! OrderShippedEvent\n"
        "        carrier = 'dhl'"
    )
    with pytest.raises(AssertionError, match="nothing\nbut there came\n  ! OrderShippedEvent"):
        placed.when(lambda order: order.ship()).then_nothing()
    with pytest.raises(AssertionError, match="but there came\n    nothing"):
        placed.when(lambda order: None).then(OrderLost())


def test_a_change_without_an_event_is_found() -> None:
    """It would be gone after the next load: the ancestor's documents do it."""

    class Careless(Order):
        def cancel(self) -> None:
            self.carriers.add("nobody")
            self.paid = Decimal(-1)
            self.apply(OrderViewed())

    careless = AggregateScenario(Careless).given(OrderPlaced("o-1")).when(lambda order: order.cancel())
    with pytest.raises(
        AssertionError, match=r"Careless\.paid, Careless\.carriers: not the same after a replay"
    ):
        careless.then(OrderViewed())


def test_a_handler_that_depends_on_more_than_its_event_is_found() -> None:
    """A counter outside of the aggregate, a clock: the replay comes to another state."""
    calls: list[int] = []

    class Restless(AggregateRoot):
        calls = 0

        def on_order_lost(self, event: OrderLost) -> None:
            calls.append(1)
            self.calls = len(calls)

    with pytest.raises(AssertionError, match=r"Restless\.calls"):
        AggregateScenario(Restless).when(lambda it: it.apply(OrderLost())).then(OrderLost())


def test_scenarios_go_on_from_each_other() -> None:
    """Each step is a new one; what one call does is not seen by the next."""
    placed.when(lambda order: order.ship()).then(OrderShippedEvent())
    placed.when(lambda order: order.ship()).then(OrderShippedEvent())
    assert shipped.when(lambda order: order.version).result == 2


def test_ids() -> None:
    """What a handler sets, else what is given, else aggregate-1."""

    class Nameless(AggregateRoot):
        def on_order_lost(self, event: OrderLost) -> None:
            assert self.aggregate_id

    assert placed.when(lambda order: order.aggregate_id).result == "o-1"
    for scenario, expected in (
        (AggregateScenario(Nameless, "n-7"), "n-7"),
        (AggregateScenario(Nameless), "aggregate-1"),
    ):
        assert scenario.given(OrderLost()).when(lambda it: it.aggregate_id).result == expected


def test_events_must_be_storable_and_known() -> None:
    """What no store would take is refused, given or applied; so is an event without handler."""

    class Loose(AggregateRoot):
        def on_order_paid(self, event: OrderPaid) -> None: ...

    nothing: Event = OrderPaid(amount=None)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="amount"):
        AggregateScenario(Loose).given(nothing)
    with pytest.raises(InvalidMessage, match="amount"):
        AggregateScenario(Loose).when(lambda it: it.apply(nothing)).then(nothing)
    with pytest.raises(EventNotHandled):
        AggregateScenario(Loose).given(OrderLost()).when(lambda it: None)
