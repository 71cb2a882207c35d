"""What `process_outbox` returns: per subscription, and added up. Plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SubscriptionReport:
    """One subscription: `delivered` and `passed_over` in this run; `retrying`, `held`, `dead` as they stand at its end.

    `busy`: another worker holds the lease of one of its partitions. `unavailable`: stopped early, because something
    that its handler needs was out of reach (G8); nothing was counted against the message.
    `suspicious`: its last 20 keys all failed, so the rest is left for later, untried. `idle`: it does not know
    where to start (`Subscription(start=...)`) or is paused.
    """

    name: str
    delivered: int = 0
    passed_over: int = 0
    retrying: int = 0
    held: int = 0
    dead: int = 0
    busy: bool = False
    unavailable: bool = False
    suspicious: bool = False
    idle: bool = False


@dataclass(frozen=True, kw_only=True)
class OutboxReport:
    """All subscriptions of one `process_outbox` call, added up; `.subscriptions` has each by its name.

    `unsettled`: rows that exist but cannot be passed yet, because a transaction that wrote to the outbox is still
    open (W6); the next run delivers them. `busy`, `unavailable`, `suspicious`, `idle`: names of subscriptions.
    `promoted`: delayed messages that became due. `pruned`: rows older than the retention that were removed.
    """

    delivered: int = 0
    retrying: int = 0
    held: int = 0
    dead: int = 0
    passed_over: int = 0
    unsettled: int = 0
    busy: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    promoted: int = 0
    pruned: int = 0
    subscriptions: Mapping[str, SubscriptionReport] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing is retrying, held or dead, and nothing was out of reach. (Busy is fine: somebody else is at work.)"""
        return not (self.retrying or self.held or self.dead or self.unavailable)


def summed(
    reports: Mapping[str, SubscriptionReport], *, unsettled: int = 0, promoted: int = 0, pruned: int = 0
) -> OutboxReport:
    """Add the subscriptions' reports up."""
    values = reports.values()
    return OutboxReport(
        delivered=sum(report.delivered for report in values),
        retrying=sum(report.retrying for report in values),
        held=sum(report.held for report in values),
        dead=sum(report.dead for report in values),
        passed_over=sum(report.passed_over for report in values),
        unsettled=unsettled,
        busy=tuple(report.name for report in values if report.busy),
        unavailable=tuple(report.name for report in values if report.unavailable),
        suspicious=tuple(report.name for report in values if report.suspicious),
        idle=tuple(report.name for report in values if report.idle),
        promoted=promoted,
        pruned=pruned,
        subscriptions=dict(reports),
    )
