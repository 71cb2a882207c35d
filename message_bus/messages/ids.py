"""Message ids: UUIDs of version 7, which sort by the time of their making.

Within one process every id is greater than the one before, also when the clock steps back and after a fork.
This is the one module among the pure ones that reads a clock.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from uuid import UUID

_COUNTER_BITS = 42
_standard: Callable[[], UUID] | None = getattr(uuid, "uuid7", None)  # from Python 3.14 on


class _Uuid7:
    """RFC 9562, section 6.2, method 1: a 42-bit counter, seeded every millisecond, then 32 random bits."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew, in a child process: not where its parent counts on, nor with a lock that is held."""
        self._lock = threading.Lock()
        self._milliseconds = -1
        self._counter = 0

    def __call__(self) -> UUID:
        entropy = int.from_bytes(os.urandom(10), "big")
        tail = entropy & 0xFFFF_FFFF
        # The top bit of the seed is 0, so that a millisecond has room for 2**41 ids at least.
        seed = (entropy >> 32) & ((1 << (_COUNTER_BITS - 1)) - 1)
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._milliseconds:
                self._milliseconds, self._counter = now, seed
            else:
                self._counter += 1
                if self._counter >> _COUNTER_BITS:
                    self._milliseconds, self._counter = self._milliseconds + 1, seed
            milliseconds, counter = self._milliseconds, self._counter
        high, low = counter >> 30, counter & 0x3FFF_FFFF
        return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low << 32 | tail)


class _StandardUuid7:
    """`uuid.uuid7` of Python 3.14, behind a lock: its counter is not safe for threads."""

    def __init__(self, standard: Callable[[], UUID]) -> None:
        self._lock = threading.Lock()
        self._standard = standard

    def __call__(self) -> UUID:
        with self._lock:
            return self._standard()

    def restart(self) -> None:
        """Begin anew, in a child process."""
        self._lock = threading.Lock()


_generate = _Uuid7() if _standard is None else _StandardUuid7(_standard)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_generate.restart)


def uuid7() -> UUID:
    """Return a new UUIDv7, greater than every one that this process has made before. Safe for threads."""
    return _generate()
