"""Measures what a bus adds to a handler: `python -m tests.bus.bench_dispatch` prints each path's ratio to its floor.

The floor is a dict lookup by type plus the call, awaited for async. All paths take turns in one run and the fastest
window of each counts, so that a busy machine slows down all or none. Not collected by pytest.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter
from timeit import Timer
from typing import Any

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.sync_bus import MessageBus
from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
from message_bus.messages.message import Command, Event

BUDGET = {"command": 10.0, "event": 12.0, "async command": 8.0, "async event": None}
WINDOW, WINDOWS = 2_000, 400


class Function(Command):
    n: int = 1


class Object(Command):
    n: int = 1


class FunctionEvent(Event):
    n: int = 1


class ObjectEvent(Event):
    n: int = 1


def _function(message: Any, context: Any) -> int:
    return message.n  # type: ignore[no-any-return]


async def _async_function(message: Any, context: Any) -> int:
    return message.n  # type: ignore[no-any-return]


class _Handler(CommandHandlerABC):
    def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        return cmd.n  # type: ignore[no-any-return]


class _OfEvents(EventHandlerABC):
    def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        return event.n  # type: ignore[no-any-return]


class _AsyncHandler(AsyncCommandHandlerABC):
    async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        return cmd.n  # type: ignore[no-any-return]


class _AsyncOfEvents(AsyncEventHandlerABC):
    async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        return event.n  # type: ignore[no-any-return]


def measure() -> dict[str, float]:
    """Nanoseconds per call of each path and of both floors."""
    bus = MessageBus(
        {FunctionEvent: [_function], ObjectEvent: [_OfEvents()]}, {Function: _function, Object: _Handler()}
    )
    async_bus = AsyncMessageBus(
        {FunctionEvent: [_async_function], ObjectEvent: [_AsyncOfEvents()]},
        {Function: _async_function, Object: _AsyncHandler()},
    )

    def floor_function(message: Function) -> int:
        return message.n

    async def async_floor_function(message: Function) -> int:
        return message.n

    floor, async_floor = {Function: floor_function}, {Function: async_floor_function}
    sync_paths: dict[str, Callable[[], float]] = {
        "floor": _timer("floor[type(message)](message)", floor=floor, message=Function())
    }
    for name, message in (
        ("command, callable", Function()),
        ("command, CommandHandlerABC", Object()),
        ("event, callable", FunctionEvent()),
        ("event, EventHandlerABC", ObjectEvent()),
    ):
        sync_paths[name] = _timer("handle(message)", handle=bus.handle, message=message)

    async def windows() -> dict[str, float]:
        best = dict.fromkeys(sync_paths, float("inf"))
        names = {
            "async command, callable": Function(),
            "async command, AsyncCommandHandlerABC": Object(),
            "async event, callable": FunctionEvent(),
            "async event, AsyncEventHandlerABC": ObjectEvent(),
        }
        best |= dict.fromkeys(("async floor", *names), float("inf"))
        handle, repeat, first = async_bus.handle, range(WINDOW), Function()
        for _ in range(WINDOWS):
            for name, path in sync_paths.items():
                best[name] = min(best[name], path())
            started = perf_counter()
            for _ in repeat:
                await async_floor[type(first)](first)
            best["async floor"] = min(best["async floor"], perf_counter() - started)
            for name, message in names.items():
                started = perf_counter()
                for _ in repeat:
                    await handle(message)
                best[name] = min(best[name], perf_counter() - started)
        return {name: seconds / WINDOW * 1e9 for name, seconds in best.items()}

    return asyncio.run(windows())


def _timer(statement: str, **names: Any) -> Callable[[], float]:
    timer = Timer(statement, globals=names)
    return lambda: timer.timeit(WINDOW)


def main() -> None:
    """Print one line per path."""
    measured = measure()
    print(f"Python {platform.python_version()} on {platform.machine()}, {datetime.now(UTC):%Y-%m-%d}")
    for name, nanoseconds in measured.items():
        floor = measured["async floor" if name.startswith("async") else "floor"]
        budget = BUDGET.get(name.partition(",")[0])
        print(
            f"{name:40} {nanoseconds:7.0f} ns {nanoseconds / floor:6.1f} x"
            + (f"   (budget {budget:.0f} x)" if budget else "")
        )


if __name__ == "__main__":
    sys.exit(main())
