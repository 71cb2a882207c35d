"""Runs handlers side by side, for concurrent mode: in tasks, or in threads that inherit the caller's context variables.

A hand-written pair, because a thread cannot be cancelled: `Crew` waits for what it has started, `AsyncCrew` cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any


class Crew:
    """At most `size` threads; they end with the block."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="message_bus handler")
        self._running: set[Future[Any]] = set()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Let a thread call `function(*args)`."""
        self._running.add(self._pool.submit(copy_context().run, function, *args))

    def finished(self) -> list[Any]:
        """Wait until something is done; what it returned. Raises what was raised."""
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        return [each.result() for each in done]


class AsyncCrew:
    """A task for each call; what still runs at the end of the block is cancelled."""

    def __init__(self, size: int) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> AsyncCrew:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Let a task await `function(*args)`."""
        self._running.add(asyncio.create_task(function(*args)))

    async def finished(self) -> list[Any]:
        """Wait until something is done; what it returned. Raises what was raised."""
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return [each.result() for each in done]
