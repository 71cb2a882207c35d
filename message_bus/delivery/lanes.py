"""Which message of a batch may be started next, when several keys are in hand at once (G3). Pure.

Messages of one key go one after another, in position order; those without a key go whenever there is room.
"""

from __future__ import annotations

from collections.abc import Sequence

from message_bus.delivery.jobs import Job


class Lanes:
    """The messages of a batch that are not started yet, and the keys that are in hand."""

    def __init__(self, jobs: Sequence[Job], size: int) -> None:
        self._waiting = list(jobs)
        self._keys: set[str] = set()
        self._size = size
        self.in_hand = 0

    def start(self) -> Job | None:
        """The first message whose key is free, now in hand; None if there is no room, or no such message."""
        if self.in_hand >= self._size:
            return None
        for index, job in enumerate(self._waiting):
            key = job.message.key
            if key is None or key not in self._keys:
                del self._waiting[index]
                self.in_hand += 1
                if key is not None:
                    self._keys.add(key)
                return job
        return None

    def done(self, job: Job) -> None:
        """This one is not in hand any more."""
        self.in_hand -= 1
        if job.message.key is not None:
            self._keys.discard(job.message.key)
