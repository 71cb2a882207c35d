"""Fills the tables of a projection anew, beside the live ones, and compares the two.

    begin ──► fill, batch by batch, through the delivery engine ──► compare at one position ──► (swap)

What fills them is a subscription of its own, `name@generation`, transactional and leased: killed at any moment, it goes on
where it was when it is run again, and two cannot do it at once. Nobody waits for it but the live projection's readers for
the swap. Called by `AsyncProjections`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import (
    on_sync_connection_async,
    on_sync_session_async,
    pause_async,
    plain_session_async,
    result_of_async,
)
from message_bus.bus.context import Context
from message_bus.delivery.jobs import Stop, message_of
from message_bus.delivery.ownership import lent, write_everything
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.delivery.retry import FixedDelay
from message_bus.delivery.worker_async import AsyncWorker
from message_bus.errors import RebuildRefused, Unavailable
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projection_comparing import compare
from message_bus.eventsourcing.projections.projection_state import Verification
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
from message_bus.storage import projection_statements as statements
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.tables import RETRYING, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.eventsourcing")

Progress = Callable[[int, int], object]
"""Is told the position that is reached, and the one that is to be reached."""

BATCH: Final = 1_000
_ATTEMPTS: Final = 3
_WAIT_FOR_LIVE: Final = 5.0  # seconds in which a live projection at work is expected to catch up


class AsyncRebuild:
    """One generation of one projection that is being built."""

    def __init__(
        self,
        projection: Projection,
        generation: int,
        sessions: Callable[[], AsyncSession],
        *,
        tables: MessageBusTables,
        context: Mapping[str, Any],
        lease: timedelta,
    ) -> None:
        self.projection = projection
        self.generation = generation
        self.built = projection.building(generation)
        self._sessions = sessions
        self._tables = tables.of_log(projection.log)
        self._lease = lease
        self.context = dict(context)  # what a worker takes from its bus
        self._watermark = AsyncWatermark(self._tables)

    async def fill(self, progress: Progress | None = None) -> int:
        """Handle whatever it has not handled yet; where it stands then.

        Raises: RebuildRefused if another process is at it; Unavailable; what waiting does not mend.
        """
        assert self.built.subscription is not None
        settings = replace(
            self.built.subscription,
            messages_per_commit=BATCH,
            fetch_size=BATCH,
            commit_within=timedelta(seconds=1),
            max_attempts=_ATTEMPTS,
            backoff=FixedDelay(0),
        )
        return await self._work(self.built, settings, wait=True, progress=progress)

    async def catch_up(self, progress: Progress | None = None) -> int:
        """`fill`, and again what was written meanwhile, as long as that becomes less; where it stands then.

        Returns at most a batch behind the live tables, unless more is written than it handles: see `gap`.
        """
        position = await self.fill(progress)
        behind = await self.gap()
        while behind > BATCH:
            position = await self.fill(progress)
            before, behind = behind, await self.gap()
            if behind >= before:
                break
        return position

    async def _work(
        self, projection: Projection, settings: Any, *, wait: bool, progress: Progress | None = None
    ) -> int:
        async with self._sessions() as session:
            connection = await session.connection()
            await on_sync_connection_async(connection, check_reader)
            await on_sync_connection_async(connection, check_log, self._tables)
            look = await self._watermark.look(connection)
            await session.commit()
            if wait and (await self._both(session))[0] is None:
                raise RebuildRefused(
                    self.projection.name, ["somebody else has swapped or dropped what was built (list them)"]
                )
            await session.commit()
            worker = AsyncWorker(
                self, projection, settings, 0, tables=self._tables, watermark=self._watermark,
                lease=self._lease, stop=Stop(),
            )  # fmt: skip
            await self._claim(worker, session, wait=wait)
            try:
                async with worker.beating(session):
                    position = await self._to_the_end(worker, session, look.high, progress)
            except Exception:
                await worker.release(session, or_leave=True)
                raise
            await worker.release(session)
        return position

    async def _claim(self, worker: AsyncWorker, session: AsyncSession, *, wait: bool) -> None:
        """Take the lease. That of a rebuild that was killed ends by itself; then this one goes on."""
        ends_at = monotonic() + (self._lease.total_seconds() * 1.5 if wait else 0)
        told = not wait
        while not await worker.claim(session):
            if monotonic() >= ends_at:
                raise RebuildRefused(
                    self.projection.name,
                    [
                        (
                            f"another process is at work on subscription {worker.settings.name!r} "
                            "(let it end, or stop it and wait for its lease to end)"
                        )
                    ],
                )
            if not told:
                told = True
                logger.warning("subscription %r is leased: its lease is waited for", worker.settings.name)
            await pause_async(0.1)

    async def _to_the_end(
        self, worker: AsyncWorker, session: AsyncSession, goal: int, progress: Progress | None
    ) -> int:
        patience = AsyncPatience()
        again = _ATTEMPTS
        assert worker.lease is not None
        while True:
            tally = await worker.run(session, limit=BATCH, patience=patience)
            if tally.outage is not None:
                raise Unavailable(
                    f"{type(tally.outage).__name__} while {worker.settings.name!r} was filled; nothing is lost, run again"
                ) from tally.outage
            position = worker.lease.at.position
            if progress is not None:
                progress(position, max(goal, position))
            if tally.tried and position < goal and not tally.suspicious:
                continue  # what is written meanwhile may run away from it for ever
            again -= 1
            if again <= 0 or not await self._is_retrying(worker, session):
                return position

    async def _is_retrying(self, worker: AsyncWorker, session: AsyncSession) -> bool:
        found = await session.execute(
            statements.failed_positions(self._tables), {"subscription": worker.settings.name}
        )
        retrying = any(state == RETRYING for _, state in found)
        await session.commit()
        return retrying

    async def failures(self, session: AsyncSession, subscription: str) -> list[tuple[int, str]]:
        """What is recorded for a subscription: positions and states. Leaves the transaction open."""
        found = await session.execute(
            statements.failed_positions(self._tables), {"subscription": subscription}
        )
        return [(row.position, row.state) for row in found]

    async def bring(self, session: AsyncSession, *, after: int, to: int | None) -> int:
        """Handle what lies after one position, up to another, in this very transaction; the last position.

        Without `to`: everything that this transaction can see. Everything up to `to` must be settled.

        Raises: what a handler raises.
        """
        names = self.projection.message_names
        look = statements.visible_after(self._tables, names, bounded=to is not None)
        while True:
            parameters = {"after": after, "limit": BATCH, **({} if to is None else {"to": to})}
            rows = (await session.execute(look, parameters)).all()
            with lent(plain_session_async(session)):
                for row in rows:
                    context = Context(
                        {
                            **self.context,
                            "db_session": session,
                            "outbox": AsyncSQLAlchemyOutBoxRepo(session, tables=self._tables),
                            "attempt": 1,
                        }
                    )
                    await result_of_async(self.built.handle(message_of(row), context))
                    after = row.position
            await on_sync_session_async(session, write_everything)
            if len(rows) < BATCH:
                return after if to is None else max(after, to)

    async def verify(self) -> Verification:
        """Compare live and rebuilt tables at one position, while the live ones are at work; changes nothing.

        In one snapshot (on SQLite: while nobody writes) the rebuilt tables are brought to where the live ones stand, compared,
        and put back by a rollback. If the live tables are of another version, rows are only counted.

        Raises: RebuildRefused if the live projection does not get as far as the rebuilt one stands.
        """
        await self._let_live_catch_up()
        async with self._sessions() as session:
            try:
                options = {"isolation_level": "REPEATABLE READ"}
                dialect = plain_session_async(session).get_bind(clause=self._tables.subscription).dialect.name
                await session.connection(execution_options=options if dialect == "postgresql" else {})
                found, live, version = await self._both(session)
                position = at = found or 0
                why_not = None
                if version != self.projection.version:
                    why_not = f"the live tables are version {version}"
                elif self.projection.inline:
                    position = await self.bring(session, after=at, to=None)
                elif live is None:
                    why_not = "the live projection has no place in the log yet"
                elif live < at:
                    why_not = f"the live projection stands at {live}, behind the rebuilt one at {at}"
                else:
                    position = await self.bring(session, after=at, to=live)
                pairs = {
                    name: (table, self.built.table(name))
                    for name, table in self.projection.live_tables.items()
                }
                compared = await on_sync_session_async(
                    session, compare, pairs, only_count=why_not is not None
                )
                return Verification(position=position, tables=tuple(compared), why_not=why_not)
            finally:
                await session.rollback()

    async def _let_live_catch_up(self) -> None:
        """The live projection is brought forward if nobody else does: by the engine, in transactions of its own."""
        if self.projection.inline:
            return
        ends_at = monotonic() + _WAIT_FOR_LIVE
        while monotonic() < ends_at:
            async with self._sessions() as session:
                at, live, version = await self._both(session)
            if live is None or at is None or version != self.projection.version or live >= at:
                return
            try:
                await self._work(self.projection, self.projection.subscription, wait=False)
            except RebuildRefused:  # its relay is at work
                await pause_async(0.05)

    async def gap(self) -> int:
        """How many positions it stands behind the live tables; 0 if it is not known where those stand."""
        async with self._sessions() as session:
            at, live, _ = await self._both(session)
            if self.projection.inline:
                live = (await self._watermark.look(await session.connection())).settled
        return 0 if live is None or at is None else live - at

    async def _both(self, session: AsyncSession) -> tuple[int | None, int | None, int]:
        """Where the rebuilt and the live one stand, if they have a place, and the version of the live tables."""
        row = (await session.execute(statements.live(self._tables), {"name": self.projection.name})).one()
        places: list[int | None] = []
        for name in (self.built.filled_by, row.subscription):
            at = (await session.execute(statements.position_of(self._tables), {"name": name})).one_or_none()
            places.append(None if at is None else int(at.position))
        return places[0], places[1], int(row.version)
