"""`message-bus relay`: deliver what is in the outbox until a signal comes. For a process of its own.

`--app` names a Relay or AsyncRelay, which is run as it is; or a bus, for which one is made on `--database-url`. It decides
nothing itself. Exit codes: 0 stopped and nothing left in hand, 1 it could not run or something hung past the drain
timeout, 128 + n ended by a second signal n.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from datetime import timedelta
from typing import Any, Final

import click
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.cli.application import load_relay_or_bus
from message_bus.cli.metrics_port import metrics_served
from message_bus.cli.options import DATABASE_URL_VARIABLE, explained, tables_of, tables_options
from message_bus.errors import SettingsError
from message_bus.relay.wiring import AnyRelay
from message_bus.storage.schema import check_schema
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import parse_url, sync_url

_ASYNC_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "sqlite+pysqlite": "sqlite+aiosqlite"}
_NOWHERE: Final = make_url("sqlite://")
_MANY: Final = (
    -1
)  # connections beyond the pool's size: each partition has its own, and one more while it renews
_SECONDS: Final = click.FloatRange(min=0, min_open=True)


@click.command("relay")
@click.option(
    "--app", required=True, metavar="MODULE:ATTRIBUTE",
    help="A Relay, or a bus together with a database URL; or a callable that returns one of these.",
)  # fmt: skip
@click.option(
    "--database-url",
    metavar="URL",
    envvar=DATABASE_URL_VARIABLE,
    show_envvar=True,
    help="For a bus: such as postgresql://user:password@host/name or sqlite:///file.db. Prefer the environment variable: "
    "other users of the machine can read a command line.",
)
@tables_options
@click.option(
    "--lease", type=_SECONDS, metavar="SECONDS",
    help="After so long without a sign of life another process takes over [default: 30]",
)  # fmt: skip
@click.option(
    "--poll", type=_SECONDS, metavar="SECONDS", help="The longest pause between two looks [default: 1]"
)
@click.option("--no-listen", is_flag=True, help="Only look, as behind a pooler in transaction mode.")
@click.option(
    "--retention", metavar="DAYS",
    help="How long delivered messages are kept, or 'forever' [default: 7]",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=_SECONDS, metavar="SECONDS",
    help="How long a stop waits for what is in hand [default: 30]",
)  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(1, 65_535), metavar="PORT",
    help="Serve Prometheus metrics on this port, such as 9464.",
)  # fmt: skip
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
    help="Where to listen for whoever reads the metrics; 0.0.0.0: everywhere.",
)  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback if it could not run.")
def relay(
    *,
    app: str,
    database_url: str | None,
    schema: str | None,
    prefix: str,
    lease: float | None,
    poll: float | None,
    no_listen: bool,
    retention: str | None,
    drain_timeout: float | None,
    metrics_port: int | None,
    metrics_host: str,
    debug: bool,
) -> None:
    """Deliver what is in the outbox until SIGTERM or SIGINT.

    The first signal finishes what is in hand, the second ends the process at once. Exit code 0: stopped. 1: it could not
    run, or something hung past the drain timeout. 128 + n: ended by a second signal n.
    """
    options: dict[str, Any] = {
        name: timedelta(seconds=value)
        for name, value in (("lease", lease), ("poll", poll), ("drain_timeout", drain_timeout))
        if value is not None
    }
    if no_listen:
        options["listen"] = False
    if retention is not None:
        options["retention"] = _retention(retention)
    tables = tables_of(schema, prefix)
    url = _read_url(database_url) if database_url else None
    with explained(url or _NOWHERE, debug=debug):
        found = load_relay_or_bus(app)
        _log_to_stderr()
        if isinstance(found, AnyRelay):
            if options:
                raise click.UsageError(
                    f"--app names a relay that has its settings: {', '.join(sorted(options))} cannot be given here"
                )
            with metrics_served(found.bus, metrics_port, metrics_host):
                _run(found)
            return
        if url is None:
            raise click.ClickException(
                f"--app names a bus, but no database is given (set {DATABASE_URL_VARIABLE}, or use --database-url)"
            )
        with metrics_served(found, metrics_port, metrics_host):
            if isinstance(found, AsyncMessageBusABC):
                asyncio.run(_run_on_async(found, url, tables, options))
            else:
                _run_on(found, url, tables, options)


def _read_url(given: str) -> URL:
    try:
        return parse_url(given)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _retention(text: str) -> timedelta | None:
    if text == "forever":
        return None
    try:
        return timedelta(days=float(text))
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a number of days nor 'forever'", param_hint="--retention"
        ) from None


def _log_to_stderr() -> None:
    """What the relay does should be seen; does nothing to what the application has set."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ours = logging.getLogger("message_bus")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


def _run(found: Any) -> None:
    if inspect.iscoroutinefunction(found.run):
        asyncio.run(found.run())
    else:
        found.run()


def _run_on(bus: MessageBusABC, url: URL, tables: MessageBusTables, options: dict[str, Any]) -> None:
    from message_bus.relay.relay import Relay

    url = sync_url(url)
    engine = create_engine(url, max_overflow=_MANY, connect_args=_keepalives(url))
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        with engine.connect() as connection:
            check_schema(connection, tables)
        Relay(bus, engine, tables=tables, **options).run()
    finally:
        engine.dispose()


async def _run_on_async(
    bus: AsyncMessageBusABC, url: URL, tables: MessageBusTables, options: dict[str, Any]
) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine  # needs greenlet, which sync users need not have

    from message_bus.relay.async_relay import AsyncRelay

    url = url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername))
    engine = create_async_engine(url, max_overflow=_MANY, connect_args=_keepalives(url))
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(check_schema, tables)
        await AsyncRelay(bus, engine, tables=tables, **options).run()
    finally:
        await engine.dispose()


def _keepalives(url: URL) -> dict[str, Any]:
    """A connection that a network has swallowed is found out within about half a minute (S7)."""
    if url.get_driver_name() != "psycopg":
        return {}
    given = {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }
    return {name: value for name, value in given.items() if name not in url.query}
