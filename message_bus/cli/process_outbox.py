"""`message-bus process-outbox`: deliver what is in the outbox, once, and say how it went. For cron.

It opens the database, makes sure that the tables are the right ones, calls `process_outbox` on the application's bus and
prints the report. It decides nothing about messages. Exit codes: 0 all is well, 1 it could not run, 3 something is
retrying, held or dead, or out of reach.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

import click
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.cli.application import load_bus
from message_bus.cli.lines import harmless
from message_bus.cli.manners import Colour, coloured
from message_bus.cli.options import (
    explained,
    given_database_url_option,
    tables_of,
    tables_options,
)
from message_bus.delivery.process import process_outbox as run
from message_bus.delivery.report import OutboxReport, SubscriptionReport
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.storage.schema import check_schema
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import sync_url

EXIT_NOT_DONE: Final = 3
_ASYNC_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "sqlite+pysqlite": "sqlite+aiosqlite"}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the command line says about one run."""

    tables: MessageBusTables
    limit: int | None
    only: Collection[str] | None
    lease: timedelta


@click.command("process-outbox")
@click.option(
    "--app", required=True, metavar="MODULE:ATTRIBUTE", help="A bus, or a callable that returns one."
)
@given_database_url_option
@tables_options
@click.option("--limit", type=click.IntRange(min=1), help="Try at most so many messages per subscription.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Only this subscription; may be given several times."
)
@click.option(
    "--lease",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="After so long without a sign of life another process takes over.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def process_outbox(
    ctx: click.Context,
    *,
    app: str,
    database_url: URL,
    schema: str | None,
    prefix: str,
    limit: int | None,
    only: tuple[str, ...],
    lease: float,
    as_json: bool,
) -> None:
    """Deliver what is in the outbox, once. For cron.

    Exit code 0: all is well (also when another process is at work). 1: it could not run. 3: something is retrying,
    held or dead, or what a handler needs is out of reach.
    """
    step = _Step(
        tables=tables_of(schema, prefix), limit=limit, only=only or None, lease=timedelta(seconds=lease)
    )
    with explained(database_url):
        bus = load_bus(app)
        logging.basicConfig(
            format="%(levelname)s %(name)s: %(message)s"
        )  # does nothing if the application did it
        report = _process(bus, database_url, step)
    click.echo(json.dumps({"ok": report.ok, **asdict(report)}) if as_json else "\n".join(lines_of(report)))
    ctx.exit(0 if report.ok else EXIT_NOT_DONE)


def _process(bus: MessageBusABC | AsyncMessageBusABC, url: URL, step: _Step) -> OutboxReport:
    if isinstance(bus, AsyncMessageBusABC):
        return asyncio.run(_process_async(bus, url, step))
    engine = create_engine(sync_url(url))
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        with engine.connect() as connection:
            check_schema(connection, step.tables)
        with Session(engine) as session:
            repo = SQLAlchemyOutBoxRepo(session, tables=step.tables)
            return run(bus, repo, limit=step.limit, only=step.only, lease=step.lease)
    finally:
        engine.dispose()


async def _process_async(bus: AsyncMessageBusABC, url: URL, step: _Step) -> OutboxReport:
    from sqlalchemy.ext.asyncio import (
        AsyncSession,
        create_async_engine,
    )  # needs greenlet, which sync users need not have

    from message_bus.delivery.process_async import process_outbox_async as run_async
    from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo

    engine = create_async_engine(url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername)))
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(check_schema, step.tables)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            repo = AsyncSQLAlchemyOutBoxRepo(session, tables=step.tables)
            return await run_async(bus, repo, limit=step.limit, only=step.only, lease=step.lease)
    finally:
        await engine.dispose()


# --- what is printed ----------------------------------------------------------------------------------------------

_COLUMNS: Final = ("delivered", "passed_over", "retrying", "held", "dead")
_COLOURS: Final[dict[str, Colour]] = {"retrying": "yellow", "held": "yellow", "dead": "red"}


def lines_of(report: OutboxReport) -> list[str]:
    """The report for people: one line per subscription, then what else is worth knowing."""
    width = max(len("subscription"), *(len(name) for name in report.subscriptions))
    heads = [name.replace("_", " ") for name in _COLUMNS]
    lines = ["  ".join(["subscription".ljust(width), *heads])]
    for name, each in report.subscriptions.items():
        numbers = [
            coloured(
                f"{getattr(each, column):>{len(head)},}",
                _COLOURS.get(column) if getattr(each, column) else None,
            )
            for column, head in zip(_COLUMNS, heads, strict=True)
        ]
        lines.append("  ".join([harmless(name).ljust(width), *numbers, *_remarks(each)]))
    if report.promoted:
        lines.append(f"{report.promoted:,} delayed messages became due")
    if report.unsettled:
        lines.append(
            f"{report.unsettled:,} messages wait for a transaction that is still open; the next run delivers them"
        )
    if report.pruned:
        lines.append(f"{report.pruned:,} old messages pruned")
    return lines


def _remarks(report: SubscriptionReport) -> Iterator[str]:
    if report.busy:
        yield "busy: another process is at work"
    if report.unavailable:
        yield coloured("stopped: something is out of reach", "yellow")
    if report.idle:
        yield "idle: paused, or no place to start from (give Subscription(start=...))"
