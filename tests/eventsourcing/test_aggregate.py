# ruff: noqa: D102, D103  (what the classes under test are made of)
"""Aggregates: applying, replaying, versions, and classes that are put together wrongly."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from message_bus import (
    AggregateRoot,
    Command,
    Event,
    EventNotHandled,
    InMemoryEventStore,
    NotAMessage,
    SettingsError,
    WiringError,
    when,
)
from tests.eventsourcing.orders import (
    LineAdded,
    Order,
    OrderLost,
    OrderPaid,
    OrderPlaced,
    OrderViewed,
    Stage,
    an_order,
    state_of,
)


class Opened(Event):
    name: str = ""


class Moved(Event, name="aggregates.Moved"):
    steps: int = 1


class MovedEvent(Event):
    steps: int = 1


class HTTPCallMade(Event):
    pass


# --- applying ------------------------------------------------------------------------------------------------


def test_applying_records_and_changes_the_state() -> None:
    """In order, and the version counts."""
    order = an_order()
    order.pay(7)
    assert order.uncommitted_events == [OrderPlaced("o-1"), OrderPaid(Decimal(7))]
    assert (order.stage, order.paid, order.version, order.stored_version) == (Stage.PAID, Decimal(7), 2, 0)
    order.mark_committed()
    assert (order.uncommitted_events, order.version, order.stored_version) == ([], 2, 2)


def test_the_list_of_uncommitted_events_is_the_callers_own() -> None:
    """Emptying it loses nothing."""
    order = an_order()
    order.uncommitted_events.clear()
    assert len(order.uncommitted_events) == 1


def test_a_failing_handler_records_nothing() -> None:
    """What was not applied is not stored either; and the aggregate can go on."""

    class Door(AggregateRoot):
        def on_opened(self, event: Opened) -> None:
            if not event.name:
                raise ValueError("no name")

    door = Door("d")
    with pytest.raises(ValueError, match="no name"):
        door.apply(Opened())
    assert (door.version, door.uncommitted_events) == (0, [])
    door.apply(Opened(name="front"))
    assert door.version == 1


def test_an_event_without_handler_is_an_error() -> None:
    """It names what to do; events that are ignored on purpose are recorded and counted."""
    order = an_order()
    with pytest.raises(
        EventNotHandled, match=r"'Order' has no handler for event 'OrderLost' \(define on_order_lost"
    ):
        order.apply(OrderLost())
    assert order.version == 1
    order.apply(OrderViewed())
    assert (order.version, order.uncommitted_events[-1]) == (2, OrderViewed())


def test_what_is_ignored_is_inherited() -> None:
    """A derived class adds to it, and may handle what its base ignores."""

    class Careful(Order):
        ignores = (OrderLost,)

        def on_order_viewed(self, event: OrderViewed) -> None:
            self.order_id = "seen"

    careful = Careful()
    for event in (OrderPlaced("o-1"), OrderLost(), OrderViewed()):
        careful.apply(event)
    assert (careful.version, careful.order_id) == (3, "seen")


def test_only_events_are_applied() -> None:
    """No commands, no classes, nothing else."""

    class Open(Command):
        pass

    for wrong in (Open(), OrderPlaced, "placed"):
        with pytest.raises(NotAMessage):
            an_order().apply(wrong)  # type: ignore[arg-type]


def test_a_handler_that_applies_is_refused() -> None:
    """It would apply once more at each replay; the aggregate is usable afterwards."""

    class Twice(AggregateRoot):
        def on_opened(self, event: Opened) -> None:
            if event.name == "twice":
                self.apply(Moved())

        def on_moved(self, event: Moved) -> None: ...

    twice = Twice()
    with pytest.raises(WiringError, match="would again at each replay"):
        twice.apply(Opened(name="twice"))
    twice.apply(Opened(name="once"))
    assert twice.version == 1


# --- names -----------------------------------------------------------------------------------------------------


def test_names_of_handlers() -> None:
    """Snake case of the class name; a suffix Event may go; the exact name wins; a mark wins over names."""

    class Robot(AggregateRoot):
        def __init__(self) -> None:
            self.log: list[str] = []

        def on_moved(self, event: Moved) -> None:
            self.log.append("moved")

        def on_http_call_made(self, event: HTTPCallMade) -> None:
            self.log.append("http")

        @when(Opened)
        def whatever(self, event: Opened) -> None:
            self.log.append("marked")

    class Exact(Robot):
        def on_moved_event(self, event: MovedEvent) -> None:
            self.log.append("exact")

    class Derived(Exact):
        def on_opened(self, event: Opened) -> None:
            self.log.append("name")

    events = [Moved(), HTTPCallMade(), Opened()]
    robot, exact, derived = Robot(), Exact(), Derived()
    for event in events:
        for each in (robot, exact, derived):
            each.apply(event)
    robot.apply(MovedEvent())
    exact.apply(MovedEvent())
    assert robot.log == ["moved", "http", "marked", "moved"]
    assert exact.log == ["moved", "http", "marked", "exact"]
    assert derived.log == ["moved", "http", "marked"]


def test_a_misnamed_handler_is_an_error_at_the_class_statement() -> None:
    """An `on_...` method with an event's annotation must be called after it, here also for a class of a function."""

    class Local(Event):
        pass

    with pytest.raises(SettingsError) as caught:

        class Robot(AggregateRoot):
            def on_mooved(self, event: Moved) -> None: ...

            def on_locale(self, event: Local) -> None: ...

            def on_both(self, event: Moved | Opened) -> None: ...

    assert caught.value.problems == (
        "'on_mooved' would never be given a 'Moved' (call it 'on_moved', or mark it with @when(Moved))",
        "'on_locale' would never be given a 'Local' (call it 'on_local', or mark it with @when(Local))",
        "'on_both' takes several events (mark it with @when(Moved, Opened))",
    )


def test_methods_that_take_no_event_may_be_called_as_they_like() -> None:
    """`on_hold()`, `on_account(amount: int)`, a property, an event of whatever type."""

    class Account(AggregateRoot):
        on_time = True

        def on_hold(self) -> bool:
            return True

        def on_account(self, amount: int) -> None: ...

        def on_anything(self, event: Event) -> None: ...

        @property
        def on_duty(self) -> bool:
            return True

    assert Account().on_hold()


def test_an_unannotated_misspelt_handler_is_named_when_the_event_comes() -> None:
    """The error about the missing handler says which method may have been meant."""

    class Robot(AggregateRoot):
        def on_mooved(self, event):  # type: ignore[no-untyped-def]
            raise AssertionError

    with pytest.raises(EventNotHandled, match="did you mean 'on_mooved' to be it"):
        Robot().apply(Moved())


def test_what_else_is_refused_at_the_class_statement() -> None:
    """All problems at once: async and doubled handlers, commands, shared defaults, reserved names, wrong options."""

    class Open(Command):
        pass

    with pytest.raises(SettingsError) as caught:

        class Robot(AggregateRoot):
            version: int = 3
            items: list[str] = []  # noqa: RUF012
            limits: ClassVar[list[int]] = [1, 2]
            ignores = (Moved, int)
            snapshot_version = 0

            def on_moved(self, event: Moved) -> None: ...

            async def on_opened(self, event: Opened) -> None: ...

            @when(Open)
            def open(self, message: Open) -> None: ...

            @when(HTTPCallMade)
            def call(self, event: HTTPCallMade) -> None: ...

            def on_http_call_made(self, event: HTTPCallMade) -> None: ...

    text = str(caught.value)
    assert len(caught.value.problems) == 8, text
    for part in (
        "'version' is what AggregateRoot has for itself",
        "items = list(...) would be shared by all instances",
        "'Moved' is ignored, but has a handler",
        "ignores holds something that is no event class",
        "snapshot_version is not a number",
        "'on_opened' is async",
        "'open' takes 'Open', which is no event",
        "'call' and 'on_http_call_made' both take 'HTTPCallMade'",
    ):
        assert part in text


def test_an_async_handler_without_annotation_is_refused_when_its_event_comes() -> None:
    """Nobody would await it."""

    class Robot(AggregateRoot):
        async def on_moved(self, event):  # type: ignore[no-untyped-def]
            raise AssertionError

    with pytest.raises(SettingsError, match="'on_moved' is async"):
        Robot().apply(Moved())


# --- classes of every form -------------------------------------------------------------------------------------


class Plain(AggregateRoot):
    """No super().__init__()."""

    def __init__(self) -> None:
        self.steps = 0

    def on_moved(self, event: Moved) -> None:
        self.steps += event.steps


class Bare(AggregateRoot):
    """No __init__ at all."""

    steps = 0

    def on_moved(self, event: Moved) -> None:
        self.steps += event.steps


@dataclass
class AsDataclass(AggregateRoot):
    """Decorated."""

    steps: int = 0
    seen: list[int] = field(default_factory=list)

    def on_moved(self, event: Moved) -> None:
        self.steps += event.steps
        self.seen.append(event.steps)


@dataclass(slots=True)
class Slotted(AggregateRoot):
    """Made again by dataclass."""

    steps: int = 0

    def on_moved(self, event: Moved) -> None:
        self.steps += event.steps


FORMS: tuple[type[Any], ...] = (Plain, Bare, AsDataclass, Slotted)


@pytest.mark.parametrize("cls", FORMS)
def test_forms_of_classes(cls: type[Any]) -> None:
    """With and without __init__, dataclass and slots: applied, rebuilt from events, from a snapshot, copied and pickled."""
    robot = cls()
    robot.aggregate_id = "r-1"
    for steps in (1, 2):
        robot.apply(Moved(steps=steps))
    store = InMemoryEventStore()
    store.save("r-1", robot.uncommitted_events)
    again = cls.from_events(store.load("r-1"))
    assert (again.steps, again.version, again.aggregate_id, again.uncommitted_events) == (3, 2, "r-1", [])
    assert again.to_dict()["steps"] == 3
    twin = copy.deepcopy(robot)
    twin.apply(Moved())
    assert (robot.version, twin.version, len(twin.uncommitted_events)) == (2, 3, 3)
    assert pickle.loads(pickle.dumps(again)).steps == 3  # noqa: S301


def test_a_class_that_needs_arguments_says_so() -> None:
    """When it is loaded: with what to do. A TypeError of its own is its own."""

    class Needy(AggregateRoot):
        def __init__(self, name: str) -> None: ...

    class Broken(AggregateRoot):
        def __init__(self) -> None:
            raise TypeError("broken")

    class Eager(AggregateRoot):
        def __init__(self) -> None:
            self.apply(Moved())

        def on_moved(self, event: Moved) -> None: ...

    with pytest.raises(SettingsError, match="give each parameter of __init__ a default"):
        Needy.from_events([])
    with pytest.raises(TypeError, match="broken"):
        Broken.from_events([])
    with pytest.raises(SettingsError, match="its __init__ applies events"):
        Eager.from_events([])


def test_ids() -> None:
    """Given to the constructor or set by a handler; a text that is not empty; there is none before."""
    assert Bare("r-1").aggregate_id == "r-1"
    assert an_order("o-7").aggregate_id == "o-7"
    with pytest.raises(WiringError, match="no aggregate_id yet"):
        _ = Bare().aggregate_id
    for wrong in ("", 7, None):
        with pytest.raises(SettingsError):
            Bare().aggregate_id = wrong  # type: ignore[assignment]


def test_an_aggregate_shows_itself() -> None:
    """In a debugger: class, id, version; no state."""
    assert repr(Bare("r-1")) == "<Bare 'r-1' at version 0>"


# --- replaying -------------------------------------------------------------------------------------------------


def stored(*events: Event, stream: str = "o-1", store: InMemoryEventStore | None = None) -> list[Event]:
    store = store or InMemoryEventStore()
    store.save(stream, events)
    return store.load(stream)


def test_loaded_events_are_replayed_by_apply() -> None:
    """A loop that applies what a store has loaded records nothing, and can be followed by new events."""
    loaded = Order()
    for event in stored(OrderPlaced("o-1"), OrderPaid(Decimal(3))):
        loaded.apply(event)
    assert (loaded.paid, loaded.version, loaded.stored_version) == (Decimal(3), 2, 2)
    assert loaded.uncommitted_events == []
    loaded.ship()
    assert (loaded.version, loaded.stored_version, len(loaded.uncommitted_events)) == (3, 2, 1)


def test_replay_takes_recorded_events_as_well() -> None:
    """What `save` and `read_all` return; so does apply."""
    store = InMemoryEventStore()
    recorded = store.save("o-1", [OrderPlaced("o-1"), OrderPaid(Decimal(3))])
    order = Order()
    for each in recorded:
        order.apply(each)
    assert (order.version, order.uncommitted_events) == (2, [])
    assert Order.from_events(recorded).paid == Order.from_events(store.read_all()).paid == Decimal(3)


def test_no_events_make_a_new_aggregate() -> None:
    """At version 0."""
    assert (Order.from_events([]).version, Order.from_events([], "o-1").aggregate_id) == (0, "o-1")


def test_events_of_a_store_of_ones_own_are_replayed_without_checks() -> None:
    """They do not say where they come from."""
    order = Order.from_events([OrderPlaced("o-1"), OrderPaid(Decimal(1))])
    assert (order.version, order.uncommitted_events) == (2, [])


def test_an_event_that_is_missing_or_comes_twice_is_refused() -> None:
    """With the version that was wanted; what was replayed before counts."""
    events = stored(OrderPlaced("o-1"), OrderPaid(Decimal(3)), OrderPaid(Decimal(4)))
    order = Order.from_events(events[:1])
    with pytest.raises(WiringError, match=r"event 3 .* as number 2 .*from_version=1"):
        order.replay(events[2:])
    with pytest.raises(WiringError, match="event 1 of"):
        order.apply(events[0])
    with pytest.raises(WiringError, match=r"event 3 .* as number 2"):
        Order().replay([events[0], events[2]])
    assert order.version == 1
    order.replay(events[1:])
    assert (order.version, order.paid) == (3, Decimal(7))


def test_an_event_of_another_stream_is_refused() -> None:
    """It is another aggregate's; made anew, it may be applied."""
    [foreign] = stored(OrderPaid(Decimal(3)), stream="o-2")
    for order in (Order.from_events(stored(OrderPlaced("o-1"))), Order.from_events([], "o-1")):
        with pytest.raises(WiringError, match="'o-2'"):
            order.apply(foreign)
        order.apply(OrderPaid(Decimal(3)))


def test_nothing_is_replayed_over_uncommitted_events() -> None:
    """The stored ones come first."""
    order = an_order()
    with pytest.raises(WiringError, match="uncommitted"):
        order.replay(stored(OrderPlaced("o-1")))
    order.pay(1)


def test_a_failing_replay_counts_what_it_has_replayed() -> None:
    """An unknown event in the middle: the version is that of the state."""
    order = Order()
    with pytest.raises(EventNotHandled):
        order.replay(stored(OrderPlaced("o-1"), OrderLost(), OrderPaid(Decimal(1))))
    assert (order.version, order.order_id) == (1, "o-1")


# --- nothing is aliased ------------------------------------------------------------------------------------------


class Filled(Event):
    items: list[str]


class Basket(AggregateRoot):
    """Takes the event's list as it is, and goes on filling it."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def on_filled(self, event: Filled) -> None:
        self.items = event.items

    def on_moved(self, event: Moved) -> None:
        self.items.append("moved")


def test_state_events_and_caller_share_no_objects() -> None:
    """What is recorded stays what was applied, whatever state, caller and reader do with their lists afterwards."""
    given = Filled(items=["a"])
    basket = Basket()
    basket.apply(given)
    basket.apply(Moved())
    given.items.append("b")
    assert basket.uncommitted_events[0] == Filled(items=["a"])
    assert basket.items == ["a", "moved"]


def test_immutable_events_are_recorded_as_they_are() -> None:
    """Nothing is copied where nothing could change."""
    event = OrderPlaced("o-1")
    order = Order()
    order.apply(event)
    assert order.uncommitted_events[0] is event


def test_an_order_and_its_replay_are_the_same() -> None:
    """Every handler once, live and from events."""
    order = an_order(lines=3)
    order.pay(2)
    order.ship()
    assert state_of(Order.from_events(order.uncommitted_events)) == state_of(order)
    assert [type(event) for event in order.uncommitted_events].count(LineAdded) == 3
