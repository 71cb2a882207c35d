"""`message-bus subscriptions`: list, start, pause, move, rename, drop and divide subscriptions.

A shell around `message_bus.admin.Subscriptions`. What takes something away is shown first, then asked for (or `--yes`).
Exit codes: 0 done, 1 it could not run or was not confirmed, 2 a wrong command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.engine import URL

from message_bus.admin.partitions import MOST_HELD, SubscriptionChange
from message_bus.admin.subscriptions import Subscriptions
from message_bus.cli.operating import (
    Place,
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
from message_bus.cli.subscription_lines import lines_of_change, lines_of_subscriptions
from message_bus.storage.types import utc_now

_force_option = click.option(
    "--force", is_flag=True, help="Also while a worker has the lease: it can commit nothing any more."
)


@click.group()
def subscriptions() -> None:
    """List, start, pause, move, rename, drop and divide subscriptions.

    A subscription is a named reader of a log, the outbox or the events, with a place in it: everything up to there is dealt
    with.
    """


@subscriptions.command("list")
@click.argument("name", required=False)
@json_option
@database_options
def list_subscriptions(
    name: str | None, as_json: bool, database_url: URL, schema: str | None, prefix: str
) -> None:
    """List all subscriptions, or one."""
    with reading(database_url, schema, prefix) as (session, tables):
        found = Subscriptions(session, tables=tables).list(name)
        now = session.execute(select(utc_now())).scalar_one()
    if name is not None and not found:
        raise click.ClickException(f"no subscription is called {name!r} (leave it out to list all)")
    if as_json:
        print_json({"subscriptions": [asdict(each) for each in found]})
    else:
        click.echo("\n".join(lines_of_subscriptions(found, now)))


@subscriptions.command()
@click.argument("name")
@click.option(
    "--at",
    type=Place(),
    required=True,
    metavar="PLACE",
    help="beginning, now, a position, or a time with its zone.",
)
@dry_run_option
@by_option
@json_option
@database_options
def start(at: Any, **options: Any) -> None:
    """Let an idle subscription begin."""
    _change("start", at=at, **options)


@subscriptions.command()
@click.argument("name")
@by_option
@json_option
@database_options
def pause(**options: Any) -> None:
    """Let no worker begin on it; one that is at work finishes its run."""
    _change("pause", **options)


@subscriptions.command()
@click.argument("name")
@by_option
@json_option
@database_options
def resume(**options: Any) -> None:
    """Let a paused one go on from where it is."""
    _change("resume", **options)


@subscriptions.command()
@click.argument("name")
@click.option(
    "--to",
    type=Place(),
    required=True,
    metavar="PLACE",
    help="beginning, now, a position, or a time with its zone.",
)
@_force_option
@dry_run_option
@yes_option
@by_option
@json_option
@database_options
def reset(**options: Any) -> None:
    """Move it back, so that messages are delivered again, or forward, so that they never are.

    Its retries and dead letters go.
    """
    _change("reset", asks=True, **options)


@subscriptions.command()
@click.argument("name")
@click.argument("new")
@_force_option
@by_option
@json_option
@database_options
def rename(name: str, **options: Any) -> None:
    """Give it another name, with all it knows."""
    _change("rename", old=name, **options)


@subscriptions.command()
@click.argument("name")
@_force_option
@dry_run_option
@yes_option
@by_option
@json_option
@database_options
def drop(**options: Any) -> None:
    """Forget its place, its retries and its dead letters."""
    _change("drop", asks=True, **options)


@subscriptions.command()
@click.argument("name")
@click.argument("partitions", type=click.IntRange(min=1))
@click.option(
    "--hold",
    is_flag=True,
    help="Record what not all partitions have reached as held: it comes first, in order.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="A type that it reads, if not all; may be repeated.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=MOST_HELD,
    show_default=True,
    help="To hold at most so many.",
)
@_force_option
@dry_run_option
@yes_option
@by_option
@json_option
@database_options
def repartition(types: tuple[str, ...], **options: Any) -> None:
    """Divide it by another number of partitions.

    They must stand at one position, as they do when nothing is left to deliver; else --hold.
    """
    _change("repartition", asks=True, types=types or None, **options)


def _change(
    action: str,
    *,
    database_url: URL,
    schema: str | None,
    prefix: str,
    as_json: bool,
    by: str | None,
    yes: bool = False,
    asks: bool = False,
    dry_run: bool = False,
    **arguments: Any,
) -> None:
    show_warnings()
    with opened(database_url, schema, prefix) as (session, tables):
        change: Callable[..., SubscriptionChange] = getattr(Subscriptions(session, tables=tables), action)
        done = change(**arguments, dry_run=True) if asks or dry_run else None
        session.rollback()
        if done is not None and done.changed and not (dry_run or yes):
            confirm(lines_of_change(done, question=True), f"{action} it?")
        if done is None or not dry_run:
            done = change(**arguments, by=by or user())
            session.commit()
    if as_json:
        print_json(asdict(done))
    else:
        click.echo("\n".join(lines_of_change(done)))
