"""The life of one message as plain values: what `why` returns, and the command line prints. No database, no clock.

The past is the history, what is to come follows from the fates; `moments` is both in the order of time. A failure from before
there was a history is told from its fate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from message_bus.admin.history import HistoryEntry, after, in_the_way, in_words
from message_bus.storage import history_table as history
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import ACTIVE, DEAD, HELD, IDLE, RETRYING, TRYING
from message_bus.storage.views import DELIVERED, WAITING

if TYPE_CHECKING:
    from message_bus.admin.emitted import Emitted

DELAYED = "delayed"
RECORDED = "recorded"
_OVER: Final = (history.HANDLED, history.PASSED_OVER, history.UNWANTED, history.DISCARDED)
_AGAIN: Final = (history.FAILED, history.CRASHED, history.REPLAYED, history.REVIVED)


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
    outbox, of the event log if it is only there, can read it yet. `fates`: in the subscriptions of both logs.

    `correlation_id`: what all messages of its story have in common. `caused_by`: the id of the message that was in hand when
    it was registered. `history`: what has happened to it, the oldest first; a message that is simply delivered has none.
    `emitted`: what was registered while it was handled, and what that has brought about in turn; `emitted_more`: there is
    more of it than is told here. `moments`: all of this in the order of time, what has no time last.
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
    correlation_id: str | None = None
    caused_by: str | None = None
    history: tuple[HistoryEntry, ...] = ()
    emitted: tuple[Emitted, ...] = ()
    emitted_more: bool = False

    @property
    def state(self) -> str:
        """ "delayed", "waiting", "delivered" (by every subscription), or the worst that has befallen it.

        "recorded": an event that no subscription reads, and that is not in the outbox.
        """
        if self.due_at is not None:
            return DELAYED
        if self.position is None and not self.fates:
            return RECORDED
        return worst_of(fate.state for fate in self.fates if fate.subscription_state != IDLE)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What has happened, and what will, in the order of time."""
        told = [*self._own(), *self._emitted(), *map(_of_entry, self.history)]
        for fate in self.fates:
            before = [each for each in self.history if each.subscription == fate.subscription]
            told += _of_fate(fate, before[-1] if before else None, settled=self._is_settled(fate.log))
        return tuple(sorted(told, key=_by_time))

    def _emitted(self) -> Iterator[Moment]:
        count = len(self.emitted)
        if count:
            at = min(each.created_at for each in self.emitted)
            text = f"emitted {count} {'message' if count == 1 else 'messages'}"
            yield Moment(at=at, subscription=None, what="emitted", text=text)

    def _origin(self) -> str:
        """What it comes from, as the end of a sentence."""
        cause = "" if self.caused_by is None else f", caused by message {self.caused_by}"
        alone = self.correlation_id in (None, str(self.id))
        return cause if alone else f"{cause}, correlation id {self.correlation_id}"

    def _is_settled(self, log: str) -> bool:
        return self.recorded.settled if log == EVENT_LOG and self.recorded is not None else self.settled

    def _own(self) -> Iterator[Moment]:
        if self.recorded is not None:
            yield from _of_record(self.recorded, "" if self.position is not None else self._origin())
            if not any(fate.log == EVENT_LOG for fate in self.fates):
                yield Moment(
                    at=None, subscription=None, what=RECORDED, text="no subscription reads the event log"
                )
        if self.due_at is not None:
            text = f"registered, with a delay{self._origin()}"
            yield Moment(at=self.created_at, subscription=None, what="registered", text=text)
            yield Moment(
                at=self.due_at, subscription=None, what=DELAYED, text="due: then it enters the outbox"
            )
        if self.position is None:
            return
        origin = f"registered{self._origin()}"
        yield Moment(at=self.created_at, subscription=None, what="registered", text=origin)
        place = f"in the outbox at position {self.position}{', settled' if self.settled else ''}"
        yield Moment(at=self.created_at, subscription=None, what="written", text=place)
        if not self.settled:
            yield _NOT_SETTLED
        if not any(fate.log == OUTBOX_LOG for fate in self.fates):
            yield Moment(
                at=None, subscription=None, what=WAITING, text="waiting: there is no subscription yet"
            )


def worst_of(states: Iterable[str]) -> str:
    """The state of a message, of what has become of it in each subscription that is not idle."""
    there = set(states)
    worst = (DEAD, TRYING, RETRYING, HELD, WAITING)
    return next((state for state in worst if state in there), DELIVERED if there else WAITING)


_NOT_SETTLED: Final = Moment(
    at=None,
    subscription=None,
    what=WAITING,
    text="not settled: a transaction that began to write before it is still open (`message-bus doctor`)",
)


def _of_record(recorded: Recorded, origin: str) -> Iterator[Moment]:
    yield Moment(
        at=recorded.recorded_at,
        subscription=None,
        what=RECORDED,
        text=f"recorded as event {recorded.version} of stream {recorded.stream!r}, at position {recorded.position} of the "
        f"event log{origin}",
    )
    if not recorded.settled:
        yield _NOT_SETTLED


def _of_entry(entry: HistoryEntry) -> Moment:
    return Moment(at=entry.at, subscription=entry.subscription, what=entry.what, text=in_words(entry))


def _of_fate(fate: Fate, entry: HistoryEntry | None, *, settled: bool) -> Iterator[Moment]:
    """What is known besides the history. `entry`: the last one; None: nothing was written down."""
    last = None if entry is None else entry.what
    match fate.state:
        case "delivered":
            if last not in _OVER:
                yield _moment(fate, None, DELIVERED, "delivered")
        case "dead":
            if last != history.DIED:
                yield from _of_failure(fate, DEAD, "dead")
        case "retrying":
            if last not in _AGAIN and fate.attempts:
                yield from _of_failure(fate, "failed", "failed")
            times = (fate.next_attempt_at, fate.updated_at, None if entry is None else entry.at)
            due = (each for each in times if each is not None)
            yield _moment(fate, max(due, default=None), RETRYING, "to be tried again")
        case "trying":
            yield _moment(fate, fate.updated_at, TRYING, f"being tried, alone, {_tried(fate)}")
        case "held":
            if last != history.HELD_BEHIND or fate.held_behind_position is None:
                at = fate.updated_at if last is None else None
                waits = in_the_way(fate.held_behind, fate.held_behind_position)
                yield _moment(fate, at, HELD, f"held behind {waits}")
        case _:
            yield _moment(fate, None, WAITING, _waits_for(fate, settled=settled))


def _of_failure(fate: Fate, what: str, word: str) -> Iterator[Moment]:
    """A failure that the history does not know."""
    if fate.attempts > 1 and fate.failed_at is not None:
        yield _moment(fate, fate.failed_at, "failed", "failed for the first time, or was held")
    error = fate.error or "no error recorded"
    yield _moment(fate, fate.updated_at, what, f"{word} {_tried(fate)}: {error}")


def _tried(fate: Fate) -> str:
    crashes = f", {fate.crashes} of which killed the worker" if fate.crashes else ""
    return f"{after(fate.attempts)}{crashes}"


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
