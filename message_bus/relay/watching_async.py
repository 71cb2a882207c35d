"""The two parts of a relay that handle no message: the watcher looks for signs of work, the housekeeper keeps order.

The watcher has one connection for itself, and asks one statement of it: at once after something has happened, then more
and more seldom. Both go on after an outage.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import ConnectionPoolEntry

from message_bus._compat import bound_to_async, on_sync_connection_async
from message_bus.delivery.housekeeping_async import promote_due_async, prune_async
from message_bus.delivery.starting_async import ensure_subscriptions_async
from message_bus.delivery.subscription import Subscription
from message_bus.errors import UnsupportedDatabase, WiringError
from message_bus.relay.board import AsyncBoard
from message_bus.relay.pace import Backoff, Pace
from message_bus.repositories.waiting import clause_for
from message_bus.storage.channel import ASLEEP, fall_asleep, wake_up
from message_bus.storage.logs import OUTBOX_LOG, quoted_name
from message_bus.storage.outages import is_outage, is_read_only
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.signs import Signs, signs, signs_of
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.relay")

ROUND = 60.0  # seconds between two rounds of the housekeeper
UNSEEN = 1.0  # where no subscription is looked at, nothing shows that a delayed message is due
WAITING_FOR_WRITERS = 0.5  # the same, while a subscription cannot begin before they have ended


def _never() -> bool:
    return False


def _close(connection: object, entry: ConnectionPoolEntry) -> None:
    """What was in use when its pool was left comes back to nobody."""
    if connection is not None:
        entry.invalidate()


def _own_transactions(engine: AsyncEngine) -> AsyncEngine:
    """The engine for single statements, each of which is a transaction, if possible without BEGIN and COMMIT.

    asyncpg prepares a statement and runs it in two steps: outside a transaction a pooler may send them to different servers.
    """
    return (
        engine
        if engine.dialect.driver == "asyncpg"
        else engine.execution_options(isolation_level="AUTOCOMMIT")
    )


class AsyncWatcher:
    """Posts what it sees on the board, until a stop is asked."""

    def __init__(
        self,
        engine: AsyncEngine,
        tables: MessageBusTables,
        names: Sequence[str],
        board: AsyncBoard,
        *,
        poll: timedelta,
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._names = list(names)
        self._board = board
        self._pace = Pace(poll.total_seconds())
        self._backoff = Backoff()
        self._fall_asleep = fall_asleep(tables)
        self._wake_up = wake_up(tables)

    async def watch(self) -> None:
        """Look again and again. Raises: WiringError, for what waiting does not mend."""
        board = self._board
        await board.wait(lambda: board.ready)
        while not board.stop.asked:
            try:
                async with _own_transactions(self._engine).connect() as connection:
                    try:
                        await self._watch(connection)
                    except Exception:
                        if not connection.invalidated:
                            await (
                                connection.invalidate()
                            )  # it may lead to what was the primary before a failover
                        raise
            except WiringError:
                raise
            except Exception as error:
                if is_outage(error):
                    board.outage(error)
                else:
                    logger.exception("the relay cannot look at the database and tries again")
                await board.wait(_never, self._backoff.next(random.random()))

    async def _watch(self, connection: AsyncConnection) -> None:
        board = self._board
        log_table = self._tables.log_table(self._tables.source_log)
        dialect = connection.dialect.name
        statement = signs(dialect, self._tables)
        parameters: dict[str, Any] = {"names": self._names}
        if dialect == "postgresql":
            parameters["log_table"] = await on_sync_connection_async(connection, quoted_name, log_table)
        while not board.stop.asked:
            stirs, rings = board.stirs, board.rings
            seen = signs_of((await connection.execute(statement, parameters)).all())
            await connection.commit()
            if board.down and dialect == "postgresql":
                await self._leave_what_was_the_primary(connection)
            self._take_in(seen)
            pause = self._pace.next(seen)
            if self._is_sleepy(seen):
                noted = await connection.execute(self._fall_asleep, {"asleep": ASLEEP.total_seconds()})
                late = noted.first() is not None
                await connection.commit()
                if late:
                    continue  # who has drawn a position before that may not have seen it
            if await self._wait(pause, stirs, rings) and seen is not None and seen.asleep_until is not None:
                await connection.execute(self._wake_up, {"seen": seen.asleep_until})
                await connection.commit()

    def _take_in(self, seen: Signs | None) -> None:
        """Post what was seen."""
        board, before = self._board, self._board.signs
        board.back()
        board.post(seen)
        self._backoff.reset()
        if before is None or seen is None or (before.high, before.parts) != (seen.high, seen.parts):
            self._pace.quicken(listening=board.listening)

    def _is_sleepy(self, seen: Signs | None) -> bool:
        """Whether writers are to be told that we want to be woken, because nothing happens and they do not know."""
        if seen is None or not self._board.listening or not self._pace.drowsy:
            return False
        return seen.asleep_until is None or seen.asleep_until - seen.now < ASLEEP / 2

    async def _wait(self, pause: float, stirs: int, rings: int) -> bool:
        """Wait so long; if something is done or rung for meanwhile, look again soon. Whether somebody has rung."""
        board = self._board
        if await board.wait(lambda: board.stirs > stirs or board.rings > rings, pause):
            self._pace.quicken(listening=board.listening)
            await board.wait(_never, min(pause, self._pace.next(board.signs)))
        return board.rings > rings

    async def _leave_what_was_the_primary(self, connection: AsyncConnection) -> None:
        """After an outage, which may have been a failover: no connection that was made before is used again."""
        read_only = (await connection.exec_driver_sql("SHOW transaction_read_only")).scalar_one()
        await connection.commit()
        left = self._engine.pool
        await self._engine.dispose()
        event.listen(left, "checkin", _close)
        if read_only == "on":
            raise ConnectionError("the server is read-only, as after a failover")


class AsyncHousekeeper:
    """Makes subscriptions, moves delayed messages that are due into the outbox, removes old rows."""

    def __init__(
        self,
        sessions: Callable[[], Any],
        tables: MessageBusTables,
        wanted: Sequence[Subscription],
        watermark: AsyncWatermark,
        board: AsyncBoard,
        *,
        tell: Callable[[int, int], None],
        retention: timedelta | None,
    ) -> None:
        self._tell = tell
        self._sessions = sessions
        self._tables = tables
        self._clause = clause_for(tables.outbox)
        self._wanted = wanted
        self._watermark = watermark
        self._board = board
        self._retention = retention
        self._said: frozenset[str] = frozenset()
        self._next_round = float("-inf")
        self._known_still: set[tuple[str, int, int]] = set()
        self._met_read_only = False
        self._backoff = Backoff()

    async def keep(self) -> None:
        """Do a round each minute, and when a delayed message is due. Raises: WiringError, as the engine."""
        board = self._board
        while not board.stop.asked:
            posts, is_round = board.posts, monotonic() >= self._next_round or self._is_told()
            try:
                async with AsyncExitStack() as stack:
                    session = await stack.enter_async_context(self._sessions())
                    stack.enter_context(bound_to_async(session, self._clause))
                    try:
                        await self._work(session, is_round=is_round)
                    except Exception as error:
                        if is_outage(error) or isinstance(error, UnsupportedDatabase):
                            # it may lead to what was the primary before a failover
                            await session.invalidate()
                        raise
            except WiringError as error:
                if not (board.ready and isinstance(error, UnsupportedDatabase)):
                    raise
                board.outage(error)  # for now we are connected to a standby, as after a failover
                await board.wait(_never, self._backoff.next(random.random()))
            except Exception as error:
                if is_read_only(error) and not self._met_read_only:
                    self._met_read_only = (
                        True  # perhaps only this connection still led to what was the primary
                    )
                elif is_outage(error):
                    board.outage(error)
                else:
                    logger.exception("housekeeping failed and is tried again")
                await board.wait(_never, self._backoff.next(random.random()))
            else:
                self._backoff.reset()
                self._met_read_only = False
                if not board.ready:
                    board.ready = True
                    board.stir()
                pause = self._next_round - monotonic()
                await self._wait(posts, pause if self._wanted else min(pause, UNSEEN))

    async def _wait(self, posts: int, seconds: float) -> None:
        """Wait so long, or until a delayed message is due by signs that are newer than number `posts`."""
        board = self._board
        await board.wait(lambda: board.posts > posts and self._is_due(), max(0.0, seconds))

    def _is_due(self) -> bool:
        seen = self._board.signs
        is_scheduled = seen is not None and seen.scheduled is not None and seen.scheduled <= seen.now
        return is_scheduled or self._is_told()

    def _is_told(self) -> bool:
        """Whether somebody has decided something about a subscription that does not run: where it starts, say."""
        return not self._standing_still() <= self._known_still

    def _standing_still(self) -> set[tuple[str, int, int]]:
        """Name, partition and revision of those that do not run, by the last signs."""
        seen = self._board.signs
        if seen is None:
            return set()
        return {
            (name, partition, part.revision)
            for (name, partition), part in seen.parts.items()
            if not part.active
        }

    async def _work(self, session: AsyncSession, *, is_round: bool) -> None:
        if is_round:
            still = self._standing_still()
            self._next_round = monotonic() + await self._ensure(session)
            self._known_still = still
        promoted = pruned = 0
        if self._tables.source_log == OUTBOX_LOG:
            promoted = await promote_due_async(session, self._tables)
            if promoted:
                self._board.ring()
        if is_round and self._retention is not None:
            pruned = await prune_async(session, self._tables, older_than=self._retention)
        if promoted or pruned:
            self._tell(promoted, pruned)

    async def _ensure(self, session: AsyncSession) -> float:
        """Make what is missing; seconds until it is to be looked at again."""
        connection = await session.connection()
        await on_sync_connection_async(connection, check_reader)
        await on_sync_connection_async(connection, check_log, self._tables)
        look = await self._watermark.look(connection)
        await session.commit()
        standing = await ensure_subscriptions_async(
            session, self._tables, self._wanted, settled=look.settled, high=look.high
        )
        await session.commit()
        for name in sorted(standing.idle - self._said):
            logger.warning(
                "subscription %r is idle: it was added to a log with history, or paused (give Subscription(start=...))",
                name,
                extra={"subscription": name},
            )
        self._said = standing.idle
        return ROUND if not standing.waiting else WAITING_FOR_WRITERS
