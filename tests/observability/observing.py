"""An observer that writes down what it is told, in order; it can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from message_bus.observability.observer import (
    Around,
    Attempt,
    Batch,
    Cause,
    Gauges,
    LeaseChange,
    Observer,
    Part,
    Registration,
)


class Diary(Observer):
    """Each entry: what happened, and what a test wants to know of it."""

    def __init__(self, *, gauges: bool = False) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.wants_gauges = gauges

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The entries of this name, without it."""
        return [entry[1:] for entry in self.entries if entry[0] == name]

    @contextmanager
    def _around(self, *entry: Any) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.entries.append((*entry, type(error).__name__))
            raise
        self.entries.append((*entry, "ok"))

    def registering(self, registration: Registration) -> Around:
        """Told, and leaves a header."""
        registration.headers["seen-by"] = "diary"
        return self._around("registering", registration.message, registration.type)

    def writing(self, rows: Sequence[Any]) -> Around:
        """Told."""
        return self._around("writing", [row.message for row in rows])

    def received(self, part: Part, rows: Sequence[Any], seconds: float) -> None:
        """Told."""
        assert seconds >= 0
        self.entries.append(("received", part, [row.message for row in rows]))

    def attempting(self, attempt: Attempt) -> Around:
        """Told."""
        assert attempt.waited is None or attempt.waited >= 0
        return self._attempting(attempt)

    @contextmanager
    def _attempting(self, attempt: Attempt) -> Iterator[None]:
        with self._around("attempting", attempt.row.message, attempt.number):
            yield
        self.entries[-1] = (*self.entries[-1], attempt.passed_over)

    def recording(self, batch: Batch) -> Around:
        """Told."""
        assert batch.seconds >= 0
        return self._around("recording", [(each.row.message, each.verdict) for each in batch.outcomes])

    def leased(self, part: Part, change: LeaseChange) -> None:
        """Told."""
        self.entries.append(("leased", part, change))

    def woken(self, part: Part, cause: Cause) -> None:
        """Told."""
        self.entries.append(("woken", part, cause))

    def out_of_reach(self, part: Part, is_out: bool) -> None:
        """Told."""
        self.entries.append(("out of reach", part, is_out))

    def housekept(self, promoted: int, pruned: int) -> None:
        """Told."""
        self.entries.append(("housekept", promoted, pruned))

    def measured(self, gauges: Gauges) -> None:
        """Told."""
        self.entries.append(("measured", gauges))


class Broken(Observer):
    """Fails at everything."""

    wants_gauges = True

    def registering(self, registration: Registration) -> Around:
        """Fail."""
        raise ValueError("broken")

    def writing(self, rows: Sequence[Any]) -> Around:
        """Fail when it is entered."""
        return self._entering()

    @contextmanager
    def _entering(self) -> Iterator[None]:
        raise ValueError("broken")
        yield

    def attempting(self, attempt: Attempt) -> Around:
        """Fail when it is left."""
        return self._leaving()

    def recording(self, batch: Batch) -> Around:
        """Fail when it is left."""
        return self._leaving()

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        yield
        raise ValueError("broken")

    def received(self, part: Part, rows: Sequence[Any], seconds: float) -> None:
        """Fail."""
        raise ValueError("broken")

    def leased(self, part: Part, change: LeaseChange) -> None:
        """Fail."""
        raise ValueError("broken")

    def woken(self, part: Part, cause: Cause) -> None:
        """Fail."""
        raise ValueError("broken")

    def measured(self, gauges: Gauges) -> None:
        """Fail."""
        raise ValueError("broken")
