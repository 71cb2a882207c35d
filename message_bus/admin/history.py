"""What has happened to a message in a subscription, as plain values and in words. No database, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from message_bus.storage import history_table as history


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One thing that has happened to a message in a subscription, other than being delivered at the first attempt.

    `log`: the one that the subscription reads. `what`: "failed", "dead", "held", "crashed" (its worker died with it alone in
    hand), "delivered", "passed over" (nobody here wants it), "unwanted" (the subscription does not read its type any more),
    "revived" (its type is known by now), or what an operator did: "replayed", "discarded", "reset", "repartitioned".
    `attempt`: its number, from 1, anew after a replay; of a crash, how many there have been. `error`: type and text, no
    traceback. `behind`: the message that it was held behind, None if that is gone. `by`: the operator, if he gave a name.
    """

    subscription: str
    log: str
    what: str
    at: datetime
    attempt: int | None = None
    error: str | None = None
    behind: UUID | None = None
    behind_position: int | None = None
    by: str | None = None


def in_words(entry: HistoryEntry) -> str:
    """The entry as people read it."""
    error = entry.error or "no error recorded"
    by = f"by {entry.by or 'somebody who gave no name'}"
    match entry.what:
        case history.FAILED:
            return f"attempt {entry.attempt} failed: {error}"
        case history.DIED if entry.attempt is None:
            return f"dead: {error}"
        case history.DIED:
            return f"dead {after(entry.attempt)}: {error}"
        case history.CRASHED:
            return f"its worker died with it in hand ({entry.attempt} {'crash' if entry.attempt == 1 else 'crashes'} by then)"
        case history.HELD_BEHIND:
            return f"held behind {in_the_way(entry.behind, entry.behind_position)}"
        case history.HANDLED:
            return "delivered" if entry.attempt in (None, 1) else f"delivered at attempt {entry.attempt}"
        case history.PASSED_OVER:
            return "passed over: nobody here wants it"
        case history.UNWANTED:
            return "passed over: the subscription does not read its type any more"
        case history.REVIVED:
            return "tried anew: its type is known by now"
        case history.RESET:
            return f"forgotten: the subscription was reset, {by}"
        case history.REPARTITIONED:
            return f"held: the subscription was repartitioned, {by}"
        case _:  # replayed, discarded
            return f"{entry.what} {by}"


def after(attempts: int | None) -> str:
    """After how many attempts."""
    return f"after {attempts} {'attempt' if attempts == 1 else 'attempts'}"


def in_the_way(message_id: UUID | None, position: int | None) -> str:
    """What another message waits for."""
    if position is None:
        return "none any more: the next run tries it"
    if message_id is None:
        return f"the message at position {position}, which is gone"
    return f"message {message_id} of the same key, at position {position}"
