"""The state of both logs as plain values: what `status` returns, and the command line prints. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from message_bus.admin.partitions import PartitionStatus


@dataclass(frozen=True, kw_only=True)
class WatermarkStatus:
    """Up to where a log can be read without losing what is still being committed.

    `settled`: at least up to here. `high`: the last position drawn by anybody. `holder`: the oldest transaction that is in
    the way, in words; `age`: how long it has been open. Both None if nobody is, or this role may not see it.
    """

    settled: int
    high: int
    age: timedelta | None
    holder: str | None


@dataclass(frozen=True, kw_only=True)
class EventLogStatus:
    """How the event log is doing. `oldest_at`, `newest_at`: when those events were recorded; None if there are none."""

    oldest_at: datetime | None
    newest_at: datetime | None
    watermark: WatermarkStatus


@dataclass(frozen=True, kw_only=True)
class DeadCount:
    """How many dead letters of one type a subscription has. `message` is None if the messages are gone."""

    subscription: str
    message: str | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """How an outbox is doing, at `at`, by the database's clock.

    `oldest_at`: when its oldest row was registered; None if it is empty. `delayed`: messages in the schedule; `due`:
    those of them that wait for the next run. `dead`: dead letters by subscription and type. `watermark`: that of the
    outbox. `events`: the event log; None as long as no subscription reads it.
    """

    at: datetime
    subscriptions: tuple[PartitionStatus, ...]
    outbox_rows: int
    oldest_at: datetime | None
    delayed: int
    due: int
    next_due_at: datetime | None
    watermark: WatermarkStatus
    dead: tuple[DeadCount, ...]
    events: EventLogStatus | None = None

    @property
    def oldest_age(self) -> timedelta | None:
        """How old the oldest row of the outbox is."""
        return None if self.oldest_at is None else max(self.at - self.oldest_at, timedelta(0))
