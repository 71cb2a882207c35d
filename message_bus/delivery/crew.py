"""Runs handlers side by side, for concurrent mode: in tasks, or in threads that inherit the caller's context variables.

A hand-written pair, because a thread cannot be cancelled: at the end of the block `Crew` waits for what it has started,
`AsyncCrew` cancels it. Neither waits for ever: what hangs is left behind once the lease has ended, and somebody else may
have its message in hand (S11). Threads are daemons, so that they do not keep the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

_GLANCE: Final = 0.5  # seconds between two looks at the lease, while something runs


class Term(Protocol):
    """What a crew wants to know of the lease under which it works."""

    @property
    def over(self) -> bool:
        """Whether somebody else may have it by now."""
        ...

    @property
    def hangs(self) -> bool:
        """Whether a handler runs for longer than it may."""
        ...

    def lost(self) -> Exception:
        """What to raise when nothing of it can be committed any more."""
        ...


class Crew:
    """At most `size` threads, which end with the block."""

    def __init__(self, size: int, term: Term) -> None:
        self._size = size
        self._term = term
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            while thread.is_alive() and not self._term.over:
                thread.join(_GLANCE)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Let a thread call `function(*args)`."""
        context = copy_context()
        self._running += 1
        if self._running > len(self._threads) < self._size:
            thread = threading.Thread(target=self._work, name="message_bus handler", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._calls.put(lambda: context.run(function, *args))

    def finished(self) -> list[Any]:
        """Wait until something is done; what it returned. Raises what was raised; LeaseLost if a handler hangs for good."""
        while True:
            try:
                result, error = self._outcomes.get(timeout=_GLANCE)
            except Empty:
                if self._term.hangs and self._term.over:
                    raise self._term.lost() from None
                continue
            self._running -= 1
            if error is not None:
                raise error
            return [result]

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._outcomes.put((call(), None))
            except BaseException as error:  # SystemExit and the like belong to whoever waits
                self._outcomes.put((None, error))


class AsyncCrew:
    """A task for each call; what still runs at the end of the block is cancelled."""

    def __init__(self, size: int, term: Term) -> None:
        self._term = term
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> AsyncCrew:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._running:
            task.cancel()
        while self._running:
            done, self._running = await asyncio.wait(self._running, timeout=_GLANCE)
            for task in done:
                if not task.cancelled():
                    task.exception()  # asked for, so that nobody is told that it was not
            if self._term.over:
                return  # what swallows its cancellation is left behind

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Let a task await `function(*args)`."""
        self._running.add(asyncio.create_task(_answered(function(*args))))

    async def finished(self) -> list[Any]:
        """Wait until something is done; what it returned. Raises what was raised; LeaseLost if a handler hangs for good."""
        while True:
            done, self._running = await asyncio.wait(
                self._running, timeout=_GLANCE, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return [each.result().given() for each in done]
            if self._term.hangs and self._term.over:
                raise self._term.lost()


@dataclass(frozen=True)
class _Answer:
    value: Any = None
    ends: SystemExit | KeyboardInterrupt | None = None

    def given(self) -> Any:
        if self.ends is not None:
            raise self.ends
        return self.value


async def _answered(awaited: Coroutine[Any, Any, Any]) -> _Answer:
    """A task that ended with SystemExit would end the event loop in the middle of everything else that it runs."""
    try:
        return _Answer(await awaited)
    except (SystemExit, KeyboardInterrupt) as ends:
        return _Answer(ends=ends)
