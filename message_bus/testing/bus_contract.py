"""What every bus must do, as tests to inherit: `BusContract` and `AsyncBusContract`. Needs pytest.

    class TestMyBus(BusContract):
        capabilities = Capabilities(queries=False)

        @pytest.fixture
        def bus(self):
            return MyBus()

Most tests are in `bus_registering_async.py` and `bus_handling_async.py`, and their twins; here is where the colours differ.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from message_bus.errors import AsyncHandlerOnSyncBus, SettingsError
from message_bus.messages.message import Message
from message_bus.testing.bus_handling import BusHandlingContract
from message_bus.testing.bus_handling_async import AsyncBusHandlingContract
from message_bus.testing.contract_messages import OrderPlaced, PlaceOrder


class BusContract(BusHandlingContract):
    """The tests of a bus; each docstring says what is promised.

    To be given: a fixture `bus`, which makes a fresh bus without handlers, and `capabilities` for what it does not do.
    Override `_entry` if `handle` returns something else than `{"command": message, "result": result}`.
    """

    def test_async_handlers_are_refused(self, bus: Any) -> None:
        """When they are registered: nobody would await them."""

        async def handler(message: Message) -> None: ...

        with pytest.raises(AsyncHandlerOnSyncBus, match="handler"):
            bus.set_command_handler(PlaceOrder, handler)
        with pytest.raises(AsyncHandlerOnSyncBus, match="handler"):
            bus.set_event_handlers(OrderPlaced, [handler])
        assert bus.get_command_handler(PlaceOrder) is None
        assert bus.get_event_handlers(OrderPlaced) == []

    def test_a_batch_is_handled_in_order(self, bus: Any) -> None:
        """All results in one list; each message has a context of its own."""
        self._needs("runs_handlers")

        def handler(command: PlaceOrder, context: Any) -> tuple[int, int]:
            context["count"] = context.get("count", 0) + 1
            return command.order_id, context["count"]

        bus.set_command_handler(PlaceOrder, handler)
        results = bus.batch_handle([PlaceOrder(1), PlaceOrder(2)])
        assert results == [self._entry("command", PlaceOrder(n), (n, 1)) for n in (1, 2)]


class AsyncBusContract(AsyncBusHandlingContract):
    """The tests of an async bus: as BusContract, but `_entry` is the bare result.

    The tests are `async def`, so pytest-asyncio is needed: in auto mode, or with `@pytest.mark.asyncio` on the class that
    inherits them.
    """

    async def test_handlers_that_are_not_async_run_inline(self, bus: Any) -> None:
        """In the caller's thread, beside async ones."""
        self._needs("runs_handlers")

        async def handler(event: OrderPlaced) -> int:
            return threading.get_ident()

        bus.set_event_handlers(OrderPlaced, [handler, lambda event: threading.get_ident()])
        here = threading.get_ident()
        assert await bus.handle(OrderPlaced(1)) == [self._entry("event", OrderPlaced(1), here)] * 2

    async def test_event_handlers_run_one_after_another(self, bus: Any) -> None:
        """The next one starts when the one before has ended: they may share an AsyncSession."""
        self._needs("runs_handlers", "one_at_a_time")
        running: list[int] = []

        async def handler(event: OrderPlaced) -> int:
            running.append(1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            count = len(running)
            running.clear()
            return count

        bus.set_event_handlers(OrderPlaced, [handler, handler])
        assert await bus.handle(OrderPlaced(1)) == [self._entry("event", OrderPlaced(1), 1)] * 2

    async def test_a_batch_has_one_entry_per_message(self, bus: Any) -> None:
        """In the order of the messages, whichever ended first; at most `max_concurrency` are in hand at a time."""
        self._needs("runs_handlers")
        in_hand = most = 0

        async def handler(command: PlaceOrder) -> int:
            nonlocal in_hand, most
            in_hand += 1
            most = max(most, in_hand)
            for _ in range(5 - command.order_id):
                await asyncio.sleep(0)
            in_hand -= 1
            return command.order_id

        bus.set_command_handler(PlaceOrder, handler)
        messages = [PlaceOrder(n) for n in range(5)]
        entries = await bus.batch_handle(messages, 2)
        assert entries == [[self._entry("command", each, each.order_id)] for each in messages]
        assert most == 2
        with pytest.raises(SettingsError, match="max_concurrency"):
            await bus.batch_handle(messages, 0)

    async def test_dispatches_at_once_do_not_meet(self, bus: Any) -> None:
        """Contexts and emissions of tasks that share the bus stay apart."""
        self._needs("runs_handlers")
        seen: list[tuple[int, int]] = []

        async def place(command: PlaceOrder, context: Any) -> None:
            context["number"] = command.order_id
            await asyncio.sleep(0)
            context.emit(OrderPlaced(command.order_id))
            await asyncio.sleep(0)

        async def placed(event: OrderPlaced, context: Any) -> None:
            seen.append((event.order_id, context["number"]))

        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [placed])
        await asyncio.gather(*(bus.handle(PlaceOrder(n)) for n in range(20)))
        assert sorted(seen) == [(n, n) for n in range(20)]
