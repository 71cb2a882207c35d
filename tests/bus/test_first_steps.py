"""What a newcomer gets wrong at first: refused where it is written, with the remedy, or simply made to work."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from message_bus import (
    AsyncEventHandlerABC,
    AsyncOutboxHandlerABC,
    Event,
    EventHandlerABC,
    MessageDefinitionError,
    NotAMessage,
    OutboxHandlerABC,
    SettingsError,
    WiringError,
)
from message_bus.bus.threads import in_thread
from tests.bus.colours import ALL, Colour, name_of
from tests.bus.shop import OrderPlaced, PlaceOrder

on_the_async_buses = pytest.mark.parametrize("colour", [each for each in ALL if each.is_async], ids=name_of)


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


# --- a base class with hooks, and `handle` defined in place of `_handle` ---------------------------------------------


class _Handle(EventHandlerABC):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((event, context["who"]))
        return "handled"

    def _before_handle(self, context: Any) -> None:
        raise AssertionError("its own handle() does not call it")


class _AsyncHandle(AsyncEventHandlerABC):
    async def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return context["who"]


class _AsyncHandleOfTheOtherBase(EventHandlerABC):
    async def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return context["who"]


async def test_handle_alone_makes_an_event_handler(colour: Colour) -> None:
    """A class that overrides `handle` needs no `_handle`; what it overrides is called, and nothing else."""
    bus, handler, event = colour.bus(), _Handle(), OrderPlaced(1)
    bus.set_event_handlers(OrderPlaced, [handler])
    assert await colour.values(bus, event, context={"who": "me"}) == ["handled"]
    assert handler.seen == [(event, "me")]


@on_the_async_buses
@pytest.mark.parametrize("make", [_AsyncHandle, _AsyncHandleOfTheOtherBase])
async def test_an_async_handle_alone_makes_an_event_handler(colour: Colour, make: type[Any]) -> None:
    """The same on an asynchronous bus, from either base class."""
    bus = colour.bus()
    bus.set_event_handlers(OrderPlaced, [make()])
    assert await colour.values(bus, OrderPlaced(1), context={"who": "me"}) == ["me"]


@pytest.mark.parametrize(
    "base", [EventHandlerABC, AsyncEventHandlerABC, OutboxHandlerABC, AsyncOutboxHandlerABC]
)
def test_a_handler_class_needs_one_of_the_two(base: type[Any]) -> None:
    """A class with neither stays abstract; one that says that `_handle` is for its heirs does, too."""
    with pytest.raises(TypeError, match="_handle"):
        type("Neither", (base,), {})()
    assert type("Own", (base,), {"handle": lambda self, thing, context: None})()


def test_a_handle_that_calls_the_one_of_the_base_class_needs_the_other() -> None:
    """`super().handle()` of a class without `_handle` says what is missing."""

    class Logging(EventHandlerABC):
        def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            return super().handle(event, context)

    class Complete(Logging):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> str:
            return "done"

    assert Complete().handle(None, {}) == "done"
    with pytest.raises(WiringError, match=r"'Logging' has a handle\(\) of its own and no _handle\(\)"):
        Logging().handle(None, {})


# --- handlers that no message can be given to ------------------------------------------------------------------------


def _nothing() -> None: ...
def _keywords(*, message: Any, context: Any) -> None: ...
def _only_kwargs(**kwargs: Any) -> None: ...
def _context_first(context: Any, message: Any) -> None: ...
def _extra(message: Any, context: Any, extra: Any) -> Any: ...
def _named(message: Any, *, context: Any, extra: Any) -> Any: ...
def _unnamed(context: Any, /) -> None: ...
def _anything(*args: Any) -> None: ...


class _Narrow(EventHandlerABC):
    def _handle(self, event: Any) -> None:  # type: ignore[override]
        ...


class _AsyncNarrow(EventHandlerABC):
    async def _handle(self, event: Any) -> None:  # type: ignore[override]
        ...


@functools.wraps(_nothing)
def _decorated(message: Any) -> None:
    _nothing()


@pytest.mark.parametrize("handler", [_nothing, _keywords, _only_kwargs, _context_first, _Narrow()])
def test_a_handler_that_cannot_take_the_message_is_refused(colour: Colour, handler: Any) -> None:
    """It is named where it is registered, with what it takes; nothing is registered."""
    bus = colour.bus()
    with pytest.raises(
        SettingsError, match=r"handler '.*': takes \(.*\), but is called with \(message, context\)"
    ):
        bus.set_command_handler(PlaceOrder, handler)
    assert bus.get_command_handler(PlaceOrder) is None
    with pytest.raises(SettingsError, match="is called with"):
        bus.set_event_handlers(OrderPlaced, [lambda event: None, handler])
    assert bus.get_event_handlers(OrderPlaced) == []


@on_the_async_buses
def test_an_async_handler_that_cannot_take_the_message_is_refused(colour: Colour) -> None:
    """An async `_handle` on the synchronous base class is looked at, too."""
    with pytest.raises(SettingsError, match=r"takes \(event\)"):
        colour.bus().set_event_handlers(OrderPlaced, [_AsyncNarrow()])
    with pytest.raises(SettingsError, match=r"takes \(\)"):
        in_thread(_nothing)


@pytest.mark.parametrize("handler", [_extra, _named, _unnamed, _anything, _decorated, print, [].append])
def test_what_may_work_is_registered(colour: Colour, handler: Any) -> None:
    """Missing arguments may come with the call of `handle`; a decorator takes what its function does not."""
    bus = colour.bus()
    bus.set_command_handler(PlaceOrder, handler)
    assert bus.get_command_handler(PlaceOrder) is handler


async def test_extra_arguments_reach_a_handler_that_needs_them(colour: Colour) -> None:
    """`bus.handle(command, 1)` supplies the third parameter."""
    bus = colour.bus()
    bus.set_command_handler(PlaceOrder, lambda command, context, extra: extra)
    assert await colour.values(bus, PlaceOrder(1), 7) == [7]


# --- decorators and message types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decorator", "example"),
    [("event_handler", "OrderPlaced"), ("command_handler", "PlaceOrder"), ("query_handler", "GetOrder")],
)
def test_a_decorator_without_parentheses(colour: Colour, decorator: str, example: str) -> None:
    """`@bus.event_handler` alone says how to write it."""
    with pytest.raises(
        NotAMessage, match=rf"'function' is not a message \(write @bus.{decorator}\({example}\)\)"
    ):
        getattr(colour.bus(), decorator)(lambda message: None)


def test_an_object_where_a_class_is_wanted(colour: Colour) -> None:
    """A message in place of its class is told from something that is no message."""
    bus, event = colour.bus(), OrderPlaced(1)
    for call in (
        lambda: bus.subscribe(event, print),
        lambda: bus.set_event_handlers(event, [print]),
        lambda: bus.event_handler(event),
        lambda: bus.register_messages(event),
    ):
        with pytest.raises(
            NotAMessage, match=r"'OrderPlaced' was given as an object .*give the class, not an inst"
        ):
            call()


async def test_a_class_where_a_message_is_wanted(colour: Colour) -> None:
    """`bus.handle(OrderPlaced)` says that an instance is missing."""
    with pytest.raises(NotAMessage, match=r"'OrderPlaced' is a class, not a message \(give an instance"):
        await colour.done(colour.bus().handle(OrderPlaced))


class _Keyed(Event, key="nope"):
    n: int


def test_a_key_that_is_no_field_is_refused_when_a_bus_meets_the_class(colour: Colour) -> None:
    """Not before: a class that derives from it may bring the field."""

    class Heir(_Keyed):
        nope: str

    bus = colour.bus()
    for call in (
        lambda: bus.subscribe(_Keyed, print),
        lambda: bus.set_event_handlers(_Keyed, []),
        lambda: bus.register_messages(_Keyed),
        lambda: bus.event_handler(_Keyed)(print),
    ):
        with pytest.raises(MessageDefinitionError, match=r"key='nope' is no field of it \(name a field"):
            call()
    bus.subscribe(Heir, print)
