"""Hears what writers notify of (PostgreSQL's LISTEN), so that an idle relay begins within a millisecond of their commit.

A connection of its own does nothing else. What is heard is only a hint: it rings on the board, and the stations look. If
nothing can be heard (an outage, a pooler that hands the connection to others), polling finds the rows a little later.

By hand in both colours: a thread waits on the driver's socket, asyncpg calls back.
"""

from __future__ import annotations

import logging
import random
import selectors
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from message_bus.relay.board import AsyncBoard, Board
from message_bus.relay.pace import Backoff
from message_bus.storage.channel import channel_name, notify
from message_bus.storage.logs import quoted_name
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.relay")

_REST: Final = 0.005  # seconds between two rings: whoever may connect may notify, as often as they like
_SOON: Final = 5.0  # seconds within which our own notification should have come back
_TRY: Final = "SHOW transaction_read_only"
_SILENCE: Final = 30.0  # seconds after which the connection is tried: one that hangs is silent, too


def _never() -> bool:
    return False


def _check(is_read_only: str) -> None:
    if is_read_only == "on":
        raise ConnectionError("the server is read-only, as after a failover: nobody notifies there")


def _log(error: Exception) -> None:
    if not is_outage(error):  # else the watcher says so
        logger.error("the relay cannot listen and tries again; meanwhile it polls", exc_info=error)


class Listener:
    """Rings on the board for every notification, until a stop is asked.

    It notifies itself first, from another connection: only when that was heard writers are asked to notify.
    """

    def __init__(self, engine: Engine, tables: MessageBusTables, board: Board) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = tables.log_table(tables.source_log)
        self._board = board
        self._backoff = Backoff()
        self._stopper: socket.socket | None = None

    def stop(self) -> None:
        """Let it see that a stop was asked. Any thread may call it, also twice."""
        if self._stopper is not None:
            with suppress(OSError):  # it has ended already
                self._stopper.send(b".")

    def listen(self) -> None:
        """Listen, and again after an outage."""
        stopped, self._stopper = socket.socketpair()
        with stopped, self._stopper:
            self._keep_listening(stopped)

    def _keep_listening(self, stopped: socket.socket) -> None:
        board = self._board
        board.wait(lambda: board.ready)
        while not board.stop.asked:
            try:
                with self._engine.connect() as connection:
                    try:
                        self._listen(connection, stopped)
                    finally:
                        board.listening = False
                        connection.invalidate()  # the next user of it would have to read what it still hears
            except Exception as error:
                _log(error)
                board.wait(_never, self._backoff.next(random.random()))

    def _listen(self, connection: Connection, stopped: socket.socket) -> None:
        board = self._board
        table = {"log_table": quoted_name(connection, self._table)}
        name = connection.execute(channel_name(), table).scalar_one()
        connection.exec_driver_sql(f'LISTEN "{name}"')
        with self._engine.connect() as other:
            other.execute(notify(), table)
        driver: Any = connection.connection.driver_connection
        silence = _Silence()
        with selectors.DefaultSelector() as selector:
            selector.register(driver.fileno(), selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while not board.stop.asked:
                selector.select(silence.patience)
                if any(True for _ in driver.notifies(timeout=0, stop_after=1)):
                    silence.broken()
                    self._backoff.reset()
                    board.heard()
                    board.wait(_never, _REST)
                elif not board.stop.asked:
                    silence.goes_on()
                    _check(connection.exec_driver_sql(_TRY).scalar_one())


class AsyncListener:
    """The same for tasks."""

    def __init__(self, engine: AsyncEngine, tables: MessageBusTables, board: AsyncBoard) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = tables.log_table(tables.source_log)
        self._board = board
        self._backoff = Backoff()

    async def listen(self) -> None:
        """Listen, and again after an outage."""
        board = self._board
        await board.wait(lambda: board.ready)
        while not board.stop.asked:
            try:
                async with self._engine.connect() as connection:
                    try:
                        await self._listen(connection)
                    finally:
                        board.listening = False
                        await connection.invalidate()
            except Exception as error:
                _log(error)
                await board.wait(_never, self._backoff.next(random.random()))

    async def _listen(self, connection: AsyncConnection) -> None:
        board = self._board
        table = {"log_table": await connection.run_sync(quoted_name, self._table)}
        name = (await connection.execute(channel_name(), table)).scalar_one()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if connection.dialect.driver == "asyncpg":
            hear = await self._called_back(driver, name)
        else:
            await connection.exec_driver_sql(f'LISTEN "{name}"')
            hear = partial(_waiting, driver)
        async with self._engine.connect() as other:
            await other.execute(notify(), table)
        silence = _Silence()
        while not board.stop.asked:
            if await hear(silence.patience):
                silence.broken()
                self._backoff.reset()
                board.heard()
                await board.wait(_never, _REST)
            else:
                silence.goes_on()
                _check((await connection.exec_driver_sql(_TRY)).scalar_one())

    async def _called_back(self, driver: Any, name: str) -> Callable[[float], Awaitable[bool]]:
        board = self._board
        news: list[str] = []

        def on_notification(_: object, pid: int, channel: str, payload: str) -> None:
            news.append(channel)
            board.look_up()

        async def hear(seconds: float) -> bool:
            heard = await board.wait(lambda: bool(news), seconds)
            news.clear()
            return heard

        await driver.add_listener(name, on_notification)
        return hear


async def _waiting(driver: Any, seconds: float) -> bool:
    return bool([each async for each in driver.notifies(timeout=seconds, stop_after=1)])


class _Silence:
    """Knows whether anything was heard yet."""

    def __init__(self) -> None:
        self._heard = False
        self._told = False

    @property
    def patience(self) -> float:
        """Seconds to listen before the connection is tried."""
        return _SILENCE if self._heard or self._told else _SOON

    def broken(self) -> None:
        """Something was heard."""
        self._heard = True

    def goes_on(self) -> None:
        """Nothing was: if not even our own notification, it is said once."""
        if not self._heard and not self._told:
            self._told = True
            logger.warning(
                "notifications do not reach the relay, so it polls (behind a pooler in transaction mode give listen=False)"
            )
