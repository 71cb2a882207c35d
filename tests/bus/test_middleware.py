"""Middleware: around every call of every handler, in the order as written, on all buses."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncHandlerOnSyncBus,
    AsyncMessageBus,
    Context,
    DispatchEnded,
    DispatchOutboxHandler,
    InMemoryAsyncMessageBus,
    InMemoryMessageBus,
    InMemoryOutBoxRepo,
    MessageBus,
    MessageBusTables,
    Query,
    SettingsError,
    Subscription,
    WiringError,
)
from message_bus.bus.context import current_context
from tests.bus.colours import ALL, OUTBOX, Colour, Flaky, Script, Steps, name_of, retrying, swallowing
from tests.bus.shop import OrderPaid, OrderPlaced, PlaceOrder


class GetOrder(Query[str]):
    order_id: int = 1


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


def writing(log: list[str], name: str) -> Script:
    """Writes down when it is entered and left, and with what."""

    def script(message: Any, context: Any) -> Steps:
        log.append(f"{name} {type(message).__name__}")
        result = yield ()
        log.append(f"{name} {result}")
        return result

    return script


# --- where it runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True])
async def test_the_first_of_the_list_is_outermost(colour: Colour, added: bool) -> None:
    """Two of them surround the handler like brackets, in the constructor's order or that of add_middleware."""
    log: list[str] = []
    scripts = [writing(log, "first"), writing(log, "second")]

    def placed(command: PlaceOrder) -> str:
        log.append("handler")
        return "placed"

    bus = colour.bus(middleware=[] if added else scripts)
    bus.set_command_handler(PlaceOrder, placed)
    for script in scripts if added else []:
        bus.add_middleware(colour.middleware(script))
    assert await colour.values(bus, PlaceOrder()) == ["placed"]
    assert log == ["first PlaceOrder", "second PlaceOrder", "handler", "second placed", "first placed"]


async def test_it_runs_around_each_handler_of_each_message(colour: Colour) -> None:
    """Commands, every handler of an event, queries, and what handlers emit or ask."""
    log: list[str] = []
    bus = colour.bus(middleware=[writing(log, "m")])

    def place(command: PlaceOrder, context: Context) -> str:
        context.emit(OrderPlaced())
        return "placed"

    bus.subscribe(PlaceOrder, place)
    bus.subscribe(OrderPlaced, lambda event: "one")
    bus.subscribe(OrderPlaced, lambda event: "two")
    bus.subscribe(GetOrder, lambda query: "order")
    await colour.done(bus.handle(PlaceOrder()))
    assert log == [
        *("m PlaceOrder", "m placed"),
        *("m OrderPlaced", "m one"),
        *("m OrderPlaced", "m two"),
    ]
    log.clear()
    assert await colour.done(bus.ask(GetOrder())) == "order"
    assert log == ["m GetOrder", "m order"]


@pytest.mark.parametrize("way", ["handle", "dispatch", "publish", "batch_handle", "ask"])
async def test_it_runs_whichever_way_a_message_comes(colour: Colour, way: str) -> None:
    """Every method of a bus that handles messages."""
    log: list[str] = []
    bus = colour.bus(middleware=[writing(log, "m")])
    bus.subscribe(PlaceOrder, lambda command: "placed")
    await colour.done(getattr(bus, way)([PlaceOrder()] if way == "batch_handle" else PlaceOrder()))
    assert log == ["m PlaceOrder", "m placed"]


async def test_a_nested_dispatch_has_middleware_too(colour: Colour) -> None:
    """What a handler publishes passes the same functions, inside those of the handler."""
    log: list[str] = []
    bus = colour.bus(middleware=[writing(log, "m")])
    bus.subscribe(OrderPlaced, lambda event: "inner")
    if colour.is_async:

        async def publishes(command: PlaceOrder) -> str:
            await bus.publish(OrderPlaced())
            return "outer"

        bus.subscribe(PlaceOrder, publishes)
    else:
        bus.subscribe(PlaceOrder, lambda command: bus.publish(OrderPlaced()) or "outer")
    await colour.done(bus.handle(PlaceOrder()))
    assert log == ["m PlaceOrder", "m OrderPlaced", "m inner", "m outer"]


async def test_it_runs_around_what_is_delivered(colour: Colour) -> None:
    """Behind the outbox it surrounds each handler of the message; what is emitted goes to the outbox."""
    log: list[str] = []
    bus = colour.bus(middleware=[writing(log, "m")])
    bus.set_event_handlers(
        OrderPlaced, [lambda event, context: context.emit(OrderPaid()), lambda event: "second"]
    )
    outbox = InMemoryOutBoxRepo()
    assert await colour.done(bus.deliver(OrderPlaced(), Context(outbox=outbox))) == 2
    assert log == ["m OrderPlaced", "m None", "m OrderPlaced", "m second"]
    assert [row.message for row in outbox.list_unprocessed()] == ["OrderPaid"]


@pytest.mark.parametrize("late", [False, True])
def test_it_runs_behind_a_real_outbox(
    late: bool, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Around the bus's handlers and those of a `DispatchOutboxHandler` of their own, also if it was added afterwards."""
    log: list[str] = []
    middleware = OUTBOX[0].middleware(writing(log, "m"))
    bus = MessageBus({OrderPlaced: [lambda event: "bus"]}, middleware=[] if late else [middleware])
    own = DispatchOutboxHandler(
        handlers={OrderPlaced: [lambda event: "own"]},
        subscription=Subscription(name="own", start="beginning"),
    )
    bus.set_outbox_handlers([DispatchOutboxHandler(), own])
    if late:
        bus.add_middleware(middleware)
    with session_factory() as session, session.begin():
        bus.register_outbox_message(session, OrderPlaced())
    with session_factory() as session:
        assert bus.process_outbox(session).delivered == 2
    assert log == ["m OrderPlaced", "m bus", "m OrderPlaced", "m own"]


async def test_it_may_be_added_while_a_message_is_handled(colour: Colour) -> None:
    """The message in hand keeps what it began with; the next one has the new function, around old and new handlers."""
    log: list[str] = []
    bus = colour.bus()

    def adds(event: OrderPlaced) -> str:
        if not log:
            bus.add_middleware(colour.middleware(writing(log, "m")))
            log.append("added")
        return "first"

    bus.subscribe(OrderPlaced, adds)
    bus.subscribe(OrderPlaced, lambda event: "second")
    await colour.values(bus, OrderPlaced())
    assert log == ["added"]
    bus.subscribe(OrderPaid, lambda event: "new")
    await colour.values(bus, OrderPlaced())
    await colour.values(bus, OrderPaid())
    assert log.count("m OrderPlaced") == 2
    assert log[-2:] == ["m OrderPaid", "m new"]


def test_without_middleware_nothing_is_put_around_a_handler() -> None:
    """The hot path of a bus that has none calls the handler itself."""

    def handler(message: Any, context: Any) -> None: ...

    bus = MessageBus(command_handlers={PlaceOrder: handler})
    assert bus._routes[PlaceOrder].only is handler


# --- what it may do -------------------------------------------------------------------------------------------------


async def test_it_may_skip_the_handler(colour: Colour) -> None:
    """Without call_next() the handler does not run, and the message counts as handled, with this result."""
    called: list[Any] = []

    def skips(message: Any, context: Any) -> Steps:
        if message.order_id == 0:
            return "skipped"
        return (yield ())

    bus = colour.bus(middleware=[skips])
    bus.subscribe(OrderPlaced, called.append)
    assert await colour.values(bus, OrderPlaced(0)) == ["skipped"]
    assert await colour.values(bus, OrderPlaced(1)) == [None]
    assert called == [OrderPlaced(1)]


async def test_it_may_change_the_result(colour: Colour) -> None:
    """What it returns is the handler's result for those outside of it."""

    def doubles(message: Any, context: Any) -> Steps:
        return 2 * (yield ())

    bus = colour.bus(middleware=[doubles, doubles])
    bus.subscribe(PlaceOrder, lambda command: command.order_id)
    assert await colour.values(bus, PlaceOrder(3)) == [12]
    assert await colour.done(bus.ask(PlaceOrder(3))) == 12


async def test_it_may_change_the_message(colour: Colour) -> None:
    """The handler gets the other one; results go on naming the message that was handled."""

    def corrects(message: Any, context: Any) -> Steps:
        return (yield (type(message)(message.order_id + 1),))

    bus = colour.bus(middleware=[corrects, corrects])
    bus.subscribe(PlaceOrder, lambda command: command.order_id)
    assert await colour.values(bus, PlaceOrder(1)) == [3]
    if not colour.is_async:
        assert bus.handle(PlaceOrder(1)) == [{"command": PlaceOrder(1), "result": 3}]


@pytest.mark.parametrize("kind", [dict, Context])
async def test_it_may_pass_on_another_context(colour: Colour, kind: type[Any]) -> None:
    """A copy with more in it belongs to the same dispatch: envelope, emissions and their causation."""
    kept: list[Any] = []
    ids: list[Any] = []

    def adds_a_tenant(message: Any, context: Any) -> Steps:
        ids.append(context.envelope.id)
        return (yield (message, kind({**context, "tenant": "a"})))

    def place(command: PlaceOrder, context: Context) -> Any:
        kept.append(context)
        ids.append(context.envelope.id)
        context.emit(OrderPlaced())
        return context["tenant"], [type(each) for each in context.emitted_messages]

    bus = colour.bus(middleware=[adds_a_tenant])
    bus.subscribe(PlaceOrder, place)
    bus.subscribe(OrderPlaced, lambda event, context: context.envelope.headers["causation_id"])
    placed, cause = await colour.values(bus, PlaceOrder())
    assert placed == ("a", [OrderPlaced])
    assert ids[0] == ids[1]
    assert cause == str(ids[0])
    with pytest.raises(DispatchEnded):
        kept[0].emit(OrderPlaced())


async def test_arguments_pass_through(colour: Colour) -> None:
    """What else was given to `handle` reaches the handler through any number of functions, each time it is called."""
    seen: list[Any] = []
    bus = colour.bus(middleware=[retrying(2), swallowing])

    def handler(command: PlaceOrder, *args: Any, context: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs, context["user"]))
        if len(seen) == 1:
            raise ValueError
        return "done"

    bus.subscribe(PlaceOrder, handler)
    with pytest.raises(ValueError, match=r"^$"):
        await colour.values(bus, PlaceOrder(), 1, 2, context={"user": 3}, four=4)
    assert await colour.values(bus, PlaceOrder(), 1, 2, context={"user": 3}, four=4) == ["done"]
    assert seen == [((1, 2), {"four": 4}, 3)] * 2


async def test_it_knows_which_handler_it_surrounds(colour: Colour) -> None:
    """`call_next.handler` is the handler as it was registered, `handler_name` what logs call it."""
    seen: list[Any] = []

    def looks(message: Any, context: Any, call_next: Any) -> Any:
        seen.append((call_next.handler, call_next.handler_name))
        return call_next()

    async def async_looks(message: Any, context: Any, call_next: Any) -> Any:
        return await looks(message, context, call_next)

    flaky = Flaky(0)
    bus = colour.make(
        {OrderPlaced: [print, flaky]}, middleware=[async_looks if colour.is_async else looks] * 2
    )
    await colour.values(bus, OrderPlaced())
    assert sorted({name for _, name in seen}) == ["Flaky", "print"]
    assert {id(handler) for handler, _ in seen} == {id(print), id(flaky)}
    assert len(seen) == 4


# --- the two colours ------------------------------------------------------------------------------------------------


def _function(message: Any, context: Any, call_next: Any) -> Any: ...


async def _async_function(message: Any, context: Any, call_next: Any) -> Any: ...


def _generator(message: Any, context: Any, call_next: Any) -> Any:
    yield


async def _async_generator(message: Any, context: Any, call_next: Any) -> Any:
    yield


def _too_few(message: Any, call_next: Any) -> Any: ...


class _Object:
    def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
        return call_next()


class _AsyncObject:
    async def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
        return await call_next()


@pytest.mark.parametrize("make", [MessageBus, InMemoryMessageBus])
def test_an_async_middleware_is_refused_by_a_sync_bus(make: type[Any]) -> None:
    """In the constructor and when it is added, whatever it is made of."""
    for middleware in (_async_function, _AsyncObject()):
        with pytest.raises(AsyncHandlerOnSyncBus):
            make(middleware=[middleware])
        with pytest.raises(AsyncHandlerOnSyncBus):
            make().add_middleware(middleware)


@pytest.mark.parametrize("make", [AsyncMessageBus, InMemoryAsyncMessageBus])
def test_a_sync_middleware_is_refused_by_an_async_bus(make: type[Any]) -> None:
    """It could not wait for the handler."""
    for middleware in (_function, _Object(), lambda message, context, call_next: call_next()):
        with pytest.raises(SettingsError, match="is not async"):
            make(middleware=[middleware])


@pytest.mark.parametrize(
    ("middleware", "problem"),
    [
        (None, "must be a function"),
        (_Object, "must be a function"),
        (_generator, "'_generator': is a generator, which nobody would run"),
        (_async_generator, "_async_generator"),
        (
            _too_few,
            r"'_too_few': takes \(message, call_next\), but is called with \(message, context, call_next\)",
        ),
    ],
)
def test_what_is_no_middleware_is_refused(colour: Colour, middleware: Any, problem: str) -> None:
    """A class, something with `yield`, a function with another number of parameters: at once, not at the first message."""
    bus = colour.make()
    with pytest.raises(WiringError, match=problem):
        bus.add_middleware(middleware)
    assert bus._middleware == ()


async def test_objects_and_methods_are_middleware() -> None:
    """Whatever can be called with the three."""
    assert (
        MessageBus(
            command_handlers={PlaceOrder: lambda command: 1}, middleware=[_Object(), _Object().__call__]
        ).ask(PlaceOrder())
        == 1
    )
    bus = AsyncMessageBus(
        command_handlers={PlaceOrder: lambda command: 1}, middleware=[_AsyncObject(), _AsyncObject().__call__]
    )
    assert await bus.ask(PlaceOrder()) == 1


async def test_an_async_middleware_may_forget_to_await() -> None:
    """`return call_next()` is enough: nothing is left unawaited."""

    async def passes(message: Any, context: Any, call_next: Any) -> Any:
        return call_next()

    async def handler(command: PlaceOrder) -> str:
        return "placed"

    bus = AsyncMessageBus(command_handlers={PlaceOrder: handler}, middleware=[passes, passes])
    assert await bus.handle(PlaceOrder()) == ["placed"]


@pytest.mark.parametrize("make", [MessageBus, InMemoryMessageBus])
def test_a_handler_that_turns_out_async_is_refused_inside_middleware(make: type[Any]) -> None:
    """The coroutine is closed and the error names the handler, not the function around it."""

    async def work() -> None: ...

    def looks_sync(message: Any) -> Any:
        return work()

    bus = make({OrderPlaced: [looks_sync]}, middleware=[_Object()])
    with pytest.raises(AsyncHandlerOnSyncBus, match="looks_sync"):
        bus.handle(OrderPlaced())


async def test_a_middleware_may_limit_the_time_of_a_handler() -> None:
    """A time-out inside of it cancels the handler, drops what that had emitted, and is an ordinary error outside."""
    paid: list[Any] = []

    async def limited(message: Any, context: Any, call_next: Any) -> Any:
        try:
            async with asyncio.timeout(0):
                return await call_next()
        except TimeoutError:
            return "too late"

    async def slow(command: PlaceOrder, context: Context) -> None:
        context.emit(OrderPaid())
        await asyncio.Event().wait()

    bus = AsyncMessageBus({OrderPaid: [paid.append]}, {PlaceOrder: slow}, middleware=[limited])
    assert await bus.handle(PlaceOrder()) == ["too late"]
    assert paid == []
    assert current_context.get() is None


async def test_an_abandoned_dispatch_with_middleware_can_be_closed_from_elsewhere() -> None:
    """Closing its coroutine in another context leaves nothing behind and raises nothing."""

    async def waits(command: PlaceOrder) -> None:
        await asyncio.Event().wait()

    bus = AsyncMessageBus(command_handlers={PlaceOrder: waits}, middleware=[_AsyncObject()])
    dispatch = bus.handle(PlaceOrder())

    async def starts() -> None:
        dispatch.send(None)

    await asyncio.create_task(starts())
    dispatch.close()
    assert current_context.get() is None


def _change_it_at_the_same_time(colour: Colour, in_place: bool, handlers: int) -> bool:
    """Do handlers share the context that a middleware would change in place?"""
    return colour.is_async and colour.is_in_memory and in_place and handlers > 1


@pytest.mark.parametrize(
    ("colour", "in_place", "handlers"),
    [case for case in product(ALL, (False, True), (1, 2)) if not _change_it_at_the_same_time(*case)],
    ids=lambda each: name_of(each) if isinstance(each, Colour) else None,
)
async def test_it_may_bring_an_outbox(colour: Colour, in_place: bool, handlers: int) -> None:
    """What the handler emits is registered there before call_next() returns, so that the middleware can commit it."""
    saved: list[int] = []

    def in_a_unit_of_work(message: Any, context: Any) -> Steps:
        repo = InMemoryOutBoxRepo()
        if in_place:
            context["outbox"] = repo
            result = yield ()
        else:
            result = yield message, {**context, "outbox": repo}
        repo.save()
        saved.append(len(repo.list_unprocessed()))
        return result

    def emits(event: Any, context: Context) -> None:
        context.emit(OrderPaid())

    handled: list[Any] = []
    bus = colour.bus(
        {OrderPlaced: [emits] * handlers, OrderPaid: [handled.append]}, middleware=[in_a_unit_of_work]
    )
    await colour.done(bus.handle(OrderPlaced()))
    assert saved == [1] * handlers
    assert handled == []


async def test_the_outbox_of_a_middleware_gets_nothing_of_a_failed_attempt(colour: Colour) -> None:
    """A retry inside of the unit of work registers what the last attempt has emitted."""
    saved: list[Any] = []

    def in_a_unit_of_work(message: Any, context: Any) -> Steps:
        repo = InMemoryOutBoxRepo()
        result = yield message, {**context, "outbox": repo}
        repo.save()
        saved.extend(row.payload for row in repo.list_unprocessed())
        return result

    attempts: list[int] = []

    def flaky(command: Any, context: Context) -> None:
        attempts.append(1)
        context.emit(OrderPaid(len(attempts)))
        if len(attempts) == 1:
            raise RuntimeError

    bus = colour.bus(command_handlers={PlaceOrder: flaky}, middleware=[in_a_unit_of_work, retrying(2)])
    await colour.done(bus.handle(PlaceOrder()))
    assert saved == [{"order_id": 2}]
