"""`subscribe`, `publish` and the decorators on every bus; and `DispatchOutboxHandler(handlers=...)`, whose bus is a twin."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncHandlerOnSyncBus,
    AsyncMessageBusABC,
    Command,
    CommandHandler,
    Context,
    DispatchOutboxHandler,
    Event,
    HandlerNotFound,
    Message,
    MessageBus,
    MessageBusABC,
    MessageBusTables,
    NotAMessage,
    Query,
    SettingsError,
    Subscription,
    WiringError,
)
from message_bus.bus.context import current_context
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import CancelOrder, OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


class GetOrder(Query[str]):
    order_id: int = 1


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


@pytest.fixture
def switching_all_the_time() -> Iterator[None]:
    """Threads are interrupted wherever they can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(number: int, work: Callable[[int], object]) -> None:
    """Run `work(0)` ... in as many threads, let loose at the same moment; raise what one of them raised."""
    barrier = threading.Barrier(number, timeout=30)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- subscribe ------------------------------------------------------------------------------------------------------


async def test_an_event_has_its_handlers_in_order_of_subscription(colour: Colour) -> None:
    """Behind those from the constructor and from set_event_handlers; the same handler twice is called twice."""

    def first(event: Event) -> str:
        return "first"

    def second(event: Event) -> str:
        return "second"

    bus = colour.bus({OrderPlaced: [first]})
    bus.subscribe(OrderPlaced, second)
    bus.subscribe(OrderPlaced, first)
    assert bus.get_event_handlers(OrderPlaced) == [first, second, first]
    assert await colour.values(bus, OrderPlaced()) == ["first", "second", "first"]
    bus.set_event_handlers(OrderPlaced, [second])
    bus.subscribe(OrderPlaced, first)
    assert await colour.values(bus, OrderPlaced()) == ["second", "first"]


async def test_every_kind_of_handler_can_be_subscribed(colour: Colour) -> None:
    """Functions, lambdas, bound methods, objects with `handle`, and Orchestrix's CommandHandler, with or without context."""

    class Service:
        def on_order_placed(self, event: OrderPlaced) -> str:
            return "method"

        def handle(self, event: OrderPlaced, context: Context) -> str:
            return f"object {context['user']}"

    class Handler(CommandHandler[PlaceOrder]):
        def __init__(self, bus: Any, store: Any) -> None:
            self.bus, self.store = bus, store

        def handle(self, command: PlaceOrder) -> str:
            self.emit_message(OrderPlaced(command.order_id))
            return str(self.store)

    bus = colour.bus()
    bus.subscribe(PlaceOrder, Handler(bus, "store"))
    for handler in (lambda event: "lambda", Service().on_order_placed, Service()):
        bus.subscribe(OrderPlaced, handler)
    values = await colour.values(bus, PlaceOrder(), context={"user": "ann"})
    assert values == ["store", "lambda", "method", "object ann"]


@pytest.mark.parametrize("message_type", [PlaceOrder, GetOrder])
async def test_a_second_handler_of_a_command_or_query_is_refused(
    colour: Colour, message_type: type[Message]
) -> None:
    """Only one can answer; the first stays, and replacing it is said in other words."""
    bus = colour.bus()
    bus.subscribe(message_type, lambda message: "first")
    kind = "command" if message_type is PlaceOrder else "query"
    with pytest.raises(SettingsError, match=rf"has a handler already.*bus\.set_{kind}_handler\(\)"):
        bus.subscribe(message_type, lambda message: "second")
    assert await colour.values(bus, message_type()) == ["first"]
    getattr(bus, f"set_{kind}_handler")(message_type, lambda message: "third")
    assert await colour.values(bus, message_type()) == ["third"]


@pytest.mark.parametrize(
    "given", [5, "OrderPlaced", None, OrderPlaced(), object, Message, Command, Event, Query]
)
def test_what_is_no_message_type_cannot_be_subscribed(colour: Colour, given: Any) -> None:
    """Also the base classes, which nobody publishes, and an instance in place of its class."""
    bus = colour.bus()
    with pytest.raises(NotAMessage):
        bus.subscribe(given, print)
    assert bus._routes == {}


async def test_subscribing_needs_a_handler_that_fits(colour: Colour) -> None:
    """A class, or something that cannot be called, is refused, and what was subscribed before stays."""

    async def function(event: OrderPlaced) -> str:
        return "async"

    bus = colour.bus()
    bus.subscribe(OrderPlaced, lambda event: "before")
    for wrong in (CommandHandler, 3, None):
        with pytest.raises(SettingsError):
            bus.subscribe(OrderPlaced, wrong)
    if colour.is_async:
        bus.subscribe(OrderPlaced, function)
        assert await colour.values(bus, OrderPlaced()) == ["before", "async"]
    else:
        with pytest.raises(AsyncHandlerOnSyncBus):
            bus.subscribe(OrderPlaced, function)
        assert await colour.values(bus, OrderPlaced()) == ["before"]


async def test_subscribing_during_publish_is_for_the_next_time(colour: Colour) -> None:
    """A handler may subscribe others, also to the event in hand: they are called from the next message on."""
    bus, calls = colour.bus(), []

    def once(event: OrderPlaced) -> None:
        calls.append("once")
        bus.subscribe(OrderPlaced, lambda event: calls.append("late"))
        bus.subscribe(OrderPaid, lambda event: calls.append("paid"))

    bus.subscribe(OrderPlaced, once)
    await colour.done(bus.publish(OrderPlaced()))
    assert calls == ["once"]
    await colour.done(bus.publish(OrderPaid()))
    await colour.done(bus.publish(OrderPlaced()))
    assert calls == ["once", "paid", "once", "late"]


def test_subscribing_from_many_threads_loses_none(colour: Colour, switching_all_the_time: None) -> None:
    """Sixteen threads subscribe to one event, add middleware and publish at the same time."""
    bus = colour.bus()

    def script(message: Any, context: Any) -> Any:
        return (yield ())

    def work(index: int) -> None:
        for number in range(20):
            bus.subscribe(OrderPlaced, lambda event, mine=(index, number): mine)
        if index % 4 == 0:
            bus.add_middleware(colour.middleware(script))
        bus.subscribe((PlaceOrder, CancelOrder)[index], print) if index < 2 else None

    in_threads(16, work)
    handlers = bus.get_event_handlers(OrderPlaced)
    assert sorted(handler(None) for handler in handlers) == [(i, n) for i in range(16) for n in range(20)]
    assert len(bus._middleware) == 4
    assert bus.get_command_handler(PlaceOrder) is print
    route = bus._routes[OrderPlaced]
    assert len(route.calls) == len(route.handlers) == 320


def test_subscribing_does_not_look_at_the_handlers_before(colour: Colour) -> None:
    """The thousandth handler costs what the second did: signatures are read once for each."""
    bus, read = colour.bus(), list[Any]()

    class Counts:
        @property
        def handle(self) -> Any:
            read.append(self)
            return lambda event: None

    for _ in range(5):
        bus.subscribe(OrderPlaced, Counts())
    assert len(read) == len(set(map(id, read)))


# --- publish --------------------------------------------------------------------------------------------------------


async def test_publish_handles_and_returns_nothing(colour: Colour) -> None:
    """Commands, events, queries, with all that is emitted on the way."""
    seen: list[Any] = []
    bus = colour.bus()

    def place(command: PlaceOrder, context: Context) -> str:
        context.emit(OrderPlaced(command.order_id))
        return "placed"

    bus.subscribe(PlaceOrder, place)
    bus.subscribe(OrderPlaced, seen.append)
    bus.subscribe(GetOrder, seen.append)
    for message in (PlaceOrder(2), OrderPlaced(3), GetOrder(4)):
        assert await colour.done(bus.publish(message)) is None
    assert seen == [OrderPlaced(2), OrderPlaced(3), GetOrder(4)]


async def test_publishing_what_nobody_handles(colour: Colour) -> None:
    """An event: nothing. A command or query: HandlerNotFound. What is no message: NotAMessage."""
    bus = colour.bus()
    assert await colour.done(bus.publish(OrderPlaced())) is None
    for message, error in ((PlaceOrder(), HandlerNotFound), (GetOrder(), HandlerNotFound), (3, NotAMessage)):
        with pytest.raises(error):
            await colour.done(bus.publish(message))


async def test_publish_follows_on_event_error() -> None:
    """On MessageBus and AsyncMessageBus it does with failing event handlers what `handle` does."""

    def fails(event: OrderPlaced) -> None:
        raise RuntimeError

    for each in ALL[:2]:
        quiet, loud = (
            each.bus({OrderPlaced: [fails]}),
            each.bus({OrderPlaced: [fails]}, on_event_error="raise"),
        )
        assert await each.done(quiet.publish(OrderPlaced())) is None
        with pytest.raises(ExceptionGroup):
            await each.done(loud.publish(OrderPlaced()))


async def test_a_bus_of_ones_own_has_them_too() -> None:
    """Who derives from the ABCs gets subscribe, publish and two of the decorators from the abstract methods."""

    class Mine(MessageBusABC):
        def __init__(self) -> None:
            self.handlers: dict[Any, list[Any]] = {}

        def set_command_handler(self, command_type: Any, handler: Any) -> None:
            self.handlers[command_type] = [handler]

        def get_command_handler(self, command_type: Any) -> Any:
            return next(iter(self.handlers.get(command_type, ())), None)

        def set_event_handlers(self, event_type: Any, handlers: Any) -> None:
            self.handlers[event_type] = list(handlers)

        def get_event_handlers(self, event_type: Any) -> list[Any]:
            return self.handlers.get(event_type, [])

        def set_outbox_handlers(self, handlers: Any) -> None: ...

        def handle(self, message: Any, *args: Any, **kwargs: Any) -> list[Any]:
            return [handler(message) for handler in self.handlers.get(type(message), [])]

        def batch_handle(self, messages: Any, *args: Any, **kwargs: Any) -> list[Any]:
            return []

        def process_outbox(self, outbox_repo: Any, **kwargs: Any) -> Any: ...

    class MineAsync(Mine, AsyncMessageBusABC):  # type: ignore[misc]
        publish = AsyncMessageBusABC.publish  # type: ignore[assignment]

        async def handle(self, message: Any, *args: Any, **kwargs: Any) -> list[Any]:  # type: ignore[override]
            return super().handle(message)

    seen: list[Any] = []
    bus = Mine()
    bus.subscribe(OrderPlaced, seen.append)
    bus.event_handler(OrderPlaced, OrderPaid)(seen.append)
    bus.command_handler(PlaceOrder)(seen.append)
    with pytest.raises(SettingsError):
        bus.subscribe(PlaceOrder, print)
    with pytest.raises(NotAMessage):
        bus.subscribe(3, print)  # type: ignore[arg-type]
    for message in (OrderPlaced(), OrderPaid(), PlaceOrder()):
        bus.publish(message)
    assert seen == [OrderPlaced(), OrderPlaced(), OrderPaid(), PlaceOrder()]
    async_bus = MineAsync()
    async_bus.subscribe(OrderPlaced, seen.append)
    await async_bus.publish(OrderPlaced(9))
    assert seen[-1] == OrderPlaced(9)


# --- decorators -----------------------------------------------------------------------------------------------------


async def test_decorators_register_and_return_the_function(colour: Colour) -> None:
    """Each kind; an event decorator takes several types and appends."""
    bus = colour.bus()

    @bus.command_handler(PlaceOrder)
    def place(command: PlaceOrder) -> str:
        return "placed"

    @bus.event_handler(OrderPlaced)
    @bus.event_handler(OrderPaid, OrderShipped)
    def note(event: Event) -> str:
        return type(event).__name__

    @bus.event_handler(OrderPlaced)
    def also(event: OrderPlaced) -> str:
        return "also"

    @bus.query_handler(GetOrder)
    def get(query: GetOrder) -> str:
        return "order"

    assert (place(PlaceOrder()), note(OrderPaid()), get(GetOrder())) == ("placed", "OrderPaid", "order")
    assert bus.get_command_handler(PlaceOrder) is place
    assert bus.get_query_handler(GetOrder) is get
    assert await colour.values(bus, OrderPlaced()) == ["OrderPlaced", "also"]
    assert await colour.values(bus, OrderPaid()) == ["OrderPaid"]
    assert await colour.values(bus, OrderShipped()) == ["OrderShipped"]
    assert await colour.done(bus.ask(GetOrder())) == "order"


async def test_decorators_take_async_functions_where_the_bus_does(colour: Colour) -> None:
    """On an async bus they are awaited, on a sync bus refused."""
    bus = colour.bus()

    async def place(command: PlaceOrder) -> str:
        return "placed"

    if colour.is_async:
        assert bus.command_handler(PlaceOrder)(place) is place
        assert await bus.handle(PlaceOrder()) == ["placed"]
    else:
        with pytest.raises(AsyncHandlerOnSyncBus):
            bus.command_handler(PlaceOrder)(place)


def test_a_decorator_without_a_message_type_is_refused(colour: Colour) -> None:
    """`@bus.event_handler` and `@bus.event_handler()` would register nothing, and swallow the function."""
    bus = colour.bus()

    def function(message: Any) -> None: ...

    for decorator in (bus.command_handler, bus.event_handler, bus.query_handler):
        with pytest.raises(NotAMessage, match="'function' is not a message"):
            decorator(function)
    with pytest.raises(SettingsError, match=r"needs a message type \(@bus\.event_handler\(EventClass\)\)"):
        bus.event_handler()


@pytest.mark.parametrize(
    ("decorator", "wrong"),
    [
        ("command_handler", OrderPlaced),
        ("command_handler", GetOrder),
        ("event_handler", PlaceOrder),
        ("query_handler", OrderPlaced),
    ],
)
def test_a_decorator_of_another_kind_is_refused(colour: Colour, decorator: str, wrong: Any) -> None:
    """A command handler for an event is a mistake, not a subscription."""
    bus = colour.bus()
    with pytest.raises(SettingsError, match=r"is not an? (Command|Event|Query)"):
        getattr(bus, decorator)(wrong)


def test_a_decorator_registers_all_its_types_or_none(colour: Colour) -> None:
    """A wrong type, or a handler that does not fit, leaves nothing behind."""
    bus = colour.bus()
    with pytest.raises(SettingsError):
        bus.event_handler(OrderPlaced, PlaceOrder)
    with pytest.raises(WiringError):
        bus.event_handler(OrderPlaced, OrderPaid)(3)
    assert bus._routes == {}


# --- DispatchOutboxHandler(handlers=...) ----------------------------------------------------------------------------


class _TenantBus(MessageBus):
    """A bus of the application's own, with something in it that a copy must have, too."""

    def __init__(self, tenant: str, **options: Any) -> None:
        super().__init__(**options)
        self.tenant = tenant

    def deliver(self, message: Message, context: Context) -> int:
        context["tenant"] = self.tenant
        return super().deliver(message, context)


class Strange(Event):
    """A type that the reading bus does not know."""


def test_handlers_of_their_own_keep_the_bus_around_them() -> None:
    """The class of the bus, its context, middleware and message types; the handlers are theirs alone."""
    entered: list[str] = []

    def enters(message: Any, context: Any, call_next: Any) -> Any:
        entered.append(call_next.handler_name)
        return call_next()

    def own(event: OrderPlaced, context: Any) -> None:
        entered.append(context["tenant"])

    bus = _TenantBus("a", middleware=[enters])
    bus.context["setting"] = 1
    bus.subscribe(OrderPlaced, print)
    handler = DispatchOutboxHandler(handlers={OrderPlaced: [own]}, subscription=Subscription(name="own"))
    bus.set_outbox_handlers([handler])
    twin = handler.bus
    assert (type(twin), twin.tenant, twin.context) == (_TenantBus, "a", {"setting": 1})
    assert twin.registry is bus.registry
    assert twin.get_event_handlers(OrderPlaced) == [own]
    assert bus.get_event_handlers(OrderPlaced) == [print]
    assert handler.subscription is not None
    assert handler.subscription.types == (OrderPlaced,)
    bus.subscribe(OrderPaid, print)
    bus.subscribe(OrderPlaced, print)
    assert (twin.get_event_handlers(OrderPaid), twin.get_event_handlers(OrderPlaced)) == ([], [own])
    twin.deliver(OrderPlaced(), Context())
    assert entered[1] == "a"
    assert entered[0].endswith("own")


def test_handlers_of_their_own_read_their_events_only(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Commands, other events and types that nobody knows are none of their business: no retry and no dead letter there."""
    called: list[Any] = []
    bus = _TenantBus("a")
    bus.subscribe(PlaceOrder, lambda command: called.append("command"))
    bus.subscribe(OrderPaid, lambda event: called.append("bus"))
    bus.set_outbox_handlers(
        [
            DispatchOutboxHandler(
                subscription=Subscription(name="dispatch", types=(PlaceOrder, OrderPaid), start="beginning")
            ),
            DispatchOutboxHandler(
                handlers={OrderPlaced: [lambda event, context: called.append(context["tenant"])]},
                subscription=Subscription(name="own", start="beginning", max_attempts=1),
            ),
        ]
    )
    with session_factory() as session, session.begin():
        for message in (OrderPlaced(1), PlaceOrder(2), Strange(), OrderPaid(3), OrderPlaced(4)):
            MessageBus.register_outbox_message(session, message)
    with session_factory() as session:
        report = bus.process_outbox(session)
        assert (report.ok, report.retrying, report.dead) == (True, 0, 0)
        assert session.scalar(sa.select(sa.func.count()).select_from(tables.delivery)) == 0
        assert bus.process_outbox(session).delivered == 0
    assert sorted(called) == ["a", "a", "bus", "command"]


# --- a small model --------------------------------------------------------------------------------------------------


class Node(Event):
    """An event that says what its handler emits and publishes."""

    number: int
    steps: list[Any]


Trees: st.SearchStrategy[list[Any]] = st.recursive(
    st.just([]),
    lambda steps: st.lists(st.tuples(st.booleans(), steps), max_size=3),
    max_leaves=12,
)


def numbered(steps: list[Any], numbers: Iterator[int]) -> Node:
    """A tree as a message: every step becomes (is it published?, its node)."""
    number = next(numbers)
    return Node(number, [(publishes, numbered(below, numbers)) for publishes, below in steps])


def order_of(root: Node) -> list[int]:
    """The model: what is published is done at once with all that follows from it, what is emitted waits in line."""
    done: list[int] = []
    line = [root]
    while line:
        node = line.pop(0)
        done.append(node.number)
        for publishes, below in node.steps:
            if publishes:
                done += order_of(below)
            else:
                line.append(below)
    return done


@given(steps=Trees)
@pytest.mark.parametrize("colour", ALL, ids=name_of)
async def test_random_trees_of_emissions_and_publications(colour: Colour, steps: list[Any]) -> None:
    """They are handled in the order of the model; causation always leads to the parent, correlation to the root."""
    root = numbered(steps, iter(range(1_000)))
    done: list[int] = []
    envelopes: dict[int, Any] = {}
    bus = colour.bus()

    def begins(event: Node, context: Context) -> None:
        done.append(event.number)
        envelopes[event.number] = context.envelope

    def walks(event: Node, context: Context) -> None:
        begins(event, context)
        for publishes, below in event.steps:
            bus.publish(below) if publishes else context.emit(below)

    async def walks_async(event: Node, context: Context) -> None:
        begins(event, context)
        for publishes, below in event.steps:
            if publishes:
                await bus.publish(below)
            else:
                context.emit(below)

    bus.subscribe(Node, walks_async if colour.is_async else walks)
    await colour.done(bus.publish(root))
    assert done == order_of(root)
    assert current_context.get() is None
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for _, below in node.steps:
            parent, child = envelopes[node.number], envelopes[below.number]
            assert child.headers["causation_id"] == str(parent.id)
            assert child.headers["correlation_id"] == str(envelopes[0].id)
            waiting.append(below)
