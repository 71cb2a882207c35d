"""`message-bus status`: how the outbox and the event log are doing. A shell around `message_bus.admin.status`.

Exit codes: 0 it could be read, whatever it says; 1 it could not run. What is wrong, and what to do, says `doctor`.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click
from sqlalchemy.engine import URL

from message_bus.admin.findings import spelled
from message_bus.admin.overview import EventLogStatus, Status, WatermarkStatus
from message_bus.admin.status import status as read_status
from message_bus.cli.lines import ago, harmless, instant
from message_bus.cli.manners import coloured
from message_bus.cli.operating import database_options, json_option, print_json, reading
from message_bus.cli.subscription_lines import lines_of_subscriptions


@click.command()
@json_option
@database_options
def status(as_json: bool, database_url: URL, schema: str | None, prefix: str) -> None:
    """Show how the outbox, its schedule, the event log, and their subscriptions are doing."""
    with reading(database_url, schema, prefix) as (session, tables):
        found = read_status(session, tables=tables)
    if as_json:
        print_json({**asdict(found), "oldest_age": found.oldest_age})
    else:
        click.echo("\n".join(lines_of_status(found)))


def lines_of_status(found: Status) -> list[str]:
    """The subscriptions as a table, then one line for each of the rest."""
    return [
        *lines_of_subscriptions(found.subscriptions, found.at),
        "",
        f"outbox        {_outbox(found)}",
        f"schedule      {_schedule(found)}",
        f"watermark     {_watermark(found.watermark)}",
        *([] if found.events is None else [f"events        {_events(found.events, found.at)}"]),
        f"dead letters  {_dead(found)}",
    ]


def _outbox(found: Status) -> str:
    if found.oldest_at is None:
        return "empty"
    return f"{found.outbox_rows:,} rows, the oldest of {ago(found.oldest_at, found.at)}"


def _schedule(found: Status) -> str:
    if found.next_due_at is None:
        return "empty"
    due = f"{found.due:,} due" if found.due else f"the next due at {instant(found.next_due_at)}"
    return f"{found.delayed:,} delayed, {due}"


def _events(events: EventLogStatus, now: datetime) -> str:
    if events.oldest_at is None or events.newest_at is None:
        return f"none, {_watermark(events.watermark)}"
    ages = f"the newest of {ago(events.newest_at, now)}, the oldest of {ago(events.oldest_at, now)}"
    return f"{ages}, {_watermark(events.watermark)}"


def _watermark(mark: WatermarkStatus) -> str:
    if mark.holder is None:
        return f"settled up to {mark.settled:,}" + (f" of {mark.high:,}" if mark.high > mark.settled else "")
    age = "" if mark.age is None else f" for {spelled(mark.age)}"
    return harmless(f"settled up to {mark.settled:,} of {mark.high:,}, held{age} by {mark.holder}")


def _dead(found: Status) -> str:
    if not found.dead:
        return "none"
    said = ", ".join(
        f"{each.count:,} {each.message or '(gone)'} of {each.subscription}" for each in found.dead
    )
    return coloured(harmless(said), "red")
