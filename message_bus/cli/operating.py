"""What the commands of operators share: a session on the right tables, who is at the keyboard, a question, JSON.

A change is shown first, then confirmed (or `--yes`), then made and committed: nothing is locked while somebody thinks.
"""

from __future__ import annotations

import getpass
import json
import logging
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import click
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from message_bus.cli.options import database_url_option, explained, tables_of, tables_options
from message_bus.storage.schema import check_schema
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SPAN: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Instant(click.ParamType[datetime]):
    """A time with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read ISO 8601; a naive time is refused."""
        try:
            instant = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time (write it like 2026-01-31T18:30:00+01:00)", param, ctx)
        if instant.tzinfo is None:
            self.fail(f"{value!r} has no zone (add Z for UTC, or an offset like +01:00)", param, ctx)
        return instant


class Place(click.ParamType[Any]):
    """A place in a log: beginning, now, a position, or a time with its zone."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read one of the four."""
        if value in ("beginning", "now"):
            return value
        if str(value).isdecimal():
            return int(value)
        if not str(value)[:1].isdigit():
            self.fail(
                f"{value!r} is no place in a log (beginning, now, a position such as 1200, or a time such as "
                "2026-01-31T18:30:00Z)",
                param,
                ctx,
            )
        return Instant().convert(value, param, ctx)


class Span(click.ParamType[timedelta]):
    """A span of time, such as 90s, 30m, 12h, 7d or 2w."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read a number with its unit."""
        if isinstance(value, timedelta):
            return value
        found = _SPAN.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no span of time (write it like 90s, 30m, 12h, 7d or 2w)", param, ctx)
        return timedelta(**{_UNITS[found["unit"]]: float(found["number"])})


def database_options(command: _Command) -> _Command:
    """Give the command `database_url`, `schema` and `prefix`."""
    return database_url_option(tables_options(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
by_option = click.option(
    "--by", metavar="NAME", help="Who decides this, for the log [default: the user's name]"
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")


@contextmanager
def opened(
    url: URL, schema: str | None, prefix: str, *, sqlite_begin: str = "IMMEDIATE", check: bool = True
) -> Generator[tuple[Session, MessageBusTables]]:
    """A session, and the tables; whatever goes wrong becomes one line and exit code 1."""
    tables = tables_of(schema, prefix)
    with explained(url):
        engine = create_engine(url, execution_options={"sqlite_begin": sqlite_begin})
        if engine.dialect.name == "sqlite":
            configure_sqlite(engine)
        try:
            if check:
                with engine.connect() as connection:
                    check_schema(connection, tables)
            with Session(engine) as session:
                yield session, tables
        finally:
            engine.dispose()


@contextmanager
def reading(
    url: URL, schema: str | None, prefix: str, *, check: bool = True
) -> Generator[tuple[Session, MessageBusTables]]:
    """The same to look only: beside a writer, where IMMEDIATE would wait for it."""
    with opened(url, schema, prefix, sqlite_begin="DEFERRED", check=check) as both:
        yield both


def show_warnings() -> None:
    """Let the log line that says who has decided be seen; does nothing if logging is set up."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")


def confirm(about: Sequence[str], question: str) -> None:
    """Show what is about to be done, on stderr, and ask; without a yes nothing is changed, and the exit code is 1."""
    click.echo("\n".join(about), err=True)
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):  # Ctrl-C is for the shell, too
            raise KeyboardInterrupt from None
        click.echo(err=True)  # the question stands on a line of its own
        raise click.ClickException("nobody has answered: nothing was changed (add --yes)") from None
    if not agreed:
        raise click.ClickException("nothing was changed")


def user() -> str | None:
    """Who is at the keyboard."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user, as in some containers
        return None


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object; times as ISO 8601, spans in seconds."""
    click.echo(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
