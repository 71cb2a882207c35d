"""`message-bus prune`: remove old messages that every subscription has passed. A shell around `message_bus.admin.prune`.

Exit codes: 0 done, 1 it could not run or was not confirmed, 2 a wrong command line.
"""

from __future__ import annotations

from datetime import timedelta

import click
from sqlalchemy.engine import URL

from message_bus.admin.retention import prune as remove
from message_bus.cli.manners import progress
from message_bus.cli.operating import (
    Span,
    by_option,
    confirm,
    database_options,
    dry_run_option,
    json_option,
    opened,
    print_json,
    show_warnings,
    user,
    yes_option,
)


@click.command()
@click.option(
    "--older-than",
    type=Span(),
    default="7d",
    show_default=True,
    metavar="SPAN",
    help="Such as 90s, 12h, 7d or 2w.",
)
@dry_run_option
@yes_option
@by_option
@json_option
@database_options
def prune(
    older_than: timedelta,
    dry_run: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    database_url: URL,
    schema: str | None,
    prefix: str,
) -> None:
    """Remove old messages that every subscription has passed.

    What is retrying, held or dead anywhere stays. Each process-outbox does this, too, for those older than 7 days.
    """
    show_warnings()
    with opened(database_url, schema, prefix) as (session, tables):
        count = remove(session, older_than, tables=tables, dry_run=True)
        session.rollback()
        if count and not dry_run:
            if not yes:
                confirm([f"about to remove {_counted(count)}"], "remove them?")
            with progress("removing", count, silent=as_json) as show:
                count = remove(session, older_than, tables=tables, by=by or user(), progress=show)
    if as_json:
        print_json({"count": count, "dry_run": dry_run})
    else:
        click.echo(f"{'would remove' if dry_run else 'removed'} {_counted(count)}")


def _counted(count: int) -> str:
    return f"{count:,} old {'message' if count == 1 else 'messages'}"
