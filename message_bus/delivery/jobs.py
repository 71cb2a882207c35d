"""What the engine passes along: messages in hand, what became of them, where a subscription stands. Plain values.

    Job ──► Held | Failed | Settled | ... (a change, recorded with the checkpoint) or Sent (concurrent mode: not recorded yet)

One set for both colours; they know no session and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from message_bus.delivery.verdicts import Dead, Retry
from message_bus.repositories.outbox_message import OutboxMessage


@dataclass(frozen=True, slots=True)
class Position:
    """Where a subscription stands: the checkpoint, and how many commits of progress led there."""

    position: int
    revision: int


class Job(NamedTuple):
    """A message to be tried: `state` and `attempts` as the delivery table has them; new ones have none."""

    message: OutboxMessage
    position: int
    state: str | None = None
    attempts: int = 0
    crashes: int = 0

    def __str__(self) -> str:
        return f"{self.message.message} {self.message.id}"


@dataclass(frozen=True, slots=True)
class Batch:
    """New jobs; `blocked` are the keys whose messages must wait; after the last one the checkpoint is at `up_to`."""

    jobs: tuple[Job, ...]
    blocked: frozenset[str]
    up_to: int


READ: Final = 10
"""How many columns of a row that was read are the message."""


def message_of(row: Sequence[Any]) -> OutboxMessage:
    """The outbox row as users see it, from the columns as the statements read them."""
    return OutboxMessage.stored(row)


@dataclass(frozen=True, slots=True)
class Held:
    """A new message that waits, untried, behind an earlier one of its key."""

    job: Job


@dataclass(frozen=True, slots=True)
class Failed:
    """A message whose attempt failed."""

    job: Job
    error: Exception
    verdict: Retry | Dead


@dataclass(frozen=True, slots=True)
class Settled:
    """A message of the delivery table that has been handled, or passed over."""

    job: Job
    handled: bool


@dataclass(frozen=True, slots=True)
class Trying:
    """A message that is about to be tried, recorded before it is (careful mode, S6)."""

    job: Job


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A recorded attempt that nobody died of: the row is in `state` again, if it still is there (S6)."""

    position: int
    state: str


@dataclass(frozen=True, slots=True)
class Postponed:
    """A new message that was not tried, while a later one of the same batch was: to be tried at once."""

    job: Job


@dataclass(frozen=True, slots=True)
class Crashed:
    """A message that a worker had alone in hand when it died."""

    position: int
    crashes: int
    verdict: Retry | Dead
    message_id: UUID | None


@dataclass(frozen=True, slots=True)
class Revived:
    """A dead letter whose type is known by now (G7)."""

    position: int
    message_id: UUID


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A recorded message of a type that the subscription does not read any more: its row goes, nobody handles it."""

    position: int
    state: str
    message_id: UUID | None


Change = Held | Failed | Settled | Trying | TakenBack | Postponed | Crashed | Revived | Unwanted


@dataclass(slots=True)
class Tally:
    """What a run did."""

    delivered: int = 0
    passed_over: int = 0
    tried: int = 0
    outage: Exception | None = None
    suspicious: bool = False

    @property
    def unavailable(self) -> bool:
        """Whether it ended because something was out of reach."""
        return self.outage is not None


@dataclass(slots=True)
class Stop:
    """Whether those who work on messages are asked to end: what is in hand is finished, nothing else is begun."""

    asked: bool = False


class Interrupted(Exception):
    """The database or something a handler needs was out of reach; nothing is counted (G8)."""

    def __init__(self, error: Exception, *, database: bool) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.database = database


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was handled without a transaction, and what its handler emitted."""

    job: Job
    handled: bool
    rows: Sequence[OutboxMessage]


def change_of(outcome: Change | Sent) -> Change | None:
    """What is to be recorded; nothing for a new message that was handled."""
    if isinstance(outcome, Sent):
        return Settled(outcome.job, outcome.handled) if outcome.job.state is not None else None
    return outcome


def end_of(jobs: Sequence[Job], done: int, to: int) -> int:
    """Where the checkpoint goes when `done` of the jobs are done with; `to` if all are, or if they were no new ones."""
    return to if done == len(jobs) or jobs[0].state is not None else jobs[done - 1].position
