# Generated from metering_async.py by tests/tools/unasync.py: do not edit.
"""The part of a relay that reads the state of its logs for metrics; it runs only if an observer wants gauges.

Reads on a connection of its own, and then rests at least twenty times as long as that took.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from time import monotonic
from typing import Any, Final

from sqlalchemy.orm import Session

from message_bus._compat import bound_to, on_sync_connection
from message_bus.observability.observer import Gauges, Observers, Part, PartitionGauges
from message_bus.relay.board import Board
from message_bus.repositories.waiting import clause_for
from message_bus.storage import gauge_statements, schedule_statements
from message_bus.storage.holders import holders
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.relay")

EVERY: Final = 10.0  # seconds
REST: Final = (
    20  # times as long as reading took: metrics may cost the database a twentieth of a connection, no more
)


def _never() -> bool:
    return False


class Meter:
    """Reads gauges of these logs, again and again, until a stop is asked."""

    def __init__(
        self,
        sessions: Callable[[], Any],
        logs: Sequence[MessageBusTables],
        observers: Observers,
        board: Board,
    ) -> None:
        self._sessions = sessions
        self._logs = logs
        self._observers = observers
        self._board = board

    def measure(self) -> None:
        """Read, tell, rest."""
        board = self._board
        board.wait(lambda: board.ready)
        while not board.stop.asked:
            began_at = monotonic()
            try:
                with ExitStack() as stack:
                    session = stack.enter_context(self._sessions())
                    stack.enter_context(bound_to(session, clause_for(self._logs[0].outbox)))
                    gauges = self._read(session)
                self._observers.measured(gauges)
            except Exception as error:
                if not is_outage(error):
                    logger.exception("the state of the logs could not be read for metrics; it is tried again")
            board.wait(_never, max(EVERY, REST * (monotonic() - began_at)))

    def _read(self, session: Session) -> Gauges:
        outbox = self._logs[0]
        found: list[PartitionGauges] = []
        ages: dict[str, float] = {}
        for tables in self._logs:
            rows = session.execute(gauge_statements.partitions(tables))
            found += [_gauges_of(row, tables.source_log) for row in rows]
            connection = session.connection()
            in_the_way = on_sync_connection(connection, holders, tables)
            ages[tables.source_log] = max(
                (each.age.total_seconds() for each in in_the_way if each.age is not None), default=0.0
            )
        span = session.execute(gauge_statements.outbox_span(outbox)).one()
        schedule = session.execute(schedule_statements.depth(outbox)).one()
        session.commit()
        return Gauges(
            partitions=tuple(found),
            outbox_rows=0 if span.first is None else span.last - span.first + 1,
            outbox_oldest_seconds=_age(span.oldest_at, span.now) or 0.0,
            delayed=schedule.delayed,
            due=schedule.due,
            watermark_age=ages,
        )


def _gauges_of(row: Any, log: str) -> PartitionGauges:
    lag = row.lag
    if lag is not None and lag >= gauge_statements.MOST_COUNTED:
        lag = max(lag, (row.high - row.position) // row.partitions)
    return PartitionGauges(
        part=Part(subscription=row.name, partition=row.partition, log=log),
        lag=lag,
        lag_seconds=None if lag is None else _age(row.first_at, row.now) or 0.0,
        retrying=row.retrying,
        held=row.held,
        dead=row.dead,
    )


def _age(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else max(0.0, (now - at).total_seconds())
