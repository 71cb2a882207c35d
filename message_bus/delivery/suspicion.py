"""When everything fails it is not the messages: then one message at a time is tried, ever more rarely (G8). Pure.

    calm ──20 different keys in a row fail──► suspicious ──a message succeeds──► calm
                                                 └─ one fails: wait 1 s, 2 s, 4 s ... 60 s

Else a bad deploy would turn a backlog into dead letters: what is not tried is not counted. The caller says what time it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

KEYS: Final = 20
FIRST_WAIT: Final = 1.0  # seconds
LONGEST_WAIT: Final = 60.0


class Suspicion:
    """Knows what failed since something succeeded, and when the next message may be tried."""

    def __init__(self) -> None:
        self._failed: set[Hashable] = set()
        self._wait = 0.0
        self._next_at = 0.0

    @property
    def active(self) -> bool:
        """Whether only single messages are to be tried."""
        return len(self._failed) >= KEYS

    def waits(self, now: float) -> bool:
        """Whether nothing is to be tried yet."""
        return self.active and now < self._next_at

    def failed(self, what: Hashable, now: float) -> None:
        """A message of this key (or this message, if it has none) has failed."""
        self._failed.add(what)
        if self.active:
            self._wait = min(max(self._wait * 2, FIRST_WAIT), LONGEST_WAIT)
            self._next_at = now + self._wait

    def succeeded(self) -> None:
        """A message was handled, or its handler has decided something: handlers work."""
        if self._failed:
            self._failed.clear()
            self._wait = 0.0
