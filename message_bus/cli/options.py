"""What commands share: where the database is, which tables are meant, and how an error is reported.

A command that could not run says so in one line on stderr, with the remedy, and exits with 1 (a wrong command line: 2,
as everywhere). Passwords are cut from whatever is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from message_bus.delivery.verdicts import error_text, traceback_text
from message_bus.errors import MessageBusError, SchemaError, SettingsError, WiringError
from message_bus.storage.schema import SUPPORTED_DIALECTS
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import missing_driver, parse_url, place_of, secrets_in, sync_url

DATABASE_URL_VARIABLE: Final = "MESSAGE_BUS_DATABASE_URL"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _with_sync_driver(context: click.Context, parameter: click.Parameter, value: str | None) -> URL:
    return sync_url(_as_given(context, parameter, value))


def _as_given(_context: click.Context, _parameter: click.Parameter, value: str | None) -> URL:
    if not value:
        raise click.ClickException(f"no database given (set {DATABASE_URL_VARIABLE}, or use --database-url)")
    try:
        url = parse_url(value)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if url.get_backend_name() not in SUPPORTED_DIALECTS:
        raise click.ClickException(f"{url.get_backend_name()!r} is not supported (use PostgreSQL or SQLite)")
    return url


def database_url_option(command: _Command) -> _Command:
    """Give the command its `database_url`: a URL with a synchronous driver. Without one it ends with exit code 1."""
    return _database_url_option(_with_sync_driver, command)


def given_database_url_option(command: _Command) -> _Command:
    """The same, with the driver that is written there: for a command that runs buses of both kinds."""
    return _database_url_option(_as_given, command)


def _database_url_option(callback: Callable[..., URL], command: _Command) -> _Command:
    return click.option(
        "--database-url",
        callback=callback,
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


def refuse_missing_file(url: URL) -> None:
    """Stop before SQLite makes an empty file of a name that is only mistyped. Other databases refuse unknown names.

    Raises: WiringError naming the file, and where it was looked for.
    """
    name = url.database or ":memory:"
    if url.get_backend_name() != "sqlite" or name == ":memory:" or name.startswith("file:"):
        return
    path = Path(name)
    if not path.exists():
        where = "" if path.is_absolute() else f"{path.absolute()}; "
        raise WiringError(
            f"no database file {name!r} ({where}is the URL right? `message-bus db upgrade` makes one)"
        )


@contextmanager
def reported(url: URL) -> Generator[None]:
    """Turn an error of ours, or of the database, into one line without secrets and exit code 1."""
    try:
        yield
    except DBAPIError as error:
        raise click.ClickException(without_secrets(_database_error(error, url), url)) from None
    except SchemaError as error:
        raise click.ClickException(without_secrets(f"database {place_of(url)}: {error}", url)) from None
    except (MessageBusError, SQLAlchemyError, OSError) as error:
        raise click.ClickException(without_secrets(str(error), url)) from None


@contextmanager
def explained(url: URL, *, debug: bool | None = None) -> Generator[None]:
    """Whatever went wrong: one line and exit code 1; with `debug` the traceback before it. Never a password.

    For commands on a database that is there: a SQLite file that does not exist is such an error, too, and is not made.
    `debug` is None for a command without that option.
    """
    try:
        with reported(url):
            refuse_missing_file(url)
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
        return missing_driver(error, url)
    return f"{error_text(error)} (--debug shows the traceback)" if hint else error_text(error)


def _on_one_line(text: str) -> str:
    first, *others = (line.strip().removeprefix("- ") for line in text.splitlines() if line.strip())
    return f"{first} {'; '.join(others)}" if others else first


def _database_error(error: DBAPIError, url: URL) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    said = lines[0] if lines else type(error.orig).__name__
    return f"database {place_of(url)}: {said} (check {DATABASE_URL_VARIABLE}, and that this user may do that)"


def without_secrets(message: str, url: URL) -> str:
    """The text, with whatever is secret in the URL cut out."""
    for secret in secrets_in(url):
        message = message.replace(secret, "***")
    return message
