"""What commands share: where the database is, which tables are meant, and how an error is reported.

A command that could not run says so in one line on stderr, with the remedy, and exits with 1 (a wrong command line: 2,
as everywhere). Passwords are cut from whatever is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from message_bus.delivery.verdicts import error_text, traceback_text
from message_bus.errors import MessageBusError, SettingsError
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import secrets_in, sync_url

DATABASE_URL_VARIABLE: Final = "MESSAGE_BUS_DATABASE_URL"
_EXTRAS: Final = {
    "psycopg": "postgres",
    "asyncpg": "asyncpg",
    "aiosqlite": "sqlite-async",
    "greenlet": "postgres",
}
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _read_url(context: click.Context, parameter: click.Parameter, value: str) -> URL:
    try:
        return sync_url(value)
    except SettingsError as error:
        raise click.BadParameter("; ".join(error.problems), context, parameter) from None


def database_url_option(command: _Command) -> _Command:
    """Give the command a required `database_url`: a URL with a synchronous driver."""
    return click.option(
        "--database-url",
        required=True,
        callback=_read_url,
        metavar="URL",
        envvar=DATABASE_URL_VARIABLE,
        show_envvar=True,
        help="Such as postgresql://user:password@host/name or sqlite:///file.db. Prefer the environment variable: "
        "other users of the machine can read a command line.",
    )(command)


def tables_options(command: _Command) -> _Command:
    """Give the command `schema` and `prefix`, for `tables_of`."""
    command = click.option(
        "--prefix", default="message_bus_", show_default=True, help="Of the tables' names."
    )(command)
    return click.option(
        "--schema", default=None, help="Where the tables are [default: the first of the search path]"
    )(command)


def tables_of(schema: str | None, prefix: str) -> MessageBusTables:
    """The tables that the options name; names that are no identifiers are a wrong command line."""
    try:
        return MessageBusTables(schema=schema, prefix=prefix)
    except SettingsError as error:
        raise click.UsageError("; ".join(error.problems)) from None


@contextmanager
def reported(url: URL) -> Generator[None]:
    """Turn an error of ours, or of the database, into one line without secrets and exit code 1."""
    try:
        yield
    except DBAPIError as error:
        raise click.ClickException(without_secrets(_database_error(error, url), url)) from None
    except (MessageBusError, SQLAlchemyError, OSError) as error:
        raise click.ClickException(without_secrets(str(error), url)) from None


@contextmanager
def explained(url: URL, *, debug: bool | None = None) -> Generator[None]:
    """Whatever went wrong: one line and exit code 1; with `debug` the traceback before it. Never a password.

    `debug` is None for a command without that option.
    """
    try:
        with reported(url):
            yield
    except (click.UsageError, click.exceptions.Exit):
        raise
    except Exception as error:
        if debug:
            click.echo(without_secrets(traceback_text(error.__context__ or error), url), err=True)
        text = (
            error.format_message()
            if isinstance(error, click.ClickException)
            else _unforeseen(error, url, hint=debug is not None)
        )
        raise click.ClickException(without_secrets(_on_one_line(text), url)) from None


def _unforeseen(error: Exception, url: URL, *, hint: bool) -> str:
    if isinstance(error, ImportError):
        missing = (error.name or "").partition(".")[0]
        remedy = (
            f"pip install 'sqlalchemy-message-bus[{_EXTRAS[missing]}]'"
            if missing in _EXTRAS
            else "install it"
        )
        return f"the driver for {url.drivername} is missing: {error} ({remedy})"
    return f"{error_text(error)} (--debug shows the traceback)" if hint else error_text(error)


def _on_one_line(text: str) -> str:
    first, *others = (line.strip().removeprefix("- ") for line in text.splitlines() if line.strip())
    return f"{first} {'; '.join(others)}" if others else first


def _database_error(error: DBAPIError, url: URL) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    said = lines[0] if lines else type(error.orig).__name__
    where = f"{url.host or 'localhost'}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    if url.get_backend_name() == "sqlite":
        where = url.database or ":memory:"
    return f"database {where}: {said} (check {DATABASE_URL_VARIABLE}, and that this user may do that)"


def without_secrets(message: str, url: URL) -> str:
    """The text, with whatever is secret in the URL cut out."""
    for secret in secrets_in(url):
        message = message.replace(secret, "***")
    return message
