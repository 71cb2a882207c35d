"""How long to wait: between two looks at a quiet database, and between two attempts to reach one. Pure arithmetic."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from message_bus.storage.signs import Signs

_SOON: Final = 0.02  # seconds
_VERY_SOON: Final = 0.005
_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 10.0
_FIRST_LOOK: Final = 0.002
_LAST_LOOK: Final = 0.1


class Pace:
    """The pauses of the watcher: short after something has happened, doubling to `poll` seconds while nothing does.

    They begin with 20 ms, or with 5 ms where somebody sleeps after two of them, to be woken by a notification.
    """

    def __init__(self, poll: float) -> None:
        self._poll = poll
        self._pause = min(_SOON, poll)

    @property
    def drowsy(self) -> bool:
        """Whether nothing has happened for long enough to let oneself be woken."""
        return self._pause > min(_SOON, self._poll)

    def quicken(self, *, listening: bool = False) -> None:
        """Something has happened, so more may."""
        self._pause = min(_VERY_SOON if listening else _SOON, self._poll)

    def next(self, signs: Signs | None) -> float:
        """Seconds to wait now: not beyond the next instant at which something is due."""
        pause = self._pause
        self._pause = min(pause * 2, self._poll)
        if signs is None:
            return pause
        due = [part.due for part in signs.parts.values()] + [signs.scheduled]
        return min(
            [pause, *(_until(each, signs.now) for each in due if each is not None and each > signs.now)]
        )


def _until(instant: datetime, now: datetime) -> float:
    return (instant - now).total_seconds() + 0.001  # due is what lies before the clock, not at it


class Backoff:
    """The pauses of whoever meets an outage: 0.1 s doubling to 10 s, each shortened by up to a half by chance."""

    def __init__(self) -> None:
        self._pause = _FIRST_RETRY

    def reset(self) -> None:
        """It worked."""
        self._pause = _FIRST_RETRY

    def next(self, chance: float) -> float:
        """Seconds to wait now; `chance` is in [0, 1)."""
        pause = self._pause
        self._pause = min(pause * 2, _LAST_RETRY)
        return pause * (1 - chance / 2)


def pause_before_next_run(waited: float) -> float:
    """Seconds until rows that were not settled are looked at again, when they have been waited for so long already."""
    return min(max(_FIRST_LOOK, waited / 2), _LAST_LOOK)
