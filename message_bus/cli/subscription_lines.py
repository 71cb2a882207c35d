"""Subscriptions as lines for people: the list, and what is done with one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from message_bus.admin.partitions import PartitionStatus, SubscriptionChange
from message_bus.cli.lines import ago, table
from message_bus.cli.manners import Coloured, counted

_HEADING = ("subscription", "log", "state", "position", "lag", "retrying", "held", "dead", "worker", "seen")
_DONE = {
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "reset": "moved",
    "rename": "renamed",
    "drop": "dropped",
    "repartition": "divided",
}


def lines_of_subscriptions(partitions: Sequence[PartitionStatus], now: datetime) -> list[str]:
    """A table with one line per partition."""
    if not partitions:
        return ["no subscriptions yet: the first run makes them"]
    rows = [
        (
            each.subscription
            if each.partitions == 1
            else f"{each.subscription} {each.partition + 1}/{each.partitions}",
            each.log,
            each.state if each.state == "active" else Coloured(each.state, "yellow"),
            f"{each.position:,}",
            "-" if each.lag is None else f"{each.lag:,}",
            counted(each.retrying, "yellow"),
            counted(each.held, "yellow"),
            counted(each.dead, "red"),
            "none" if each.lease_until is None else f"until {each.lease_until:%H:%M:%SZ}",
            ago(each.seen_at, now),
        )
        for each in partitions
    ]
    return table(_HEADING, rows)


def lines_of_change(change: SubscriptionChange, *, question: bool = False) -> list[str]:
    """What is about to be done (`question`), would be done (a dry run), or was done."""
    name = change.subscription
    if not change.changed:
        return [f"{name} is so already: nothing to do"]
    if question:
        said = f"about to {change.action} {name}"
    elif change.dry_run:
        said = f"would {change.action} {name}"
    else:
        said = f"{_DONE[change.action]} {name}"
    return [said + _details(change), *_prices(change)]


def _details(change: SubscriptionChange) -> str:
    before = sorted(set(change.before))
    where = (
        f"{before[0]:,}"
        if len(before) == 1
        else f"{min(before):,} to {max(before):,}"
        if before
        else "nowhere"
    )
    match change.action:
        case "reset":
            return f": from position {where} to {change.position:,}"
        case "start":
            return f": after position {change.position:,}"
        case "rename":
            return f": it is {change.name} now"
        case "repartition":
            return (
                f": {len(change.before)} -> {change.partitions} partitions, at position {change.position:,}"
            )
        case _:
            return f": at position {where}"


def _prices(change: SubscriptionChange) -> list[str]:
    lines: list[str] = []
    if change.removed:
        said = ", ".join(f"{count:,} {state}" for state, count in sorted(change.removed.items()))
        lines.append(f"  what is recorded about its messages goes: {said}")
    if change.held and change.action == "start":
        lines.append("  somebody is still writing: it begins with the first run after they have ended")
    elif change.held:
        lines.append(
            f"  {change.held:,} messages that not all partitions have reached are held, and come first"
        )
    if change.action == "repartition":
        lines.append(f"  its workers need Subscription(partitions={change.partitions}) from now on")
    if change.action == "rename":
        lines.append(f"  its workers need Subscription(name={change.name!r}) from now on")
    return lines
