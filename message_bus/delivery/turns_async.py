"""On SQLite a worker that has much to do lets others write from time to time.

There is one writer at a time and no queue for it: who waits asks again and again, soon every 0.1 seconds only. A worker
begins its next transaction within a millisecond of its last commit, so the others would hardly ever ask in between, and
their `busy_timeout` would end: their writes would fail for as long as there is a backlog. So after a second of work a
worker rests for a little longer than those 0.1 seconds, with no transaction open.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import pause_async, plain_session_async

WORK: Final = 1.0  # seconds
REST: Final = 0.11  # seconds; SQLite's busy handler sleeps for 0.1 at most between two attempts (sqliteDefaultBusyCallback)


class AsyncTurns:
    """Of one worker: how long has it worked without a rest?"""

    def __init__(self) -> None:
        self._began = self._ended = float("-inf")

    def begin(self) -> None:
        """Work begins, or goes on so soon that nobody else had a turn."""
        now = monotonic()
        if now - self._ended >= REST:
            self._began = now

    def end(self) -> None:
        """There is nothing left to do."""
        self._ended = monotonic()

    async def give_way(self, session: AsyncSession, table: Table) -> None:
        """Rest, if it is time to, and the table is on SQLite.

        Not in an open transaction, the caller's for example: that would be no rest for anybody.
        """
        if monotonic() - self._began < WORK:
            return
        bind = plain_session_async(session).get_bind(clause=table)
        if bind.dialect.name == "sqlite" and not session.in_transaction():
            await pause_async(REST)
        self._began = monotonic()
