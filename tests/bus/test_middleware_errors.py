"""Middleware and errors: what it catches, raises, tries again, and which emissions go out then."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import AsyncMessageBus, CallNext, Context, InMemoryMessageBus, InMemoryOutBoxRepo
from message_bus.bus.context import current_context
from tests.bus.colours import ALL, OUTBOX, Colour, Flaky, Steps, name_of, retrying, swallowing
from tests.bus.shop import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


async def test_a_retry_sends_only_what_the_successful_attempt_emitted(colour: Colour) -> None:
    """A handler that failed twice has emitted once for those who read its emissions."""
    paid: list[Any] = []
    bus = colour.bus(middleware=[retrying(3)])
    for message_type in (PlaceOrder, OrderPlaced):
        bus.subscribe(message_type, Flaky(2))
    bus.subscribe(OrderPaid, paid.append)
    assert await colour.values(bus, PlaceOrder()) == ["call 3", None]
    assert await colour.values(bus, OrderPlaced()) == ["call 3", None]
    assert paid == [OrderPaid(3), OrderPaid(3)]


async def test_two_successful_calls_are_two(colour: Colour) -> None:
    """A middleware that calls again without an error has the handler's work done twice, emissions included."""

    def twice(message: Any, context: Any) -> Steps:
        yield ()
        return (yield ())

    paid: list[Any] = []
    bus = colour.bus(middleware=[twice])
    bus.subscribe(PlaceOrder, Flaky(0))
    bus.subscribe(OrderPaid, paid.append)
    await colour.values(bus, PlaceOrder())
    assert paid == [OrderPaid(1)] * 2 + [OrderPaid(2)] * 2


async def test_a_swallowed_error_sends_nothing(colour: Colour) -> None:
    """The message counts as handled; what the handler had emitted before it failed is dropped all the same."""
    paid: list[Any] = []
    bus = colour.bus(middleware=[swallowing])
    bus.subscribe(PlaceOrder, Flaky(1))
    bus.subscribe(OrderPaid, paid.append)
    outcome = await colour.done(bus.dispatch(PlaceOrder()))
    assert outcome.ok
    assert len(outcome.results) == 1
    assert paid == []


@pytest.mark.parametrize("colour", OUTBOX, ids=name_of)
async def test_a_swallowed_error_puts_nothing_into_the_outbox(colour: Colour) -> None:
    """The same where emissions are registered instead of handled, and behind the outbox."""
    outbox = InMemoryOutBoxRepo()
    bus = colour.bus(middleware=[swallowing])
    bus.subscribe(OrderPlaced, Flaky(1))
    await colour.done(bus.handle(OrderPlaced(), context={"outbox": outbox}))
    assert outbox.list_unprocessed() == []
    bus.set_event_handlers(OrderPlaced, [Flaky(1), Flaky(0)])
    assert await colour.done(bus.deliver(OrderPlaced(), Context(outbox=outbox))) == 2
    assert [row.payload for row in outbox.list_unprocessed()] == [{"order_id": 1}]


async def test_what_a_middleware_emits_itself_is_its_own(colour: Colour) -> None:
    """It survives the failed call that the middleware caught."""
    seen: list[Any] = []

    def compensates(message: Any, context: Any) -> Steps:
        if not isinstance(message, PlaceOrder):
            return (yield ())
        context.emit(OrderShipped(1))
        try:
            return (yield ())
        except RuntimeError:
            context.emit(OrderShipped(2))
            return None

    bus = colour.bus(middleware=[compensates])
    bus.subscribe(PlaceOrder, Flaky(1))
    bus.subscribe(OrderPaid, seen.append)
    bus.subscribe(OrderShipped, seen.append)
    await colour.done(bus.handle(PlaceOrder()))
    assert seen == [OrderShipped(1), OrderShipped(2)]


@pytest.mark.parametrize("colour", OUTBOX, ids=name_of)
@pytest.mark.parametrize("policy", ["log", "raise"])
async def test_an_error_of_a_middleware_counts_as_the_handlers(
    colour: Colour, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the handler had succeeded: it is logged or raised under its name, and its emissions are dropped."""

    def fails_behind(message: Any, context: Any) -> Steps:
        yield ()
        if isinstance(message, OrderPlaced):
            raise RuntimeError("behind")

    seen: list[Any] = []
    flaky = Flaky(0)
    bus = colour.bus(
        {OrderPlaced: [flaky, seen.append], OrderPaid: [seen.append]},
        {PlaceOrder: lambda command: None},
        on_event_error=policy,
        middleware=[fails_behind],
    )
    if policy == "raise":
        with pytest.raises(ExceptionGroup, match="2 event handlers failed"):
            await colour.values(bus, OrderPlaced())
    else:
        with caplog.at_level(logging.ERROR, "message_bus"):
            assert await colour.values(bus, OrderPlaced()) == []
        assert [record.handler_name for record in caplog.records] == ["Flaky", "list.append"]  # type: ignore[attr-defined]
    assert seen == [OrderPlaced()]
    outcome = await colour.done(bus.dispatch(OrderPlaced()))
    assert outcome.failures[0].handler is flaky


async def test_the_error_of_a_command_passes_all_of_them(colour: Colour) -> None:
    """Each sees it, may replace it, and the caller gets what the outermost let through."""

    def replaces(message: Any, context: Any) -> Steps:
        try:
            return (yield ())
        except RuntimeError as error:
            raise LookupError("replaced") from error

    bus = colour.bus(middleware=[replaces])
    bus.subscribe(PlaceOrder, Flaky(1))
    with pytest.raises(LookupError, match="replaced") as caught:
        await colour.values(bus, PlaceOrder())
    assert str(caught.value.__cause__) == "call 1"
    assert current_context.get() is None


async def test_a_failed_attempt_leaves_the_emissions_of_concurrent_handlers_alone() -> None:
    """On an InMemoryAsyncMessageBus two handlers emit in turns; the one that is tried again loses only its own."""
    barrier = asyncio.Barrier(2)
    calls: list[int] = []

    async def steady(event: OrderPlaced, context: Context) -> None:
        context.emit(OrderPaid(1))
        await barrier.wait()
        await barrier.wait()
        context.emit(OrderPaid(2))

    async def flaky(event: OrderPlaced, context: Context) -> None:
        calls.append(1)
        context.emit(OrderShipped(len(calls)))
        if len(calls) == 1:
            await barrier.wait()
            await barrier.wait()
            raise RuntimeError

    seen: list[Any] = []
    colour = ALL[3]
    bus = colour.bus(
        {OrderPlaced: [steady, flaky], OrderPaid: [seen.append], OrderShipped: [seen.append]},
        middleware=[retrying(2)],
    )
    await bus.publish(OrderPlaced())
    assert sorted(seen, key=repr) == [OrderPaid(1), OrderPaid(2), OrderShipped(2)]


async def test_hedged_attempts_of_one_handler_are_told_apart() -> None:
    """A middleware that calls twice at once and takes what succeeds sends the emissions of that attempt alone."""
    paid: list[Any] = []
    barrier, flaky = asyncio.Barrier(2), Flaky(1)

    async def handler(command: PlaceOrder, context: Context) -> str:
        context.emit(OrderPaid(0))
        await barrier.wait()
        return flaky.handle(command, context)

    async def hedges(message: Any, context: Any, call_next: Any) -> Any:
        if not isinstance(message, PlaceOrder):
            return await call_next()
        answers = await asyncio.gather(call_next(), call_next(), return_exceptions=True)
        return next(each for each in answers if not isinstance(each, BaseException))

    bus = AsyncMessageBus({OrderPaid: [paid.append]}, {PlaceOrder: handler}, middleware=[hedges])
    assert await bus.ask(PlaceOrder()) == "call 2"
    assert paid == [OrderPaid(0), OrderPaid(2)]


# each attempt of each layer: how many messages are emitted before the call and whether it then fails
Layers = st.lists(st.lists(st.booleans(), min_size=1, max_size=3), max_size=3)


@given(layers=Layers, handler=st.lists(st.booleans(), min_size=30, max_size=30))
def test_random_retries_send_what_successful_attempts_emitted(
    layers: list[list[bool]], handler: list[bool]
) -> None:
    """Layers that emit, call up to three times and fail now and then, against a model with one list per call."""
    numbers = iter(range(10_000))
    answers = iter(handler)
    kept: list[list[int]] = [[]]  # the model: what each call in hand has emitted so far

    def emits(context: Context) -> None:
        number = next(numbers)
        context.emit(OrderPaid(number))
        kept[-1].append(number)

    def layer(fails: list[bool]) -> Any:
        def middleware(message: Any, context: Context, call_next: CallNext) -> Any:
            if not isinstance(message, PlaceOrder):
                return call_next()
            for failing in fails:
                emits(context)
                kept.append([])
                try:
                    call_next()
                except RuntimeError:
                    kept.pop()
                else:
                    inner = kept.pop()
                    kept[-1] += inner
                    if failing:
                        raise RuntimeError
                    return None
            raise RuntimeError

        return middleware

    def handle(command: PlaceOrder, context: Context) -> None:
        emits(context)
        if next(answers, False):
            raise RuntimeError

    paid: list[int] = []
    bus = InMemoryMessageBus(
        {OrderPaid: [lambda event: paid.append(event.order_id)]},
        {PlaceOrder: handle},
        middleware=[layer(each) for each in layers],
    )
    try:
        bus.handle(PlaceOrder())
    except RuntimeError:
        assert paid == []
    else:
        assert paid == kept[0]
