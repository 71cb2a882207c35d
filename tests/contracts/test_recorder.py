"""`Recorder`: what it records, what it answers, on both buses."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from message_bus import AsyncMessageBus, Command, Event, InMemoryOutBoxRepo, MessageBus, Query
from message_bus.testing import Recorder


class PlaceOrder(Command):
    order_id: int = 1


class OrderPlaced(Event):
    order_id: int = 1


class OrderPaid(Event):
    order_id: int = 1


class GetOrder(Query[str]):
    order_id: int = 1


@pytest.fixture(params=[MessageBus, AsyncMessageBus])
def bus(request: pytest.FixtureRequest) -> Any:
    """A bus of each colour."""
    return request.param()


async def done(value: Any) -> Any:
    """The value, awaited on the async bus."""
    return await value if inspect.isawaitable(value) else value


async def test_it_handles_messages_of_every_kind(bus: Any) -> None:
    """All in the order of the calls, those of one type by `of`; `clear` forgets them."""
    recorder = Recorder(result="done")
    bus.set_command_handler(PlaceOrder, recorder)
    bus.set_event_handlers(OrderPlaced, [recorder])
    bus.set_event_handlers(OrderPaid, [recorder])
    bus.set_query_handler(GetOrder, recorder)
    assert await done(bus.ask(PlaceOrder(1))) == await done(bus.ask(GetOrder(2))) == "done"
    for event in (OrderPlaced(3), OrderPaid(4), OrderPlaced(5)):
        await done(bus.handle(event))
    assert recorder.messages == [PlaceOrder(1), GetOrder(2), OrderPlaced(3), OrderPaid(4), OrderPlaced(5)]
    assert recorder.of(OrderPlaced) == [OrderPlaced(3), OrderPlaced(5)]
    assert len(recorder.of(Event)) == 3
    recorder.clear()
    assert recorder.messages == []


async def test_contexts_and_envelopes_are_copies(bus: Any) -> None:
    """As they were at the call, whatever becomes of the context; further arguments beside them."""
    recorder = Recorder()

    def changes(event: OrderPlaced, context: Any, *args: Any, **kwargs: Any) -> None:
        context["user"] = 2

    bus.set_event_handlers(OrderPlaced, [recorder, changes, recorder])
    await done(bus.handle(OrderPlaced(), "a", context={"user": 1}, b="c"))
    assert [context["user"] for context in recorder.contexts] == [1, 2]
    first, second = recorder.envelopes
    assert first is not None
    assert first == second
    assert (first.message, first.name) == (OrderPlaced(), "OrderPlaced")
    assert [(call.args, call.kwargs) for call in recorder.calls] == [(("a",), {"b": "c"})] * 2


async def test_it_raises_what_it_is_told(bus: Any) -> None:
    """An exception or its class, until it is told otherwise; the call is recorded all the same."""
    recorder = Recorder(error=ValueError("broken"))
    bus.set_command_handler(PlaceOrder, recorder)
    with pytest.raises(ValueError, match="broken"):
        await done(bus.handle(PlaceOrder()))
    recorder.error = KeyError
    with pytest.raises(KeyError):
        await done(bus.handle(PlaceOrder()))
    recorder.error = None
    await done(bus.handle(PlaceOrder()))
    assert len(recorder.messages) == 3


async def test_it_records_as_middleware(bus: Any) -> None:
    """Around the handlers, which run as ever: one call each."""
    recorder = Recorder()
    bus.add_middleware(recorder.async_middleware if isinstance(bus, AsyncMessageBus) else recorder.middleware)
    bus.set_command_handler(PlaceOrder, lambda command, context: context.emit(OrderPlaced(2)) or "placed")
    bus.set_event_handlers(OrderPlaced, [print, print])
    assert await done(bus.ask(PlaceOrder())) == "placed"
    assert recorder.messages == [PlaceOrder(), OrderPlaced(2), OrderPlaced(2)]


def test_behind_the_outbox_it_sees_the_stored_envelope() -> None:
    """Id and meta are those of the row."""
    recorder = Recorder()
    bus = MessageBus({OrderPlaced: [recorder]})
    repo = InMemoryOutBoxRepo()
    row = bus.register_outbox_message(repo, OrderPlaced(), meta={"user": 1})
    repo.save()
    assert bus.process_outbox(repo).ok
    (envelope,) = recorder.envelopes
    assert envelope is not None
    assert (envelope.id, envelope.meta) == (row.id, {"user": 1})
    assert recorder.contexts[0]["outbox"] is repo


def test_it_is_called_by_hand_as_well() -> None:
    """With a message alone there is no context and no envelope."""
    recorder = Recorder(result=1)
    assert recorder(OrderPlaced()) == 1
    assert (recorder.contexts, recorder.envelopes) == ([{}], [None])
