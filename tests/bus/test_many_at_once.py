"""One bus, many threads, many tasks: no emission, no context and no correlation ever crosses.

Every caller places an order under a number and a correlation id of its own, again and again, while all the others are inside
of the same handler; what comes back must have this number everywhere. That the tests can fail is proved by two of them,
which take the ContextVar away.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from message_bus import (
    AsyncCommandHandlerABC,
    AsyncMessageBus,
    CommandHandlerABC,
    Context,
    MessageBus,
    Query,
    correlate,
    in_thread,
)
from message_bus.bus import async_bus, context, sync_bus, wired
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder

THREADS, TASKS, ROUNDS = 32, 200, 10

SYNC = [each for each in ALL if not each.is_async]
ASYNC = [each for each in ALL if each.is_async]


class GetCaller(Query[int]):
    order_id: int


@pytest.fixture
def switching_all_the_time() -> Iterator[None]:
    """Threads are interrupted wherever they can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# --- what every caller does and wants -------------------------------------------------------------------------------


def seen(message: Any, context: Context) -> tuple[Any, ...]:
    """Whose message, context and correlation a handler sees."""
    return (
        type(message).__name__,
        message.order_id,
        context.get("caller"),
        context.envelope.headers["correlation_id"],
    )


def on_placed(event: OrderPlaced, context: Context) -> Any:
    """Emits one more message, and says what it sees."""
    context.emit(OrderPaid(event.order_id))
    return seen(event, context)


def wanted(caller: int) -> list[Any]:
    """All results of one dispatch, each with the caller's number and no other."""
    expected = {
        name: (name, caller, caller, f"request-{caller}")
        for name in ("OrderPlaced", "OrderPaid", "PlaceOrder")
    }
    inside = [*([expected["PlaceOrder"]] * 2), caller, [OrderPlaced(caller)] * 2]
    return [inside, *([expected["OrderPlaced"]] * 4), *([expected["OrderPaid"]] * 4)]


def wire(bus: Any, place: Any, *, threads: bool = False) -> Any:
    """The handlers of all tests: two of each event, so that there is a cascade and concurrency inside of it."""
    wrap: Any = in_thread if threads else lambda handler: handler
    bus.set_command_handler(PlaceOrder, place)
    for _ in range(2):
        bus.subscribe(OrderPlaced, wrap(on_placed))
    bus.subscribe(OrderPaid, wrap(seen))
    bus.subscribe(GetCaller, wrap(lambda query: query.order_id))
    bus.subscribe(OrderShipped, lambda event, context: context.emit(OrderPaid(-1)))
    return bus


def threads_that_see_others(colour: Colour, number: int, rounds: int) -> list[Any]:
    """What went wrong: (caller, what it got), for each dispatch with something of another caller in it."""
    barrier = threading.Barrier(number, timeout=30)

    class Place(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            self.emit_message(OrderPlaced(cmd.order_id))
            before = seen(cmd, context)
            barrier.wait()  # all are inside of this one handler object now
            bus.publish(OrderShipped(cmd.order_id))  # a dispatch inside, with emissions of its own
            answer = bus.ask(GetCaller(cmd.order_id))
            self.emit_message(OrderPlaced(cmd.order_id))
            return [before, seen(cmd, context), answer, self.emitted_messages]

    bus = wire(colour.bus(), Place())
    wrong: list[Any] = []

    def work(caller: int) -> None:
        try:
            for _ in range(rounds):
                with correlate(f"request-{caller}"):
                    got = [
                        each["result"] for each in bus.handle(PlaceOrder(caller), context={"caller": caller})
                    ]
                if got != wanted(caller):
                    wrong.append((caller, got))
        except Exception as error:
            wrong.append((caller, error))
            barrier.abort()

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


class _Place(AsyncCommandHandlerABC):
    def __init__(self, bus: Any, pause: Any) -> None:
        self.bus, self.pause = bus, pause

    async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        self.emit_message(OrderPlaced(cmd.order_id))
        before = seen(cmd, context)
        await self.pause()
        await self.bus.publish(OrderShipped(cmd.order_id))
        answer = await self.bus.ask(GetCaller(cmd.order_id))
        self.emit_message(OrderPlaced(cmd.order_id))
        return [before, seen(cmd, context), answer, self.emitted_messages]


def bus_for_tasks(colour: Colour, pause: Any, *, threads: bool = False) -> Any:
    """An async bus; with `threads` the handlers of events and queries run in worker threads."""
    bus = colour.bus()
    return wire(bus, _Place(bus, pause), threads=threads)


async def tasks_that_see_others(bus: Any, callers: range, rounds: int) -> list[Any]:
    """The same for tasks, one for each caller."""
    wrong: list[Any] = []

    async def work(caller: int) -> None:
        for _ in range(rounds):
            with correlate(f"request-{caller}"):
                try:
                    got: Any = await bus.handle(PlaceOrder(caller), context={"caller": caller})
                except Exception as error:
                    got = error
            if got != wanted(caller):
                wrong.append((caller, got))

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(work(caller))
    return wrong


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", SYNC, ids=name_of)
def test_thirty_two_threads_on_one_bus(colour: Colour, switching_all_the_time: None) -> None:
    """All are inside the same handler at once, thirty times; each gets its own cascade, context and correlation back."""
    assert threads_that_see_others(colour, THREADS, 3 * ROUNDS) == []


@pytest.mark.parametrize("colour", ASYNC, ids=name_of)
async def test_two_hundred_tasks_on_one_bus(colour: Colour) -> None:
    """The same for tasks of one event loop."""
    bus = bus_for_tasks(colour, asyncio.Barrier(TASKS).wait)
    assert await tasks_that_see_others(bus, range(TASKS), ROUNDS) == []


@pytest.mark.parametrize("colour", ASYNC, ids=name_of)
async def test_two_hundred_tasks_with_handlers_in_threads(
    colour: Colour, switching_all_the_time: None
) -> None:
    """The same with the handlers of events and queries in the loop's pool of threads."""
    bus = bus_for_tasks(colour, asyncio.Barrier(TASKS).wait, threads=True)
    assert await tasks_that_see_others(bus, range(TASKS), 2) == []


@pytest.mark.parametrize("colour", ASYNC, ids=name_of)
def test_event_loops_in_eight_threads_on_one_bus(colour: Colour, switching_all_the_time: None) -> None:
    """One async bus serves several event loops at once, twenty-five tasks in each."""
    loops, tasks = 8, 25
    barrier = threading.Barrier(loops, timeout=30)
    bus = bus_for_tasks(colour, lambda: asyncio.sleep(0))
    wrong: list[Any] = []

    def work(index: int) -> None:
        callers = range(index * tasks, (index + 1) * tasks)
        barrier.wait()
        wrong.extend(asyncio.run(tasks_that_see_others(bus, callers, 5)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the same with the ContextVar taken away: the tests above would notice -------------------------------------------


class _Global:
    """A variable that all threads and tasks share, used like a ContextVar."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        """The value."""
        return self.value

    def set(self, value: Any) -> Any:
        """Set it; return what it was, to be reset to."""
        before, self.value = self.value, value
        return before

    def reset(self, before: Any) -> None:
        """Set it to what it was."""
        self.value = before


@pytest.fixture
def without_a_context_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatch in hand is kept in a plain variable."""
    variable = _Global()
    for module in (context, sync_bus, async_bus, wired):
        monkeypatch.setattr(module, "current_context", variable)
    for module in (sync_bus, async_bus):
        monkeypatch.setattr(module, "_in_hand", variable.get)
        monkeypatch.setattr(module, "_enter", variable.set)
        monkeypatch.setattr(module, "_leave", variable.reset)


@pytest.mark.parametrize("colour", SYNC, ids=name_of)
def test_threads_would_see_each_others_emissions(colour: Colour, without_a_context_variable: None) -> None:
    """A control: with a plain variable the test for threads finds crossings."""
    assert threads_that_see_others(colour, 4, 2) != []


@pytest.mark.parametrize("colour", ASYNC, ids=name_of)
async def test_tasks_would_see_each_others_emissions(
    colour: Colour, without_a_context_variable: None
) -> None:
    """A control: with a plain variable the test for tasks finds crossings."""
    assert await tasks_that_see_others(bus_for_tasks(colour, lambda: asyncio.sleep(0)), range(4), 2) != []


# --- tasks, threads and greenlets inside of one handler --------------------------------------------------------------


async def test_a_sync_bus_inside_tasks_that_take_turns_in_mid_handler() -> None:
    """Two greenlets of one thread (as `AsyncSession.run_sync` makes them) keep their dispatches apart."""
    from sqlalchemy.util.concurrency import await_only, greenlet_spawn

    barrier = asyncio.Barrier(2)

    class Place(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> list[Any]:
            await_only(barrier.wait())
            self.emit_message(OrderPlaced(cmd.order_id))
            await_only(barrier.wait())
            return self.emitted_messages

    bus = MessageBus(command_handlers={PlaceOrder: Place()})
    first, second = await asyncio.gather(*(greenlet_spawn(bus.handle, PlaceOrder(n)) for n in (1, 2)))
    assert first[0]["result"] == [OrderPlaced(1)]
    assert second[0]["result"] == [OrderPlaced(2)]


async def test_tasks_and_threads_of_a_handler_emit_into_its_dispatch() -> None:
    """What they emit before the handler returns belongs to the message it handles."""

    class Splits(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            async def part(order_id: int) -> None:
                self.emit_message(OrderPlaced(order_id))

            await asyncio.gather(part(1), part(2))
            await asyncio.to_thread(self.emit_message, OrderPlaced(3))

    placed: list[Any] = []
    bus = AsyncMessageBus({OrderPlaced: [placed.append]}, {PlaceOrder: Splits()})
    await bus.handle(PlaceOrder())
    assert placed == [OrderPlaced(1), OrderPlaced(2), OrderPlaced(3)]
