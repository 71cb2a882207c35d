# Generated from outbox_processing_async.py by tests/tools/unasync.py: do not edit.
"""What an outbox promises to `process_outbox`: one half of the contract of outboxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from message_bus import MessageBus
from message_bus._compat import result_of
from message_bus.delivery.report import OutboxReport
from message_bus.delivery.retry import FixedDelay
from message_bus.delivery.subscription import Subscription
from message_bus.errors import Reject
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
from message_bus.testing.capabilities import Units
from message_bus.testing.contract_messages import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder
from message_bus.testing.outbox_registering import (
    RegisteringContract,
    found,
    listed,
    payload_of,
    save,
)


class _Send(OutboxHandlerABC):
    """An outbox handler that gives each row to a function; what has failed is due again at once."""

    def __init__(self, do: Callable[[Any], object], name: str = "send") -> None:
        super().__init__()
        self.subscription = Subscription(name=name, backoff=FixedDelay(0))
        self._do = do

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self._do(outbox_message)


def _bus(*handlers: Any) -> MessageBus:
    """A bus with these outbox handlers; without any, its own handlers are tried again at once."""
    bus = MessageBus()
    own = DispatchOutboxHandler(subscription=Subscription(name="dispatch", backoff=FixedDelay(0)))
    bus.set_outbox_handlers(handlers or [own])
    return bus


def _process(bus: MessageBus, unit_of_work: Units, **options: Any) -> OutboxReport:
    """Process the outbox in a unit of work of its own."""
    with unit_of_work() as repo:
        return bus.process_outbox(repo, **options)


class ProcessingContract(RegisteringContract):
    """What happens to rows. Inherit it through OutboxContract."""

    def test_every_row_is_handled_once_and_marked(self, unit_of_work: Units) -> None:
        """`process_outbox` hands out each row once, in order, and marks it; a second call delivers nothing."""
        seen: list[Any] = []
        bus = _bus(_Send(lambda row: seen.append(row.id)))
        ids = self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2), OrderPaid(3))
        report = _process(bus, unit_of_work)
        assert (seen, report.delivered, report.ok) == (ids, 3, True)
        with unit_of_work() as repo:
            assert listed(repo) == []
            rows = [found(repo, each) for each in ids]
            assert all(getattr(row, "processed", True) for row in rows if row is not None)
        assert _process(bus, unit_of_work).delivered == 0
        assert seen == ids

    def test_the_handlers_of_the_bus_get_the_message(self, unit_of_work: Units) -> None:
        """Without an outbox handler the row is decoded and dispatched, with its envelope and outbox in the context."""
        seen: list[Any] = []

        def handle(event: OrderPaid, context: Any) -> None:
            seen.append((event, context.envelope.name, context.outbox is not None))

        bus = _bus()
        bus.set_event_handlers(OrderPaid, [handle])
        self._saved(unit_of_work, OrderPaid(1))
        assert _process(bus, unit_of_work).delivered == 1
        assert seen == [(OrderPaid(1), "OrderPaid", True)]

    def test_processed_rows_are_not_listed(self, unit_of_work: Units) -> None:
        """With `limit` the first rows are handled and leave the list, the others stay in it."""
        bus = _bus(_Send(lambda row: None))
        ids = self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(3))
        assert _process(bus, unit_of_work, limit=2).delivered == 2
        with unit_of_work() as repo:
            assert listed(repo) == ids[2:]
        assert _process(bus, unit_of_work).delivered == 1
        with unit_of_work() as repo:
            assert listed(repo) == []

    def test_a_failing_row_stays_and_stops_no_other(self, unit_of_work: Units) -> None:
        """The rows behind it are handled; it is not marked, stays in the list, and the next call tries it again."""
        seen: list[Any] = []
        broken = True

        def handle(row: Any) -> None:
            seen.append(payload_of(row)["order_id"])
            if broken and seen[-1] == 1:
                raise RuntimeError("broken")

        bus = _bus(_Send(handle))
        first, *_ = self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(3))
        report = _process(bus, unit_of_work)
        assert (seen, report.delivered, report.retrying, report.ok) == ([1, 2, 3], 2, 1, False)
        with unit_of_work() as repo:
            assert listed(repo) == [first]
            assert not getattr(found(repo, first), "processed", False)
        broken = False
        assert _process(bus, unit_of_work).ok
        assert seen == [1, 2, 3, 1]
        with unit_of_work() as repo:
            assert listed(repo) == []

    def test_a_row_is_marked_when_all_handlers_have_succeeded(self, unit_of_work: Units) -> None:
        """A row that one of two outbox handlers failed on stays in the list until that one has succeeded, too."""
        second: list[Any] = []
        broken = True

        def fail(row: Any) -> None:
            if broken:
                raise RuntimeError("broken")
            second.append(row.id)

        bus = _bus(_Send(lambda row: None, "first"), _Send(fail, "second"))
        (message_id,) = self._saved(unit_of_work, OrderPlaced(1))
        assert not _process(bus, unit_of_work).ok
        with unit_of_work() as repo:
            assert listed(repo) == [message_id]
        broken = False
        assert _process(bus, unit_of_work).ok
        assert second == [message_id]
        with unit_of_work() as repo:
            assert listed(repo) == []

    def test_the_repository_is_usable_after_a_failing_row(self, unit_of_work: Units) -> None:
        """After a row has failed, the same repository takes new messages, saves them and is processed again."""
        seen: list[int] = []

        def handle(event: OrderPlaced) -> None:
            if event.order_id not in seen:
                seen.append(event.order_id)
                raise RuntimeError("broken")

        bus = _bus()
        bus.set_event_handlers(OrderPlaced, [handle])
        self._saved(unit_of_work, OrderPlaced(1))
        with unit_of_work() as repo:
            assert not bus.process_outbox(repo).ok
            bus.register_outbox_message(repo, OrderPlaced(2))
            save(repo)
            bus.process_outbox(repo)
            assert bus.process_outbox(repo).ok
        with unit_of_work() as repo:
            assert listed(repo) == []
        assert seen == [1, 2]

    def test_what_a_handler_emits_is_registered_with_its_mark(self, unit_of_work: Units) -> None:
        """An emitted message is in the outbox when its row is marked, and is delivered like any other."""
        seen: list[Any] = []

        def place(command: PlaceOrder, context: Any) -> None:
            context.emit(OrderPlaced(command.order_id))

        bus = _bus()
        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [seen.append])
        self._saved(unit_of_work, PlaceOrder(1))
        assert _process(bus, unit_of_work, limit=1).delivered == 1
        with unit_of_work() as repo:
            rows = result_of(repo.list_unprocessed())
            assert [(row.message, payload_of(row)) for row in rows] == [("OrderPlaced", {"order_id": 1})]
        assert _process(bus, unit_of_work).delivered == 1
        assert seen == [OrderPlaced(1)]

    def test_one_call_delivers_what_handlers_emit(self, unit_of_work: Units) -> None:
        """Without `limit` nothing is left, emitted messages included."""
        seen: list[Any] = []

        def place(command: PlaceOrder, context: Any) -> None:
            context.emit(OrderPlaced(command.order_id))

        bus = _bus()
        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [seen.append])
        self._saved(unit_of_work, PlaceOrder(1), PlaceOrder(2))
        assert _process(bus, unit_of_work).delivered == 4
        assert seen == [OrderPlaced(1), OrderPlaced(2)]

    def test_what_a_failing_row_has_emitted_is_rolled_back(self, unit_of_work: Units) -> None:
        """Messages emitted or registered for a row that fails are not stored with the next row, but when it succeeds."""
        broken = True

        def emits(event: OrderPlaced, context: Any) -> None:
            context.emit(OrderPaid(event.order_id))
            MessageBus.register_outbox_message(context.outbox, OrderShipped(event.order_id))

        def fails(event: OrderPlaced) -> None:
            if broken:
                raise RuntimeError("broken")

        bus = _bus()
        bus.set_event_handlers(OrderPlaced, [emits, fails])
        bus.set_command_handler(PlaceOrder, lambda command: None)
        failing, _ = self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2))
        for _ in range(2):
            assert not _process(bus, unit_of_work).ok
            with unit_of_work() as repo:
                assert listed(repo) == [failing]
        broken = False
        _process(bus, unit_of_work, limit=1)
        with unit_of_work() as repo:
            rows = result_of(repo.list_unprocessed())
            assert sorted(row.message for row in rows) == ["OrderPaid", "OrderShipped"]

    def test_a_failing_row_holds_back_its_key(self, unit_of_work: Units) -> None:
        """Later rows of its key wait for it, those of other keys do not (G3)."""
        self._needs("keys", "order_per_key")
        seen: list[Any] = []
        broken = True

        def handle(row: Any) -> None:
            if broken and row.id == first:
                raise RuntimeError("broken")
            seen.append(row.id)

        bus = _bus(_Send(handle))
        first, other, second = self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2), OrderPlaced(1))
        assert _process(bus, unit_of_work).held == 1
        assert seen == [other]
        broken = False
        _process(bus, unit_of_work)
        _process(bus, unit_of_work)
        assert seen == [other, first, second]

    def test_a_rejected_row_is_not_tried_again(self, unit_of_work: Units) -> None:
        """It becomes a dead letter: in the list, not marked, and left alone (G7)."""
        self._needs("dead_letters")
        seen: list[Any] = []

        def handle(row: Any) -> None:
            seen.append(row.id)
            raise Reject("never")

        bus = _bus(_Send(handle))
        ids = self._saved(unit_of_work, OrderPlaced(1))
        assert _process(bus, unit_of_work).dead == 1
        assert _process(bus, unit_of_work).dead == 1
        assert seen == ids
        with unit_of_work() as repo:
            assert listed(repo) == ids
