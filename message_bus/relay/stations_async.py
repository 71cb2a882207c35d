"""One partition of one subscription in a relay: claim it or stand by, run it, wait, run it again; never die of an outage.

    standby ◄──taken── claim ──► working ◄──wanted──► waiting ──stop, pause, lease lost──► released
                                    └── out of reach ──► waiting, longer and longer

The lease is kept while nothing is to be done. Called by the relay in a thread (task) of its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import bound_to_async
from message_bus.delivery.jobs import Tally
from message_bus.delivery.worker_async import AsyncWorker
from message_bus.errors import LeaseLost, WiringError
from message_bus.observability.observer import Cause
from message_bus.relay.board import AsyncBoard
from message_bus.relay.pace import Backoff, pause_before_next_run
from message_bus.repositories.waiting import clause_for
from message_bus.storage.outages import is_outage, is_read_only
from message_bus.storage.signs import Part
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.relay")

STARTING, STANDBY, IDLE, WORKING, WAITING, UNAVAILABLE = (
    "starting",
    "standby",
    "idle",
    "working",
    "waiting",
    "unavailable",
)

LONGEST_TRUST = 10.0  # seconds: then a station tries for itself, whatever keeps the watcher from looking
PROBING = 0.5  # seconds between two attempts to go on, while everything fails


def _never() -> bool:
    return False


class AsyncStation:
    """Serves one partition until a stop is asked. `state` is for health; `quiet`: the last ring after which it found nothing."""

    def __init__(
        self,
        worker: AsyncWorker,
        sessions: Callable[[], Any],
        tables: MessageBusTables,
        board: AsyncBoard,
    ) -> None:
        self.worker = worker
        self.state = STARTING
        self.quiet = -1
        self._sessions = sessions
        self._clause = clause_for(tables.outbox)
        self._board = board
        self._key = (str(worker.settings.name), worker.partition)
        self._backoff = Backoff()
        self._said_standby = False
        self._ran_at_post = 0
        self._unsettled_since: float | None = None
        self._met_read_only = False

    def __str__(self) -> str:
        return f"{self._key[0]}[{self._key[1]}]"

    @property
    def hangs(self) -> bool:
        """Whether a handler runs for longer than it may (S11)."""
        return self.worker.lease is not None and self.worker.lease.hangs

    def is_quiet(self, ring: int) -> bool:
        """Whether nothing was left for it to do after this ring; a partition that is not ours is quiet."""
        return self.quiet >= ring or self.state in (STANDBY, IDLE)

    async def serve(self) -> None:
        """Claim, work, release, again and again. Raises: WiringError, for what waiting does not mend."""
        await self._board.wait(lambda: self._board.ready)
        while not self._board.stop.asked:
            await self._wait_while_down()
            try:
                async with AsyncExitStack() as stack:
                    session = await stack.enter_async_context(self._sessions())
                    stack.enter_context(bound_to_async(session, self._clause))
                    try:
                        await self._claim_and_work(session)
                    except Exception as error:
                        if is_outage(error):
                            # it may lead to what was the primary before a failover
                            await session.invalidate()
                        raise
            except LeaseLost as lost:
                logger.warning("%s", lost, extra={"subscription": self._key[0], "partition": self._key[1]})
                self.worker.observed.leased("lost")
            except WiringError:
                raise
            except Exception as error:
                if is_outage(error):
                    self._tell(error)
                else:
                    logger.exception("subscription %s failed and is tried again", self)
                await self._back_off()

    async def _claim_and_work(self, session: AsyncSession) -> None:
        board = self._board
        posts = board.posts
        if not await self.worker.claim(session):
            self._stand_by()
            await board.wait(lambda: board.posts > posts and self._is_free())
            return
        self._said_standby = False
        self._ran_at_post = 0
        try:
            async with self.worker.beating(session):
                while not board.stop.asked and self._is_active():
                    await self._work(session)
        except Exception:
            # the batch in hand was rolled back, and nobody died of it; after SystemExit and the like it expires (S6)
            await self.worker.release(session, or_leave=True)
            raise
        self.state = STANDBY
        await self.worker.release(session)

    async def _wait_while_down(self) -> None:
        """Until the watcher is through, and no connection is left that leads to what was the primary before a failover."""
        board = self._board
        if board.down:
            self.state = UNAVAILABLE
            await board.wait(lambda: not board.down, LONGEST_TRUST)

    def _stand_by(self) -> None:
        self.state = STANDBY if self._is_active() else IDLE
        if not self._said_standby:
            self._said_standby = True
            logger.info(
                "standby: another worker has partition %d of subscription %r"
                if self.state is STANDBY
                else "idle: partition %d of subscription %r is paused, or does not know where to start",
                self._key[1],
                self._key[0],
                extra={"subscription": self._key[0], "partition": self._key[1]},
            )
        self._board.stir()

    async def _work(self, session: AsyncSession) -> None:
        """One run, and the wait after it."""
        board, worker = self._board, self.worker
        await self._wait_while_down()
        if board.stop.asked:
            return
        assert worker.lease is not None
        assert worker.reader is not None
        rings, self._ran_at_post = board.rings, board.posts
        self.state = WORKING
        signs, part = board.signs, self._part()
        if signs is not None and part is not None:
            if part.epoch > worker.lease.epoch:
                raise worker.lease.lost()
            if part.revision > worker.lease.at.revision:
                await worker.lease.reload(session)  # an operator has decided something
            worker.lease.claimed_at = max(worker.lease.claimed_at, signs.now)
            worker.reader.failures |= part.due is not None
            if part.due is not None and part.due < signs.now:
                worker.reader.expect_due()
        tally = await worker.run(session)
        if tally.outage is not None:
            self.state = UNAVAILABLE
            if is_read_only(tally.outage):
                self._tell(tally.outage)
                await session.invalidate()
            await self._back_off()
            return
        self._backoff.reset()
        self._met_read_only = False
        self.state = WAITING
        if board.stop.asked:
            return
        unsettled = bool(worker.reader.looked.unsettled)
        if not unsettled and self.quiet < rings:
            self.quiet = rings
            board.stir()
        elif tally.tried:
            board.stir()
        wanted = await board.wait(lambda: self._is_wanted(rings), self._pause(tally, unsettled=unsettled))
        if not board.stop.asked:
            heard: Cause = board.cause_after(rings) if board.rings > rings else "poll"
            worker.observed.woken(heard if wanted else "timer")

    def _pause(self, tally: Tally, *, unsettled: bool) -> float | None:
        """Seconds after which it is to go on without a sign, if at all."""
        if not unsettled:
            self._unsettled_since = None
            return PROBING if tally.suspicious else None
        now = monotonic()
        if self._unsettled_since is None:
            self._unsettled_since = now
        return pause_before_next_run(now - self._unsettled_since)

    def _tell(self, error: Exception) -> None:
        """Say that the database is out of reach; not of a single connection that still led to what was the primary."""
        if self._met_read_only or not is_read_only(error):
            self._board.outage(error)
        self._met_read_only = is_read_only(error)

    async def _back_off(self) -> None:
        await self._board.wait(_never, self._backoff.next(random.random()))

    def _part(self) -> Part | None:
        signs = self._board.signs
        return None if signs is None else signs.parts.get(self._key)

    def _is_active(self) -> bool:
        part = self._part()
        return part is None or part.active

    def _is_free(self) -> bool:
        part = self._part()
        return part is not None and part.active and part.free

    def _is_wanted(self, rings: int) -> bool:
        """Whether somebody has rung, or what was seen since the last run says that there is something to do."""
        board, lease, reader = self._board, self.worker.lease, self.worker.reader
        if board.rings > rings:
            return True
        signs, part = board.signs, self._part()
        if board.posts == self._ran_at_post or signs is None or lease is None or reader is None:
            return False
        if part is None or not part.active or part.epoch > lease.epoch:
            return True
        return (
            part.revision > lease.at.revision
            or signs.high > reader.looked.high
            or signs.high < lease.at.position
            or (part.due is not None and part.due < signs.now)
        )
