"""One partition of one subscription, worked on by this process: claim its lease, run it, give the lease back.

    claim ──► run, run, run ... ──► release

`process_outbox` does this once for each partition; a relay keeps the lease between runs, for as long as it lives. The
lease is renewed on a connection of its own, a third of its time apart, from `beating()` to its end. A worker opens no
session: it is given one for each step, and commits it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import NullPool, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from message_bus._compat import AsyncTicker
from message_bus.delivery.changes_async import AsyncRecorder
from message_bus.delivery.engine_async import AsyncConcurrentRun, AsyncRun, AsyncTransactionalRun
from message_bus.delivery.hands_async import AsyncHands
from message_bus.delivery.jobs import Stop, Tally
from message_bus.delivery.lease_async import AsyncLease, claim_async
from message_bus.delivery.observed import Observed
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.delivery.reading_async import AsyncReader
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.telling import log_end_of_outage, log_outage
from message_bus.delivery.turns_async import AsyncTurns
from message_bus.observability.observer import Part
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.delivery")


class AsyncWorker:
    """Works on one partition; one task at a time. `stop.asked` ends a run after the group that is in hand."""

    def __init__(
        self,
        bus: Any,
        handler: Any,
        settings: Subscription,
        partition: int,
        *,
        tables: MessageBusTables,
        watermark: AsyncWatermark,
        lease: timedelta,
        stop: Stop,
        hands: AsyncHands | None = None,
        turns: AsyncTurns | None = None,
    ) -> None:
        self.settings = settings
        self.partition = partition
        self.lease: AsyncLease | None = None
        self.reader: AsyncReader | None = None
        self._bus = bus
        self._handler = handler
        self._tables = tables
        self._watermark = watermark
        self._lease_time = lease
        self._stop = stop
        self._hands = AsyncHands() if hands is None else hands
        self._turns = AsyncTurns() if turns is None else turns
        self._not_given_back: AsyncLease | None = None
        self._outage = False
        self.observed = Observed(
            getattr(bus, "observer", None),
            Part(
                subscription=str(settings.name), partition=partition, log=tables.source_log, handler=handler
            ),
        )
        self._recorder: AsyncRecorder | None = None

    async def claim(self, session: AsyncSession) -> bool:
        """Take the lease without waiting; False if somebody else has it."""
        claimed = await claim_async(
            session,
            self._tables,
            self.settings,
            self.partition,
            lease=self._lease_time,
            before=self._not_given_back,
        )
        await session.commit()
        self.lease = claimed
        if claimed is not None:
            self._not_given_back = None
        self.reader = AsyncReader(self._tables, self.settings, self.partition, self._watermark)
        if claimed is None:
            return False
        self._recorder = AsyncRecorder(self._tables, claimed, self.reader)
        self.observed.observers = getattr(self._bus, "observer", None)
        self.observed.know(claimed.claimed_at, claimed.asked_at)
        self.observed.leased("taken over" if claimed.taken_over else "claimed")
        return True

    async def run(
        self, session: AsyncSession, *, limit: int | None = None, patience: AsyncPatience | None = None
    ) -> Tally:
        """Handle messages until nothing is left, `limit` were tried, a stop is asked, or something is out of reach.

        `patience`: how long to wait for rows that are not settled yet; None: not at all.

        Raises: LeaseLost; errors of the database. What was in hand is rolled back.
        """
        assert self.lease is not None, "claim first"
        assert self.reader is not None
        assert self._recorder is not None
        mode = self.settings.mode or self._handler.default_mode
        kind: type[AsyncRun] = AsyncTransactionalRun if mode == "transactional" else AsyncConcurrentRun
        run = kind(
            session,
            self._handler,
            tables=self._tables,
            settings=self.settings,
            lease=self.lease,
            reader=self.reader,
            recorder=self._recorder,
            context=self._bus.context,
            registry=getattr(self._bus, "registry", None),
            stop=self._stop,
            observed=self.observed,
            hands=self._hands,
            turns=self._turns,
        )
        tally = await run.run(limit=limit, patience=patience)
        if tally.outage is not None and not self._outage:
            log_outage(self.observed.part, self.settings, tally.outage)
            self.observed.out_of_reach(True)
        elif self._outage and tally.outage is None:
            log_end_of_outage(self.observed.part)
            self.observed.out_of_reach(False)
        self._outage = tally.unavailable
        return tally

    @asynccontextmanager
    async def beating(self, session: AsyncSession) -> AsyncIterator[None]:
        """Renew the lease meanwhile, if the session's engine can give another connection."""
        assert self.lease is not None, "claim first"
        engine = _engine_for_heartbeats(session)
        if engine is None:
            yield
            return
        async with AsyncTicker(_AsyncHeartbeat(engine, self.lease), self._lease_time / 3):
            yield

    async def release(self, session: AsyncSession, *, or_leave: bool = False) -> None:
        """Give the lease back; only with no batch in hand (S6). `or_leave`: or leave it to expire, if that fails."""
        lease, self.lease = self.lease, None
        if lease is None:
            return
        try:
            if or_leave:
                await session.rollback()  # what has failed may have left its transaction open
            await lease.release(session)
            await session.commit()
            self.observed.leased("released")
        except Exception as error:
            if not or_leave:
                raise
            self._not_given_back = (
                lease  # as long as nobody else takes it, this worker goes on where it was (S6)
            )
            await session.rollback()
            logger.warning(
                "the lease of subscription %r is left to expire: %s",
                self.settings.name,
                type(error).__name__,
                extra={"subscription": self.settings.name, "partition": self.partition},
            )


def _engine_for_heartbeats(session: AsyncSession) -> AsyncEngine | None:
    """Where a heartbeat can come from: not inside somebody's transaction, and from a connection of its own.

    Pools that hand out one connection to everybody, as for SQLite in memory, would let it commit our transaction.
    """
    bind = session.bind
    return bind if isinstance(bind, AsyncEngine) and isinstance(bind.pool, QueuePool | NullPool) else None


class _AsyncHeartbeat:
    """Renews a lease on a connection of its own while handlers run."""

    def __init__(self, engine: AsyncEngine, lease: AsyncLease) -> None:
        self._engine = engine
        self._lease = lease

    async def __call__(self) -> bool:
        try:
            async with AsyncSession(self._engine) as session:
                try:
                    renewed = await self._lease.renew(session)
                except Exception as error:
                    if is_outage(error):
                        await session.invalidate()  # it may lead to what was the primary before a failover
                    raise
                await session.commit()
                return renewed
        except Exception as error:
            if not is_outage(error):
                logger.exception("the heartbeat of subscription %r failed", self._lease.settings.name)
            return (
                True  # the next beat may come through; if none does, the lease ends and the commit is refused
            )
