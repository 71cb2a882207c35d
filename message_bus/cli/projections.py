"""`message-bus projections`: list, rebuild, swap and drop.

A shell around `eventsourcing.projections.projections_admin`. What takes something away is shown first, then asked for (or
`--yes`). Exit codes: 0 done, 1 it could not run, was refused or not confirmed, 2 a wrong command line, 3 rebuilt, but with
failures or differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
from sqlalchemy import select
from sqlalchemy.engine import URL

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.cli import application
from message_bus.cli.manners import progress
from message_bus.cli.operating import (
    by_option,
    confirm,
    database_options,
    json_option,
    opened,
    print_json,
    reading,
    show_warnings,
    user,
    yes_option,
)
from message_bus.cli.options import explained, given_database_url_option, tables_of, tables_options
from message_bus.cli.projection_lines import lines_of_projections, lines_of_rebuilt, lines_of_verification
from message_bus.errors import RebuildRefused, SettingsError, names_of
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projection_state import Rebuilt, Swapped, Verification
from message_bus.eventsourcing.projections.projections_admin import Projections
from message_bus.eventsourcing.projections.rebuilding import Progress
from message_bus.relay.wiring import AnyRelay
from message_bus.storage.event_tables import BUILDING, RETIRED
from message_bus.storage.schema import check_schema
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_now
from message_bus.storage.urls import sync_url

EXIT_NOT_EQUAL: Final = 3
_ASYNC_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "sqlite+pysqlite": "sqlite+aiosqlite"}

_app_option = click.option(
    "--app", required=True, metavar="MODULE:ATTRIBUTE",
    help="A Relay, a bus, a projection, or a list of projections; or a callable that returns one of these.",
)  # fmt: skip
_force_option = click.option(
    "--force",
    is_flag=True,
    help="Also with failures in the rebuild, differences to the live tables, or far behind them.",
)


@click.group()
def projections() -> None:
    """List, rebuild, swap and drop projections.

    A rebuild fills tables of its own beside the live ones; a swap lets them take their place; a drop removes what is
    retired then.
    """


@projections.command("list")
@json_option
@database_options
def list_projections(as_json: bool, database_url: URL, schema: str | None, prefix: str) -> None:
    """List every generation of every projection that has run."""
    with reading(database_url, schema, prefix) as (session, tables):
        found = Projections(_engine_of(session), tables=tables).list()
        now = session.execute(select(utc_now())).scalar_one()
    if as_json:
        print_json({"projections": [asdict(each) for each in found]})
    else:
        click.echo("\n".join(lines_of_projections(found, now)))


@projections.command()
@click.argument("name")
@_app_option
@click.option("--swap", is_flag=True, help="Let it take the place of the live tables, if it is equal.")
@_force_option
@by_option
@json_option
@given_database_url_option
@tables_options
@click.pass_context
def rebuild(
    ctx: click.Context, /, name: str, app: str, swap: bool, force: bool, by: str | None, as_json: bool, **where: Any
) -> None:  # fmt: skip
    """Fill the tables of a projection anew, beside the live ones, and compare them.

    Killed or interrupted: run it again, it goes on where it was.
    """
    swapped: Swapped | None = None
    with _ready(app, name, **where) as ready:
        with _progress(silent=as_json) as show:
            done: Rebuilt = ready.run(lambda admin: admin.rebuild(ready.projection, progress=show))
        if swap and (done.ok or force):
            swapped = ready.run(lambda admin: admin.swap(ready.projection, force=force, by=by or user()))
    if as_json:
        ok = {"ok": done.ok, "swapped": None if swapped is None else asdict(swapped)}
        print_json({**asdict(done), **ok})
    else:
        click.echo("\n".join(lines_of_rebuilt(done, swapped)))
    ctx.exit(0 if done.ok or swapped is not None else EXIT_NOT_EQUAL)


@projections.command()
@click.argument("name")
@_app_option
@_force_option
@yes_option
@by_option
@json_option
@given_database_url_option
@tables_options
def swap(name: str, app: str, force: bool, yes: bool, by: str | None, as_json: bool, **where: Any) -> None:
    """Let what was rebuilt take the place, and the names, of the live tables.

    In one transaction; readers and relays go on.
    """
    with _ready(app, name, **where) as ready:
        found: Verification = ready.run(lambda admin: admin.verify(ready.projection))
        lines = lines_of_verification(found)
        if not (found.ok or force):
            click.echo("\n".join(lines), err=True)
            raise RebuildRefused(name, ["rebuilt and live tables differ (--force: swap all the same)"])
        if not yes:
            confirm(lines, f"swap {name}?")
        done: Swapped = ready.run(lambda admin: admin.swap(ready.projection, force=force, by=by or user()))
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(f"swapped {name}: generation {done.generation} is live, at position {done.position:,}")
        click.echo(f"  `message-bus projections drop {name}` removes {', '.join(done.tables.values())}")


@projections.command()
@click.argument("name")
@click.option("--building", is_flag=True, help="Also give up what is being built.")
@yes_option
@by_option
@json_option
@database_options
def drop(
    name: str,
    building: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    database_url: URL,
    schema: str | None,
    prefix: str,
) -> None:
    """Drop the tables that were live before a swap."""
    show_warnings()
    with opened(database_url, schema, prefix) as (session, tables):
        admin = Projections(_engine_of(session), tables=tables)
        states = (RETIRED, BUILDING) if building else (RETIRED,)
        chosen = [each for each in admin.list() if each.name == name and each.state in states]
        if chosen and not yes:
            what = [f"{table} ({each.state})" for each in chosen for table in each.tables.values()]
            confirm([f"about to drop {', '.join(what)}"], "drop them?")
        dropped = admin.drop(name, building=building, by=by or user())
    if as_json:
        print_json({"dropped": dropped})
    else:
        click.echo(f"dropped {', '.join(dropped)}" if dropped else f"{name} has nothing to drop")


# --- the application's projection, and a database ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """A projection, and how to work on it: in the colour of its application."""

    projection: Projection
    run: Callable[[Callable[[Any], Any]], Any]


@contextmanager
def _ready(app: str, name: str, *, database_url: URL, schema: str | None, prefix: str) -> Generator[_Ready]:
    tables = tables_of(schema, prefix)
    with explained(database_url):
        projection, context, is_async = _found(app, name)
        show_warnings()
        if is_async:
            yield _Ready(projection, lambda work: asyncio.run(_run(work, database_url, tables, context)))
            return
    with opened(sync_url(database_url), schema, prefix) as (session, _):
        admin = Projections(_engine_of(session), tables=tables, context=context)
        yield _Ready(projection, lambda work: work(admin))


async def _run(
    work: Callable[[Any], Awaitable[Any]], url: URL, tables: MessageBusTables, context: Any
) -> Any:
    from sqlalchemy.ext.asyncio import create_async_engine  # needs greenlet, which sync users need not have

    from message_bus.eventsourcing.projections.projections_admin_async import AsyncProjections

    engine = create_async_engine(url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername)))
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(check_schema, tables)
        return await work(AsyncProjections(engine, tables=tables, context=context))
    finally:
        await engine.dispose()


def _found(app: str, name: str) -> tuple[Projection, dict[str, Any], bool]:
    """The projection of this name, the context of its bus, and whether it is to be awaited."""
    found: Any = application.find(app, AnyRelay | MessageBusABC | AsyncMessageBusABC | Projection)
    bus = getattr(found, "bus", found)
    context = dict(getattr(bus, "context", None) or {})
    given = [found] if isinstance(found, Projection) else found if isinstance(found, list | tuple) else []
    given = [*given, *getattr(found, "projections", ()), *getattr(bus, "outbox_handlers", ())]
    there = {each.name: each for each in given if isinstance(each, Projection)}
    if name not in there:
        known = f"there are: {names_of(list(there))}" if there else "there are none"
        raise SettingsError(f"--app {app}", [f"has no projection {name!r} ({known})"])
    is_async = isinstance(bus, AsyncMessageBusABC) or there[name].is_async
    return there[name], context, is_async


def _engine_of(session: Any) -> Any:
    return session.get_bind()


@contextmanager
def _progress(*, silent: bool = False) -> Generator[Progress | None]:
    """A bar up to the goal, which moves while others write."""
    with progress("rebuilding", 1, silent=silent) as bar:
        if bar is None:
            yield None
        else:
            yield bar
