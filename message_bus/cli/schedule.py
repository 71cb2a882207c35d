"""`message-bus schedule`: list and cancel delayed messages. A shell around `message_bus.admin.Schedule`.

Exit codes: 0 done, 1 it could not run, was not confirmed, or a message is not delayed (any more), 2 a wrong command line.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any
from uuid import UUID

import click
from sqlalchemy.engine import URL

from message_bus.admin.delayed import CancelReport, ScheduledMessage
from message_bus.admin.schedule import Schedule
from message_bus.cli.lines import harmless, instant, short, table
from message_bus.cli.operating import (
    by_option,
    confirm,
    database_options,
    dry_run_option,
    json_option,
    opened,
    print_json,
    reading,
    show_warnings,
    user,
    yes_option,
)

_LONGEST_KEY = 32


@click.group()
def schedule() -> None:
    """List and cancel delayed messages."""


@schedule.command("list")
@click.option("--message", metavar="TYPE", help="The name of a message type.")
@click.option("--key", metavar="KEY", help="Only of this key.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--payload", is_flag=True, help="Payload and meta, too: they may be secret.")
@json_option
@database_options
def list_delayed(
    message: str | None,
    key: str | None,
    limit: int,
    payload: bool,
    as_json: bool,
    database_url: URL,
    schema: str | None,
    prefix: str,
) -> None:
    """List delayed messages, the next due first."""
    with reading(database_url, schema, prefix) as (session, tables):
        delayed = Schedule(session, tables=tables)
        found = delayed.list(message=message, key=key, limit=limit, payload=payload)
        count = delayed.count()
    if as_json:
        print_json({"count": count, "messages": [_as_json(each, payload) for each in found]})
        return
    lines = _lines(found)
    if payload:
        heading, *others = lines
        pairs = zip(others, found, strict=True)
        lines = [heading, *(each for line, one in pairs for each in (line, f"  {_payload(one)}"))]
    said = f"{count:,} delayed {'message' if count == 1 else 'messages'}"
    if count > len(found):
        said = f"{len(found):,} of {said}"
    click.echo("\n".join([*(lines if found else []), said]))


@schedule.command()
@click.argument("ids", type=click.UUID, nargs=-1, required=True, metavar="ID...")
@dry_run_option
@yes_option
@by_option
@json_option
@database_options
@click.pass_context
def cancel(
    ctx: click.Context,
    ids: tuple[UUID, ...],
    dry_run: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    database_url: URL,
    schema: str | None,
    prefix: str,
) -> None:
    """Take delayed messages back, by their ids: they are never delivered."""
    show_warnings()
    with opened(database_url, schema, prefix) as (session, tables):
        delayed = Schedule(session, tables=tables)
        report = delayed.cancel(ids, dry_run=True)
        session.rollback()
        if report.messages and not dry_run:
            if not yes:
                about = ["about to cancel:", *(f"  {line}" for line in _lines(report.messages))]
                confirm(about, f"cancel {'it' if report.count == 1 else 'them'}?")
            report = delayed.cancel(ids, by=by or user())
            session.commit()
    if as_json:
        print_json(
            {
                "count": report.count,
                "messages": [_as_json(each, False) for each in report.messages],
                "missing": list(report.missing),
                "dry_run": dry_run,
            }
        )
    else:
        click.echo("\n".join(_lines_of_report(report, dry_run=dry_run)))
    ctx.exit(1 if report.missing else 0)


def _lines(messages: Any) -> list[str]:
    rows = [
        (
            str(each.id),
            each.message,
            short(each.key or "", _LONGEST_KEY),
            instant(each.due_at),
            instant(each.created_at),
        )
        for each in messages
    ]
    return table(("id", "message", "key", "due at", "registered at"), rows)


def _lines_of_report(report: CancelReport, *, dry_run: bool) -> list[str]:
    lines = [
        f"{'would cancel' if dry_run else 'cancelled'} {each.message} {each.id}" for each in report.messages
    ]
    lines += [
        f"{each} is not delayed, or not any more (`message-bus why {each}` says what became of it)"
        for each in report.missing
    ]
    return lines


def _payload(message: ScheduledMessage) -> str:
    return harmless(json.dumps(message.payload, ensure_ascii=False))


def _as_json(message: ScheduledMessage, payload: bool) -> dict[str, Any]:
    left_out = () if payload else ("payload", "meta")
    return {name: value for name, value in asdict(message).items() if name not in left_out}
