"""What a rebuild, a swap and a drop change in the bookkeeping, each in the caller's transaction on a plain Session.

Locks are taken in one order: the projection's tables, its rows, the log's row (S4), the checkpoints (S3). So no two
wait for each other, and a relay waits for the checkpoint only when it commits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from message_bus.errors import RebuildRefused, SettingsError, names_of
from message_bus.eventsourcing.missing_tables import reading
from message_bus.eventsourcing.projections import projection_ddl as ddl
from message_bus.eventsourcing.projections.projection_bookkeeping import obstacle_of
from message_bus.eventsourcing.projections.projection_state import INLINE, next_generation
from message_bus.eventsourcing.projections.projection_tables import copies_of, stored_names, table_named
from message_bus.storage import history_statements, subscription_statements
from message_bus.storage import projection_statements as statements
from message_bus.storage import statements as engine_statements
from message_bus.storage.event_tables import BUILDING, LIVE, RETIRED
from message_bus.storage.tables import ACTIVE, MessageBusTables

if TYPE_CHECKING:
    from message_bus.eventsourcing.projections.projection import Projection

logger = logging.getLogger("message_bus.eventsourcing")


@dataclass(frozen=True, slots=True)
class Standing:
    """Both generations as they are behind the locks; `live_position` is None if the live one has no place in the log."""

    live: Row[Any]
    building: Row[Any]
    live_position: int | None
    position: int


def begin(session: Session, projection: Projection, tables: MessageBusTables) -> int:
    """Find the generation that is being built, or begin a new one: its tables and its row. Raises: RebuildRefused."""
    rows = _generations(session, projection.name, tables)
    if not rows:
        problem = obstacle_of(session, projection, tables)
        rows = _generations(session, projection.name, tables)
        if not rows:
            raise RebuildRefused(projection.name, [str(problem)])
    _refuse_other_filler(projection, _live(projection.name, rows))
    for row in rows:
        if row.state == BUILDING and row.version == projection.version:
            return int(row.generation)
    for row in rows:
        if row.state == BUILDING:  # of other code: what it has built nobody wants any more
            logger.warning("generation %d of projection %r is given up", row.generation, projection.name)
            _remove(session, row, tables)
    generation = next_generation([row.generation for row in rows])
    built = projection.building(generation)
    _subscribe(session, built, tables.of_log(projection.log))
    ddl.create(session.connection(), projection.live_tables.values(), generation=generation)
    session.execute(
        tables.projection.insert(),
        {
            "name": projection.name,
            "generation": generation,
            "version": projection.version,
            "state": BUILDING,
            "subscription": built.filled_by,
            "tables": stored_names(copies_of(projection.live_tables, generation)),
        },
    )
    return generation


def lock_for_swap(session: Session, projection: Projection, tables: MessageBusTables) -> Standing:
    """Lock the rows of both generations, the log's and the checkpoints'. Raises: RebuildRefused."""
    rows = _generations(session, projection.name, tables)
    live = _live(projection.name, rows)
    _refuse_other_filler(projection, live)
    building = building_of(projection, rows)
    lock_log(session, tables.of_log(projection.log))
    found = session.execute(
        subscription_statements.partitions(tables, locked=True),
        {"names": (projection.name, building.subscription)},
    )
    positions = {row.name: row.position for row in found}
    if building.subscription not in positions:
        raise RebuildRefused(projection.name, ["nothing is built yet (message-bus projections rebuild)"])
    return Standing(live, building, positions.get(live.subscription), int(positions[building.subscription]))


def building_of(projection: Projection, rows: Sequence[Row[Any]]) -> Row[Any]:
    """The generation that is built with this code. Raises: RebuildRefused."""
    building = next((row for row in rows if row.state == BUILDING), None)
    if building is None:
        raise RebuildRefused(projection.name, ["nothing is built (message-bus projections rebuild)"])
    if building.version != projection.version:
        raise RebuildRefused(
            projection.name,
            [f"version {building.version} is built, but this is version {projection.version} (rebuild it)"],
        )
    return building


def swap(
    session: Session, projection: Projection, standing: Standing, tables: MessageBusTables, *, to: int
) -> None:
    """Exchange the tables, and let the rebuilt one's place be that of the live subscription. Behind the locks."""
    live, building = standing.live, standing.building
    hanging = ddl.hanging_on(session.connection(), projection.live_tables.values())
    if hanging:
        remedy = "drop it, swap, and make it again: it would go on reading the old table"
        raise RebuildRefused(projection.name, [f"{each} ({remedy})" for each in hanging])
    ddl.exchange(
        session.connection(),
        projection.live_tables,
        generation=building.generation,
        retired=live.generation,
    )
    mine = {"of_projection": projection.name}
    old = stored_names(copies_of(projection.live_tables, live.generation))
    session.execute(statements.retire(tables), {**mine, "names": old})
    session.execute(
        statements.make_live(tables),
        {
            **mine,
            "at_generation": building.generation,
            "names": stored_names(projection.live_tables),
            "filled_by": projection.filled_by,
        },
    )
    _hand_over(session, projection, standing, tables.of_log(projection.log), to=to)


def _hand_over(
    session: Session, projection: Projection, standing: Standing, tables: MessageBusTables, *, to: int
) -> None:
    filler, builder = projection.filled_by, standing.building.subscription
    if filler == INLINE:
        _forget_subscription(session, builder, tables)
        return
    if standing.live_position is None:
        renamed = {"subscription": builder, "new_name": filler}
        session.execute(subscription_statements.rename_subscription(tables), renamed)
    else:
        forgotten = {"subscription": filler}
        session.execute(subscription_statements.remove_deliveries(tables), forgotten)
    moved = {"of_subscription": builder, "new_name": filler}
    session.execute(subscription_statements.rename_deliveries(tables), moved)
    session.execute(history_statements.rename_history(tables), moved)
    session.execute(statements.take_over(tables), {"of_subscription": filler, "to": to})
    _forget_subscription(session, builder, tables)


def remove(
    session: Session, name: str, tables: MessageBusTables, *, states: Sequence[str] = (RETIRED,)
) -> list[Row[Any]]:
    """Drop the tables of the generations of `name` in these states, and forget them. Raises: SettingsError."""
    rows = _generations(session, name, tables)
    if not rows:
        t = tables.projection
        known = session.scalars(t.select().with_only_columns(t.c.name).distinct()).all()
        there = f"there are: {names_of(list(known))}" if known else "none has run yet"
        raise SettingsError("projections", [f"no projection is called {name!r} ({there})"])
    chosen = [row for row in rows if row.state in states]
    for row in chosen:
        _remove(session, row, tables)
    return chosen


def lock_log(session: Session, tables: MessageBusTables) -> Row[Any]:
    """Lock the row of the log that these tables read: creating, moving and dropping a subscription are one at a time."""
    dialect = session.connection().dialect.name
    log = tables.source_log
    session.execute(engine_statements.insert_or_ignore(dialect, tables.log).values(log=log))
    row: Row[Any] = session.execute(engine_statements.lock_log(tables), {"log": log}).one()
    return row


def _remove(session: Session, row: Row[Any], tables: MessageBusTables) -> None:
    if row.state == BUILDING:
        _refuse_leased(session, row, tables)
        _forget_subscription(session, row.subscription, tables)
    ddl.drop(session.connection(), [table_named(name) for name in row.tables.values()])
    session.execute(
        statements.forget_generation(tables), {"of_projection": row.name, "at_generation": row.generation}
    )


def _refuse_leased(session: Session, row: Row[Any], tables: MessageBusTables) -> None:
    mine = {"name": row.subscription}
    at = session.execute(statements.position_of(tables), mine).one_or_none()
    if at is None:
        return
    lock_log(session, tables.of_log(at.log))
    at = session.execute(statements.position_of(tables, locked=True), mine).one_or_none()
    if at is not None and at.leased:
        raise RebuildRefused(row.name, ["another process is building it (stop that one, or wait)"])


def _forget_subscription(session: Session, name: str, tables: MessageBusTables) -> None:
    at = session.execute(statements.position_of(tables), {"name": name}).one_or_none()
    if at is not None:
        of_log = tables.of_log(at.log)
        session.execute(subscription_statements.note_epoch(of_log), {"epoch": at.epoch})
        session.execute(subscription_statements.remove_subscription(tables), {"subscription": name})
    session.execute(subscription_statements.remove_deliveries(tables), {"subscription": name})
    session.execute(history_statements.remove_history(tables), {"subscription": name})


def _generations(session: Session, name: str, tables: MessageBusTables) -> list[Row[Any]]:
    with reading(tables.projection):
        return list(session.execute(statements.generations(tables, locked=True), {"name": name}))


def _live(name: str, rows: Sequence[Row[Any]]) -> Row[Any]:
    live = next((row for row in rows if row.state == LIVE), None)
    if live is None:
        raise RebuildRefused(name, ["it has never run, so there is nothing to take the place of (run it)"])
    return live


def _refuse_other_filler(projection: Projection, live: Row[Any]) -> None:
    if live.subscription != projection.filled_by:
        raise RebuildRefused(
            projection.name,
            [
                (
                    f"its live tables are filled by {live.subscription!r}, but this one by {projection.filled_by!r} "
                    "(a projection is either inline or a subscription)"
                )
            ],
        )


def _subscribe(session: Session, built: Projection, tables: MessageBusTables) -> None:
    """Make the subscription that fills it, behind the log's lock: nothing is pruned from now on that it has not read (S4)."""
    log = lock_log(session, tables)
    if log.pruned_to:
        raise RebuildRefused(
            built.name,
            [
                (
                    f"messages up to position {log.pruned_to} of its log are pruned, so a rebuild would not see them "
                    "(project from the event log, which is kept)"
                )
            ],
        )
    first = {"name": built.filled_by, "partition": 0, "partitions": 1, "log": tables.source_log}
    first |= {"state": ACTIVE, "position": 0, "epoch": log.last_epoch}
    session.execute(subscription_statements.add_partition(tables), first)
