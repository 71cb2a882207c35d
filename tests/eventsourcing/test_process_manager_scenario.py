"""Process managers without a database: what a class may say, what a method may do, and the scenarios that show it."""

# ruff: noqa: RUF012  (what a class declares is copied for each process, or only read)

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID

import pytest

from message_bus import Command, Event, NotAMessage, Query, Reject, RetryLater, SettingsError, Subscription
from message_bus.bus.context import Context
from message_bus.errors import WiringError
from message_bus.eventsourcing.processes.process_manager import ProcessManager
from message_bus.eventsourcing.when import when
from message_bus.testing.process_manager_scenario import ProcessManagerScenario


class OrderPlaced(Event):
    """Begins a process."""

    order_id: int


class OrderPaid(Event):
    """Ends it."""

    order_id: int


class Overdue(Event):
    """Its timeout."""

    order_id: int


class Ship(Command):
    """What it sends."""

    order_id: int


class Ask(Query):
    """What it cannot send."""


DAY = timedelta(days=1)


class Fulfilment(ProcessManager):
    """Ships what is paid within a day."""

    correlate = {OrderPlaced: "order_id", OrderPaid: "order_id", Overdue: "order_id"}
    timeouts = (Overdue,)
    placed_times: int = 0

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced) -> None:
        """Wait a day."""
        self.placed_times += 1
        self.timeout_in(DAY, Overdue(order_id=event.order_id))

    @when(OrderPaid)
    def was_paid(self, event: OrderPaid) -> None:
        """Ship it."""
        assert self.key == str(event.order_id)
        self.send(Ship(order_id=event.order_id))
        self.complete()

    @when(Overdue)
    def overdue(self, event: Overdue) -> None:
        """Forget it."""
        self.complete()


# --- scenarios ----------------------------------------------------------------------------------------------------------


def test_a_scenario() -> None:
    """Given, when, then: what is sent, what is asked for, whether it has completed, and the state."""
    (
        ProcessManagerScenario(Fulfilment)
        .when(OrderPlaced(order_id=7))
        .then_sends()
        .then_timeouts((DAY, Overdue(order_id=7)))
        .then_state(placed_times=1)
        .then_completed(completed=False)
    )
    (
        ProcessManagerScenario(Fulfilment())
        .given(OrderPlaced(order_id=7), OrderPlaced(order_id=8), OrderPlaced(order_id=7))
        .when(OrderPaid(order_id=7))
        .then_sends(Ship(order_id=7))
        .then_timeouts()
        .then_state(placed_times=2)
        .then_completed()
        .when(Overdue(order_id=7))
        .then_sends(Ship(order_id=7))
        .then_completed()
    )


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda scenario: scenario.then_sends(Ship(order_id=8)), "sent .*order_id=7.*not .*order_id=8"),
        (lambda scenario: scenario.then_timeouts((DAY, Overdue(order_id=7))), r"timeouts \[\], not"),
        (lambda scenario: scenario.then_completed(completed=False), "the process has completed"),
        (lambda scenario: scenario.then_state(placed_times=3), "'placed_times': 0"),
    ],
)
def test_a_scenario_can_fail(check: Any, said: str) -> None:
    """Each `then_...` fails with both sides in its text."""
    scenario = ProcessManagerScenario(Fulfilment).when(OrderPaid(order_id=7))
    with pytest.raises(AssertionError, match=said):
        check(scenario)


def test_a_scenario_without_anything() -> None:
    """Nothing has happened: there is no process to speak of."""
    with pytest.raises(AssertionError, match="nothing has happened"):
        ProcessManagerScenario(Fulfilment).then_completed()
    with pytest.raises(AssertionError, match="the process has not completed"):
        ProcessManagerScenario(Fulfilment).when(OrderPlaced(order_id=1)).then_completed()
    with pytest.raises(WiringError, match="takes no 'Ship'"):
        ProcessManagerScenario(Fulfilment).when(Ship(order_id=1))


# --- state --------------------------------------------------------------------------------------------------------------


class Colour(Enum):
    """An enumeration in the state."""

    RED = "red"


@dataclass
class Item:
    """A nested value of the state."""

    name: str
    on: date | None = None


def test_state_of_many_types_is_kept() -> None:
    """Whatever a message may hold, state may hold; defaults are copied, not shared."""

    @dataclass
    class Local:
        """Known to this function alone."""

        n: int

    class Rich(ProcessManager):
        """Has a bit of everything."""

        correlate = {OrderPlaced: "order_id", OrderPaid: "order_id"}
        limit: ClassVar[int] = 3
        items: list[Item] = []
        by_id: dict[UUID, int] = {}
        tags: set[str] = {"new"}
        colour: Colour | None = None
        raw: bytes = b""
        local: Local = Local(0)

        @when(OrderPlaced)
        def fill(self, event: OrderPlaced) -> None:
            """Fill it."""
            self.items.append(Item("x", date(2026, 1, 2)))
            self.by_id[UUID(int=1)] = 1
            self.tags.add("placed")
            self.colour = Colour.RED
            self.raw = b"\x00\xff"
            self.local.n += 1

        @when(OrderPaid)
        def check(self, event: OrderPaid) -> None:
            """See what is left of it."""

    filled = ProcessManagerScenario(Rich).when(OrderPlaced(order_id=1)).when(OrderPaid(order_id=1))
    filled.then_state(
        items=[Item("x", date(2026, 1, 2))],
        by_id={UUID(int=1): 1},
        tags={"new", "placed"},
        colour=Colour.RED,
        raw=b"\x00\xff",
        local=Local(1),
    )
    ProcessManagerScenario(Rich).when(OrderPaid(order_id=1)).then_state(
        items=[], tags={"new"}, local=Local(0)
    )
    assert Rich.items == []
    assert Rich.limit == 3


def handling(method: Any, **attributes: Any) -> ProcessManager:
    """A manager with this method for OrderPlaced."""
    annotations = {name: type(value) for name, value in attributes.items()}
    namespace = {
        "correlate": {OrderPlaced: "order_id", Overdue: "order_id"},
        "placed": when(OrderPlaced)(method),
        "__annotations__": annotations,
        "__module__": __name__,
        **attributes,
    }
    made: ProcessManager = type("Made", (ProcessManager,), namespace)()
    return made


def _sets_undeclared(self: Any, event: Any) -> None:
    self.forgotten = 1


def _sets_wrong_type(self: Any, event: Any) -> None:
    self.count = None


def _sets_unstorable(self: Any, event: Any) -> None:
    self.count = object()


def _asks(self: Any, event: Any) -> None:
    self.send(Ask())


def _sends_anything(self: Any, event: Any) -> None:
    self.send(3)


def _unknown_timeout(self: Any, event: Any) -> None:
    self.timeout_in(DAY, Overdue(order_id=event.order_id))


async def _later() -> None:
    """Not to be awaited by anybody."""


def _returns_awaitable(self: Any, event: Any) -> Any:
    return _later()


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        (
            _sets_undeclared,
            WiringError,
            "'forgotten' is set in a @when method, but is no state, and would be lost",
        ),
        (_sets_wrong_type, WiringError, "'count' does not fit its annotation: expected `int`, got `null`"),
        (_sets_unstorable, WiringError, "count: values of type object cannot be encoded"),
        (_asks, TypeError, "query 'Ask' cannot be emitted or stored"),
        (_sends_anything, NotAMessage, "'int' is not a message"),
        (
            _unknown_timeout,
            WiringError,
            "'Overdue' is no timeout of process manager 'Made' (give an Event that",
        ),
        (_returns_awaitable, WiringError, "returned an awaitable"),
    ],
)
def test_what_a_method_must_not_do(method: Any, error: type[Exception], said: str) -> None:
    """What would be lost, or could not be stored or sent, is refused while it is in hand."""
    with pytest.raises(error) as caught:
        ProcessManagerScenario(handling(method, count=0)).when(OrderPlaced(order_id=1))
    assert said in str(caught.value)


def test_a_timeout_of_another_process() -> None:
    """A timeout that would arrive elsewhere is refused, and so is a delay that is none."""

    class Wrong(Fulfilment):
        """Mixes its orders up."""

        delay: ClassVar[Any] = DAY

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """Wait for another order."""
            self.timeout_in(self.delay, Overdue(order_id=event.order_id + 1))

    with pytest.raises(WiringError, match="belongs to another process than the one in hand"):
        ProcessManagerScenario(Wrong).when(OrderPlaced(order_id=1))
    Wrong.delay = timedelta(-1)
    with pytest.raises(SettingsError, match="not negative"):
        ProcessManagerScenario(Wrong).when(OrderPlaced(order_id=1))


@pytest.mark.parametrize("use", ["key", "send", "timeout_in", "complete"])
def test_outside_of_a_method(use: str) -> None:
    """There is no process in hand."""
    manager = Fulfilment()
    arguments: dict[str, tuple[Any, ...]] = {
        "send": (Ship(order_id=1),),
        "timeout_in": (DAY, Overdue(order_id=1)),
    }
    with pytest.raises(WiringError, match="no message is in hand"):
        getattr(manager, use)(*arguments.get(use, ()))


def test_a_failed_message_leaves_nothing_in_the_manager() -> None:
    """One manager serves all processes, and all threads: nothing of one message is left for the next."""

    def fails(self: Any, event: Any) -> None:
        self.count += 1
        raise ValueError("no")

    manager = handling(fails, count=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            ProcessManagerScenario(manager).when(OrderPlaced(order_id=1))
    assert vars(manager).keys() == {"registry"}


def test_dependencies_of_a_manager() -> None:
    """What `__init__` sets is at hand in methods, but not to be replaced there."""

    class Priced(ProcessManager):
        """Knows prices."""

        correlate = {OrderPlaced: "order_id"}

        def __init__(self, prices: dict[int, int]) -> None:
            super().__init__()
            self.prices = prices

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """Ship what is cheap."""
            if self.prices[event.order_id] < 10:
                self.send(Ship(order_id=event.order_id))
            else:
                self.prices = {}

    ProcessManagerScenario(Priced({1: 5})).when(OrderPlaced(order_id=1)).then_sends(Ship(order_id=1))
    with pytest.raises(WiringError, match="'prices' is set in a @when method"):
        ProcessManagerScenario(Priced({1: 50})).when(OrderPlaced(order_id=1))


def test_state_that_cannot_be_read() -> None:
    """State of a newer version waits for a newer process; state that does not fit says what to do."""
    manager = Fulfilment()
    context = Context()
    with pytest.raises(RetryLater, match="written by a newer version"):
        manager.react(OrderPlaced(order_id=1), {}, 2, context)
    with pytest.raises(WiringError, match=r"'placed_times' does not fit.*override upgrade_state"):
        manager.react(OrderPlaced(order_id=1), {"placed_times": "many"}, 1, context)
    gone = manager.react(OrderPlaced(order_id=1), {"placed_times": 1, "gone": 2}, 1, context)
    assert gone.data == {"placed_times": 2}


@pytest.mark.parametrize(
    ("annotation", "default", "said"),
    [
        ("Missing", 0, "its annotation names 'Missing', which its module does not have"),
        (int, None, "'count' does not fit its annotation: expected `int`, got `null`"),
        (object, object(), "count: values of type object cannot be encoded"),
    ],
)
def test_state_that_no_process_could_have(annotation: Any, default: Any, said: str) -> None:
    """A default that does not fit, or a type that cannot be found, shows when the manager is made."""
    namespace = {**WHOLE, "__annotations__": {"count": annotation}, "__module__": __name__, "count": default}
    made = type("Made", (ProcessManager,), namespace)
    with pytest.raises(WiringError) as caught:
        made()
    assert said in str(caught.value)


# --- correlation --------------------------------------------------------------------------------------------------------


class Coloured(Event):
    """Correlated by all kinds of things."""

    by: Any = None


@pytest.mark.parametrize(
    ("value", "key"), [(7, "7"), ("x", "x"), (Colour.RED, "red"), (UUID(int=3), str(UUID(int=3))), (0, "0")]
)
def test_keys(value: object, key: str) -> None:
    """A key is text; of an enumeration its value."""
    made = handling(_sends_anything)
    plan: Any = type(made)._plan
    plan.correlate[Coloured] = "by"
    assert plan.key_of(Coloured(by=value)) == key


def test_messages_in_all_their_forms() -> None:
    """Fields are found in decorated messages, inherited ones, and those with an `__init__` of their own."""

    class ByHand(Event):
        """Sets what it likes."""

        def __init__(self, order: int) -> None:
            self.order_id = order

    @dataclass(frozen=True, kw_only=True)
    class Decorated(Event):
        """A dataclass."""

        order_id: int

    class Inheriting(OrderPlaced):
        """Has its field from its base."""

    class Mixed(ProcessManager):
        """Takes them all."""

        correlate = {ByHand: "order_id", Decorated: "order_id", Inheriting: "order_id"}
        seen: int = 0

        @when(ByHand, Decorated, Inheriting)
        def any_of_them(self, event: Any) -> None:
            """Count."""
            self.seen += 1

    events = (ByHand(7), Decorated(order_id=7), Inheriting(order_id=7))
    ProcessManagerScenario(Mixed).when(*events).then_state(seen=3)


def test_messages_of_no_process() -> None:
    """No value, no process; nor if it cannot be read. The text names types, not values."""
    plan: Any = type(handling(_sends_anything))._plan
    plan.correlate[Coloured] = lambda message: message.by["secret"]
    for value in (None, {"secret": None}, {"secret": ""}):
        with pytest.raises(Reject) as caught:
            plan.key_of(Coloured(by=value))
        assert "'Coloured'" in str(caught.value)
        assert "secret" not in str(caught.value)


# --- classes that are refused -------------------------------------------------------------------------------------------


def _plain(self: Any, event: Any) -> None:
    """A method."""


async def _async(self: Any, event: Any) -> None:
    """An async method."""


def _generator(self: Any, event: Any) -> Any:
    yield 1


def _too_many(self: Any, event: Any, context: Any, more: Any) -> None:
    """One parameter too many."""


WHOLE: dict[str, Any] = {"correlate": {OrderPlaced: "order_id"}, "placed": when(OrderPlaced)(_plain)}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"correlate": {}},
            "@when takes 'OrderPlaced', but correlate does not say which process it belongs to",
        ),
        ({"correlate": {OrderPlaced: "order"}}, "'OrderPlaced' has no field 'order'"),
        ({"placed": when(OrderPlaced)(_async)}, "is async: it decides and does no I/O"),
        ({"placed": when(OrderPlaced)(_generator)}, "is a generator"),
        ({"placed": when(OrderPlaced)(_too_many)}, "must take (self, event) or (self, event, context)"),
        ({"timeouts": (Overdue,)}, "timeout 'Overdue' has no method"),
        ({"timeouts": (Ship,)}, "timeout 'Ship' is no Event"),
        ({"timeouts": (OrderPlaced,)}, "nothing but timeouts is handled"),
        ({"__annotations__": {"count": int}}, "state 'count' has no default"),
        ({"__annotations__": {"send": int}, "send": 0}, "'send' is no name for state"),
        (
            {"__annotations__": {"count": int}, "count": field(default=0)},
            "state 'count': write the default itself",
        ),
        ({"log": "inbox"}, "log 'inbox' is unknown"),
        ({"subscription": Subscription(mode="concurrent")}, "mode='concurrent' would save its state apart"),
        ({"subscription": Subscription(types=[OrderPlaced])}, "types= is what its @when methods take"),
    ],
)
def test_classes_that_are_refused(changes: dict[str, Any], problem: str) -> None:
    """What is wrong with a class is said at its definition."""
    with pytest.raises(SettingsError, match="process manager 'Made'") as caught:
        type("Made", (ProcessManager,), {**WHOLE, **changes})
    assert problem in str(caught.value)


def test_a_manager_that_handles_nothing() -> None:
    """A class without methods may be a base for others, but cannot be used itself."""

    class Base(ProcessManager):
        """For others."""

    with pytest.raises(SettingsError, match="it handles nothing"):
        Base()


def test_names_and_subscriptions() -> None:
    """The name is that of the rows and the subscription; a derived class has its own, and the other settings of its base."""

    class Named(Fulfilment):
        """Has a name."""

        name = "named"
        subscription = Subscription(messages_per_commit=10)

    class Derived(Named):
        """Does not inherit it."""

    def of(manager: ProcessManager) -> Subscription:
        assert manager.subscription is not None
        return manager.subscription

    assert isinstance(Named.timeouts, tuple)
    assert (of(Named()).name, of(Named()).types) == ("named", (OrderPlaced, OrderPaid))
    assert (Derived.name, of(Derived()).name, of(Derived()).messages_per_commit) == ("Derived", "Derived", 10)
    given = Derived(subscription=Subscription(name="other", partitions=4))
    assert (of(given).name, of(given).partitions, of(given).types) == ("other", 4, (OrderPlaced, OrderPaid))
    assert [of(each).name for each in given.companions()] == ["other timeouts"]  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="mode='concurrent'"):
        Derived(subscription=Subscription(mode="concurrent"))


def test_two_messages_of_one_name() -> None:
    """Rows could not tell them apart."""

    class Other(Event, name="OrderPlaced"):
        """Has another one's name."""

        order_id: int

    namespace = {
        "correlate": {OrderPlaced: "order_id", Other: "order_id"},
        "placed": when(OrderPlaced, Other)(lambda self, event: None),
    }
    with pytest.raises(SettingsError, match="two messages are called 'OrderPlaced'"):
        type("Made", (ProcessManager,), namespace)()


def test_without_the_session_of_a_subscription() -> None:
    """In concurrent mode, and on rows of one's own, there is no transaction to save its state in."""
    with pytest.raises(WiringError, match="needs the session of a transactional subscription"):
        Fulfilment().handle(object(), {"sessions": None})
