"""`message-bus db`: create and upgrade the tables. Prints what was done; the work is in `storage/migrations.py`."""

from __future__ import annotations

import click
from sqlalchemy.engine import URL

from message_bus.cli.options import (
    database_url_option,
    explained,
    tables_of,
    tables_options,
)
from message_bus.storage import migrations
from message_bus.storage.migrations import Migrated
from message_bus.storage.urls import place_of


@click.group()
def db() -> None:
    """Create and upgrade the tables."""


@db.command()
@click.argument("revision", default="head")
@database_url_option
@tables_options
def upgrade(revision: str, database_url: URL, schema: str | None, prefix: str) -> None:
    """Bring the tables to REVISION (the newest). Safe to run from several hosts at once."""
    tables = tables_of(schema, prefix)
    with explained(database_url, must_exist=False):
        done = migrations.upgrade(database_url, tables=tables, revision=revision)
    if done.created_schema:
        _say(database_url, f"created schema {schema!r}")
    if done.adopted:
        _say(database_url, f"found the tables complete; put them on record as revision {done.after}")
    else:
        _print_change(database_url, done)


@db.command()
@database_url_option
@tables_options
def current(database_url: URL, schema: str | None, prefix: str) -> None:
    """Show the revision of the tables."""
    tables = tables_of(schema, prefix)
    with explained(database_url):
        revision, newest = migrations.current(database_url, tables=tables), migrations.head()
    if revision == newest:
        _say(database_url, f"{revision} (newest)")
    else:
        _say(database_url, f"{revision or 'none'} (newest: {newest}; run `message-bus db upgrade`)")


@db.command(context_settings={"ignore_unknown_options": True})  # lets "-1" be a revision
@click.argument("revision", default="-1")
@click.option("--yes", is_flag=True, help="Also when rows may be lost.")
@database_url_option
@tables_options
def downgrade(revision: str, yes: bool, database_url: URL, schema: str | None, prefix: str) -> None:
    """Take the tables back to REVISION (the one before; "base" drops them all), data included."""
    tables = tables_of(schema, prefix)
    with explained(database_url):
        if not yes and migrations.holds_rows(database_url, tables=tables):
            raise click.ClickException(
                "the tables hold rows that a downgrade may drop (add --yes if that is meant)"
            )
        done = migrations.downgrade(database_url, tables=tables, revision=revision)
    _print_change(database_url, done)


def _print_change(url: URL, done: Migrated) -> None:
    if done.before == done.after:
        _say(url, f"already at {done.after or 'none'}: nothing to do")
    else:
        _say(url, f"{done.before or 'none'} -> {done.after or 'none'}")


def _say(url: URL, text: str) -> None:
    click.echo(f"{place_of(url)}: {text}")  # which database it was: the variable may have meant another one
