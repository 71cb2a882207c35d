"""The context and the envelope in hand: made when asked for, inherited by what is emitted and registered."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from message_bus.bus import context as context_module
from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context, correlate, in_hand
from message_bus.bus.sync_bus import MessageBus
from message_bus.errors import WiringError
from message_bus.event_handlers.base import EventHandlerABC
from message_bus.messages.envelope import Envelope, new_envelope
from tests.bus.shop import CancelOrder, OrderPaid, OrderPlaced, PlaceOrder


def test_the_keys_are_properties_too() -> None:
    """What is not there is None, and the attempt is the first."""
    context = Context(db_session=1, sessions=2, outbox=3, attempt=4)
    assert (context.db_session, context.sessions, context.outbox, context.attempt) == (1, 2, 3, 4)
    assert (Context().db_session, Context().sessions, Context().outbox, Context().attempt) == (
        None,
        None,
        None,
        1,
    )


def test_the_envelope_is_made_on_first_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatch in which nobody asks makes none; asked in three ways it is the same one."""
    made: list[Envelope] = []

    def counting(*args: Any, **kwargs: Any) -> Envelope:
        made.append(new_envelope(*args, **kwargs))
        return made[-1]

    monkeypatch.setitem(context_module.Cascade.envelope.__globals__, "new_envelope", counting)

    def asks(event: OrderPlaced, context: Context) -> None:
        assert context.envelope is context["envelope"] is context.get("envelope") is in_hand()
        assert context.envelope.message is event

    bus = MessageBus({OrderPaid: [lambda event, context: context.emit(OrderPlaced())], OrderPlaced: [print]})
    bus.handle(OrderPaid())
    assert made == []
    bus.set_event_handlers(OrderPlaced, [asks])
    assert not bus.dispatch(OrderPlaced()).failures
    assert len(made) == 1


def test_outside_of_a_dispatch_nothing_is_in_hand() -> None:
    """Reading the envelope then says so; `get` gives its default."""
    assert in_hand() is None
    with pytest.raises(WiringError, match="no message is in hand"):
        _ = Context().envelope
    with pytest.raises(KeyError):
        Context()["envelope"]
    assert Context().get("envelope", "none") == "none"
    assert Context(a=1).get("a") == 1
    assert Context().get("a", 2) == 2


def test_a_kept_context_has_no_envelope_after_its_dispatch() -> None:
    """The dispatch is over, so nothing is in hand."""
    kept: list[Context] = []
    MessageBus({OrderPlaced: [lambda event, context: kept.append(context)]}).handle(OrderPlaced())
    assert kept[0].get("envelope") is None
    assert kept[0].emitted_messages == []


def family(bus_type: type[Any]) -> tuple[Any, dict[str, Envelope]]:
    """A bus on which PlaceOrder emits OrderPlaced, which emits OrderPaid; and their envelopes."""
    seen: dict[str, Envelope] = {}

    def emits(*messages: Any) -> Any:
        def handler(message: Any, context: Context) -> None:
            for each in messages:
                context.emit(each)
            seen[type(message).__name__] = context.envelope

        return handler

    return bus_type(
        {OrderPlaced: [emits(OrderPaid())], OrderPaid: [emits()]}, {PlaceOrder: emits(OrderPlaced())}
    ), seen


@pytest.mark.parametrize("bus_type", [MessageBus, AsyncMessageBus])
def test_emitted_messages_inherit_correlation_and_causation(bus_type: type[Any]) -> None:
    """All share the first one's id as correlation id; each has the one before as its cause."""
    bus, seen = family(bus_type)
    done = bus.handle(PlaceOrder())
    if bus_type is AsyncMessageBus:
        asyncio.run(_await(done))
    placed, ordered, paid = seen["OrderPlaced"], seen["PlaceOrder"], seen["OrderPaid"]
    assert ordered.correlation_id == placed.correlation_id == paid.correlation_id == str(ordered.id)
    assert (ordered.causation_id, placed.causation_id, paid.causation_id) == (
        None,
        str(ordered.id),
        str(placed.id),
    )


async def _await(value: Any) -> Any:
    return await value


def test_a_nested_dispatch_inherits_from_the_message_in_hand() -> None:
    """Also when the handler passes its own context on, which holds its own envelope."""
    bus = MessageBus()
    seen: list[Envelope] = []
    bus.set_command_handler(CancelOrder, lambda command, context: seen.append(context.envelope))

    def outer(command: PlaceOrder, context: Context) -> None:
        bus.handle(CancelOrder())
        bus.handle(CancelOrder(), context=context)
        seen.append(context.envelope)

    bus.set_command_handler(PlaceOrder, outer)
    given = new_envelope(PlaceOrder(), headers={"correlation_id": "web"})
    bus.handle(given.message, context={"envelope": given})
    first, second, own = seen
    assert own is given
    for inner in (first, second):
        assert (inner.causation_id, inner.correlation_id) == (str(given.id), "web")
        assert isinstance(inner.message, CancelOrder)


def test_correlate_sets_the_correlation_at_the_edge() -> None:
    """For what is handled inside it, the straight line or not, and not afterwards."""
    bus, seen = family(MessageBus)
    for context in (None, {"x": 1}):
        with correlate("request-7"):
            bus.handle(PlaceOrder(), context=context)
        assert {each.correlation_id for each in seen.values()} == {"request-7"}
    bus.handle(PlaceOrder())
    assert {each.correlation_id for each in seen.values()} == {str(seen["PlaceOrder"].id)}


async def test_correlate_belongs_to_its_task() -> None:
    """Tasks beside it do not see it."""
    bus, seen = family(AsyncMessageBus)
    entered, left = asyncio.Event(), asyncio.Event()

    async def edge() -> None:
        with correlate("request-7"):
            entered.set()
            await left.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(edge())
        await entered.wait()
        await bus.handle(PlaceOrder())
        left.set()
    assert "request-7" not in {each.correlation_id for each in seen.values()}


@pytest.mark.parametrize("handlers", [1, 2])
def test_a_thread_that_asks_first_gets_the_same_correlation(handlers: int) -> None:
    """A bare thread of a handler's sees the correlation of the edge, although it has none of its own."""
    seen: list[Any] = []

    def asks_in_a_thread(event: OrderPlaced, context: Context) -> None:
        thread = threading.Thread(target=lambda: seen.append(context.envelope.correlation_id))
        thread.start()
        thread.join()

    bus = MessageBus({OrderPlaced: [asks_in_a_thread] * handlers})
    with correlate("request"):
        bus.handle(OrderPlaced())
    assert seen == ["request"] * handlers


@pytest.mark.parametrize("handlers", [1, 2])
def test_correlate_inside_a_handler_does_not_change_the_message_in_hand(handlers: int) -> None:
    """With one handler (the straight line) as with several: the message's own correlation holds."""
    correlations: list[Any] = []

    def correlates(event: OrderPlaced, context: Context) -> None:
        with correlate("inner"):
            context.emit(OrderPaid())

    bus = MessageBus(
        {
            OrderPlaced: [correlates] * handlers,
            OrderPaid: [lambda event, context: correlations.append(context.envelope.correlation_id)],
        }
    )
    bus.handle(OrderPlaced())
    assert "inner" not in correlations
    assert len(set(correlations)) == 1


def test_correlate_is_no_dispatch() -> None:
    """Inside of it, but outside of a dispatch, a handler that is called by hand collects what it emits."""

    class Emits(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPaid())

    handler = Emits()
    with correlate("request"):
        assert in_hand() is None
        handler.handle(OrderPlaced(), {})
        assert handler.emitted_messages == [OrderPaid()]
