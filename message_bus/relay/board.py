"""Where the parts of a relay meet: what was seen last, who rang, whether to stop; and the one place where they wait.

By hand in both colours: `Board` wakes threads, `AsyncBoard` tasks. `ring` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from message_bus.delivery.jobs import Stop
from message_bus.observability.observer import Cause
from message_bus.storage.signs import Signs

logger: Final = logging.getLogger("message_bus.relay")


class _AnyBoard:
    """What a board knows. Only counted up, never down: who remembers a number can tell that something is newer."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.signs: Signs | None = None
        self.posts = 0
        """How many times signs were posted."""
        self.rings = 0
        """How many times somebody said that there is work."""
        self.stirs = 0
        """How many times something was done that may lead to more."""
        self.ready = False
        """Whether the subscriptions are there."""
        self.down = False
        """Whether the database is out of reach."""
        self._causes: deque[Cause] = deque(["commit"], maxlen=64)
        self.listening = False
        """Whether notifications reach us, so that writers can wake us."""

    def outage(self, error: Exception) -> None:
        """Say once that the database is out of reach."""
        if not self.down:
            self.down = True
            logger.warning(
                "the database is out of reach (%s); the relay tries again until it is back: %s",
                type(error).__name__,
                str(error).partition("\n")[0],
            )
            self.stir()  # the watcher may be in a long pause, and everybody waits for it

    def stir(self) -> None:
        raise NotImplementedError

    def cause_after(self, ring: int) -> Cause:
        """What the first ring after number `ring` came from, as far back as is remembered."""
        causes = list(self._causes)  # another thread may ring meanwhile
        return causes[max(0, len(causes) - (self.rings - ring))]

    def back(self) -> None:
        """Say that it is in reach again."""
        if self.down:
            self.down = False
            logger.warning("the database is back; the relay goes on")


class _Waiter:
    """One thread that waits."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.wanted = wanted
        self.woken = threading.Event()


class Board(_AnyBoard):
    """For threads. Only those wake up that something has come for: with each other one the first would share its start."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._waiters: list[_Waiter] = []

    def post(self, signs: Signs | None) -> None:
        """Let everybody see what was seen."""
        with self._lock:
            self.signs = signs
            self.posts += 1
            self._wake()

    def ring(self) -> int:
        """Say that there is work; the number of this ring."""
        return self._ring("commit")

    def heard(self) -> None:
        """Say that a notification has come."""
        self.listening = True
        self._ring("notification")

    def _ring(self, cause: Cause) -> int:
        with self._lock:
            self.rings += 1
            self._causes.append(cause)
            self._wake()
            return self.rings

    def stir(self) -> None:
        """Say that something has changed."""
        with self._lock:
            self.stirs += 1
            self._wake()

    def ask_to_stop(self) -> None:
        """Let everybody end what is in hand and begin nothing else."""
        with self._lock:
            self.stop.asked = True
            self._wake()

    def wait(self, wanted: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `wanted`, a stop is asked, or `timeout` seconds have passed; whether it was wanted.

        `wanted` is also asked by whoever changes something, in their thread.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = _Waiter(wanted)
        with self._lock:
            self._waiters.append(waiter)
        try:
            while not (self.stop.asked or wanted()):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                waiter.woken.wait(left)
                waiter.woken.clear()
        finally:
            with self._lock:
                self._waiters.remove(waiter)
        return wanted()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if self.stop.asked or waiter.wanted():
                waiter.woken.set()


class AsyncBoard(_AnyBoard):
    """For tasks of one event loop, that of its first `wait`."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._counting = threading.Lock()

    def post(self, signs: Signs | None) -> None:
        """Let everybody see what was seen."""
        self.signs = signs
        self.posts += 1
        self._wake()

    def ring(self) -> int:
        """Say that there is work; the number of this ring."""
        return self._ring("commit")

    def heard(self) -> None:
        """Say that a notification has come."""
        self.listening = True
        self._ring("notification")

    def _ring(self, cause: Cause) -> int:
        with self._counting:
            self.rings += 1
            self._causes.append(cause)
            number = self.rings
        self._wake_from_anywhere()
        return number

    def stir(self) -> None:
        """Say that something has changed."""
        self.stirs += 1
        self._wake()

    def look_up(self) -> None:
        """Let whoever waits see whether what it waits for is there."""
        self._wake()

    def ask_to_stop(self) -> None:
        """Let everybody end what is in hand and begin nothing else."""
        self.stop.asked = True
        self._wake_from_anywhere()

    async def wait(self, wanted: Callable[[], bool], timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until `wanted`, a stop is asked, or `timeout` seconds have passed; whether it was wanted."""
        self._loop = asyncio.get_running_loop()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (self.stop.asked or wanted()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            changed = self._loop.create_future()
            self._waiting.add(changed)
            try:
                await asyncio.wait((changed,), timeout=left)
            finally:
                self._waiting.discard(changed)
        return wanted()

    def _wake(self) -> None:
        for changed in list(self._waiting):
            if not changed.done():
                changed.set_result(None)

    def _wake_from_anywhere(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with suppress(RuntimeError):  # closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(self._wake)
