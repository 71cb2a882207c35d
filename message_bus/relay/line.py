# Generated from line_async.py by tests/tools/unasync.py: do not edit.
"""One log as a relay reads it: a board, a watcher, a listener, a housekeeper, and a station for each partition.

A relay has one line for the outbox, and one for the event log if anything reads it. They share nothing but the engine
and the hands. Made by the relays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from message_bus.delivery.hands import Hands
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.worker import Worker
from message_bus.observability.observer import Observers
from message_bus.relay.board import Board
from message_bus.relay.listening import Listener
from message_bus.relay.metering import Meter
from message_bus.relay.stations import Station
from message_bus.relay.watching import Housekeeper, Watcher
from message_bus.repositories import bells
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark


class Line:
    """Everything that works on the log that `tables` are for. It starts nothing by itself: `parts` are to be run."""

    def __init__(
        self,
        bus: Any,
        handlers: Sequence[tuple[Any, Subscription]],
        engine: Engine,
        sessions: Callable[[], Session],
        tables: MessageBusTables,
        *,
        hands: Hands,
        lease: timedelta,
        poll: timedelta,
        listen: bool,
        retention: timedelta | None,
    ) -> None:
        self.board = Board()
        self._bus = bus
        self._sessions = sessions
        self._tables = tables
        self._meter: Meter | None = None
        watermark = Watermark(tables)
        wanted = [settings for _, settings in handlers]
        self._log = tables.source_log
        self._watcher = Watcher(
            engine, tables, [str(settings.name) for settings in wanted], self.board, poll=poll
        )
        self.listener = (
            Listener(engine, tables, self.board) if listen and engine.dialect.name == "postgresql" else None
        )
        self._housekeeper = Housekeeper(
            sessions,
            tables,
            wanted,
            watermark,
            self.board,
            tell=self._tell_housekept,
            retention=retention if self._log == OUTBOX_LOG else None,  # events are kept
        )
        self.stations = [
            Station(
                Worker(
                    bus,
                    handler,
                    settings,
                    partition,
                    tables=tables,
                    watermark=watermark,
                    lease=lease,
                    stop=self.board.stop,
                    hands=hands,
                ),
                sessions,
                tables,
                self.board,
            )
            for handler, settings in handlers
            for partition in range(settings.partitions)
        ]

    @property
    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """What has to run, each with its name; the listener aside."""
        return [
            (f"watcher of {self._log}", self._watcher.watch),
            (f"housekeeper of {self._log}", self._housekeeper.keep),
            *((("meter", self._meter.measure),) if self._meter is not None else ()),
            *((str(station), station.serve) for station in self.stations),
        ]

    def measure(self, lines: Sequence[Line]) -> None:
        """Let the state of the logs of all these lines be read for metrics, if an observer of the bus wants that."""
        observers: Observers | None = getattr(self._bus, "observer", None)
        if observers is not None and observers.wants_gauges:
            logs = [line._tables for line in lines]
            self._meter = Meter(self._sessions, logs, observers, self.board)

    def _tell_housekept(self, promoted: int, pruned: int) -> None:
        observers: Observers | None = getattr(self._bus, "observer", None)
        if observers is not None:
            observers.housekept(promoted, pruned)

    def hear(self) -> None:
        """Be rung for by the commits of this process."""
        bells.hang(self.board.ring, self._log)

    def hear_no_more(self) -> None:
        """Let them ring for others."""
        bells.take_down(self.board.ring)

    def wait_until_quiet(self, seconds: float) -> int | None:
        """Wait so many seconds until nothing is left to do of what is there by now; the number of our ring, None if not."""
        ring = self.board.ring()
        quiet = self.board.wait(lambda: all(each.is_quiet(ring) for each in self.stations), seconds)
        return ring if quiet else None


def wait_until_idle(lines: Sequence[Line], seconds: float) -> bool:
    """Wait so many seconds until nothing is left to do; with several lines also of what one of them brings another."""
    deadline = monotonic() + seconds
    while True:
        rings = [line.wait_until_quiet(deadline - monotonic()) for line in lines]
        if None in rings:
            return False
        if len(lines) == 1 or rings == [line.board.rings for line in lines]:
            return True
