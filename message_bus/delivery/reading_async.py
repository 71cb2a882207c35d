"""Reads what a subscription's partition is to handle next: due rows from the delivery table, new rows from the log.

Each read is one short READ COMMITTED transaction of its own, so that the reader's settings do not reach the handlers,
and it reads in the order look, then rows (W3). What comes back are plain rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Final

from sqlalchemy import Row, Select
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import on_sync_connection_async, on_sync_session_async
from message_bus.delivery.jobs import READ, Batch, Job, Position, message_of
from message_bus.delivery.lease_async import AsyncLease
from message_bus.delivery.subscription import Subscription
from message_bus.messages.definition import definition_of
from message_bus.storage import statements
from message_bus.storage.driver import Rendered
from message_bus.storage.logs import quoted_name
from message_bus.storage.settled import Look, check_checkpoint
from message_bus.storage.tables import BLOCKING, DEAD, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

_ALWAYS: Final = float("-inf")  # by a clock that may begin anywhere
LONGEST_GUESS: Final = 1.0  # seconds: the database's clock may be set, and then what we know of it is wrong


class AsyncReader:
    """Reads for one partition of one subscription; `looked` is what its last look at the log found."""

    def __init__(
        self, tables: MessageBusTables, settings: Subscription, partition: int, watermark: AsyncWatermark
    ) -> None:
        names: tuple[str, ...] | None = None
        if settings.types is not None:
            definitions = [definition_of(cls) for cls in settings.types]
            names = tuple(name for d in definitions for name in (d.name, *d.renamed_from))
        part = {"partitions": settings.partitions, "partition": partition}
        hold = settings.on_dead_letter == "hold"
        self.looked = Look(settled=0, high=0)
        self._settings = settings
        self._names = names
        self._watermark = watermark
        self._blocking = [*BLOCKING, DEAD] if hold else [*BLOCKING]
        self._new_rows = {
            light: statements.new_rows(tables, names=names, light=light, **part) for light in (False, True)
        }
        self._due_rows = {
            light: statements.due_rows(tables, hold_dead=hold, light=light, **part) for light in (False, True)
        }
        self._failures_ahead = statements.failures_ahead(tables, hold_dead=hold)
        self._row_at = statements.row_at(tables)
        self._leftovers = statements.leftovers(tables, names=names, **part)
        self._advance_and_read = {
            guarded: Rendered(
                statements.advance_and_read(tables, names=names, hold_dead=hold, guarded=guarded, **part)
            )
            for guarded in (False, True)
        }
        self._table = tables.log_table(tables.source_log)
        self._name: str | None = None
        self._ahead: tuple[int, Batch] | None = None
        self.failures = True
        """Whether rows of the delivery table may be due, or block a key: only the owner and operators make such rows."""
        self._not_due_before = _ALWAYS
        self._blocked_keys: Select[*tuple[Any, ...]] = statements.blocked_keys(tables)

    def reads(self, message: str | None) -> bool:
        """Whether messages of this type are the subscription's: `types` may have had it once, or an operator held it."""
        return self._names is None or message is None or message in self._names

    @property
    def may_be_due(self) -> bool:
        """Whether to ask for what is due: there is something, and it is not known to wait for longer."""
        return self.failures and monotonic() >= self._not_due_before

    def expect_due(self) -> None:
        """Ask the next time: the owner or an operator has changed something, or somebody has seen what is due."""
        self._not_due_before = _ALWAYS

    async def now(self, session: AsyncSession) -> datetime:
        """The database's clock. Leaves the transaction open."""
        found: datetime = (await session.execute(statements.now())).scalar_one()
        return found

    async def leftovers(self, session: AsyncSession) -> Sequence[Row[Any]]:
        """What the last owner was trying, and dead letters of unknown types. Leaves the transaction open."""
        return (await session.execute(self._leftovers, {"subscription": self._settings.name})).all()

    async def whole(self, session: AsyncSession, job: Job) -> Job | None:
        """The message with its payload, which careful reads leave out (S6); None if it is gone. Ends its transaction."""
        row = (await session.execute(self._row_at, {"position": job.position})).one_or_none()
        await session.commit()
        return None if row is None else job._replace(message=message_of(row))

    async def due(self, session: AsyncSession, *, now: datetime, light: bool = False) -> tuple[Job, ...]:
        """Failed rows due at `now`, and held rows that wait for none but these. Ends its transaction.

        `light`: without payloads.
        """
        rows = await session.execute(
            self._due_rows[light],
            {"subscription": self._settings.name, "now": now, "limit": self._settings.fetch_size},
        )
        jobs = tuple(Job(message_of(row), row[0], row.state, row.attempts, row.crashes) for row in rows)
        if not jobs:
            asked_at = monotonic()
            found = await session.execute(self._failures_ahead, {"subscription": self._settings.name})
            self.failures, next_due, now = found.one()
            ahead = LONGEST_GUESS if next_due is None else (next_due - now).total_seconds()
            self._not_due_before = asked_at + min(ahead, LONGEST_GUESS)
        await session.commit()
        return jobs

    async def new(
        self, session: AsyncSession, lease: AsyncLease, *, limit: int, light: bool = False
    ) -> Batch:
        """The next new rows after the checkpoint, as far as the log is settled. Ends its transaction.

        `light`: without payloads.

        Raises: PositionBehind if the checkpoint is ahead of the log (W8). LeaseLost.
        """
        after = lease.at.position
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == after:
            return ahead[1]
        connection = await session.connection()
        if self._name is None and connection.dialect.name == "postgresql":
            self._name = await on_sync_connection_async(connection, quoted_name, self._table)
        look = await self._watermark.look(connection)
        check_checkpoint(look, after, log=self._watermark.log)
        jobs: list[Job] = []
        blocked: frozenset[str] = frozenset()
        if look.settled > after:
            found = await session.execute(
                self._new_rows[light], {"after": after, "settled": look.settled, "limit": limit}
            )
            jobs = [Job(message_of(row), row[0]) for row in found]
            keys = {job.message.key for job in jobs if job.message.key is not None}
            if keys and self.failures:
                blocked = await self.blocked(session, keys)
                # in a later statement: else what blocked may be gone with the lease (G3)
                await lease.check(session)
        await session.commit()
        self.looked = look
        return self._batch(jobs, blocked, after=after, limit=limit)

    def _batch(self, jobs: Sequence[Job], blocked: frozenset[str], *, after: int, limit: int) -> Batch:
        full = len(jobs) == limit
        # S8: a short read has seen everything up to the settled position, whatever is missing in between
        up_to = jobs[-1].position if full else max(self.looked.settled, after)
        return Batch(tuple(jobs), blocked, up_to)

    async def advance(self, session: AsyncSession, lease: AsyncLease, to: int, *, ahead: int = 0) -> Position:
        """Move the checkpoint to `to`, the last statement before COMMIT; read `ahead` rows for `new` in the same one.

        The rows lie below the settled position of the last look, so another look would change nothing.

        On PostgreSQL only. Raises: LeaseLost.
        """
        self._ahead = None
        if not ahead or self.looked.settled <= to or self._name is None:
            return await lease.advance(session, to)
        parameters = {
            **lease.advancing(to),
            "after": to,
            "settled": self.looked.settled,
            "limit": ahead,
            "log_table": self._name,
        }
        statement = self._advance_and_read[lease.guarded]
        rows, _ = await on_sync_session_async(session, statement.run, parameters)
        if not rows:
            return await lease.advance(session, to)  # an operator has decided something, or the lease is lost
        self.failures, hidden = rows[0][READ], rows[0][READ + 1]
        if rows[0][0] is not None and not self.failures and not hidden:
            jobs = [Job(message_of(row), row[0]) for row in rows]
            self._ahead = (to, self._batch(jobs, frozenset(), after=to, limit=ahead))
        return lease.next(to)

    def forget(self) -> None:
        """Nothing that was read ahead is to be used any more: nobody knows whether the commit has happened."""
        self._ahead = None

    async def blocked(self, session: AsyncSession, keys: set[str]) -> frozenset[str]:
        """Those of `keys` that have a row which blocks them (S3)."""
        rows = await session.scalars(
            self._blocked_keys,
            {"subscription": self._settings.name, "keys": sorted(keys), "blocking": self._blocking},
        )
        return frozenset(rows)
