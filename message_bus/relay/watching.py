# Generated from watching_async.py by tests/tools/unasync.py: do not edit.
"""The two parts of a relay that handle no message: the watcher looks for signs of work, the housekeeper keeps order.

The watcher has one connection for itself, and asks one statement of it: at once after something has happened, then more
and more seldom. Both go on after an outage.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from message_bus._compat import bound_to, on_sync_connection
from message_bus.delivery.housekeeping import promote_due, prune
from message_bus.delivery.lease import ensure_subscriptions
from message_bus.delivery.subscription import Subscription
from message_bus.errors import UnsupportedDatabase, WiringError
from message_bus.relay.board import Board
from message_bus.relay.pace import Backoff, Pace
from message_bus.repositories.waiting import clause_for
from message_bus.storage.logs import quoted_name
from message_bus.storage.outages import is_outage
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.signs import signs, signs_of
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark

logger = logging.getLogger("message_bus.relay")

ROUND = 60.0  # seconds between two rounds of the housekeeper


def _never() -> bool:
    return False


class Watcher:
    """Posts what it sees on the board, until a stop is asked."""

    def __init__(
        self,
        engine: Engine,
        tables: MessageBusTables,
        names: Sequence[str],
        board: Board,
        *,
        poll: timedelta,
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._names = list(names)
        self._board = board
        self._pace = Pace(poll.total_seconds())
        self._backoff = Backoff()

    def watch(self) -> None:
        """Look again and again. Raises: WiringError, for what waiting does not mend."""
        board = self._board
        board.wait(lambda: board.ready)
        while not board.stop.asked:
            try:
                engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
                with engine.connect() as connection:
                    try:
                        self._watch(connection)
                    except Exception:
                        if not connection.invalidated:
                            (connection.invalidate())  # it may lead to what was the primary before a failover
                        raise
            except WiringError:
                raise
            except Exception as error:
                if is_outage(error):
                    board.outage(error)
                else:
                    logger.exception("the relay cannot look at the database and tries again")
                board.wait(_never, self._backoff.next(random.random()))

    def _watch(self, connection: Connection) -> None:
        board = self._board
        outbox = on_sync_connection(connection, quoted_name, self._tables.outbox)
        dialect = connection.dialect.name
        statement = signs(dialect, self._tables)
        parameters: dict[str, Any] = {"names": self._names}
        if dialect == "postgresql":
            parameters["outbox"] = outbox
        while not board.stop.asked:
            stirs, rings = board.stirs, board.rings
            seen = signs_of(connection.execute(statement, parameters).all())
            if board.down and dialect == "postgresql" and self._is_read_only(connection):
                raise ConnectionError("the server is read-only, as after a failover")
            before = board.signs
            board.post(seen)
            board.back()
            self._backoff.reset()
            if before is None or seen is None or (before.high, before.parts) != (seen.high, seen.parts):
                self._pace.quicken()
            self._wait(self._pace.next(seen), stirs, rings)

    def _wait(self, pause: float, stirs: int, rings: int) -> None:
        """Wait so long; if something is done or rung for meanwhile, look again soon."""
        board = self._board
        if board.wait(lambda: board.stirs > stirs or board.rings > rings, pause):
            self._pace.quicken()
            board.wait(_never, min(pause, self._pace.next(board.signs)))

    def _is_read_only(self, connection: Connection) -> bool:
        found = connection.exec_driver_sql("SHOW transaction_read_only")
        return bool(found.scalar_one() == "on")


class Housekeeper:
    """Makes subscriptions, moves delayed messages that are due into the outbox, removes old rows."""

    def __init__(
        self,
        sessions: Callable[[], Any],
        tables: MessageBusTables,
        wanted: Sequence[Subscription],
        watermark: Watermark,
        board: Board,
        *,
        retention: timedelta | None,
    ) -> None:
        self._sessions = sessions
        self._tables = tables
        self._clause = clause_for(tables.outbox)
        self._wanted = wanted
        self._watermark = watermark
        self._board = board
        self._retention = retention
        self._said: set[str] = set()
        self._backoff = Backoff()

    def keep(self) -> None:
        """Do a round each minute, and when a delayed message is due. Raises: WiringError, as the engine."""
        board = self._board
        next_round = 0.0
        while not board.stop.asked:
            posts, is_round = board.posts, monotonic() >= next_round
            try:
                with ExitStack() as stack:
                    session = stack.enter_context(self._sessions())
                    stack.enter_context(bound_to(session, self._clause))
                    self._work(session, is_round=is_round)
            except WiringError as error:
                if not (board.ready and isinstance(error, UnsupportedDatabase)):
                    raise
                board.outage(error)  # for now we are connected to a standby, as after a failover
                board.wait(_never, self._backoff.next(random.random()))
            except Exception as error:
                if is_outage(error):
                    board.outage(error)
                else:
                    logger.exception("housekeeping failed and is tried again")
                board.wait(_never, self._backoff.next(random.random()))
            else:
                self._backoff.reset()
                if is_round:
                    next_round = monotonic() + ROUND
                if not board.ready:
                    board.ready = True
                    board.stir()
                self._wait(posts, next_round - monotonic())

    def _wait(self, posts: int, seconds: float) -> None:
        """Wait so long, or until a delayed message is due by signs that are newer than number `posts`."""
        board = self._board
        board.wait(lambda: board.posts > posts and self._is_due(), max(0.0, seconds))

    def _is_due(self) -> bool:
        seen = self._board.signs
        return seen is not None and seen.scheduled is not None and seen.scheduled <= seen.now

    def _work(self, session: Session, *, is_round: bool) -> None:
        if is_round:
            self._ensure(session)
        if promote_due(session, self._tables):
            self._board.ring()
        if is_round and self._retention is not None:
            prune(session, self._tables, older_than=self._retention)

    def _ensure(self, session: Session) -> None:
        connection = session.connection()
        on_sync_connection(connection, check_reader)
        on_sync_connection(connection, check_log, self._tables)
        look = self._watermark.look(connection)
        session.commit()
        idle = ensure_subscriptions(session, self._tables, self._wanted, settled=look.settled, high=look.high)
        session.commit()
        for name in sorted(idle - self._said):
            logger.warning(
                "subscription %r is idle: it was added to a log with history, or paused (give Subscription(start=...))",
                name,
                extra={"subscription": name},
            )
        self._said = idle
