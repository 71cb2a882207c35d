"""Projections as lines for people: the list, and what a rebuild has built."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from message_bus.cli.lines import ago, table
from message_bus.eventsourcing.projections.projection_state import (
    Comparison,
    ProjectionStatus,
    Rebuilt,
    Swapped,
    Verification,
)

_HEADING = ("projection", "generation", "version", "state", "position", "lag", "tables", "since")


def lines_of_projections(found: Sequence[ProjectionStatus], now: datetime) -> list[str]:
    """A table with one line per generation."""
    if not found:
        return ["no projections yet: the first run notes them down"]
    rows = [
        (
            each.name,
            str(each.generation),
            str(each.version),
            each.state,
            "-" if each.position is None else f"{each.position:,}",
            "-" if each.lag is None else f"{each.lag:,}",
            ", ".join(each.tables.values()),
            ago(each.swapped_at or each.created_at, now),
        )
        for each in found
    ]
    return table(_HEADING, rows)


def lines_of_rebuilt(done: Rebuilt, swapped: Swapped | None) -> list[str]:
    """What was built, how it compares, and what to do next."""
    lines = [
        f"rebuilt {done.name}: generation {done.generation} holds the log up to position {done.position:,}"
    ]
    if done.failed:
        at = ", ".join(f"{position:,}" for position in done.failed[:5])
        more = ", ..." if len(done.failed) > len(done.failed[:5]) else ""
        lines.append(f"  {len(done.failed):,} events failed, at {at}{more}: they are not in it")
    lines += lines_of_verification(done.verification)
    if swapped is not None:
        lines.append(f"swapped: it is live, at position {swapped.position:,}")
    elif done.ok:
        lines.append(f"`message-bus projections swap {done.name}` lets it take the place of the live one")
    else:
        lines.append("not swapped: look at it first (--force: swap all the same)")
    return lines


def lines_of_verification(found: Verification) -> list[str]:
    """One line per table."""
    compared = (
        "counted only, because " + found.why_not if found.why_not else f"compared at {found.position:,}"
    )
    return [f"  {compared}", *(f"  {each.table}: {_said(each)}" for each in found.tables)]


def _said(each: Comparison) -> str:
    rows = f"{each.rebuilt_rows:,} rows, live {each.live_rows:,}"
    if each.only_live is None:
        return rows
    if each.equal:
        return f"{each.rebuilt_rows:,} rows, equal in {', '.join(each.columns)}"
    return f"{rows}; {each.only_live or 0:,} are only in the live one, {each.only_rebuilt or 0:,} only in the rebuilt one"
