"""`in_thread`: a blocking handler runs in a worker thread, and is otherwise a handler like any other."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from message_bus import (
    AsyncCommandHandlerABC,
    AsyncHandlerOnSyncBus,
    CommandHandler,
    CommandHandlerABC,
    Context,
    DispatchEnded,
    EventHandlerABC,
    MessageBus,
    SettingsError,
    correlate,
    in_thread,
)
from message_bus.bus.context import current_context
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import CancelOrder, OrderPaid, OrderPlaced, PlaceOrder

user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.fixture(params=[each for each in ALL if each.is_async], ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each async bus."""
    chosen: Colour = request.param
    return chosen


@pytest.fixture
def switching_all_the_time() -> Iterator[None]:
    """Threads are interrupted wherever they can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class _Place(CommandHandlerABC):
    def handle(self, cmd: PlaceOrder, context: Any, *args: Any, **kwargs: Any) -> Any:
        self.emit_message(OrderPlaced(cmd.order_id))
        return threading.get_ident(), args, kwargs, context["user"]


class _Hooked(EventHandlerABC):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def _before_handle(self, context: Any) -> None:
        self.calls.append(threading.get_ident())

    def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append(threading.get_ident())

    def _after_handle(self, context: Any) -> None:
        self.calls.append(threading.get_ident())


async def test_it_runs_in_another_thread_with_everything(colour: Colour) -> None:
    """Arguments and context reach it, its result comes back, what it emits is handled afterwards."""
    placed: list[Any] = []
    bus = colour.bus({OrderPlaced: [placed.append]}, {PlaceOrder: in_thread(_Place())})
    (thread, args, kwargs, who), _ = await bus.handle(PlaceOrder(4), 1, context={"user": "ann"}, two=2)
    assert thread != threading.get_ident()
    assert (args, kwargs, who) == ((1,), {"two": 2}, "ann")
    assert placed == [OrderPlaced(4)]


async def test_handlers_of_every_kind(colour: Colour) -> None:
    """Functions, objects, CommandHandlers, partials, methods; the context goes where it would go without a thread."""

    class Service:
        def handle(self, command: Any) -> Any:
            return threading.get_ident()

        def method(self, command: Any, context: Context) -> Any:
            return context and threading.get_ident()

    class Orchestrix(CommandHandler[PlaceOrder]):
        def handle(self, command: PlaceOrder) -> Any:
            return threading.get_ident()

    def keyword(command: Any, *, context: Context) -> Any:
        return context and threading.get_ident()

    def second(command: Any, ctx: Context) -> Any:
        return ctx and threading.get_ident()

    for handler in (Service(), Service().method, Orchestrix(), keyword, second, functools.partial(second)):
        bus = colour.bus(command_handlers={PlaceOrder: in_thread(handler)})
        assert await bus.ask(PlaceOrder(), context={"user": "ann"}) not in (threading.get_ident(), {})


async def test_hooks_run_in_the_thread_too(colour: Colour) -> None:
    """All three of an event handler, in one thread."""
    hooked = _Hooked()
    bus = colour.bus({OrderPlaced: [in_thread(hooked)]})
    await bus.publish(OrderPlaced())
    assert len(hooked.calls) == 3
    assert len({*hooked.calls, threading.get_ident()}) == 2


async def test_context_variables_and_correlation_are_carried(colour: Colour) -> None:
    """What was set around `handle` is seen in the thread; what the thread sets stays there."""

    def place(command: PlaceOrder, context: Context) -> Any:
        context.emit(OrderPlaced())
        before = user.get()
        user.set("the thread")
        return before, context.envelope

    bus = colour.bus(
        {OrderPlaced: [in_thread(lambda event, context: context.envelope.headers)]},
        {PlaceOrder: in_thread(place)},
    )
    token = user.set("ann")
    try:
        with correlate("request-1"):
            (who, envelope), headers = await bus.handle(PlaceOrder())
        assert (who, user.get()) == ("ann", "ann")
    finally:
        user.reset(token)
    assert envelope.headers["correlation_id"] == headers["correlation_id"] == "request-1"
    assert headers["causation_id"] == str(envelope.id)


async def test_errors_come_back(colour: Colour) -> None:
    """A command's error is raised; an event's is logged or raised as without a thread, its emissions are dropped."""
    seen: list[Any] = []

    def fails(message: Any, context: Context) -> None:
        context.emit(OrderPaid())
        raise RuntimeError("in the thread")

    bus = colour.bus(
        {OrderPlaced: [in_thread(fails)], OrderPaid: [seen.append]}, {PlaceOrder: in_thread(fails)}
    )
    with pytest.raises(RuntimeError, match="in the thread"):
        await bus.handle(PlaceOrder())
    if colour.is_in_memory:
        with pytest.raises(RuntimeError, match="in the thread"):
            await bus.handle(OrderPlaced())
    else:
        assert await bus.handle(OrderPlaced()) == []
    assert seen == []


async def test_a_stop_iteration_does_not_hang(colour: Colour) -> None:
    """An exhausted iterator in the thread (a bare `next`) is an error of the handler, not a wait for ever."""

    def bare_next(command: PlaceOrder) -> Any:
        return next(iter(()))

    bus = colour.bus(command_handlers={PlaceOrder: in_thread(bare_next)})
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="bare_next raised StopIteration") as caught:
            await bus.handle(PlaceOrder())
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_a_coroutine_that_comes_out_is_awaited(colour: Colour) -> None:
    """A handler that only looks sync is awaited in the event loop, as it is without a thread."""

    async def work() -> int:
        return threading.get_ident()

    bus = colour.bus(command_handlers={PlaceOrder: in_thread(lambda command: work())})
    assert await bus.ask(PlaceOrder()) == threading.get_ident()


async def test_cancelling_does_not_stop_the_thread_but_its_emissions(colour: Colour) -> None:
    """Who cancels has control back at once; what the handler emits afterwards raises DispatchEnded there."""
    started, go_on = threading.Event(), threading.Event()
    ended: list[Any] = []

    def slow(command: PlaceOrder, context: Context) -> None:
        started.set()
        go_on.wait(10)
        try:
            context.emit(OrderPlaced())
        except DispatchEnded as error:
            ended.append(error)

    bus = colour.bus({OrderPlaced: [ended.append]}, {PlaceOrder: in_thread(slow)})
    task = asyncio.create_task(bus.handle(PlaceOrder()))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert current_context.get() is None
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert [type(each) for each in ended] == [DispatchEnded]


async def test_two_handlers_in_threads_run_at_once_only_in_memory() -> None:
    """On an InMemoryAsyncMessageBus they wait for each other; on an AsyncMessageBus the second starts after the first."""
    barrier = threading.Barrier(2, timeout=10)
    bus = ALL[3].bus({OrderPlaced: [in_thread(lambda event: barrier.wait())] * 2})
    assert sorted(await bus.handle(OrderPlaced())) == [0, 1]

    inside: list[int] = []

    def alone(event: OrderPlaced) -> int:
        inside.append(1)
        try:
            return len(inside)
        finally:
            inside.pop()

    bus = ALL[1].bus({OrderPlaced: [in_thread(alone)] * 5})
    assert await bus.handle(OrderPlaced()) == [1] * 5


def test_what_cannot_run_in_a_thread_is_refused() -> None:
    """Async handlers run in the event loop; classes and things without `handle` are no handlers."""

    async def function(message: Any) -> None: ...

    class Async(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None: ...

    class Mixed(EventHandlerABC):
        async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None: ...

    for handler in (function, Async(), Mixed(), in_thread(print)):
        with pytest.raises(SettingsError, match="the handler is async"):
            in_thread(handler)
    for wrong in (_Place, 3):
        with pytest.raises(SettingsError):
            in_thread(wrong)
    with pytest.raises(AsyncHandlerOnSyncBus, match="_Place"):
        MessageBus().set_command_handler(PlaceOrder, in_thread(_Place()))


async def test_the_name_in_logs_is_the_handlers(colour: Colour) -> None:
    """Logs and errors name what was wrapped."""

    def send_mail(message: Any) -> None:
        """Send it."""

    wrapped = in_thread(send_mail)
    assert wrapped.__name__ == "send_mail"
    assert wrapped.__doc__ == "Send it."
    assert in_thread(_Place()).__qualname__ == "_Place"


# --- one dispatch, many threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ALL, ids=name_of)
async def test_threads_of_one_handler_share_one_queue_and_one_envelope(
    make: Colour, switching_all_the_time: None
) -> None:
    """Eight threads with a copy of the context emit and read the envelope at the same moment: none is lost, one id.

    (Without the lock in `cascade_of` a thread loses its queue to another's, within some twenty rounds.)
    """
    number = 8

    def splits(command: PlaceOrder, context: Context) -> set[Any]:
        from contextvars import copy_context

        barrier = threading.Barrier(number, timeout=30)
        ids: set[Any] = set()

        def part(index: int) -> None:
            barrier.wait()
            if index % 2:
                context.emit(OrderPlaced(index))
                ids.add(context.envelope.id)
            else:
                ids.add(context.envelope.id)
                context.emit(OrderPlaced(index))

        threads = [threading.Thread(target=copy_context().run, args=(part, index)) for index in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids.add(context.envelope.id)
        return ids

    bus = make.bus(
        {OrderPlaced: [lambda event, context: (event.order_id, context.envelope.headers["causation_id"])]},
        {PlaceOrder: splits, CancelOrder: print},
    )
    for _ in range(40):
        ids, *placed = await make.values(bus, PlaceOrder())
        (only,) = ids
        assert sorted(placed) == [(index, str(only)) for index in range(number)]
