"""`AsyncRelay`: delivers what is in the outbox with tasks of one event loop, for as long as the process lives.

What its tasks do is said in `stations_async.py` and `watching_async.py`; here they are started, watched over and stopped.
What hangs in a handler is cancelled after `drain_timeout`; its lease expires. `Relay` is the same for threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from message_bus.bus.abc import LEASE
from message_bus.delivery.hands_async import AsyncHands
from message_bus.errors import SettingsError, WiringError
from message_bus.relay.health import Health, health_of
from message_bus.relay.line_async import AsyncLine, wait_until_idle_async
from message_bus.relay.wiring import (
    AnyRelay,
    by_log,
    check_engine,
    check_lists,
    check_settings,
    stopping_on_signals,
    subscriptions_of,
)
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.repositories.waiting import clause_for
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.relay")

_AGAIN: Final = 0.2  # seconds


class AsyncRelay(AnyRelay):
    """Delivers until it is stopped: `await relay.run()` in a process of its own, `async with relay:` beside an application.

    `sessions`: an async_sessionmaker or an AsyncEngine; the rest is as for `Relay`. Use it once, in one event loop.

    Raises: SettingsError listing every problem at once.
    """

    def __init__(
        self,
        bus: Any,
        sessions: async_sessionmaker[Any] | AsyncEngine,
        *,
        projections: Sequence[Any] = (),
        process_managers: Sequence[Any] = (),
        tables: MessageBusTables = DEFAULT_TABLES,
        lease: timedelta = LEASE,
        poll: timedelta = timedelta(seconds=1),
        listen: bool = True,
        retention: timedelta | None = timedelta(days=7),
        drain_timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        check_settings(
            "AsyncRelay",
            lease=lease,
            poll=poll,
            retention=retention,
            drain_timeout=drain_timeout,
        )
        check_lists("AsyncRelay", projections=projections, process_managers=process_managers)
        if not isinstance(sessions, async_sessionmaker | AsyncEngine):
            raise SettingsError(
                "AsyncRelay",
                [
                    (
                        "it works on an async_sessionmaker or an AsyncEngine, "
                        f"not on {type(sessions).__name__!r} (or use Relay)"
                    )
                ],
            )
        factory: Callable[[], AsyncSession] = (
            async_sessionmaker(sessions, expire_on_commit=False)
            if isinstance(sessions, AsyncEngine)
            else sessions
        )
        engine = factory().sync_session.get_bind(clause=clause_for(tables.outbox))
        check_engine("AsyncRelay", engine)
        assert isinstance(engine, Engine)
        self.bus = bus
        self.projections = tuple(projections)
        self._drain_timeout = drain_timeout.total_seconds()
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listening: list[asyncio.Task[None]] = []  # they have nothing in hand: not waited for
        hands = AsyncHands()
        self.handlers = subscriptions_of("AsyncRelay", bus, [*projections, *process_managers])
        self._lines = [
            AsyncLine(
                bus,
                of_log,
                AsyncEngine(engine),
                factory,
                tables.of_log(log),
                hands=hands,
                lease=lease,
                poll=poll,
                listen=listen,
                retention=retention,
            )
            for log, of_log in by_log(self.handlers).items()
        ]

    async def run(self) -> None:
        """Deliver until `stop()`, SIGTERM or SIGINT; then finish what is in hand (G11).

        The first signal drains: what is still in hand after `drain_timeout` is cancelled, and `SystemExit(1)` raised. The
        second ends the process at once, with 128 + its number. In a thread other than the main one signals are left
        alone. Cancelling it cancels what is in hand.

        Raises: WiringError if the set-up is wrong; what a handler raised to end the process (SystemExit).
        """
        with stopping_on_signals(self.stop):
            self._start()
            try:
                await self._ended.wait()
                drained = await self._drain()
            finally:
                await self._cancel()
        if self._error is not None:
            raise self._error
        if not drained:
            raise SystemExit(1)

    def stop(self) -> None:
        """Ask it to finish what is in hand and end; returns at once. Any thread may call it, also twice."""
        for line in self._lines:
            line.board.ask_to_stop()
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._ended.set)

    async def __aenter__(self) -> AsyncRelay:
        self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()
        try:
            await self._drain()
        finally:
            await self._cancel()

    async def wait_until_idle(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Wait until everything that was committed before is delivered, or has failed and waits for its next attempt.

        For tests. Partitions that another worker has, and those that are paused, are not waited for. `timeout` is in seconds.

        Raises: TimeoutError; what has stopped the relay.
        """
        idle = await wait_until_idle_async(self._lines, timeout)
        if self._error is not None:
            raise self._error
        if not idle:
            raise TimeoutError(f"the relay is not idle after {timeout} s: {self.health()}")

    def health(self) -> Health:
        """Say how it is; reads nothing from the database."""
        live = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return health_of(self._lines, live=live, error=self._error)

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._tasks:
            raise WiringError("a relay is started once (make another one)")
        self._loop = asyncio.get_running_loop()
        self._lines[0].measure(self._lines)
        for line in self._lines:
            line.hear()
        self._tasks = [
            asyncio.create_task(self._guarded(part), name=f"message_bus relay {name}")
            for line in self._lines
            for name, part in line.parts
        ]
        self._listening = [
            asyncio.create_task(self._guarded(line.listener.listen), name="message_bus relay listener")
            for line in self._lines
            if line.listener is not None
        ]

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._error is None:
                self._error = error
            logger.critical("the relay stops: %s", error or type(error).__name__, exc_info=error)
            self.stop()

    async def _drain(self) -> bool:
        """Wait for the tasks; False if one is still at it after `drain_timeout`."""
        for line in self._lines:
            line.hear_no_more()
        _, left = await asyncio.wait(self._tasks, timeout=self._drain_timeout)
        if left:
            logger.error(
                "not done after %.0f s, given up: %s; what they hold expires, others take over",
                self._drain_timeout,
                ", ".join(sorted(task.get_name() for task in left)),
            )
        return not left

    async def _cancel(self) -> None:
        for line in self._lines:
            line.hear_no_more()
        tasks = [*self._tasks, *self._listening]
        while left := [task for task in tasks if not task.done()]:
            for (
                task
            ) in left:  # again and again: a driver may raise an error of its own in place of the cancellation
                task.cancel()
            await asyncio.wait(left, timeout=_AGAIN)
        await asyncio.gather(*tasks, return_exceptions=True)
