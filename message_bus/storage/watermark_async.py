"""The settled watermark: up to where a log can be read without losing what is still being committed.

The heart of the package. Why it is right is proved in `settled.py`, how it looks is said in `looking.py`, and
what it must not be used on is refused in `preconditions.py`. Here looks are put one after another and
remembered, so that the subscriptions of a process can share one watermark per log. It reads no rows, writes
nothing, holds no connection.

The engine calls `look` and reads rows with positions up to `settled` in a later statement on the same
connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from message_bus._compat import AsyncLock, on_sync_connection_async
from message_bus.storage.looking import take_look
from message_bus.storage.settled import Look, Remembered
from message_bus.storage.tables import MessageBusTables


class AsyncWatermark:
    """What is settled of one log of one database, as far as this process has seen. Share it between
    subscriptions. The log is the one that the tables are for (`tables.of_log`).

    Nothing of it may be stored or sent elsewhere: it is only good for as long as the server lives (W4).
    Losing it costs nothing but waiting once more for the writers that are open at that moment.
    """

    def __init__(self, tables: MessageBusTables, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.log = tables.source_log
        self.table = tables.log_table(self.log)
        self._clock = clock
        self._remembered = Remembered()
        self._lock = AsyncLock()

    async def look(self, connection: AsyncConnection) -> Look:
        """Look once; rows up to `settled`, read by a later statement of this connection, are complete.

        In the connection's transaction, which must be READ COMMITTED; begins one if there is none, ends none.
        One round trip (two after the server has restarted or made a checkpoint). Safe to share; looks wait
        for one another. Cancelling it, or an error, leaves the memory as it was.

        Raises: UnsupportedDatabase, SchemaError: fix the set-up. SQLAlchemy's errors: as for any statement.
        """
        async with self._lock:
            return await on_sync_connection_async(
                connection, take_look, self.table, self._remembered, self._clock
            )
