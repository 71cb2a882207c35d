"""The relay: delivers what is in the outbox, over and over, as a task beside the web application."""

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import AsyncMessageBus

logger = logging.getLogger("shop.relay")

BATCH = 100  # messages per subscription and step; then it looks whether it shall stop
LONGEST_PAUSE = 30.0  # seconds between two steps while the database is out of reach


class Relay:
    """Works when it is woken, and every `poll` seconds: for retries, and for orders placed by other processes.

    `lease`: if this process is killed at work, others (or the same, restarted) wait so long before they go on.
    """

    def __init__(
        self,
        bus: AsyncMessageBus,
        sessions: async_sessionmaker[AsyncSession],
        *,
        poll: float = 1.0,
        lease: timedelta = timedelta(seconds=30),
    ) -> None:
        self._bus = bus
        self._sessions = sessions
        self._poll = poll
        self._lease = lease
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()
        self._busy: tuple[str, ...] = ()

    def wake(self) -> None:
        """There may be something in the outbox."""
        self._woken.set()

    def stop(self) -> None:
        """End after the step in hand."""
        self._stopped.set()
        self._woken.set()

    async def run(self) -> None:
        """Deliver until it is told to stop; survive whatever goes wrong."""
        failures = 0
        while not self._stopped.is_set():
            self._woken.clear()  # before it looks: what is committed from now on wakes it again
            try:
                if not await self._step():
                    await _wait(self._woken, self._poll)
                failures = 0
            except Exception:
                failures += 1
                pause = min(self._poll * 2**failures, LONGEST_PAUSE)
                logger.exception("the outbox could not be processed, again in %s s", pause)
                await _wait(self._stopped, pause)
        logger.info("the relay has ended")

    async def _step(self) -> bool:
        """Deliver some messages; whether there may be more."""
        async with self._sessions() as session:
            report = await self._bus.process_outbox(session, limit=BATCH, lease=self._lease)
        if report.busy and report.busy != self._busy:  # said once
            names, seconds = ", ".join(report.busy), self._lease.total_seconds()
            logger.info("another process has the lease of %s; if it died: for at most %g s", names, seconds)
        self._busy = report.busy
        return report.delivered > 0


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
