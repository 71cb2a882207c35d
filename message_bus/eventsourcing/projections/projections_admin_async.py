"""Projections for those who operate them: list, rebuild, verify, swap, drop. `message-bus projections` only wraps this.

    rebuild ──► verify ──► swap ──► drop          any of them may be killed: run it again

Every step has transactions of its own. A swap is one: the tables are exchanged, and so is the place in the log; whoever
worked on the old ones can commit nothing any more (G6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from message_bus._compat import on_sync_connection_async, on_sync_session_async, pause_async
from message_bus.errors import RebuildRefused, SettingsError
from message_bus.eventsourcing.missing_tables import reading
from message_bus.eventsourcing.projections import projection_changes as changes
from message_bus.eventsourcing.projections import projection_ddl as ddl
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projection_state import (
    ProjectionStatus,
    Rebuilt,
    Swapped,
    Verification,
    new_failures,
)
from message_bus.eventsourcing.projections.projection_tables import copies_of, stored_names
from message_bus.eventsourcing.projections.rebuilding_async import AsyncRebuild, Progress
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import projection_statements as statements
from message_bus.storage.event_tables import BUILDING, RETIRED
from message_bus.storage.tables import DEAD, MessageBusTables

logger = logging.getLogger("message_bus.eventsourcing")

Statuses = list[ProjectionStatus]  # inside the class `list` is the method
Names = list[str]

_LEASE: Final = timedelta(seconds=30)
_LOCKS_WITHIN: Final = timedelta(seconds=2)
_TRIES: Final = 10
MOST_BEHIND_LOCKS: Final = 10_000
"""Positions that a swap handles while readers and writers of the tables wait; the handlers decide how long that is."""
_NO_TABLE: Final = "42P01"
_BUSY: Final = ("55P03", "40P01")  # lock_not_available, deadlock_detected


class AsyncProjections:
    """The projections of one set of tables. It opens sessions of its own and commits them.

    `sessions`: a sessionmaker or an engine. `context`: what handlers find in their context besides the session
    (`bus.context`). `lease`: how long a rebuild may be silent (killed, frozen) before another process may go on with it.
    Methods that take a projection want the object that a relay would be given: the code decides what is built.

    Raises: SettingsError for anything else as `sessions`.
    """

    def __init__(
        self,
        sessions: Callable[[], AsyncSession] | AsyncEngine,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
        context: Mapping[str, Any] | None = None,
        lease: timedelta = _LEASE,
    ) -> None:
        if not isinstance(sessions, AsyncEngine) and not callable(sessions):
            raise SettingsError(
                type(self).__name__,
                [f"it works on a sessionmaker or an engine, not on {type(sessions).__name__!r}"],
            )
        self._given = sessions
        self.tables = tables
        self._context = dict(context or {})
        self._lease = lease

    def _sessions(self) -> AsyncSession:
        return AsyncSession(self._given) if isinstance(self._given, AsyncEngine) else self._given()

    async def list(self) -> Statuses:
        """Return every generation of every projection that has run, by name.

        Counts the messages behind each checkpoint: on a log with millions of them that takes a moment.
        """
        async with self._sessions() as session:
            look = statements.overview(self.tables)
            with reading(self.tables.projection):
                rows = (await session.execute(look)).all()
        return [
            ProjectionStatus(
                name=row.name,
                generation=row.generation,
                version=row.version,
                state=row.state,
                subscription=row.subscription,
                position=row.position,
                lag=row.lag,
                tables=row.tables,
                created_at=row.created_at,
                swapped_at=row.swapped_at,
            )
            for row in rows
        ]

    async def rebuild(self, projection: Projection, *, progress: Progress | None = None) -> Rebuilt:
        """Fill tables of its own, `<table>__<generation>`, from the beginning of the log; verify them.

        The live projection and all writers go on meanwhile (on SQLite they take turns); what they write is handled too, until
        it stands at most 1,000 positions behind the live tables or does not come nearer. Killed or interrupted: run it again,
        it goes on where it was (G5). `progress` is called with the position reached and the one to be reached. Events whose
        handler fails three times are left out, and listed. The tables wait for `swap`, which catches up before.

        Raises: RebuildRefused; Unavailable; WiringError for a handler of the other colour; errors of the database.
        """
        _refuse_name(projection)
        async with self._sessions() as session:
            projection.refuse_colour_of(session)
            generation = await on_sync_session_async(session, changes.begin, projection, self.tables)
            await session.commit()
        rebuild = self._rebuild(projection, generation)
        position = await rebuild.catch_up(progress)
        failed = await self._failed(rebuild)
        return Rebuilt(
            name=projection.name,
            generation=generation,
            version=projection.version,
            position=position,
            failed=failed,
            verification=await rebuild.verify(),
        )

    async def verify(self, projection: Projection) -> Verification:
        """Compare what was built with the live tables once more, at one position; changes nothing.

        Raises: RebuildRefused if nothing is built.
        """
        return await self._rebuild(projection, await self._building(projection)).verify()

    async def swap(self, projection: Projection, *, force: bool = False, by: str | None = None) -> Swapped:
        """Let the rebuilt tables take the place, and the names, of the live ones; in one transaction.

        It catches up first. Then, behind locks that keep everybody off both, the rebuilt tables are brought to the very
        position of the live ones and renamed; the live subscription goes on from there with the new ones: nothing is lost or
        doubled (G5, G6). Readers wait for a moment. Refused, unless `force`: what failed in the rebuild but not in the live
        projection; and more than 10,000 positions that are still to be handled behind the locks, because events are written
        as fast as the rebuild handles them. `by`: who decides, for the log.

        Raises: RebuildRefused, with nothing changed; Unavailable; errors of the database.
        """
        rebuild = self._rebuild(projection, await self._building(projection))
        swapped = await self._swap_patiently(rebuild, force=force)
        logger.warning(
            "generation %d of projection %r is live at position %d, by %s",
            swapped.generation,
            swapped.name,
            swapped.position,
            by or "somebody who gave no name",
            extra={"action": "swap", "by": by, "subscription": projection.filled_by},
        )
        return swapped

    async def drop(self, name: str, *, building: bool = False, by: str | None = None) -> Names:
        """Drop the retired tables of a projection; with `building` also what is being built. Names of the tables.

        Raises: SettingsError if there is no such projection; RebuildRefused if a process is building it.
        """
        async with self._sessions() as session:
            states = (RETIRED, BUILDING) if building else (RETIRED,)
            rows = await on_sync_session_async(session, changes.remove, name, self.tables, states=states)
            await session.commit()
        dropped = [table for row in rows for table in row.tables.values()]
        if dropped:
            logger.warning(
                "tables of projection %r are dropped, by %s: %s",
                name,
                by or "somebody who gave no name",
                ", ".join(dropped),
                extra={"action": "drop", "by": by},
            )
        return dropped

    async def _swap_patiently(self, rebuild: AsyncRebuild, *, force: bool) -> Swapped:
        for attempt in range(1, _TRIES + 1):
            await rebuild.catch_up()
            reasons = [] if force else await self._reasons_to_refuse(rebuild)
            if reasons:
                raise RebuildRefused(rebuild.projection.name, reasons)
            try:
                return await self._swap(rebuild)
            except DBAPIError as error:
                if _code_of(error) == _NO_TABLE:
                    raise RebuildRefused(
                        rebuild.projection.name,
                        ["somebody else has swapped or dropped it meanwhile (list them)"],
                    ) from error
                if _code_of(error) not in _BUSY or attempt == _TRIES:
                    raise
                await pause_async(0.05 * attempt)
        raise AssertionError("the last attempt has returned or raised")  # pragma: no cover

    async def _reasons_to_refuse(self, rebuild: AsyncRebuild) -> Names:
        reasons: Names = []
        behind = await rebuild.gap()
        if behind > MOST_BEHIND_LOCKS:
            reasons.append(
                f"it stands {behind:,} positions behind the live tables and does not come nearer: all would wait while it "
                "handles them (swap when less is written; force: let them wait)"
            )
        failed = await self._failed(rebuild)
        if failed:
            at = ", ".join(map(str, failed[:5]))
            reasons.append(
                f"events at {at} failed in the rebuild (message-bus dead-letters; force: leave them out)"
            )
        return reasons

    async def _swap(self, rebuild: AsyncRebuild) -> Swapped:
        projection = rebuild.projection
        async with self._sessions() as session:
            both = (
                *projection.live_tables.values(),
                *copies_of(projection.live_tables, rebuild.generation).values(),
            )
            connection = await session.connection()
            await on_sync_connection_async(connection, ddl.lock, both, within=_LOCKS_WITHIN)
            standing = await on_sync_session_async(session, changes.lock_for_swap, projection, self.tables)
            if standing.building.generation != rebuild.generation:
                raise RebuildRefused(projection.name, ["somebody else has swapped or rebuilt it meanwhile"])
            to = standing.position
            if projection.inline:  # what can be seen behind the locks is what the live tables have
                to = await rebuild.bring(session, after=to, to=None)
            elif standing.live_position is not None and standing.live_position > to:
                to = await rebuild.bring(session, after=to, to=standing.live_position)
            await on_sync_session_async(session, changes.swap, projection, standing, self.tables, to=to)
            await session.commit()
        retired = int(standing.live.generation)
        return Swapped(
            name=projection.name,
            generation=rebuild.generation,
            version=projection.version,
            position=to,
            retired=retired,
            tables=stored_names(copies_of(projection.live_tables, retired)),
        )

    async def _building(self, projection: Projection) -> int:
        _refuse_name(projection)
        async with self._sessions() as session:
            look = statements.generations(self.tables)
            with reading(self.tables.projection):
                rows = (await session.execute(look, {"name": projection.name})).all()
        generation = changes.building_of(projection, rows).generation
        return int(generation)

    async def _failed(self, rebuild: AsyncRebuild) -> tuple[int, ...]:
        async with self._sessions() as session:
            rebuilt = await rebuild.failures(session, rebuild.built.filled_by)
            live = await rebuild.failures(session, rebuild.projection.filled_by)
        return new_failures(rebuilt, live, dead=DEAD)

    def _rebuild(self, projection: Projection, generation: int) -> AsyncRebuild:
        return AsyncRebuild(
            projection,
            generation,
            self._sessions,
            tables=self.tables,
            context=self._context,
            lease=self._lease,
        )


def _refuse_name(projection: object) -> None:
    """Raise SettingsError for a name or a class: the object knows what is to be built, and with which upcasters."""
    if isinstance(projection, Projection):
        return
    given = (
        f"the class {projection.__name__!r}"
        if isinstance(projection, type)
        else repr(type(projection).__name__)
    )
    remedy = f"{projection.__name__}()" if isinstance(projection, type) else "OrderTotals()"
    raise SettingsError(
        "projections", [f"{given} is no projection (give the object that a relay would run: {remedy})"]
    )


def _code_of(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
