"""How far a projection is, and waiting until it is far enough. The shells behind `Projection.lag` and `.wait_for`.

A wait looks over another connection of the session's engine, each time in a short transaction of its own.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, NullPool, QueuePool
from sqlalchemy.orm import Session

from message_bus._compat import pause, pause_async
from message_bus.eventsourcing.missing_tables import reading
from message_bus.eventsourcing.projections.projection_state import Lag, poll_pauses
from message_bus.storage import projection_statements as statements
from message_bus.storage.tables import ACTIVE, MessageBusTables

if TYPE_CHECKING:
    from message_bus.eventsourcing.projections.projection import Projection


def this_moment(session: Any) -> Any:
    """The session itself; behind a scoped session the one of this moment."""
    registry = getattr(session, "registry", None)
    return registry() if callable(registry) else session


def lag_of(session: Any, projection: Projection, tables: MessageBusTables) -> Lag:
    """How many messages it is behind, and since when. In the session's transaction."""
    tables = tables.of_log(projection.log)
    mine = {"name": projection.filled_by}
    with reading(tables.subscription):
        standing = session.execute(statements.position_of(tables), mine).one_or_none()
    position = 0 if standing is None else int(standing.position)
    if projection.inline:
        return Lag(position=position, messages=0, age=timedelta(0))
    names = projection.message_names
    row = session.execute(statements.behind(tables, names), {"position": position}).one()
    age = timedelta(0) if row.oldest is None else max(row.now - row.oldest, timedelta(0))
    return Lag(position=position, messages=row.messages, age=age)


def wait_for(
    session: Any, projection: Projection, position: int, timeout: float, tables: MessageBusTables
) -> None:
    """Look again and again until everything up to the position is there. Raises: TimeoutError."""
    if projection.inline:
        return
    standing: Any = None
    for seconds in (*poll_pauses(timeout), None):
        standing = _on_fresh(session, projection, position, tables)
        if _has_reached(standing, position):
            return
        if seconds is not None:
            pause(seconds)
    raise _timed_out(projection, standing, position, timeout)


async def wait_for_async(
    session: Any,
    projection: Projection,
    position: int,
    timeout: float,  # noqa: ASYNC109  (it says where it stands)
    tables: MessageBusTables,
) -> None:
    """The same; other tasks run meanwhile."""
    if projection.inline:
        return
    standing: Any = None
    for seconds in (*poll_pauses(timeout), None):
        standing = await session.run_sync(_on_fresh, projection, position, tables)
        if _has_reached(standing, position):
            return
        if seconds is not None:
            await pause_async(seconds)
    raise _timed_out(projection, standing, position, timeout)


def _on_fresh(
    session: Session | Connection, projection: Projection, position: int, tables: MessageBusTables
) -> Any:
    """Where it stands, as a new transaction sees it, if the session's engine can give one.

    Pools that hand out one connection to everybody, as for SQLite in memory, would give the session's own.
    """
    look = statements.reached(tables)
    parameters = {"name": projection.filled_by, "position": position}
    own = isinstance(session, Connection) or isinstance(session.bind, Connection)
    bind = session.engine if isinstance(session, Connection) else session.get_bind(clause=tables.subscription)
    with reading(tables.subscription):
        if own or not isinstance(bind, Engine) or not isinstance(bind.pool, QueuePool | NullPool):
            return session.execute(look, parameters).one_or_none()
        with bind.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            return connection.execute(look, parameters).one_or_none()


def _has_reached(standing: Any, position: int) -> bool:
    return standing is not None and standing.position >= position and not standing.missing


def _timed_out(projection: Projection, standing: Any, position: int, timeout: float) -> TimeoutError:
    if standing is None:
        where, remedy = "it has never run", "run a relay with it"
    elif standing.position >= position:
        where, remedy = "something up to there has failed", "message-bus dead-letters list, message-bus why"
    else:
        paused = "" if standing.state == ACTIVE else f" and is {standing.state}"
        where, remedy = f"it stands at {standing.position}{paused}", "is its relay running?"
    return TimeoutError(
        f"projection {projection.name!r} is not at position {position} after {timeout:g} s: {where} ({remedy})"
    )
