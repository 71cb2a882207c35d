"""Each fault of the ancestors' buses, and that it is gone. A test is named after its fault."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

import message_bus.bus
from message_bus import (
    DispatchOutboxHandler,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    MessageBusTables,
    Subscription,
)
from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import current_context
from message_bus.bus.sync_bus import MessageBus
from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
from message_bus.errors import (
    AsyncHandlerOnSyncBus,
    CascadeLimitExceeded,
    DispatchEnded,
    HandlerNotFound,
    NotAMessage,
    SettingsError,
)
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
from tests.bus.shop import CancelOrder, OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


class _Emits(CommandHandlerABC):
    """Emits an OrderPlaced per command, and remembers what `emitted_messages` said."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.emit_message(OrderPlaced(cmd.order_id))
        self.seen.append(len(self.emitted_messages))


async def test_async_commands_returned_as_coroutines_that_nobody_awaited() -> None:
    """An async command handler's result is its value."""

    class Handler(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> str:
            await asyncio.sleep(0)
            return "placed"

    bus = AsyncMessageBus(command_handlers={PlaceOrder: Handler()})
    assert await bus.handle(PlaceOrder()) == ["placed"]


def test_emitted_messages_never_cleared() -> None:
    """Three dispatches of one handler dispatch one emission each, not 1, 1+2, 1+2+3."""
    handler, placed = _Emits(), []
    bus = MessageBus({OrderPlaced: [placed.append]}, {PlaceOrder: handler})
    for order_id in (1, 2, 3):
        bus.handle(PlaceOrder(order_id))
    assert placed == [OrderPlaced(1), OrderPlaced(2), OrderPlaced(3)]
    assert handler.seen == [1, 1, 1]
    assert handler.emitted_messages == []


def test_one_handler_on_two_events_loops_for_ever() -> None:
    """A handler that answers one of its two events with the other handles each once."""

    class Both(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> str:
            if isinstance(event, OrderPlaced):
                self.emit_message(OrderPaid(event.order_id))
            return type(event).__name__

    both = Both()
    bus = MessageBus({OrderPlaced: [both], OrderPaid: [both]})
    assert [each["result"] for each in bus.handle(OrderPlaced())] == ["OrderPlaced", "OrderPaid"]


def test_emissions_made_before_a_failure_leak_into_the_next_call() -> None:
    """What a command handler emitted before it failed is gone."""

    class FailsFirst(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPlaced(cmd.order_id))
            if cmd.order_id == 1:
                raise RuntimeError("no stock")

    placed: list[Any] = []
    bus = MessageBus({OrderPlaced: [placed.append]}, {PlaceOrder: FailsFirst()})
    with pytest.raises(RuntimeError, match="no stock"):
        bus.handle(PlaceOrder(1))
    bus.handle(PlaceOrder(2))
    assert placed == [OrderPlaced(2)]


def test_emissions_of_a_failing_event_handler_are_dispatched() -> None:
    """Of two handlers of one event, only the one that succeeded has its emissions handled."""

    class Fails(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPaid(0))
            raise RuntimeError

    class Succeeds(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPaid(1))

    for handlers in (
        [Fails()],
        [Fails(), Succeeds()],
        [Succeeds(), Fails()],
        [Succeeds(), Fails(), Succeeds()],
    ):
        paid: list[Any] = []
        bus = MessageBus({OrderPlaced: handlers, OrderPaid: [paid.append]})
        bus.handle(OrderPlaced())
        assert paid == [OrderPaid(1)] * (len(handlers) - 1)


async def test_async_emissions_read_before_the_handler_ran() -> None:
    """What an async handler emits after its first await is handled."""

    class Late(AsyncEventHandlerABC):
        async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(0)
            self.emit_message(OrderPaid(event.order_id))

    paid: list[Any] = []
    bus = AsyncMessageBus({OrderPlaced: [Late()], OrderPaid: [paid.append]})
    await bus.handle(OrderPlaced(7))
    assert paid == [OrderPaid(7)]


def test_emission_list_shared_by_threads() -> None:
    """Two threads inside one handler at the same time see only their own emissions."""
    barrier = threading.Barrier(2, timeout=10)

    class Meets(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> list[Any]:
            self.emit_message(OrderPlaced(cmd.order_id))
            barrier.wait()
            return self.emitted_messages

    bus = MessageBus(command_handlers={PlaceOrder: Meets()})
    results: dict[int, Any] = {}

    def work(order_id: int) -> None:
        results[order_id] = bus.handle(PlaceOrder(order_id))[0]["result"]

    threads = [threading.Thread(target=work, args=(order_id,)) for order_id in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1: [OrderPlaced(1)], 2: [OrderPlaced(2)]}


async def test_emission_list_shared_by_tasks() -> None:
    """Two tasks inside one handler at the same time see only their own emissions."""
    barrier = asyncio.Barrier(2)

    class Meets(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> list[Any]:
            self.emit_message(OrderPlaced(cmd.order_id))
            await barrier.wait()
            return self.emitted_messages

    bus = AsyncMessageBus(command_handlers={PlaceOrder: Meets()})
    assert await asyncio.gather(bus.handle(PlaceOrder(1)), bus.handle(PlaceOrder(2))) == [
        [[OrderPlaced(1)]],
        [[OrderPlaced(2)]],
    ]


async def test_one_failing_async_event_handler_discards_results_and_leaves_siblings_detached() -> None:
    """The others of an event run to their end before `handle` returns, and their results are there."""
    done: list[str] = []

    async def fails(event: Any) -> None:
        raise RuntimeError

    async def slow(event: Any) -> str:
        await asyncio.sleep(0)
        done.append("slow")
        return "slow"

    bus = AsyncMessageBus({OrderPlaced: [fails, slow, lambda event: "quick"]})
    assert await bus.handle(OrderPlaced()) == ["slow", "quick"]
    assert done == ["slow"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_bus_closes_the_callers_session(fails: bool) -> None:
    """Nothing is called on the session in the context, whether handling succeeds or fails."""

    class Session:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the bus called {name}()")

    class Handler(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            if fails:
                raise RuntimeError
            return context.db_session

    session = Session()
    bus = MessageBus({OrderPlaced: [Handler()]})
    bus.context["db_session"] = session
    results = bus.handle(OrderPlaced())
    assert fails or results[0]["result"] is session


def test_one_mutable_context_shared_by_all_buses() -> None:
    """Each bus has a context of its own."""
    first, second = MessageBus(), MessageBus()
    first.context["tenant"] = "a"
    assert second.context == {}


def test_one_mutable_context_shared_by_all_calls() -> None:
    """What a handler puts into its context is seen by its cascade, not by the next call, nor left on the bus."""

    def place(command: PlaceOrder, context: Any) -> None:
        context["seen_by"] = [*context.get("seen_by", ()), "place"]
        context.emit(OrderPlaced())

    bus = MessageBus({OrderPlaced: [lambda event, context: context["seen_by"]]}, {PlaceOrder: place})
    bus.context["tenant"] = "a"
    for _ in range(2):
        assert bus.handle(PlaceOrder(), context={"user": 1})[1]["result"] == ["place"]
    assert bus.context == {"tenant": "a"}


def test_positional_arguments_collide_with_context() -> None:
    """Extra arguments reach class handlers and callables beside the context."""

    class Handler(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            return dict(context), args, kwargs

    def function(event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return dict(context), args, kwargs

    def keyword_only(event: Any, *args: Any, context: Any, **kwargs: Any) -> Any:
        return dict(context), args, kwargs

    bus = MessageBus({OrderPlaced: [function, keyword_only]}, {PlaceOrder: Handler()})
    for message in (PlaceOrder(), OrderPlaced()):
        for entry in bus.handle(message, 1, 2, context={"user": 3}, four=4):
            assert entry["result"] == ({"user": 3}, (1, 2), {"four": 4})


def test_assert_used_for_validation() -> None:
    """No check of what users give is an assert statement: `python -O` removes those."""
    (folder,) = message_bus.bus.__path__
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                assert ast.unparse(node.test) == "cascade is not None", f"{path.name}: {ast.unparse(node)}"


async def test_different_exceptions_in_sync_and_async() -> None:
    """Both buses raise the same errors, which the ancestors' users can go on catching."""
    for expected, message in (
        (HandlerNotFound, PlaceOrder()),
        (KeyError, PlaceOrder()),
        (AssertionError, PlaceOrder()),
        (NotAMessage, object()),
        (TypeError, object()),
    ):
        given: Any = message
        with pytest.raises(expected):
            MessageBus().handle(given)
        with pytest.raises(expected):
            await AsyncMessageBus().handle(given)


async def test_failed_entries_removed_from_batch_results() -> None:
    """An async batch has one entry per message, in their order, whatever failed."""

    def place(command: PlaceOrder) -> int:
        if command.order_id == 2:
            raise RuntimeError("no stock")
        return command.order_id

    def fails(event: Any) -> None:
        raise RuntimeError

    bus = AsyncMessageBus({OrderPlaced: [fails]}, {PlaceOrder: place})
    assert await bus.batch_handle([PlaceOrder(1), OrderPlaced(), PlaceOrder(3)]) == [[1], [], [3]]
    first, second, third = await bus.batch_handle(
        [PlaceOrder(1), PlaceOrder(2), PlaceOrder(3)], return_exceptions=True
    )
    assert (first, str(second), third) == ([1], "no stock", [3])


@pytest.mark.parametrize("max_concurrency", [0, -1, 1.5, True])
async def test_max_concurrency_0_hangs(max_concurrency: Any) -> None:
    """A number of workers that would never do anything is refused."""
    with pytest.raises(SettingsError, match="max_concurrency must be a whole number >= 1"):
        await AsyncMessageBus().batch_handle([PlaceOrder()], max_concurrency)


async def test_a_cancelled_handler_hangs_the_batch() -> None:
    """A handler that was cancelled from within ends its message, and the batch with it."""

    async def cancelled(command: PlaceOrder) -> int:
        if command.order_id == 2:
            raise asyncio.CancelledError
        return command.order_id

    bus = AsyncMessageBus(command_handlers={PlaceOrder: cancelled})
    orders = [PlaceOrder(1), PlaceOrder(2), PlaceOrder(3)]
    async with asyncio.timeout(10):
        entries = await bus.batch_handle(orders, 1, return_exceptions=True)
        assert (entries[0], type(entries[1]), entries[2]) == ([1], asyncio.CancelledError, [3])
        with pytest.raises(asyncio.CancelledError):
            await bus.batch_handle(orders)


@pytest.mark.parametrize("make", [MessageBus, InMemoryMessageBus])
def test_unbounded_recursion_on_nested_publish(make: type[MessageBus]) -> None:
    """Handlers that publish in a circle end with CascadeLimitExceeded long before Python's own limit."""
    bus = make()
    depths: list[int] = []

    def again(event: OrderPlaced) -> None:
        depths.append(len(inspect.stack(0)))
        bus.publish(OrderPlaced())

    bus.subscribe(OrderPlaced, again)
    bus.subscribe(OrderPlaced, again)
    with pytest.raises(CascadeLimitExceeded):
        bus.publish(OrderPlaced())
    assert depths[-1] - depths[0] < 600
    assert len(depths) == 65
    assert current_context.get() is None


@pytest.mark.parametrize("make", [AsyncMessageBus, InMemoryAsyncMessageBus])
async def test_unbounded_recursion_on_nested_async_publish(make: type[AsyncMessageBus]) -> None:
    """The same for coroutines, and for two handlers that run at once on every level."""
    bus, calls = make(max_cascade=100), [0]

    async def again(event: OrderPlaced) -> None:
        calls[0] += 1
        await bus.publish(OrderPlaced())

    bus.subscribe(OrderPlaced, again)
    bus.subscribe(OrderPlaced, again)
    async with asyncio.timeout(30):
        with pytest.raises(CascadeLimitExceeded):
            await bus.publish(OrderPlaced())
    assert calls[0] < 1_000


@pytest.mark.parametrize("make", [MessageBus, InMemoryMessageBus])
def test_unbounded_recursion_through_middleware(
    make: type[MessageBus], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten functions around a handler meet Python's own limit first: that ends the circle, too, instead of doubling it."""

    def passes(message: Any, context: Any, call_next: Any) -> Any:
        return call_next()

    bus, calls = make(middleware=[passes] * 10), [0]

    def again(event: OrderPlaced) -> None:
        calls[0] += 1
        bus.publish(OrderPlaced())

    bus.subscribe(OrderPlaced, again)
    bus.subscribe(OrderPlaced, again)
    caplog.set_level(logging.CRITICAL, "message_bus")
    with pytest.raises(RecursionError) if make is InMemoryMessageBus else contextlib.nullcontext():
        bus.publish(OrderPlaced())
    assert calls[0] < 200
    assert current_context.get() is None


@pytest.mark.parametrize("make", [MessageBus, InMemoryMessageBus])
def test_subscribing_during_publish_extends_the_list_being_iterated(make: type[MessageBus]) -> None:
    """A handler that subscribes itself again is called once by this publish, and twice by the next."""
    bus, calls = make(), list[str]()

    def again(event: OrderPlaced) -> None:
        calls.append("called")
        if len(calls) == 1:
            bus.subscribe(OrderPlaced, again)

    bus.subscribe(OrderPlaced, again)
    bus.publish(OrderPlaced())
    assert len(calls) == 1
    bus.publish(OrderPlaced())
    assert len(calls) == 3


@pytest.mark.parametrize("make", [AsyncMessageBus, InMemoryAsyncMessageBus])
async def test_subscribing_during_async_publish_extends_the_list_being_iterated(
    make: type[AsyncMessageBus],
) -> None:
    """The same while another handler of the event is waiting."""
    bus, calls = make(), list[str]()

    async def again(event: OrderPlaced) -> None:
        calls.append("called")
        bus.subscribe(OrderPlaced, again)
        await asyncio.sleep(0)

    bus.subscribe(OrderPlaced, again)
    bus.subscribe(OrderPlaced, again)
    await bus.publish(OrderPlaced())
    assert len(calls) == 2


def test_publishing_inside_a_handler_shares_its_emissions_and_context() -> None:
    """On an InMemoryMessageBus as well: a nested publish neither sends nor sees what the handler around it has."""
    bus, order = InMemoryMessageBus(), list[Any]()
    bus.context["tenant"] = "a"

    def place(command: PlaceOrder, context: Any) -> None:
        context["mine"] = "outer"
        context.emit(OrderPaid())
        bus.publish(OrderPlaced())
        order.append("placed")

    def placed(event: OrderPlaced, context: Any) -> None:
        order.append((dict(context), context.emitted_messages))
        context["mine"] = "inner"

    bus.subscribe(PlaceOrder, place)
    bus.subscribe(OrderPlaced, placed)
    bus.subscribe(OrderPaid, lambda event, context: order.append(dict(context)))
    bus.handle(PlaceOrder(), context={"user": 1})
    assert order == [({"tenant": "a"}, []), "placed", {"tenant": "a", "user": 1, "mine": "outer"}]
    assert bus.context == {"tenant": "a"}


async def test_one_mutable_context_shared_by_concurrent_publishes() -> None:
    """Two publishes on an InMemoryAsyncMessageBus that overlap keep their contexts and emissions apart."""
    barrier, seen = asyncio.Barrier(2), list[Any]()

    async def placed(event: OrderPlaced, context: Any) -> None:
        context["order"] = event.order_id
        context.emit(OrderPaid(event.order_id))
        await barrier.wait()
        seen.append((event.order_id, context["order"], context.emitted_messages))

    bus = InMemoryAsyncMessageBus({OrderPlaced: [placed]})
    await asyncio.gather(bus.publish(OrderPlaced(1)), bus.publish(OrderPlaced(2)))
    assert sorted(seen) == [(1, 1, [OrderPaid(1)]), (2, 2, [OrderPaid(2)])]
    assert bus.context == {}


async def test_a_failing_handler_discards_its_siblings_on_the_in_memory_bus() -> None:
    """With asyncio.gather the first failure returned at once, while the others ran on with nobody waiting for them."""
    done: list[str] = []

    async def fails(event: OrderPlaced) -> None:
        raise RuntimeError

    async def slow(event: OrderPlaced) -> None:
        await asyncio.sleep(0)
        done.append("slow")

    bus = InMemoryAsyncMessageBus()
    bus.subscribe(OrderPlaced, fails)
    bus.subscribe(OrderPlaced, slow)
    with pytest.raises(RuntimeError):
        await bus.publish(OrderPlaced())
    assert done == ["slow"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
def test_two_relays_five_rows_nine_deliveries(
    mode: Any, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """The first commit released every row lock: here a second relay, started at each of five rows, delivers none of them."""
    delivered: list[int] = []
    others: list[Any] = []

    def relay() -> Any:
        bus = MessageBus({OrderPlaced: [placed]})
        bus.set_outbox_handlers(
            [DispatchOutboxHandler(subscription=Subscription(name="dispatch", mode=mode))]
        )
        with session_factory() as session:
            return bus.process_outbox(session)

    def placed(event: OrderPlaced, context: Any) -> None:
        delivered.append(event.order_id)
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=lambda: others.append(relay()))
            other.start()
            other.join(30)

    with session_factory() as session, session.begin():
        for order_id in range(5):
            MessageBus.register_outbox_message(session, OrderPlaced(order_id))
    assert relay().delivered == 5
    assert [(report.delivered, report.busy) for report in others] == [(0, ("dispatch",))] * 5
    assert delivered == [0, 1, 2, 3, 4]
    assert relay().delivered == 0


def test_an_async_handler_on_a_sync_bus_silently_does_nothing() -> None:
    """Every kind of async handler is refused when it is registered, and nothing is registered then."""

    async def function(event: Any) -> None: ...

    async def generator(event: Any) -> Any:
        yield

    class Callable_:
        async def __call__(self, event: Any) -> None: ...

    class Handler(AsyncEventHandlerABC):
        async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None: ...

    class Mixed(EventHandlerABC):
        async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None: ...

    class Duck:
        async def handle(self, event: Any) -> None: ...

    for handler in (function, generator, Callable_(), Handler(), Mixed(), Duck(), Duck().handle):
        bus = MessageBus()
        with pytest.raises(AsyncHandlerOnSyncBus, match="register it on an AsyncMessageBus"):
            bus.set_event_handlers(OrderPlaced, [print, handler])
        assert bus.get_event_handlers(OrderPlaced) == []
        assert OrderPlaced not in bus.registry


def test_a_sync_looking_handler_that_returns_a_coroutine_is_refused_when_it_does() -> None:
    """The coroutine is closed (no warning) and the error names the handler, also for events."""

    async def work() -> None: ...

    def looks_sync(message: Any) -> Any:
        return work()

    bus = MessageBus({OrderPlaced: [looks_sync]}, {PlaceOrder: looks_sync})
    bus.set_event_handlers(OrderPaid, [looks_sync, print])
    for message in (PlaceOrder(), OrderPlaced(), OrderPaid()):
        with pytest.raises(AsyncHandlerOnSyncBus, match="looks_sync"):
            bus.handle(message)


async def test_a_sync_handler_on_an_async_bus_runs_in_a_thread() -> None:
    """It runs inline, in the thread of the event loop."""
    bus = AsyncMessageBus({OrderPlaced: [lambda event: threading.get_ident()]})
    assert await bus.handle(OrderPlaced()) == [threading.get_ident()]


async def test_emissions_of_a_task_that_outlived_its_dispatch_get_lost() -> None:
    """They raise DispatchEnded in that task."""
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    class Detaches(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            async def late() -> None:
                await ended.wait()
                self.emit_message(OrderPlaced())

            tasks.append(asyncio.create_task(late()))

    bus = AsyncMessageBus(command_handlers={PlaceOrder: Detaches()})
    await bus.handle(PlaceOrder())
    ended.set()
    with pytest.raises(DispatchEnded, match="'OrderPlaced' was emitted after its dispatch had ended"):
        await tasks[0]


def test_a_failing_event_handler_is_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback and fields to filter by, and is in the outcome."""

    def fails(event: Any) -> None:
        raise RuntimeError("no stock")

    bus = MessageBus({OrderPlaced: [fails, lambda event: "ok"]})
    with caplog.at_level(logging.ERROR, "message_bus"):
        outcome = bus.dispatch(OrderPlaced())
    record: Any = caplog.records[0]
    assert record.exc_info[1] is outcome.failures[0].error
    assert (record.message_name, record.handler_name) == (
        "OrderPlaced",
        "test_a_failing_event_handler_is_swallowed.<locals>.fails",
    )
    assert outcome.results == [{"event": OrderPlaced(), "result": "ok"}]
    assert outcome.failures[0].handler is fails
    assert not outcome.ok


def test_a_subclass_that_forgets_super_init_cannot_emit() -> None:
    """Emitting needs nothing from __init__, inside a dispatch or outside."""

    class Forgetful(EventHandlerABC):
        def __init__(self) -> None:
            self.sent = SimpleNamespace()

        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emmit_message(CancelOrder())

    handler, cancelled = Forgetful(), []
    handler.handle(OrderShipped(), {})
    assert handler.emitted_messages == [CancelOrder()]
    MessageBus({OrderShipped: [handler]}, {CancelOrder: cancelled.append}).handle(OrderShipped())
    assert cancelled == [CancelOrder()]
    assert handler.emitted_messages == [CancelOrder()]
