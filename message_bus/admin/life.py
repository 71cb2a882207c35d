"""The life of one message as plain values: what `why` returns, and the command line prints. No database, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import ACTIVE, DEAD, HELD, IDLE, RETRYING, TRYING
from message_bus.storage.views import DELIVERED, WAITING

DELAYED = "delayed"
RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something that happened to a message, or will. `at` is None if nobody has written down when.

    `subscription` is None for what concerns the message itself.
    """

    at: datetime | None
    subscription: str | None
    what: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What one subscription has to do with a message.

    `log`: the one that the subscription reads.
    `state`: "delivered" (handled, passed over, or discarded), "waiting", "retrying", "trying", "held" or "dead".
    `subscription_state`: "active", "idle" or "paused". `ahead`: how many messages it has to deal with before this one.
    `held_behind`: the id of the message of its key that is in the way, if it is still there. `attempts`, `crashes`,
    `error` (no traceback), `failed_at`, `updated_at`, `next_attempt_at`: as they are recorded.
    """

    subscription: str
    partition: int
    state: str
    subscription_state: str
    ahead: int = 0
    attempts: int = 0
    crashes: int = 0
    error: str | None = None
    failed_at: datetime | None = None
    updated_at: datetime | None = None
    next_attempt_at: datetime | None = None
    held_behind: UUID | None = None
    held_behind_position: int | None = None
    log: str = OUTBOX_LOG


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Where an event is in the event log. `version`: its number in its stream. `settled`: can subscriptions read it yet?"""

    position: int
    stream: str
    version: int
    recorded_at: datetime
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Life:
    """One message, and what has become of it.

    `position`: in the outbox; None if it is not there. Then it is delayed, and `due_at` says when it enters it, or it is an
    event. `recorded`: where it is in the event log, if it is; aggregates can put their events into both. `created_at`: when it
    was registered, or recorded; for one that was delayed, when it entered the outbox. `settled`: whether subscriptions of the
    outbox, of the event log if it is only there, can read it yet. `fates`: in the subscriptions of both logs. `moments`: the
    same in the order of time, what has no time last.
    """

    id: UUID
    type: str
    message: str
    key: str | None
    created_at: datetime
    position: int | None
    due_at: datetime | None
    settled: bool
    fates: tuple[Fate, ...]
    recorded: Recorded | None = None

    @property
    def state(self) -> str:
        """ "delayed", "waiting", "delivered" (by every subscription), or the worst that has befallen it.

        "recorded": an event that no subscription reads, and that is not in the outbox.
        """
        if self.due_at is not None:
            return DELAYED
        if self.position is None and not self.fates:
            return RECORDED
        states = {fate.state for fate in self.fates if fate.subscription_state != IDLE}
        worst = (DEAD, TRYING, RETRYING, HELD, WAITING)
        return next((state for state in worst if state in states), DELIVERED if states else WAITING)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What has happened, and what will, in the order of time."""
        told = [
            *self._own(),
            *(moment for fate in self.fates for moment in _of_fate(fate, settled=self._is_settled(fate.log))),
        ]
        return tuple(sorted(told, key=_by_time))

    def _is_settled(self, log: str) -> bool:
        return self.recorded.settled if log == EVENT_LOG and self.recorded is not None else self.settled

    def _own(self) -> Iterator[Moment]:
        if self.recorded is not None:
            yield from _of_record(self.recorded)
            if not any(fate.log == EVENT_LOG for fate in self.fates):
                yield Moment(
                    at=None, subscription=None, what=RECORDED, text="no subscription reads the event log"
                )
        if self.due_at is not None:
            yield Moment(
                at=self.created_at, subscription=None, what="registered", text="registered, with a delay"
            )
            yield Moment(
                at=self.due_at, subscription=None, what=DELAYED, text="due: then it enters the outbox"
            )
        if self.position is None:
            return
        yield Moment(
            at=self.created_at,
            subscription=None,
            what="registered",
            text=f"in the outbox at position {self.position}",
        )
        if not self.settled:
            yield _NOT_SETTLED
        if not any(fate.log == OUTBOX_LOG for fate in self.fates):
            yield Moment(
                at=None, subscription=None, what=WAITING, text="waiting: there is no subscription yet"
            )


_NOT_SETTLED: Final = Moment(
    at=None,
    subscription=None,
    what=WAITING,
    text="not settled: a transaction that began to write before it is still open (`message-bus doctor`)",
)


def _of_record(recorded: Recorded) -> Iterator[Moment]:
    yield Moment(
        at=recorded.recorded_at,
        subscription=None,
        what=RECORDED,
        text=f"recorded as event {recorded.version} of stream {recorded.stream!r}, at position {recorded.position} of the "
        "event log",
    )
    if not recorded.settled:
        yield _NOT_SETTLED


def _of_fate(fate: Fate, *, settled: bool) -> Iterator[Moment]:
    if fate.attempts > 1 and fate.failed_at is not None:
        yield _moment(fate, fate.failed_at, "failed", "failed for the first time, or was held")
    error = fate.error or "no error recorded"
    tried = f"after {fate.attempts} {'attempt' if fate.attempts == 1 else 'attempts'}"
    if fate.crashes:
        tried += f", {fate.crashes} of which killed the worker"
    match fate.state:
        case "delivered":
            yield _moment(fate, None, DELIVERED, "delivered")
        case "dead":
            yield _moment(fate, fate.updated_at, DEAD, f"dead {tried}: {error}")
        case "retrying":
            yield _moment(fate, fate.updated_at, "failed", f"failed {tried}: {error}")
            due = (each for each in (fate.next_attempt_at, fate.updated_at) if each is not None)
            yield _moment(fate, max(due, default=None), RETRYING, "to be tried again")
        case "trying":
            yield _moment(fate, fate.updated_at, TRYING, f"being tried, alone, {tried}")
        case "held":
            yield _moment(fate, fate.updated_at, HELD, f"held behind {_held_behind(fate)}")
        case _:
            yield _moment(fate, None, WAITING, _waits_for(fate, settled=settled))


def _held_behind(fate: Fate) -> str:
    if fate.held_behind_position is None:
        return "none any more: the next run tries it"
    if fate.held_behind is None:
        return f"the message at position {fate.held_behind_position}, which is gone"
    return f"message {fate.held_behind} of the same key, at position {fate.held_behind_position}"


def _waits_for(fate: Fate, *, settled: bool) -> str:
    if fate.subscription_state != ACTIVE:
        remedy = "start" if fate.subscription_state == IDLE else "resume"
        return (
            f"waiting: the subscription is {fate.subscription_state} "
            f"(message-bus subscriptions {remedy} {fate.subscription})"
        )
    if fate.ahead:
        return f"waiting behind {fate.ahead:,} {'message' if fate.ahead == 1 else 'messages'}"
    return "waiting for the next run" if settled else "waiting until it is settled"


def _moment(fate: Fate, at: datetime | None, what: str, text: str) -> Moment:
    return Moment(at=at, subscription=fate.subscription, what=what, text=text)


def _by_time(moment: Moment) -> tuple[bool, float]:
    return (moment.at is None, moment.at.timestamp() if moment.at is not None else 0.0)
