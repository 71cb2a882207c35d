"""What an outbox promises to `process_outbox`: one half of the contract of outboxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from message_bus import AsyncMessageBus
from message_bus._compat import result_of_async
from message_bus.delivery.report import OutboxReport
from message_bus.delivery.retry import FixedDelay
from message_bus.delivery.subscription import Subscription
from message_bus.errors import Reject
from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
from message_bus.testing.capabilities import AsyncUnits
from message_bus.testing.contract_messages import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder
from message_bus.testing.outbox_registering_async import (
    AsyncRegisteringContract,
    found,
    listed,
    payload_of,
    save,
)


class _AsyncSend(AsyncOutboxHandlerABC):
    """An outbox handler that gives each row to a function; what has failed is due again at once."""

    def __init__(self, do: Callable[[Any], object], name: str = "send") -> None:
        super().__init__()
        self.subscription = Subscription(name=name, backoff=FixedDelay(0))
        self._do = do

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self._do(outbox_message)


def _bus(*handlers: Any) -> AsyncMessageBus:
    """A bus with these outbox handlers; without any, its own handlers are tried again at once."""
    bus = AsyncMessageBus()
    own = DispatchOutboxHandler(subscription=Subscription(name="dispatch", backoff=FixedDelay(0)))
    bus.set_outbox_handlers(handlers or [own])
    return bus


async def _process(bus: AsyncMessageBus, unit_of_work: AsyncUnits, **options: Any) -> OutboxReport:
    """Process the outbox in a unit of work of its own."""
    async with unit_of_work() as repo:
        return await bus.process_outbox(repo, **options)


class AsyncProcessingContract(AsyncRegisteringContract):
    """What happens to rows. Inherit it through AsyncOutboxContract."""

    async def test_every_row_is_handled_once_and_marked(self, unit_of_work: AsyncUnits) -> None:
        """`process_outbox` hands out each row once, in order, and marks it; a second call delivers nothing."""
        seen: list[Any] = []
        bus = _bus(_AsyncSend(lambda row: seen.append(row.id)))
        ids = await self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2), OrderPaid(3))
        report = await _process(bus, unit_of_work)
        assert (seen, report.delivered, report.ok) == (ids, 3, True)
        async with unit_of_work() as repo:
            assert await listed(repo) == []
            rows = [await found(repo, each) for each in ids]
            assert all(getattr(row, "processed", True) for row in rows if row is not None)
        assert (await _process(bus, unit_of_work)).delivered == 0
        assert seen == ids

    async def test_the_handlers_of_the_bus_get_the_message(self, unit_of_work: AsyncUnits) -> None:
        """Without an outbox handler the row is decoded and dispatched, with its envelope and outbox in the context."""
        seen: list[Any] = []

        async def handle(event: OrderPaid, context: Any) -> None:
            seen.append((event, context.envelope.name, context.outbox is not None))

        bus = _bus()
        bus.set_event_handlers(OrderPaid, [handle])
        await self._saved(unit_of_work, OrderPaid(1))
        assert (await _process(bus, unit_of_work)).delivered == 1
        assert seen == [(OrderPaid(1), "OrderPaid", True)]

    async def test_processed_rows_are_not_listed(self, unit_of_work: AsyncUnits) -> None:
        """With `limit` the first rows are handled and leave the list, the others stay in it."""
        bus = _bus(_AsyncSend(lambda row: None))
        ids = await self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(3))
        assert (await _process(bus, unit_of_work, limit=2)).delivered == 2
        async with unit_of_work() as repo:
            assert await listed(repo) == ids[2:]
        assert (await _process(bus, unit_of_work)).delivered == 1
        async with unit_of_work() as repo:
            assert await listed(repo) == []

    async def test_a_failing_row_stays_and_stops_no_other(self, unit_of_work: AsyncUnits) -> None:
        """The rows behind it are handled; it is not marked, stays in the list, and the next call tries it again."""
        seen: list[Any] = []
        broken = True

        def handle(row: Any) -> None:
            seen.append(payload_of(row)["order_id"])
            if broken and seen[-1] == 1:
                raise RuntimeError("broken")

        bus = _bus(_AsyncSend(handle))
        first, *_ = await self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(3))
        report = await _process(bus, unit_of_work)
        assert (seen, report.delivered, report.retrying, report.ok) == ([1, 2, 3], 2, 1, False)
        async with unit_of_work() as repo:
            assert await listed(repo) == [first]
            assert not getattr(await found(repo, first), "processed", False)
        broken = False
        assert (await _process(bus, unit_of_work)).ok
        assert seen == [1, 2, 3, 1]
        async with unit_of_work() as repo:
            assert await listed(repo) == []

    async def test_a_row_is_marked_when_all_handlers_have_succeeded(self, unit_of_work: AsyncUnits) -> None:
        """A row that one of two outbox handlers failed on stays in the list until that one has succeeded, too."""
        second: list[Any] = []
        broken = True

        def fail(row: Any) -> None:
            if broken:
                raise RuntimeError("broken")
            second.append(row.id)

        bus = _bus(_AsyncSend(lambda row: None, "first"), _AsyncSend(fail, "second"))
        (message_id,) = await self._saved(unit_of_work, OrderPlaced(1))
        assert not (await _process(bus, unit_of_work)).ok
        async with unit_of_work() as repo:
            assert await listed(repo) == [message_id]
        broken = False
        assert (await _process(bus, unit_of_work)).ok
        assert second == [message_id]
        async with unit_of_work() as repo:
            assert await listed(repo) == []

    async def test_the_repository_is_usable_after_a_failing_row(self, unit_of_work: AsyncUnits) -> None:
        """After a row has failed, the same repository takes new messages, saves them and is processed again."""
        seen: list[int] = []

        async def handle(event: OrderPlaced) -> None:
            if event.order_id not in seen:
                seen.append(event.order_id)
                raise RuntimeError("broken")

        bus = _bus()
        bus.set_event_handlers(OrderPlaced, [handle])
        await self._saved(unit_of_work, OrderPlaced(1))
        async with unit_of_work() as repo:
            assert not (await bus.process_outbox(repo)).ok
            bus.register_outbox_message(repo, OrderPlaced(2))
            await save(repo)
            await bus.process_outbox(repo)
            assert (await bus.process_outbox(repo)).ok
        async with unit_of_work() as repo:
            assert await listed(repo) == []
        assert seen == [1, 2]

    async def test_what_a_handler_emits_is_registered_with_its_mark(self, unit_of_work: AsyncUnits) -> None:
        """An emitted message is in the outbox when its row is marked, and is delivered like any other."""
        seen: list[Any] = []

        async def place(command: PlaceOrder, context: Any) -> None:
            context.emit(OrderPlaced(command.order_id))

        bus = _bus()
        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [seen.append])
        await self._saved(unit_of_work, PlaceOrder(1))
        assert (await _process(bus, unit_of_work, limit=1)).delivered == 1
        async with unit_of_work() as repo:
            rows = await result_of_async(repo.list_unprocessed())
            assert [(row.message, payload_of(row)) for row in rows] == [("OrderPlaced", {"order_id": 1})]
        assert (await _process(bus, unit_of_work)).delivered == 1
        assert seen == [OrderPlaced(1)]

    async def test_one_call_delivers_what_handlers_emit(self, unit_of_work: AsyncUnits) -> None:
        """Without `limit` nothing is left, emitted messages included."""
        seen: list[Any] = []

        async def place(command: PlaceOrder, context: Any) -> None:
            context.emit(OrderPlaced(command.order_id))

        bus = _bus()
        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [seen.append])
        await self._saved(unit_of_work, PlaceOrder(1), PlaceOrder(2))
        assert (await _process(bus, unit_of_work)).delivered == 4
        assert seen == [OrderPlaced(1), OrderPlaced(2)]

    async def test_what_a_failing_row_has_emitted_is_rolled_back(self, unit_of_work: AsyncUnits) -> None:
        """Messages emitted or registered for a row that fails are not stored with the next row, but when it succeeds."""
        broken = True

        async def emits(event: OrderPlaced, context: Any) -> None:
            context.emit(OrderPaid(event.order_id))
            AsyncMessageBus.register_outbox_message(context.outbox, OrderShipped(event.order_id))

        async def fails(event: OrderPlaced) -> None:
            if broken:
                raise RuntimeError("broken")

        bus = _bus()
        bus.set_event_handlers(OrderPlaced, [emits, fails])
        bus.set_command_handler(PlaceOrder, lambda command: None)
        failing, _ = await self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2))
        for _ in range(2):
            assert not (await _process(bus, unit_of_work)).ok
            async with unit_of_work() as repo:
                assert await listed(repo) == [failing]
        broken = False
        await _process(bus, unit_of_work, limit=1)
        async with unit_of_work() as repo:
            rows = await result_of_async(repo.list_unprocessed())
            assert sorted(row.message for row in rows) == ["OrderPaid", "OrderShipped"]

    async def test_a_failing_row_holds_back_its_key(self, unit_of_work: AsyncUnits) -> None:
        """Later rows of its key wait for it, those of other keys do not (G3)."""
        self._needs("keys", "order_per_key")
        seen: list[Any] = []
        broken = True

        def handle(row: Any) -> None:
            if broken and row.id == first:
                raise RuntimeError("broken")
            seen.append(row.id)

        bus = _bus(_AsyncSend(handle))
        first, other, second = await self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(1))
        assert (await _process(bus, unit_of_work)).held == 1
        assert seen == [other]
        broken = False
        await _process(bus, unit_of_work)
        await _process(bus, unit_of_work)
        assert seen == [other, first, second]

    async def test_a_rejected_row_is_not_tried_again(self, unit_of_work: AsyncUnits) -> None:
        """It becomes a dead letter: in the list, not marked, and left alone (G7)."""
        self._needs("dead_letters")
        seen: list[Any] = []

        def handle(row: Any) -> None:
            seen.append(row.id)
            raise Reject("never")

        bus = _bus(_AsyncSend(handle))
        ids = await self._saved(unit_of_work, OrderPlaced(1))
        assert (await _process(bus, unit_of_work)).dead == 1
        assert (await _process(bus, unit_of_work)).dead == 1
        assert seen == ids
        async with unit_of_work() as repo:
            assert await listed(repo) == ids
