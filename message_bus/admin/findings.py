"""What `doctor` finds, as plain values, and when something is worth saying. No database, no clock."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from message_bus.admin.partitions import PartitionStatus
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import IDLE, PAUSED

Severity = Literal["error", "warning"]

LONG_OPEN: Final = timedelta(seconds=5)
"""A transaction that holds the watermark for longer is worth a finding."""
ORPHANED: Final = timedelta(minutes=5)
"""A prepared transaction that is older was most likely forgotten."""
UNSEEN: Final = timedelta(days=7)
"""After so long without a worker a subscription is reported: retention waits for it."""
OUR_DISTRIBUTION: Final = "sqlalchemy-message-bus"

STOPPERS: Final = ("schema", "could-not-check")
"""After these the subscriptions are not asked for: the question could fail."""

ROW_SECURITY: Final = "row-level-security"

_WITH_REMEDY = re.compile(r"(?P<text>.*) \((?P<remedy>[^()]*(?:\([^()]*\)[^()]*)*)\)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, or will be: an "error" stops delivery or loses something, a "warning" does not yet.

    `code`: for programs; `text`: what was found; `remedy`: what to do.
    """

    code: str
    severity: Severity
    text: str
    remedy: str


def split(code: str, severity: Severity, text: str, remedy: str) -> Finding:
    """A finding from an error text that ends with its remedy in parentheses; else with this remedy."""
    found = _WITH_REMEDY.fullmatch(text)
    if found:
        return Finding(code=code, severity=severity, text=found["text"], remedy=found["remedy"])
    return Finding(code=code, severity=severity, text=text, remedy=remedy)


def called(log: str) -> str:
    """What people call the log with this name."""
    return "event log" if log == EVENT_LOG else log


def of_holder(
    log: str = OUTBOX_LOG,
    *,
    who: str,
    pid: int | None,
    prepared: str | None,
    age: timedelta | None,
    query_hidden: bool,
) -> Finding | None:
    """What to say about a transaction that holds the watermark; None as long as it has not done so for long.

    One whose age this role may not see is reported at once.
    """
    if age is not None and age < LONG_OPEN:
        return None
    text = f"the watermark of the {called(log)} is held: {who}; messages written since then wait"
    if pid is None:
        name = (prepared or "").replace("'", "''")
        return Finding(
            code="prepared-transaction",
            severity="error",
            text=text,
            remedy=f"run: COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}', as its coordinator has decided",
        )
    remedy = f"let it end, or run: SELECT pg_terminate_backend({pid})"
    if query_hidden:
        remedy = f"run: GRANT pg_read_all_stats TO this role, to see what it does; then {remedy}"
    return Finding(code="watermark-held", severity="warning", text=text, remedy=remedy)


def of_prepared(name: str, owner: str, age: timedelta) -> Finding | None:
    """What to say about a prepared transaction of this database; None while it is young."""
    if age < ORPHANED:
        return None
    quoted = name.replace("'", "''")
    return Finding(
        code="prepared-transaction",
        severity="warning",
        text=f"prepared transaction {name!r} of {owner} has been open for {spelled(age)}, with its locks",
        remedy=f"run: COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}', as its coordinator has decided",
    )


def of_subscriptions(partitions: Sequence[PartitionStatus], now: datetime) -> Iterator[Finding]:
    """Subscriptions that deliver nothing: idle, paused, or without a worker for long."""
    first: dict[str, PartitionStatus] = {}
    seen: dict[str, datetime] = {}
    waiting = {each.subscription for each in partitions if each.held}
    for each in partitions:
        first.setdefault(each.subscription, each)
        seen[each.subscription] = max(seen.get(each.subscription, each.seen_at), each.seen_at)
    for name, status in first.items():
        pinned = "; retention waits for it" if status.log == OUTBOX_LOG else ""
        if status.state == IDLE and name in waiting:
            yield Finding(
                code="subscription-idle",
                severity="warning",
                text=f"subscription {name!r} waits for transactions that were writing when it was started: it begins with the "
                "first run after they have ended",
                remedy="let them end, and its worker run",
            )
        elif status.state == IDLE:
            yield Finding(
                code="subscription-idle",
                severity="warning",
                text=f"subscription {name!r} is idle: it was added to a log with history and has no place to start from",
                remedy=f"message-bus subscriptions start {name} --at beginning|now, or Subscription(start=...)",
            )
        elif status.state == PAUSED:
            yield Finding(
                code="subscription-paused",
                severity="warning",
                text=f"subscription {name!r} is paused{pinned}",
                remedy=f"message-bus subscriptions resume {name}",
            )
        elif now - seen[name] > UNSEEN:
            yield Finding(
                code="subscription-unseen",
                severity="warning",
                text=f"no worker has had subscription {name!r} for {spelled(now - seen[name])}{pinned}",
                remedy=f"start its worker; if nobody needs it any more: message-bus subscriptions drop {name}",
            )


def of_checkpoints(log: str, positions: Mapping[str, int], high: int, catch_up: str) -> Iterator[Finding]:
    """Checkpoints beyond the last position that the log has drawn: a restore, a TRUNCATE, a setval (W8)."""
    ahead = {name: position for name, position in positions.items() if position > high}
    if ahead:
        furthest = max(ahead.values())
        names = ", ".join(f"{name!r} at {position}" for name, position in sorted(ahead.items()))
        yield Finding(
            code="position-behind",
            severity="error",
            text=f"the {called(log)} is at position {high}, behind the checkpoints of {names}: new messages would be passed over",
            remedy=f"stop the writers and run: {catch_up.format(position=furthest)}; then reset the subscription to what "
            "was written meanwhile",
        )


def of_row_security(names: Collection[tuple[str, bool]], role: str) -> Iterator[Finding]:
    """Tables of ours with row-level security: (name, whether it applies to this role)."""
    for name, here in names:
        yield Finding(
            code=ROW_SECURITY,
            severity="error" if here else "warning",
            text=f"row-level security is on for table {name}"
            + (f" and hides rows from role {role!r}" if here else ", though not for this role"),
            remedy=f"run: ALTER TABLE {name} DISABLE ROW LEVEL SECURITY, or give the relay's role BYPASSRLS",
        )


def keeps_from_asking(finding: Finding) -> bool:
    """Whether the subscriptions are not to be asked for: that could fail, or show only half of them."""
    return finding.code in STOPPERS or (finding.code == ROW_SECURITY and finding.severity == "error")


def of_distributions(names: Collection[str]) -> Iterator[Finding]:
    """Other distributions that bring a package `message_bus`: whichever was installed last has won."""
    others = sorted({name for name in names if name.lower().replace("_", "-") != OUR_DISTRIBUTION})
    if others:
        yield Finding(
            code="other-distribution",
            severity="error",
            text=f"the package message_bus also belongs to the distribution {', '.join(map(repr, others))}",
            remedy=f"pip uninstall {' '.join(others)}; pip install --force-reinstall {OUR_DISTRIBUTION}",
        )


def spelled(span: timedelta) -> str:
    """A span of time for people, in its largest unit."""
    seconds = span.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
