"""Runs the demo: `python -m message_bus.demo [--database-url URL] [--orders N] [--keep]`.

Orders come in day by day; after each day the outbox is processed, as cron would do it, and at the end again until
nothing waits any more. Exit code 1 if the summary does not agree, or if the demo could not run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic

import click
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusError, OutboxReport
from message_bus.demo.database import SCHEMA, NotOurs, opened
from message_bus.demo.ledger import dead_letters, differences, expected, found
from message_bus.demo.models import Base, Product
from message_bus.demo.orders import BadRow, OrderRow, ProductRow, read_orders, read_products
from message_bus.demo.shop import RETRY_DELAY, make_bus, tables, take_in
from message_bus.demo.summary import lines_of

ROWS_A_DAY = 250
PATIENCE = 30.0  # seconds without any progress, then the summary says what is missing

Sessions = sessionmaker[Session]
Rows = Sequence[OrderRow | BadRow]


@click.command()
@click.option(
    "--database-url", metavar="URL", help="Where to run it, e.g. on PostgreSQL [default: a new SQLite file]"
)
@click.option("--schema", default=SCHEMA, show_default=True, help="Of its own, on PostgreSQL.")
@click.option("--orders", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of the CSV.")
@click.option("--keep", is_flag=True, help="Leave the database there afterwards, to look at.")
def main(*, database_url: str | None, schema: str, orders: int | None, keep: bool) -> None:
    """Run a small shop whose orders, stock and invoices agree in the end, whatever fails in between."""
    logging.disable()  # failing handlers are part of the show; the summary counts them
    products = read_products()
    rows = read_orders(products, most=orders)
    try:
        with opened(database_url, Base.metadata, schema=schema, keep=keep) as (engine, url):
            agree = run(sessionmaker(engine), products, rows)
    except (MessageBusError, NotOurs, SQLAlchemyError) as error:
        raise click.ClickException(str(error).partition("\n")[0]) from None
    except ModuleNotFoundError as error:
        remedy = "pip install 'sqlalchemy-message-bus[postgres]'"
        raise click.ClickException(f"the driver is missing: {error} ({remedy})") from None
    if keep:
        click.echo(f"\nkept in {url}" + ("" if engine.dialect.name == "sqlite" else f", schema {schema}"))
    sys.exit(0 if agree else 1)


def run(sessions: Sessions, products: Mapping[str, ProductRow], rows: Rows) -> bool:
    """Place the orders, deliver the messages, print the summary; whether all agrees."""
    started = monotonic()
    bus = make_bus()
    with sessions.begin() as session:
        session.add_all(Product(**asdict(product)) for product in products.values())
    with progress(len(rows)) as advance:
        for first in range(0, len(rows), ROWS_A_DAY):
            day = rows[first : first + ROWS_A_DAY]
            with sessions() as session:
                for number, row in enumerate(day, first + 1):
                    take_in(bus, session, number, row)
            advance(len(day), deliver(bus, sessions))
    finish(bus, sessions)
    with sessions() as session:
        wanted, have = expected(products, rows), found(session, tables)
        letters = dead_letters(session, tables)
    unlike = differences(wanted, have)
    click.echo("")
    for line in lines_of(wanted, have, letters, unlike):
        click.echo(line)
    click.echo(f"{len(rows):,} rows in {monotonic() - started:.1f} s.")
    return not unlike


def deliver(bus: MessageBus, sessions: Sessions) -> OutboxReport:
    """The one step that cron would run."""
    with sessions() as session:
        return bus.process_outbox(session)


def finish(bus: MessageBus, sessions: Sessions) -> None:
    """Process the outbox until nothing waits, retries or is held; or nothing has moved for a long time."""
    moved = monotonic()
    report = deliver(bus, sessions)
    while report.retrying or report.held or report.unsettled or report.busy or report.unavailable:
        if report.delivered:
            moved = monotonic()
        elif monotonic() - moved > PATIENCE:
            return
        time.sleep(RETRY_DELAY)  # nothing is due before; cron would wait a minute
        report = deliver(bus, sessions)


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, OutboxReport], None]]:
    """Show how far it is: a bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty():
        with click.progressbar(length=total, label="orders", item_show_func=_pending, show_eta=False) as bar:
            yield bar.update
        return
    done = 0

    def line(rows: int, report: OutboxReport) -> None:
        nonlocal done
        done += rows
        click.echo(
            f"{done:>6,} of {total:,} rows; delivered {report.delivered:,} messages, {_pending(report)}"
        )

    yield line


def _pending(report: OutboxReport | None) -> str:
    return "" if report is None else f"{report.retrying} retrying, {report.held} held, {report.dead} dead"


if __name__ == "__main__":
    main(prog_name="python -m message_bus.demo")
