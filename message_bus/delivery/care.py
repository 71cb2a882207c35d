"""How long a worker goes message by message after it has taken a dead worker's place (S6). Pure.

What the dead one had in hand is among the first rows that are due, or among the first new ones. So both are handled one
by one until a read has found less than it asked for, or `fetch_size` messages are done with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Care:
    """How many more messages of each kind are to be handled carefully."""

    due: int = 0
    new: int = 0

    @classmethod
    def after(cls, taken_over: bool, fetch_size: int) -> Care:
        """A lease that was given back is no reason to be careful; one that was taken over is."""
        return cls(fetch_size, fetch_size) if taken_over else cls()

    @property
    def needed(self) -> bool:
        """Whether what has killed the last owner may be still ahead."""
        return self.due > 0 or self.new > 0

    def handled_due(self, count: int, *, all_of_them: bool) -> None:
        """So many due messages were done with; was that all there are?"""
        self.due = 0 if all_of_them else max(0, self.due - count)

    def handled_new(self, count: int, *, all_of_them: bool) -> None:
        """So many new messages were done with; was that all there are?"""
        self.new = 0 if all_of_them else max(0, self.new - count)
