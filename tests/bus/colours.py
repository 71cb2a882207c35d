"""The buses of this package side by side, so that a test is written once for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.in_memory import InMemoryAsyncMessageBus, InMemoryMessageBus
from message_bus.bus.sync_bus import MessageBus
from tests.bus.shop import OrderPaid

Steps = Generator[tuple[Any, ...], Any, Any]
Script = Callable[[Any, Any], Steps]
"""A middleware of no colour: it yields the arguments of each `call_next`, is sent the result, and returns its own."""


@dataclass(frozen=True)
class Colour:
    """One bus class, called in the same way as the others."""

    make: type[Any]

    @property
    def is_async(self) -> bool:
        """Its methods are awaited."""
        return issubclass(self.make, AsyncMessageBus)

    @property
    def is_in_memory(self) -> bool:
        """The errors of event handlers reach the caller."""
        return issubclass(self.make, InMemoryMessageBus | InMemoryAsyncMessageBus)

    def bus(self, *args: Any, middleware: Sequence[Script] = (), **options: Any) -> Any:
        """A bus with these scripts as its middleware."""
        return self.make(*args, middleware=[self.middleware(script) for script in middleware], **options)

    async def done(self, value: Any) -> Any:
        """The value, awaited on an async bus."""
        return await value if inspect.isawaitable(value) else value

    async def values(self, bus: Any, message: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """The bare results of `handle`."""
        results = await self.done(bus.handle(message, *args, **kwargs))
        return list(results) if self.is_async else [each["result"] for each in results]

    def middleware(self, script: Script) -> Any:
        """`script` as this bus wants it."""

        def middleware(message: Any, context: Any, call_next: Any) -> Any:
            running = script(message, context)
            try:
                wanted = next(running)
                while True:
                    try:
                        result = call_next(*wanted)
                    except Exception as error:
                        wanted = running.throw(error)
                    else:
                        wanted = running.send(result)
            except StopIteration as stop:
                return stop.value

        async def async_middleware(message: Any, context: Any, call_next: Any) -> Any:
            running = script(message, context)
            try:
                wanted = next(running)
                while True:
                    try:
                        result = await call_next(*wanted)
                    except Exception as error:
                        wanted = running.throw(error)
                    else:
                        wanted = running.send(result)
            except StopIteration as stop:
                return stop.value

        return async_middleware if self.is_async else middleware


ALL = [Colour(each) for each in (MessageBus, AsyncMessageBus, InMemoryMessageBus, InMemoryAsyncMessageBus)]
OUTBOX = ALL[:2]
IN_MEMORY = ALL[2:]


def name_of(colour: Colour) -> str:
    """What a test of this colour is called."""
    return colour.make.__name__


# --- scripts and a handler for tests of middleware ---------------------------------------------------------------------


def retrying(times: int) -> Script:
    """Calls again after an error."""

    def script(message: Any, context: Any) -> Steps:
        for _ in range(times - 1):
            try:
                return (yield ())
            except RuntimeError:
                pass
        return (yield ())

    return script


def swallowing(message: Any, context: Any) -> Steps:
    """Returns something else in place of an error."""
    try:
        return (yield ())
    except RuntimeError:
        return "swallowed"


class Flaky:
    """Emits `OrderPaid(n)` on its n-th call, and fails until there were enough of them."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def handle(self, message: Any, context: Any) -> str:
        """Emit, and fail or not."""
        self.calls += 1
        context.emit(OrderPaid(self.calls))
        if self.calls <= self.failures:
            raise RuntimeError(f"call {self.calls}")
        return f"call {self.calls}"
