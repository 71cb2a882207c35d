"""What both buses promise, each test for both: handling, results, context, arguments, registration."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context, current_context
from message_bus.bus.outcome import Failure, Outcome
from message_bus.bus.sync_bus import MessageBus
from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
from message_bus.errors import CascadeLimitExceeded, HandlerNotFound, NotAMessage, SettingsError, WiringError
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
from message_bus.messages.message import Event, Message
from tests.bus.shop import CancelOrder, OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


@dataclass(frozen=True)
class Colour:
    """One colour of bus, called the same way in both."""

    bus: type[Any]

    async def done(self, value: Any) -> Any:
        """The value, awaited on the async bus."""
        return await value if inspect.isawaitable(value) else value

    async def values(self, bus: Any, message: Message, *args: Any, **kwargs: Any) -> list[Any]:
        """The bare results of `handle`."""
        results = await self.done(bus.handle(message, *args, **kwargs))
        return results if self.bus is AsyncMessageBus else [each["result"] for each in results]


@pytest.fixture(params=[MessageBus, AsyncMessageBus])
def colour(request: pytest.FixtureRequest) -> Colour:
    """A colour of bus."""
    return Colour(request.param)


def emitting(*messages: Message) -> Callable[..., str]:
    """A handler that emits these."""

    def handler(message: Message, context: Context) -> str:
        for each in messages:
            context.emit(each)
        return type(message).__name__

    return handler


def test_sync_results_name_the_message_in_handling_order() -> None:
    """A command is in `command`, an event in `event` once per handler; cascades follow breadth first."""
    bus = MessageBus(
        {OrderPlaced: [emitting(OrderShipped()), emitting()], OrderPaid: [emitting()], OrderShipped: []},
        {PlaceOrder: emitting(OrderPlaced(), OrderPaid())},
    )
    assert bus.handle(PlaceOrder()) == [
        {"command": PlaceOrder(), "result": "PlaceOrder"},
        {"event": OrderPlaced(), "result": "OrderPlaced"},
        {"event": OrderPlaced(), "result": "OrderPlaced"},
        {"event": OrderPaid(), "result": "OrderPaid"},
    ]


async def test_cascades_are_breadth_first(colour: Colour) -> None:
    """All that a message emitted is handled before what those emit."""
    bus = colour.bus(
        {
            OrderPlaced: [emitting(OrderShipped())],
            OrderPaid: [emitting()],
            OrderShipped: [emitting()],
        },
        {PlaceOrder: emitting(OrderPlaced(), OrderPaid())},
    )
    assert await colour.values(bus, PlaceOrder()) == [
        "PlaceOrder",
        "OrderPlaced",
        "OrderPaid",
        "OrderShipped",
    ]


async def test_an_endless_cascade_is_cut(colour: Colour) -> None:
    """`max_cascade` emitted messages are handled, the next one raises; and the bus still works afterwards."""
    left = [3]

    def again(event: OrderPlaced, context: Context) -> None:
        left[0] -= 1
        if left[0]:
            context.emit(OrderPlaced())

    bus = colour.bus({OrderPlaced: [again]}, max_cascade=2)
    assert await colour.values(bus, OrderPlaced()) == [None, None, None]
    left[0] = 4
    with pytest.raises(
        CascadeLimitExceeded, match="more than 2 messages in one dispatch, the last a 'OrderPlaced'"
    ):
        await colour.values(bus, OrderPlaced())
    assert current_context.get() is None


async def test_failures_are_raised_after_all_have_run(colour: Colour) -> None:
    """With on_event_error="raise" the whole cascade is handled, then one ExceptionGroup has every error."""
    shipped: list[Any] = []

    def fails(event: Event) -> None:
        raise RuntimeError(type(event).__name__)

    bus = colour.bus(
        {OrderPlaced: [fails, emitting(OrderPaid())], OrderPaid: [fails, shipped.append]},
        on_event_error="raise",
    )
    with pytest.raises(ExceptionGroup, match="2 event handlers failed handling 'OrderPlaced'") as caught:
        await colour.values(bus, OrderPlaced())
    assert [str(error) for error in caught.value.exceptions] == ["OrderPlaced", "OrderPaid"]
    assert shipped == [OrderPaid()]
    outcome: Outcome = await colour.done(bus.dispatch(OrderPlaced()))
    assert [(each.message, each.handler) for each in outcome.failures] == [
        (OrderPlaced(), fails),
        (OrderPaid(), fails),
    ]
    assert len(outcome.results) == 2


async def test_a_single_failing_handler_is_raised_too(colour: Colour) -> None:
    """The straight line for one handler follows `on_event_error` as well."""

    def fails(event: Event) -> None:
        raise RuntimeError

    with pytest.raises(ExceptionGroup, match="1 event handler failed"):
        await colour.values(colour.bus({OrderPlaced: [fails]}, on_event_error="raise"), OrderPlaced())
    assert await colour.values(colour.bus({OrderPlaced: [fails]}), OrderPlaced()) == []


async def test_a_command_that_fails_in_a_cascade_does_not_hide_failed_events(
    colour: Colour, caplog: pytest.LogCaptureFixture
) -> None:
    """The command's error is raised, so the events' failures are logged, although they were to be raised."""

    def event_fails(event: Event) -> None:
        raise RuntimeError("event")

    def command_fails(command: CancelOrder) -> None:
        raise RuntimeError("command")

    bus = colour.bus(
        {OrderPlaced: [event_fails, emitting(CancelOrder())]},
        {CancelOrder: command_fails},
        on_event_error="raise",
    )
    with pytest.raises(RuntimeError, match="command"):
        await colour.values(bus, OrderPlaced())
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["event"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
async def test_an_interrupt_leaves_at_once_and_no_state_behind(
    colour: Colour, interrupt: type[BaseException]
) -> None:
    """A BaseException passes event handlers and the loop; the next dispatch is not affected."""
    ran: list[Any] = []

    class Interrupted(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPaid())
            raise interrupt

    bus = colour.bus({OrderPlaced: [Interrupted(), ran.append], OrderPaid: [ran.append]})
    with pytest.raises(interrupt):
        await colour.values(bus, OrderPlaced())
    assert ran == []
    assert current_context.get() is None
    bus.set_event_handlers(OrderPlaced, [ran.append])
    await colour.values(bus, OrderPlaced())
    assert ran == [OrderPlaced()]


async def test_an_event_without_handlers_is_nothing(colour: Colour) -> None:
    """No result, no error; a command without one is an error, also when it was emitted."""
    bus = colour.bus({OrderPlaced: [emitting(PlaceOrder())]})
    assert await colour.values(bus, OrderPaid()) == []
    with pytest.raises(HandlerNotFound, match=r"no handler for command 'PlaceOrder' \(register one"):
        await colour.values(bus, OrderPlaced())


async def test_emitting_something_that_is_no_message_fails_at_that_line(colour: Colour) -> None:
    """The handler that does it gets the error."""
    wrong: Any = "OrderPlaced"
    bus = colour.bus(command_handlers={PlaceOrder: emitting(wrong)})
    with pytest.raises(NotAMessage, match="'str' is not a message"):
        await colour.values(bus, PlaceOrder())


async def test_the_context_is_the_buss_and_the_calls(colour: Colour) -> None:
    """The call's values win; neither mapping is changed; handle, dispatch, ask and batch_handle all take it."""

    def read(command: PlaceOrder, context: Context) -> dict[str, Any]:
        seen = dict(context)
        context.clear()
        return seen

    bus, given = colour.bus(command_handlers={PlaceOrder: read}), {"user": 2}
    bus.context.update(tenant="a", user=1)
    wanted = {"tenant": "a", "user": 2}
    assert await colour.values(bus, PlaceOrder(), context=given) == [wanted]
    assert await colour.done(bus.ask(PlaceOrder(), context=given)) == wanted
    assert len((await colour.done(bus.dispatch(PlaceOrder(), context=given))).results) == 1
    assert len(await colour.done(bus.batch_handle([PlaceOrder(), PlaceOrder()], context=given))) == 2
    assert await colour.values(bus, PlaceOrder()) == [{"tenant": "a", "user": 1}]
    assert given == {"user": 2}


async def test_ask_returns_the_one_result(colour: Colour) -> None:
    """Without wrapping, though the handler emits; an event has no one result."""
    bus = colour.bus({OrderPlaced: [emitting()]}, {PlaceOrder: emitting(OrderPlaced())})
    assert await colour.done(bus.ask(PlaceOrder())) == "PlaceOrder"
    with pytest.raises(WiringError, match="'OrderPlaced' is an event"):
        await colour.done(bus.ask(OrderPlaced()))


async def test_arguments_reach_every_handler_of_the_message_but_no_emitted_one(colour: Colour) -> None:
    """Emitted messages are handled without them."""

    def first(event: OrderPlaced, context: Context, *args: Any, **kwargs: Any) -> Any:
        context.emit(OrderPaid())
        return args, kwargs

    def second(event: Event, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("context")
        return args, kwargs

    bus = colour.bus({OrderPlaced: [first, second], OrderPaid: [second]})
    assert await colour.values(bus, OrderPlaced(), 1, two=2) == [((1,), {"two": 2})] * 2 + [((), {})]


SIGNATURES: dict[str, Callable[..., Any]] = {
    "message": lambda message: (),
    "message, context": lambda message, context: (context,),
    "another name": lambda message, ctx: (ctx,),
    "keyword only": lambda message, *, context: (context,),
    "second, optional": lambda message, context=None: (context,),
    "kwargs": lambda message, **kwargs: (kwargs["context"],),
    "args": lambda message, *args: args,
    "only kwargs": lambda *args, **kwargs: (*args[1:], kwargs["context"]),
    "a default of its own": lambda message, log=(): log,
}


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("as_object", [False, True])
async def test_a_handler_gets_the_context_if_it_takes_one(
    colour: Colour, signature: str, as_object: bool
) -> None:
    """Its signature says how, once, when it is registered; for callables and for objects with `handle`."""
    handler: Any = SIGNATURES[signature]
    if as_object:
        handler = type("Handler", (), {"handle": staticmethod(handler)})()
    bus = colour.bus({OrderPlaced: [handler]})
    for context in ({"x": 1}, None):  # one of them takes the straight line
        (result,) = await colour.values(bus, OrderPlaced(), context=context)
        takes_none = signature in ("message", "args", "a default of its own")
        assert result == (() if takes_none else ({"x": 1} if context else {},))
        assert takes_none or isinstance(result[0], Context)


async def test_builtins_and_bound_methods_are_handlers(colour: Colour) -> None:
    """What has no signature gets the message alone."""
    seen: list[Any] = []
    bus = colour.bus({OrderPlaced: [seen.append, repr, id]})
    assert len(await colour.values(bus, OrderPlaced())) == 3
    assert seen == [OrderPlaced()]


@pytest.mark.parametrize("handler", [None, 5, "place", EventHandlerABC, type("Duck", (), {"handle": print})])
def test_what_cannot_handle_is_refused(colour: Colour, handler: Any) -> None:
    """Also a class where its instance was meant."""
    bus = colour.bus()
    with pytest.raises(SettingsError, match=r"not callable|register an instance"):
        bus.set_event_handlers(OrderPlaced, [print, handler])
    assert bus.get_event_handlers(OrderPlaced) == []


def test_registered_handlers_can_be_read_back(colour: Colour) -> None:
    """As they were given; unknown ones are [] and None; the list is a copy; types are in the registry."""
    bus = colour.bus({OrderPlaced: [print]}, {PlaceOrder: len})
    bus.get_event_handlers(OrderPlaced).clear()
    assert bus.get_event_handlers(OrderPlaced) == [print]
    assert bus.get_command_handler(PlaceOrder) is len
    assert (bus.get_event_handlers(OrderPaid), bus.get_command_handler(CancelOrder)) == ([], None)
    bus.register_messages(OrderPaid)
    assert set(bus.registry) == {OrderPlaced, PlaceOrder, OrderPaid}


def test_types_and_handlers_must_fit(colour: Colour) -> None:
    """An event has no command handler, a string no handler at all, one handler is no list."""
    bus = colour.bus()
    with pytest.raises(SettingsError, match="'OrderPlaced': is not a Command"):
        bus.set_command_handler(OrderPlaced, print)
    with pytest.raises(SettingsError, match="'PlaceOrder': is not an Event"):
        bus.set_event_handlers(PlaceOrder, [print])
    with pytest.raises(NotAMessage):
        bus.set_event_handlers("OrderPlaced", [print])
    with pytest.raises(SettingsError, match="must be a list"):
        bus.set_event_handlers(OrderPlaced, print)


def test_wrong_options_are_reported_at_once(colour: Colour) -> None:
    """All of them in one error."""
    with pytest.raises(SettingsError, match=r"on_event_error 'ignore' is unknown .*; max_cascade must be"):
        colour.bus(on_event_error="ignore", max_cascade=0)


async def test_hooks_surround_an_event_handler(colour: Colour) -> None:
    """`_before_handle`, `_handle`, `_after_handle`, the last also after a failure; the result is that of `_handle`."""
    calls: list[str] = []

    class Handler(EventHandlerABC):
        def _before_handle(self, context: Any) -> None:
            calls.append(f"before {context['n']}")

        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> str:
            calls.append("handle")
            if event.order_id == 0:
                raise RuntimeError
            return "done"

        def _after_handle(self, context: Any) -> None:
            calls.append("after")

    bus = colour.bus({OrderPlaced: [Handler()]})
    bus.context["n"] = 1
    assert await colour.values(bus, OrderPlaced()) == ["done"]
    assert await colour.values(bus, OrderPlaced(0)) == []
    assert calls == ["before 1", "handle", "after"] * 2


async def test_hooks_surround_async_handling_in_either_base_class() -> None:
    """On the async bus the last hook waits for an async `_handle`, even one in the synchronous base class."""
    calls: list[str] = []

    class Hooks:
        def _before_handle(self, context: Any) -> None:
            calls.append("before")

        async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> str:
            await asyncio.sleep(0)
            calls.append("handle")
            return "done"

        async def _after_handle(self, context: Any) -> None:
            calls.append("after")

    class Async(Hooks, AsyncEventHandlerABC):
        pass

    class Mixed(Hooks, EventHandlerABC):
        pass

    bus = AsyncMessageBus({OrderPlaced: [Async(), Mixed()]})
    assert await bus.handle(OrderPlaced()) == ["done", "done"]
    assert calls == ["before", "handle", "after"] * 2


async def test_a_nested_handle_has_a_dispatch_of_its_own(colour: Colour) -> None:
    """Its cascade is handled inside, its context is not the outer one, and afterwards the outer one is in hand."""
    bus = colour.bus({OrderPlaced: [emitting()], OrderPaid: [emitting()]})

    async def outer_async(command: PlaceOrder, context: Context) -> Any:
        context.emit(OrderPaid())
        inner = await bus.handle(CancelOrder())
        return inner, current_context.get() is context

    def outer(command: PlaceOrder, context: Context) -> Any:
        context.emit(OrderPaid())
        inner = bus.handle(CancelOrder())
        return [each["result"] for each in inner], current_context.get() is context

    bus.set_command_handler(PlaceOrder, outer_async if colour.bus is AsyncMessageBus else outer)
    bus.set_command_handler(CancelOrder, emitting(OrderPlaced()))
    assert await colour.values(bus, PlaceOrder()) == [(["CancelOrder", "OrderPlaced"], True), "OrderPaid"]


async def test_a_limit_met_in_a_nested_dispatch_leaves_the_event_handlers_around_it(colour: Colour) -> None:
    """It is the programmer's error, not that of a handler, so it is not logged away."""
    bus = colour.bus(max_cascade=5)

    async def again_async(event: OrderPlaced) -> None:
        await bus.handle(OrderPlaced())

    def again(event: OrderPlaced) -> None:
        bus.handle(OrderPlaced())

    bus.set_event_handlers(OrderPlaced, [again_async if colour.bus is AsyncMessageBus else again, print])
    with pytest.raises(CascadeLimitExceeded, match="more than 5"):
        await colour.values(bus, OrderPlaced())


def test_a_sync_batch_is_flat_and_stops_at_an_error() -> None:
    """The results of all messages in one list; the error of a command is raised at once."""

    def place(command: PlaceOrder) -> int:
        if not command.order_id:
            raise RuntimeError
        return command.order_id

    bus = MessageBus({OrderPlaced: [emitting()]}, {PlaceOrder: place})
    assert bus.batch_handle([PlaceOrder(1), OrderPlaced()]) == [
        {"command": PlaceOrder(1), "result": 1},
        {"event": OrderPlaced(), "result": "OrderPlaced"},
    ]
    with pytest.raises(RuntimeError):
        bus.batch_handle(iter([PlaceOrder(0), PlaceOrder(1)]))


class _Counts(AsyncCommandHandlerABC):
    """_Counts how many are in hand at once; ends when it is told to."""

    def __init__(self) -> None:
        self.in_hand = self.most = 0
        self.started: list[int] = []
        self.ended: list[int] = []

    async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        self.started.append(cmd.order_id)
        self.in_hand += 1
        self.most = max(self.most, self.in_hand)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            if cmd.order_id < 0:
                raise RuntimeError(str(cmd.order_id))
            return int(cmd.order_id)
        finally:
            self.in_hand -= 1
            self.ended.append(cmd.order_id)


async def test_an_async_batch_keeps_order_and_concurrency() -> None:
    """At most `max_concurrency` messages are in hand; the results are in the order of the messages."""
    handler = _Counts()
    bus = AsyncMessageBus(command_handlers={PlaceOrder: handler})
    assert await bus.batch_handle((PlaceOrder(n) for n in range(10)), 3) == [[n] for n in range(10)]
    assert handler.most == 3
    assert await bus.batch_handle([]) == []


async def test_an_async_batch_awaits_what_is_in_hand_before_it_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing new is started, nothing is left running, the first error in order is raised, further ones logged."""
    handler = _Counts()
    bus = AsyncMessageBus(command_handlers={PlaceOrder: handler})
    with pytest.raises(RuntimeError, match="-1"):
        await bus.batch_handle([PlaceOrder(n) for n in (1, -1, -2, 4, 5)], max_concurrency=3)
    assert sorted(handler.started) == sorted(handler.ended)
    assert 5 not in handler.started
    assert len(asyncio.all_tasks()) == 1
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["-2"]


async def test_cancelling_an_async_batch_cancels_what_is_in_hand() -> None:
    """The handlers are cancelled and awaited; no task is left."""
    cancelled: list[int] = []
    both_started = asyncio.Barrier(3)

    async def waits(command: PlaceOrder) -> None:
        await both_started.wait()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(command.order_id)
            raise

    bus = AsyncMessageBus(command_handlers={PlaceOrder: waits})
    batch = asyncio.create_task(bus.batch_handle([PlaceOrder(1), PlaceOrder(2), PlaceOrder(3)], 2))
    await both_started.wait()
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert sorted(cancelled) == [1, 2]
    assert len(asyncio.all_tasks()) == 1


async def test_whatever_is_awaitable_is_awaited() -> None:
    """Coroutines, futures and objects with __await__, from callables that do not look async."""
    future = asyncio.get_running_loop().create_future()
    future.set_result("future")

    class Awaitable_:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "object"

    async def work() -> str:
        return "coroutine"

    bus = AsyncMessageBus({OrderPlaced: [lambda _: future, lambda _: Awaitable_(), lambda _: work()]})
    assert await bus.handle(OrderPlaced()) == ["future", "object", "coroutine"]


async def test_an_abandoned_dispatch_can_be_closed_from_another_task() -> None:
    """Closing its coroutine elsewhere neither fails nor touches the dispatch in hand there."""

    async def waits(command: PlaceOrder) -> None:
        await asyncio.Event().wait()

    bus = AsyncMessageBus(command_handlers={PlaceOrder: waits})
    abandoned = bus.handle(PlaceOrder())

    async def start() -> None:
        abandoned.send(None)

    await asyncio.create_task(start())

    def closes(event: OrderPlaced, context: Context) -> bool:
        abandoned.close()
        return current_context.get() is context

    bus.set_event_handlers(OrderPlaced, [closes])
    assert await bus.handle(OrderPlaced()) == [True]


def test_a_handler_can_be_tested_without_a_bus() -> None:
    """Emissions are collected on the handler, or on a context made by hand."""

    class Handler(CommandHandlerABC):
        def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPlaced(cmd.order_id))

    handler, context = Handler(), Context(user=1)
    handler.handle(PlaceOrder(5), {})
    assert handler.emitted_messages == [OrderPlaced(5)]
    emitting(OrderPaid())(PlaceOrder(), context)
    assert context.emitted_messages == [OrderPaid()]
    with pytest.raises(NotAMessage):
        handler.emit_message("x")  # type: ignore[arg-type]


async def test_emitted_messages_are_those_of_the_handler_in_this_dispatch(colour: Colour) -> None:
    """Another handler's emissions are not among them; the context knows all."""

    class Emits(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            self.emit_message(OrderPaid(event.order_id))
            return len(self.emitted_messages), len(context.emitted_messages)

    bus = colour.bus({OrderPlaced: [Emits(), Emits()]})
    assert await colour.values(bus, OrderPlaced()) == [(1, 1), (1, 2)]


def test_a_failure_is_a_plain_value() -> None:
    """Outcomes compare by content."""
    error = RuntimeError()
    assert Outcome([], (Failure(OrderPlaced(), print, error),)) == Outcome(
        [], (Failure(OrderPlaced(), print, error),)
    )
    assert Outcome([]).ok
