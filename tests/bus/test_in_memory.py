"""The in-memory buses: a failing event handler reaches who published; the async one runs handlers at the same time."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import (
    AsyncHandlerOnSyncBus,
    AsyncMessageBus,
    CascadeLimitExceeded,
    Context,
    HandlerNotFound,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    InMemoryOutBoxRepo,
    MessageBus,
    SettingsError,
)
from message_bus.bus.context import current_context
from tests.bus.colours import IN_MEMORY, Colour, name_of
from tests.bus.shop import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


@pytest.fixture(params=IN_MEMORY, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each in-memory bus."""
    chosen: Colour = request.param
    return chosen


def fails(event: Any) -> None:
    """Fails."""
    raise ValueError("Oops!")


# --- both -----------------------------------------------------------------------------------------------------------


def test_they_are_buses() -> None:
    """What takes a bus takes one of these."""
    assert issubclass(InMemoryMessageBus, MessageBus)
    assert issubclass(InMemoryAsyncMessageBus, AsyncMessageBus)


def test_they_have_one_policy_for_errors(colour: Colour) -> None:
    """`on_event_error` is none of their options; the others are."""
    with pytest.raises(TypeError, match="on_event_error"):
        colour.make(on_event_error="log")
    with pytest.raises(SettingsError, match="max_cascade"):
        colour.make(max_cascade=0)
    assert colour.make({OrderPlaced: [fails]}, {PlaceOrder: print}).get_event_handlers(OrderPlaced) == [fails]


@pytest.mark.parametrize("way", ["publish", "handle", "dispatch"])
async def test_the_error_of_a_lone_handler_is_raised_as_it_is(colour: Colour, way: str) -> None:
    """No group around it, and nothing is in hand afterwards."""
    bus = colour.bus({OrderPlaced: [fails]})
    with pytest.raises(ValueError, match="Oops!"):
        await colour.done(getattr(bus, way)(OrderPlaced()))
    assert current_context.get() is None


async def test_nothing_that_was_emitted_is_handled_after_a_failure(colour: Colour) -> None:
    """Not what the failing handler emitted, nor a sibling, nor what waited in line; the next message is not affected."""
    seen: list[Any] = []

    def emits(event: OrderPlaced, context: Context) -> None:
        context.emit(OrderPaid(1))

    def emits_and_fails(event: OrderPlaced, context: Context) -> None:
        context.emit(OrderPaid(2))
        raise ValueError

    bus = colour.bus({OrderPlaced: [emits, emits_and_fails], OrderPaid: [seen.append]})
    with pytest.raises(ValueError, match=r"^$"):
        await colour.done(bus.publish(OrderPlaced()))
    assert seen == []
    await colour.done(bus.publish(OrderPaid(3)))
    assert seen == [OrderPaid(3)]


async def test_an_error_further_down_the_cascade_reaches_who_published(colour: Colour) -> None:
    """What was handled before it has been handled; what is behind it is not."""
    seen: list[Any] = []

    def place(command: PlaceOrder, context: Context) -> None:
        for event in (OrderShipped(1), OrderPlaced(), OrderShipped(2)):
            context.emit(event)

    bus = colour.bus({OrderPlaced: [fails], OrderShipped: [seen.append]}, {PlaceOrder: place})
    with pytest.raises(ValueError, match="Oops!"):
        await colour.done(bus.publish(PlaceOrder()))
    assert seen == [OrderShipped(1)]


async def test_an_error_of_a_nested_publish_is_the_handlers(colour: Colour) -> None:
    """It may catch it; else it propagates to the outermost publish."""
    bus = colour.bus({OrderPlaced: [fails]})
    caught: list[str] = []

    def careful(event: OrderPaid) -> None:
        try:
            bus.publish(OrderPlaced())
        except ValueError as error:
            caught.append(str(error))

    async def careful_async(event: OrderPaid) -> None:
        try:
            await bus.publish(OrderPlaced())
        except ValueError as error:
            caught.append(str(error))

    bus.subscribe(OrderPaid, careful_async if colour.is_async else careful)
    bus.subscribe(OrderShipped, lambda event: bus.publish(OrderPlaced()))
    await colour.done(bus.publish(OrderPaid()))
    assert caught == ["Oops!"]
    with pytest.raises(ValueError, match="Oops!"):
        await colour.done(bus.publish(OrderShipped()))


async def test_with_an_outbox_emissions_are_registered_there(colour: Colour) -> None:
    """By the handlers that succeeded before the failure, in the caller's transaction, which the error tells to roll back."""
    outbox = InMemoryOutBoxRepo()

    def emits(event: OrderPlaced, context: Context) -> None:
        context.emit(OrderPaid())

    bus = colour.bus({OrderPlaced: [emits, emits]})
    await colour.done(bus.handle(OrderPlaced(), context={"outbox": outbox}))
    assert len(outbox.list_unprocessed()) == 2
    outbox = InMemoryOutBoxRepo()
    bus.subscribe(OrderPlaced, fails)
    with pytest.raises(ValueError, match="Oops!"):
        await colour.done(bus.handle(OrderPlaced(), context={"outbox": outbox}))
    assert len(outbox.list_unprocessed()) == (0 if colour.is_async else 2)


async def test_behind_an_outbox_they_follow_its_rules(colour: Colour) -> None:
    """All handlers of a delivered message run, one after another, and the failure fails the message."""
    seen: list[Any] = []
    bus = colour.bus({OrderPlaced: [fails, seen.append]})
    with pytest.raises(ValueError, match="Oops!"):
        await colour.done(bus.deliver(OrderPlaced(), Context(outbox=InMemoryOutBoxRepo())))
    assert seen == [OrderPlaced()]


async def test_commands_without_a_handler_are_no_silence(colour: Colour) -> None:
    """Also among what handlers emit."""
    bus = colour.bus({OrderPlaced: [lambda event, context: context.emit(PlaceOrder())]})
    with pytest.raises(HandlerNotFound):
        await colour.done(bus.publish(OrderPlaced()))


# --- sync -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=6))
def test_the_first_failure_stops_the_rest(outcomes: list[bool]) -> None:
    """Handlers in order of subscription, up to the first that fails; its own error is raised, no group."""
    called: list[int] = []

    def handler(number: int, succeeds: bool) -> Any:
        def handle(event: OrderPlaced) -> None:
            called.append(number)
            if not succeeds:
                raise ValueError(number)

        return handle

    bus = InMemoryMessageBus()
    for number, succeeds in enumerate(outcomes):
        bus.subscribe(OrderPlaced, handler(number, succeeds))
    failing = [number for number, succeeds in enumerate(outcomes) if not succeeds]
    if failing:
        with pytest.raises(ValueError, match=f"^{failing[0]}$"):
            bus.publish(OrderPlaced())
        assert called == list(range(failing[0] + 1))
    else:
        bus.publish(OrderPlaced())
        assert called == list(range(len(outcomes)))


def test_what_is_published_is_handled_at_once_what_is_emitted_afterwards() -> None:
    """The order that Orchestrix's users know, and ours, side by side."""
    order: list[str] = []
    bus = InMemoryMessageBus()

    def place(command: PlaceOrder, context: Context) -> None:
        context.emit(OrderPaid())
        bus.publish(OrderPlaced())
        order.append("end of the command")

    bus.subscribe(PlaceOrder, place)
    bus.subscribe(OrderPlaced, lambda event: order.append("published"))
    bus.subscribe(OrderPaid, lambda event: order.append("emitted"))
    bus.publish(PlaceOrder())
    assert order == ["published", "end of the command", "emitted"]


def test_an_async_handler_is_refused() -> None:
    """As on a MessageBus."""

    async def handler(event: OrderPlaced) -> None: ...

    with pytest.raises(AsyncHandlerOnSyncBus):
        InMemoryMessageBus().subscribe(OrderPlaced, handler)


# --- async ----------------------------------------------------------------------------------------------------------


async def test_handlers_run_at_the_same_time() -> None:
    """Two that wait for each other both end; results are in order of subscription, not of ending."""
    barrier = asyncio.Barrier(2)
    ended: list[str] = []

    async def slow(event: OrderPlaced) -> str:
        await barrier.wait()
        await asyncio.sleep(0)
        ended.append("slow")
        return "slow"

    async def quick(event: OrderPlaced) -> str:
        await barrier.wait()
        ended.append("quick")
        return "quick"

    bus = InMemoryAsyncMessageBus({OrderPlaced: [slow, quick, lambda event: "sync"]})
    async with asyncio.timeout(10):
        assert await bus.handle(OrderPlaced()) == ["slow", "quick", "sync"]
    assert ended == ["quick", "slow"]


async def test_handlers_of_an_emitted_event_run_at_the_same_time_too() -> None:
    """The messages of a cascade one after another, the handlers of each together."""
    barrier = asyncio.Barrier(2)

    async def waits(event: OrderPlaced) -> None:
        await barrier.wait()

    bus = InMemoryAsyncMessageBus(
        {OrderPlaced: [waits, waits]}, {PlaceOrder: lambda command, context: context.emit(OrderPlaced())}
    )
    async with asyncio.timeout(10):
        await bus.publish(PlaceOrder())


async def test_all_are_awaited_before_the_error_is_raised() -> None:
    """A sibling that is slower than the failure runs to its end; no task is left."""
    done: list[str] = []

    async def slow(event: OrderPlaced) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        done.append("slow")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [fails, slow]})
    with pytest.raises(ValueError, match="Oops!"):
        await bus.publish(OrderPlaced())
    assert done == ["slow"]
    assert len(asyncio.all_tasks()) == 1


async def test_several_failures_are_a_group() -> None:
    """All of them, in order of subscription, and the name of the message."""

    async def also_fails(event: OrderPlaced) -> None:
        await asyncio.sleep(0)
        raise KeyError("late")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [also_fails, lambda event: 1, fails]})
    with pytest.raises(ExceptionGroup, match="2 event handlers failed handling 'OrderPlaced'") as caught:
        await bus.publish(OrderPlaced())
    assert [type(error) for error in caught.value.exceptions] == [KeyError, ValueError]


async def test_an_exception_that_is_returned_is_a_result() -> None:
    """Only what is raised is a failure."""
    bus = InMemoryAsyncMessageBus({OrderPlaced: [lambda event: ValueError("no failure"), lambda event: 2]})
    first, second = await bus.handle(OrderPlaced())
    assert (str(first), second) == ("no failure", 2)


async def test_cancelling_publish_cancels_all_and_waits_for_their_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each handler has cleaned up when `publish` raises CancelledError, which hides no error; nothing is left running."""
    started = asyncio.Barrier(3)
    cleaned: list[int] = []

    def handler(number: int) -> Any:
        async def waits(event: OrderPlaced, context: Context) -> None:
            context.emit(OrderPaid())
            try:
                await started.wait()
                await asyncio.Event().wait()
            finally:
                for _ in range(number * 3):
                    await asyncio.sleep(0)
                cleaned.append(number)
                if number:
                    raise ValueError("while cleaning up")

        return waits

    paid: list[Any] = []
    bus = InMemoryAsyncMessageBus({OrderPlaced: [handler(0), handler(1)], OrderPaid: [paid.append]})
    task = asyncio.create_task(bus.handle(OrderPlaced()))
    await started.wait()
    task.cancel()
    with caplog.at_level(logging.ERROR, "message_bus"), pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["while cleaning up"]
    assert (cleaned, paid) == ([0, 1], [])
    assert len(asyncio.all_tasks()) == 1


async def test_a_handler_that_cancels_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The others are awaited, then its CancelledError is raised; an error that it hides is logged."""
    done: list[str] = []

    async def cancels_itself(event: OrderPlaced) -> None:
        raise asyncio.CancelledError("from within")

    async def slow(event: OrderPlaced) -> None:
        await asyncio.sleep(0)
        done.append("slow")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [cancels_itself, fails, slow]})
    with caplog.at_level(logging.ERROR, "message_bus"), pytest.raises(asyncio.CancelledError):
        await bus.publish(OrderPlaced())
    assert done == ["slow"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["Oops!"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_programmers_error_outweighs_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A cut circle is raised as such through any number of levels; ordinary errors beside it are logged."""

    async def cut(event: OrderPlaced) -> None:
        raise CascadeLimitExceeded(64, "OrderPlaced")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [fails, cut, cut]})
    with caplog.at_level(logging.ERROR, "message_bus"), pytest.raises(CascadeLimitExceeded):
        await bus.publish(OrderPlaced())
    assert len(caplog.records) == 1


async def test_a_base_exception_outweighs_errors() -> None:
    """One that asyncio hands on (not KeyboardInterrupt, which stops the loop) is raised after all have ended."""

    class Stop(BaseException):
        pass

    async def stops(event: OrderPlaced) -> None:
        raise Stop

    async def cut(event: OrderPlaced) -> None:
        raise CascadeLimitExceeded(64, "OrderPlaced")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [fails, cut, stops]})
    with pytest.raises(Stop):
        await bus.publish(OrderPlaced())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_loop(interrupt: type[BaseException]) -> None:
    """It leaves asyncio.run, which cancels the other handlers; no error of theirs is lost silently."""
    cleaned: list[str] = []

    async def interrupted(event: OrderPlaced) -> None:
        await asyncio.sleep(0)
        raise interrupt

    async def waits(event: OrderPlaced) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("waits")

    bus = InMemoryAsyncMessageBus({OrderPlaced: [interrupted, waits]})
    with pytest.raises(interrupt):
        asyncio.run(bus.handle(OrderPlaced()))
    assert cleaned == ["waits"]
    gc.collect()


async def test_concurrent_handlers_share_context_and_envelope() -> None:
    """One dispatch: what one puts into the context the others may see, and all have the same message in hand."""
    barrier = asyncio.Barrier(2)

    async def leaves(event: OrderPlaced, context: Context) -> Any:
        context["left"] = "here"
        await barrier.wait()
        return context.envelope.id

    async def finds(event: OrderPlaced, context: Context) -> Any:
        await barrier.wait()
        assert context["left"] == "here"
        return context.envelope.id

    bus = InMemoryAsyncMessageBus({OrderPlaced: [leaves, finds]})
    first, second = await bus.handle(OrderPlaced())
    assert first == second
    assert bus.context == {}


async def test_a_circle_of_concurrent_handlers_ends() -> None:
    """Two handlers that both publish their own event again would double on each of 64 levels; they are stopped early."""
    bus, called = InMemoryAsyncMessageBus(max_cascade=100), [0]

    async def again(event: OrderPlaced) -> None:
        called[0] += 1
        await bus.publish(OrderPlaced())

    bus.set_event_handlers(OrderPlaced, [again, again, again])
    async with asyncio.timeout(30):
        with pytest.raises(CascadeLimitExceeded, match="more than 100 messages"):
            await bus.publish(OrderPlaced())
    assert called[0] < 3_000
    bus.set_event_handlers(OrderPlaced, [lambda event: 1, lambda event: 2])
    assert await bus.handle(OrderPlaced()) == [1, 2]


async def test_a_circle_that_catches_its_errors_ends_too() -> None:
    """Once it has been cut, the whole of it is over: what was refused is not let in when others have left."""
    bus, called = InMemoryAsyncMessageBus(max_cascade=50), [0]

    async def stubborn(event: OrderPlaced) -> None:
        for _ in range(2):
            called[0] += 1
            try:
                await bus.publish(OrderPlaced())
            except CascadeLimitExceeded:
                await asyncio.sleep(0)

    bus.set_event_handlers(OrderPlaced, [stubborn, stubborn])
    async with asyncio.timeout(30):
        await bus.publish(OrderPlaced())
    assert called[0] < 10_000


async def test_many_publications_at_once_are_no_circle() -> None:
    """A handler may publish thousands of events together, each with several handlers."""
    bus, seen = InMemoryAsyncMessageBus(max_cascade=10), list[int]()

    async def note(event: OrderPlaced) -> None:
        await asyncio.sleep(0)
        seen.append(event.order_id)

    async def place(command: PlaceOrder) -> None:
        await asyncio.gather(*(bus.publish(OrderPlaced(number)) for number in range(2_000)))

    bus.set_event_handlers(OrderPlaced, [note, note])
    bus.set_command_handler(PlaceOrder, place)
    await bus.publish(PlaceOrder())
    assert sorted(seen) == sorted([*range(2_000), *range(2_000)])


async def test_deep_publications_one_after_another_are_no_circle() -> None:
    """What ended makes room: a chain of nested events may be walked any number of times."""
    bus, seen = InMemoryAsyncMessageBus(max_cascade=20), list[int]()

    async def down(event: OrderPlaced) -> None:
        if event.order_id:
            await bus.publish(OrderPlaced(event.order_id - 1))

    async def note(event: OrderPlaced) -> None:
        seen.append(event.order_id)

    async def place(command: PlaceOrder) -> None:
        for _ in range(30):
            await bus.publish(OrderPlaced(15))

    bus.set_event_handlers(OrderPlaced, [down, note])
    bus.set_command_handler(PlaceOrder, place)
    await bus.publish(PlaceOrder())
    assert len(seen) == 30 * 16


@given(outcomes=st.lists(st.sampled_from(["result", "error", "cancelled"]), min_size=2, max_size=6))
async def test_what_is_raised_follows_from_how_all_ended(outcomes: list[str]) -> None:
    """All end whatever the mix: results; else the one error, or a group; a cancellation from within outweighs both."""
    ended: list[int] = []

    def handler(number: int, outcome: str) -> Any:
        async def handle(event: OrderPlaced) -> int:
            for _ in range(len(outcomes) - number):
                await asyncio.sleep(0)
            ended.append(number)
            if outcome == "error":
                raise ValueError(number)
            if outcome == "cancelled":
                raise asyncio.CancelledError
            return number

        return handle

    bus = InMemoryAsyncMessageBus()
    for number, outcome in enumerate(outcomes):
        bus.subscribe(OrderPlaced, handler(number, outcome))
    errors = [number for number, outcome in enumerate(outcomes) if outcome == "error"]
    if "cancelled" in outcomes:
        with pytest.raises(asyncio.CancelledError):
            await bus.handle(OrderPlaced())
    elif len(errors) > 1:
        with pytest.raises(ExceptionGroup) as group:
            await bus.handle(OrderPlaced())
        assert [error.args[0] for error in group.value.exceptions] == errors
    elif errors:
        with pytest.raises(ValueError, match=f"^{errors[0]}$"):
            await bus.handle(OrderPlaced())
    else:
        assert await bus.handle(OrderPlaced()) == list(range(len(outcomes)))
    assert sorted(ended) == list(range(len(outcomes)))
