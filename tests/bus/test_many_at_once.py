"""One bus, many threads, many tasks: no emission and no context ever crosses."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context
from message_bus.bus.sync_bus import MessageBus
from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
from tests.bus.shop import OrderPaid, OrderPlaced, PlaceOrder

THREADS, TASKS, ROUNDS = 16, 100, 20


def answers(event: Any, context: Context) -> tuple[str, int, int]:
    """Emits one more message, and says whose context it saw."""
    if isinstance(event, OrderPlaced):
        context.emit(OrderPaid(event.order_id))
    return type(event).__name__, event.order_id, context["caller"]


def wanted(caller: int) -> list[Any]:
    """All results of one dispatch, each with the caller's number and no other."""
    return [[caller] * 2, ("OrderPlaced", caller, caller), ("OrderPlaced", caller, caller)] + [
        ("OrderPaid", caller, caller)
    ] * 2


def test_sixteen_threads_on_one_bus() -> None:
    """All threads are inside the same handler at once, twenty times; each gets its own cascade and context back."""
    barrier = threading.Barrier(THREADS, timeout=30)

    class Place(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> list[int]:
            self.emit_message(OrderPlaced(cmd.order_id))
            barrier.wait()
            self.emit_message(OrderPlaced(cmd.order_id))
            return [each.order_id for each in self.emitted_messages]  # type: ignore[attr-defined]

    bus = MessageBus({OrderPlaced: [answers], OrderPaid: [answers]}, {PlaceOrder: Place()})
    wrong: list[Any] = []

    def work(caller: int) -> None:
        for _ in range(ROUNDS):
            results = [each["result"] for each in bus.handle(PlaceOrder(caller), context={"caller": caller})]
            if results != wanted(caller):
                wrong.append((caller, results))

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def test_a_hundred_tasks_on_one_bus() -> None:
    """All tasks are inside the same handler at once, twenty times; each gets its own cascade and context back."""
    barrier = asyncio.Barrier(TASKS)

    class Place(AsyncCommandHandlerABC):
        async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> list[int]:
            self.emit_message(OrderPlaced(cmd.order_id))
            await barrier.wait()
            self.emit_message(OrderPlaced(cmd.order_id))
            return [each.order_id for each in self.emitted_messages]  # type: ignore[attr-defined]

    bus = AsyncMessageBus({OrderPlaced: [answers], OrderPaid: [answers]}, {PlaceOrder: Place()})

    async def work(caller: int) -> None:
        for _ in range(ROUNDS):
            assert await bus.handle(PlaceOrder(caller), context={"caller": caller}) == wanted(caller)

    async with asyncio.TaskGroup() as group:
        for caller in range(TASKS):
            group.create_task(work(caller))


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
