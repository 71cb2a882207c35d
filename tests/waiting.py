"""Waiting for something to become true, instead of sleeping for a guessed time.

For tests that watch another process, thread or server. What happens in the test's own thread needs no waiting.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, *, message: str = "") -> T:
    """Call `predicate` until it returns something true, and return that; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(_timed_out(predicate, timeout, value, message))
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    return value


async def async_wait_until(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 10.0, *, message: str = ""
) -> T:
    """Like `wait_until`, leaving the event loop to others meanwhile; `predicate` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        outcome = predicate()
        value: T = await outcome if inspect.isawaitable(outcome) else outcome
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_timed_out(predicate, timeout, value, message))
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _timed_out(predicate: Callable[[], object], timeout: float, last: object, message: str) -> str:
    name = getattr(predicate, "__qualname__", repr(predicate))
    return f"{message or name + ' stayed false'} for {timeout} s (last value: {last!r})"
