"""What one partition tells the observers of its bus; without observers it does nothing, and next to nothing is done for it.

One colour; decides nothing. The engine calls it around attempts and commits, the worker about its lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from message_bus.delivery.jobs import Change, Crashed, Failed, Held, Job, Sent
from message_bus.delivery.verdicts import Dead
from message_bus.observability.observer import (
    Attempt,
    Batch,
    Cause,
    LeaseChange,
    Observers,
    Outcome,
    Part,
    Verdict,
    nothing,
)

Told = Change | Sent | Outcome


class Observed:
    """One partition, as observers see it. `observers`: None if nobody is to be told."""

    def __init__(self, observers: Observers | None, part: Part) -> None:
        self.observers = observers
        self.part = part
        self._begun_at = 0.0
        self._there: datetime | None = None
        self._here = 0.0

    def know(self, now_there: datetime, asked_at: float) -> None:
        """Learn the database's clock: it showed `now_there` just after our own monotonic one showed `asked_at`."""
        self._there, self._here = now_there, asked_at

    def begin(self) -> None:
        """A batch is begun."""
        self._begun_at = monotonic()

    def attempt(self, job: Job) -> Attempt:
        """What is known of an attempt before it is made."""
        return Attempt(part=self.part, row=job.message, number=job.attempts + 1, waited=self._waited(job))

    def attempting(self, attempt: Attempt) -> AbstractContextManager[Any]:
        """Around an attempt."""
        return nothing() if self.observers is None else self.observers.attempting(attempt) or nothing()

    def recording(self, told: Callable[[], Iterable[Told]]) -> AbstractContextManager[Any]:
        """Around the commit that records this."""
        if self.observers is None:
            return nothing()
        outcomes = [outcome for each in told() if (outcome := _outcome_of(each)) is not None]
        if not outcomes:
            return nothing()
        batch = Batch(part=self.part, outcomes=outcomes, seconds=monotonic() - self._begun_at)
        return self.observers.recording(batch) or nothing()

    def received(self, jobs: Sequence[Job], asked_at: float) -> None:
        """New messages were read, asked for at `asked_at`."""
        if self.observers is not None and jobs:
            self.observers.received(self.part, [job.message for job in jobs], monotonic() - asked_at)

    def leased(self, change: LeaseChange) -> None:
        """The lease has changed."""
        if self.observers is not None:
            self.observers.leased(self.part, change)

    def woken(self, cause: Cause) -> None:
        """There is something to do."""
        if self.observers is not None:
            self.observers.woken(self.part, cause)

    def out_of_reach(self, is_out: bool) -> None:
        """An outage has begun, or ended."""
        if self.observers is not None:
            self.observers.out_of_reach(self.part, is_out)

    def _waited(self, job: Job) -> float | None:
        created_at = job.message.created_at
        if self._there is None or created_at is None:
            return None
        now = self._there + timedelta(seconds=monotonic() - self._here)
        return max(0.0, (now - created_at).total_seconds())


def crashes_of(changes: Iterable[Change], left: Iterable[Any]) -> Iterable[Outcome]:
    """The messages that have killed the last owner; of them only position and type are known."""
    rows = {row.position: row for row in left}
    for change in changes:
        if isinstance(change, Crashed):
            verdict: Verdict = "dead" if isinstance(change.verdict, Dead) else "retrying"
            yield Outcome(row=rows[change.position], verdict=verdict)


def _outcome_of(told: Told) -> Outcome | None:
    match told:
        case Outcome():
            return told
        case Sent(job=job, handled=handled):
            return Outcome(row=job.message, verdict="delivered" if handled else "passed over")
        case Held(job=job):
            return Outcome(row=job.message, verdict="held")
        case Failed(job=job, error=error, verdict=verdict):
            return Outcome(
                row=job.message, verdict="dead" if isinstance(verdict, Dead) else "retrying", error=error
            )
        case _:
            return None
