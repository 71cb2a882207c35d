"""The dry-run buses: the wiring is checked, nothing runs, nothing is changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from message_bus import Command, Event, HandlerNotFound, InMemoryOutBoxRepo, NotAMessage, Query, WiringError
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
from message_bus.testing import AsyncDryRunMessageBus, DryRunMessageBus, Recorder, WouldHandle


class PlaceOrder(Command):
    order_id: int = 1


class OrderPlaced(Event):
    order_id: int = 1


class GetOrder(Query[str]):
    order_id: int = 1


def fail(*given: Any, **options: Any) -> None:
    """Nothing may call this."""
    raise AssertionError("a dry run ran a handler or middleware")


async def fail_async(message: Any, context: Any, call_next: Any) -> None:
    """Nor this."""
    fail()


@pytest.fixture(params=[DryRunMessageBus, AsyncDryRunMessageBus])
def bus(request: pytest.FixtureRequest) -> Any:
    """A bus of each colour, with handlers and middleware that must not run."""
    return request.param(
        {OrderPlaced: [fail, print]},
        {PlaceOrder: fail},
        middleware=[fail if request.param is DryRunMessageBus else fail_async],
    )


async def done(value: Any) -> Any:
    """The value, awaited on the async bus."""
    return await value if inspect.isawaitable(value) else value


async def test_it_says_what_would_have_been_handled_and_by_whom(bus: Any) -> None:
    """By every way into a bus; an event without handlers has none."""
    bus.set_query_handler(GetOrder, fail)
    assert await done(bus.handle(PlaceOrder(1), "argument", context={"user": 1})) == []
    assert (await done(bus.dispatch(OrderPlaced(2)))).results == []
    assert await done(bus.publish(OrderPlaced(3))) is None
    assert await done(bus.ask(GetOrder(4))) is None
    assert await done(bus.batch_handle([PlaceOrder(5)])) in ([], [[]])
    bus.set_event_handlers(OrderPlaced, [])
    await done(bus.handle(OrderPlaced(6)))
    assert bus.would_handle == [
        WouldHandle(PlaceOrder(1), (fail,)),
        WouldHandle(OrderPlaced(2), (fail, print)),
        WouldHandle(OrderPlaced(3), (fail, print)),
        WouldHandle(GetOrder(4), (fail,)),
        WouldHandle(PlaceOrder(5), (fail,)),
        WouldHandle(OrderPlaced(6), ()),
    ]


async def test_what_has_no_handler_is_an_error(bus: Any) -> None:
    """As on the real bus, and it is not noted."""
    bus = type(bus)()
    for send, message, error in (
        (bus.handle, PlaceOrder(), HandlerNotFound),
        (bus.ask, GetOrder(), HandlerNotFound),
        (bus.ask, OrderPlaced(), WiringError),
        (bus.dispatch, "PlaceOrder", NotAMessage),
    ):
        with pytest.raises(error):
            await done(send(message))
    assert bus.would_handle == []


async def test_the_outbox_is_left_alone(bus: Any) -> None:
    """`process_outbox` is refused before anything is read; so is being the bus behind another one's outbox handler."""
    repo = InMemoryOutBoxRepo()
    bus.register_outbox_message(repo, OrderPlaced())
    repo.save()
    with pytest.raises(WiringError, match="runs no handler"):
        await done(bus.process_outbox(repo))
    handler = DispatchOutboxHandler(bus)
    with pytest.raises(WiringError, match="runs no handler"):
        await done(handler.handle(repo.list_unprocessed()[0], {}))
    assert len(repo.list_unprocessed()) == 1


def test_a_recorder_shows_what_a_dry_run_leaves_out() -> None:
    """A recorder on a dry run is not called."""
    recorder = Recorder()
    bus = DryRunMessageBus({OrderPlaced: [recorder]})
    bus.handle(OrderPlaced())
    assert recorder.calls == []
    assert bus.would_handle == [WouldHandle(OrderPlaced(), (recorder,))]
