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

from message_bus.cli.lines import harmless
from message_bus.cli.manners import wants_debug
from message_bus.delivery.verdicts import error_text, traceback_text
from message_bus.errors import MessageBusError, SchemaError, SettingsError, WiringError
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.schema import SUPPORTED_DIALECTS
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import missing_driver, parse_url, place_of, secrets_in, sync_url

DATABASE_URL_VARIABLE: Final = "MESSAGE_BUS_DATABASE_URL"
_URL: Final = "message_bus.url"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _with_sync_driver(context: click.Context, parameter: click.Parameter, value: str | None) -> URL:
    return sync_url(_as_given(context, parameter, value))


def _as_given(context: click.Context, _parameter: click.Parameter, value: str | None) -> URL:
    if not value:
        raise click.ClickException(f"no database given (set {DATABASE_URL_VARIABLE}, or use --database-url)")
    try:
        url = parse_url(value)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if url.get_backend_name() not in SUPPORTED_DIALECTS:
        raise click.ClickException(f"{url.get_backend_name()!r} is not supported (use PostgreSQL or SQLite)")
    context.meta[_URL] = url  # for whoever has to say what went wrong
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
    if (schema, prefix) == (None, DEFAULT_TABLES.prefix):
        return DEFAULT_TABLES
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
    except BrokenPipeError:
        raise  # whoever reads what is printed has gone
    except DBAPIError as error:
        raise click.ClickException(without_secrets(_database_error(error, url), url)) from None
    except SchemaError as error:
        raise click.ClickException(without_secrets(f"database {place_of(url)}: {error}", url)) from None
    except (MessageBusError, SQLAlchemyError, OSError) as error:
        raise click.ClickException(without_secrets(str(error), url)) from None


@contextmanager
def explained(url: URL, *, debug: bool | None = None, must_exist: bool = True) -> Generator[None]:
    """Whatever went wrong: one line and exit code 1; with `--debug` the traceback before it. Never a password.

    With `must_exist` a SQLite file that does not exist is such an error, too, and is not made. `debug`: for a command that
    reads that option itself.
    """
    try:
        with reported(url):
            if must_exist:
                refuse_missing_file(url)
            yield
    except (click.UsageError, click.exceptions.Exit, BrokenPipeError):
        raise
    except Exception as error:
        raise unforeseen(error, url, debug=debug) from None


def unforeseen(
    error: Exception, url: URL | None = None, *, debug: bool | None = None
) -> click.ClickException:
    """What to say of an error, in one line; with `--debug` its traceback is printed now."""
    if url is None:
        url = _url_given()
    if wants_debug() if debug is None else debug:
        for line in without_secrets(traceback_text(error.__context__ or error), url).splitlines():
            click.echo(harmless(line.expandtabs()), err=True)
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, ImportError) and url is not None:
        text = missing_driver(error, url)
    else:
        text = f"{error_text(error).rstrip(': ')} (--debug shows the traceback)"
    return click.ClickException(harmless(without_secrets(_on_one_line(text), url)))


def _on_one_line(text: str) -> str:
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return lines[0] if lines else "it could not run (--debug shows why)"
    return f"{lines[0]} {'; '.join(lines[1:])}"


def _url_given() -> URL | None:
    ctx = click.get_current_context(silent=True)
    return None if ctx is None else ctx.meta.get(_URL)


def _database_error(error: DBAPIError, url: URL) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    said = lines[0] if lines else type(error.orig).__name__
    return f"database {place_of(url)}: {said} (check {DATABASE_URL_VARIABLE}, and that this user may do that)"


def without_secrets(message: str, url: URL | None) -> str:
    """The text, with whatever is secret in the URL cut out."""
    for secret in () if url is None else secrets_in(url):
        message = message.replace(secret, "***")
    return message
