"""Knows which handlers are running and for how long, so that one that hangs is found out (S11).

The engine says what begins and what ends; the lease asks before it is renewed, in another thread or task.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

GRACE: Final = 1.0  # seconds: a handler that is cancelled may clean up


class Watch:
    """What is in hand since when, by the clock that is given; safe to share between threads."""

    def __init__(self, timeout: timedelta | None, clock: Callable[[], float]) -> None:
        self._timeout = None if timeout is None else timeout.total_seconds()
        self._clock = clock
        self._since: dict[object, tuple[object, float]] = {}
        self._told: set[object] = set()

    def begin(self, what: object) -> object:
        """`what` is in hand from now on; give what this returns to `end`."""
        token = object()
        self._since[token] = what, self._clock()
        return token

    def end(self, token: object) -> None:
        """It is not any more."""
        del self._since[token]
        if self._told:
            self._told.discard(token)

    @property
    def hangs(self) -> bool:
        """Whether something runs for longer than it may."""
        return bool(self._hanging())

    def news(self) -> list[str]:
        """What hangs and was not reported yet."""
        new = [(token, what) for token, what in self._hanging() if token not in self._told]
        self._told.update(token for token, _ in new)
        return [str(what) for _, what in new]

    def _hanging(self) -> list[tuple[object, object]]:
        if self._timeout is None:
            return []
        limit = self._clock() - self._timeout - GRACE
        return [(token, what) for token, (what, since) in list(self._since.items()) if since < limit]
