"""`Relay`: delivers what is in the outbox with threads, for as long as the process lives.

What its threads do is said in `stations.py` and `watching.py`; here they are started, watched over and stopped. A thread
cannot be cancelled: what hangs in a handler is left behind after `drain_timeout`, with its lease, which then expires.
The web application, `message-bus relay` or a script owns it. `AsyncRelay` is the same for asyncio.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from message_bus.bus.abc import LEASE
from message_bus.delivery.hands import Hands
from message_bus.errors import SettingsError, WiringError
from message_bus.relay.health import Health, health_of
from message_bus.relay.line import Line, wait_until_idle
from message_bus.relay.wiring import (
    AnyRelay,
    by_log,
    check_engine,
    check_lists,
    check_settings,
    end_now,
    stopping_on_signals,
    subscriptions_of,
)
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.repositories.waiting import clause_for
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.relay")

_HEARING: Final = 0.2  # seconds after which a signal is heard at the latest


class Relay(AnyRelay):
    """Delivers until it is stopped: `relay.run()` in a process of its own, `with relay:` beside an application.

    `sessions`: a sessionmaker or an Engine; handlers get sessions of it. `projections`, `process_managers`: run beside the
    bus's own outbox handlers, each as a subscription of its log. `lease`: how long a worker may be silent (killed,
    frozen) before another one takes its place. `poll`: the longest pause between two looks at a quiet database; they begin
    with 20 ms. `listen`: be woken by whoever commits a message (PostgreSQL; not behind a pooler in transaction mode).
    `retention`: how long delivered messages are kept; None is for ever. `drain_timeout`: how long a stop waits for what is
    in hand.

    Any number of relays may work on one database: each partition of a subscription belongs to one of them, another takes
    over when that one ends or dies (G2, G3, G6). An outage of the database is waited for. Use it once.

    Raises: SettingsError listing every problem at once.
    """

    def __init__(
        self,
        bus: Any,
        sessions: sessionmaker[Any] | Engine,
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
            "Relay",
            lease=lease,
            poll=poll,
            retention=retention,
            drain_timeout=drain_timeout,
        )
        check_lists("Relay", projections=projections, process_managers=process_managers)
        if not isinstance(sessions, sessionmaker | Engine):
            raise SettingsError(
                "Relay",
                [
                    f"it works on a sessionmaker or an Engine, not on {type(sessions).__name__!r} (or use AsyncRelay)"
                ],
            )
        factory: Callable[[], Session] = sessionmaker(sessions) if isinstance(sessions, Engine) else sessions
        with factory() as session:
            engine = session.get_bind(clause=clause_for(tables.outbox))
        check_engine("Relay", engine)
        assert isinstance(engine, Engine)
        self.bus = bus
        self.projections = tuple(projections)
        self._drain_timeout = drain_timeout.total_seconds()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        hands = Hands()
        self.handlers = subscriptions_of("Relay", bus, [*projections, *process_managers])
        self._lines = [
            Line(
                bus,
                of_log,
                engine,
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

    def run(self) -> None:
        """Deliver until `stop()`, SIGTERM or SIGINT; then finish what is in hand (G11).

        The first signal drains: what is still in hand after `drain_timeout` is given up, and the process ends with exit
        code 1. The second ends the process at once, with 128 + its number. In a thread other than the main one signals
        are left alone, and only `stop()` ends it.

        Raises: WiringError if the set-up is wrong; what a handler raised to end the process (SystemExit).
        """
        with stopping_on_signals(self.stop):
            self._start()
            while not self._ended.wait(_HEARING):
                pass  # a signal that comes while the thread goes to sleep would not wake it
            if not self._drain():
                end_now(1)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ask it to finish what is in hand and end; returns at once. Any thread may call it, also twice."""
        for line in self._lines:
            line.board.ask_to_stop()
            if line.listener is not None:
                line.listener.stop()
        self._ended.set()

    def __enter__(self) -> Relay:
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._drain()

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Wait until everything that was committed before is delivered, or has failed and waits for its next attempt.

        For tests. Partitions that another worker has, and those that are paused, are not waited for. `timeout` is in seconds.

        Raises: TimeoutError; what has stopped the relay.
        """
        idle = wait_until_idle(self._lines, timeout)
        if self._error is not None:
            raise self._error
        if not idle:
            raise TimeoutError(f"the relay is not idle after {timeout} s: {self.health()}")

    def health(self) -> Health:
        """Say how it is; reads nothing from the database. Any thread may call it."""
        live = bool(self._threads) and all(thread.is_alive() for thread in self._threads)
        return health_of(self._lines, live=live, error=self._error)

    # --- threads --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._threads:
            raise WiringError("a relay is started once (make another one)")
        parts: list[tuple[str, Callable[[], None]]] = []
        self._lines[0].measure(self._lines)
        for line in self._lines:
            line.hear()
            parts += line.parts
            if line.listener is not None:
                parts.append(("listener", line.listener.listen))
        for name, part in parts:
            context = contextvars.copy_context()
            self._threads.append(
                threading.Thread(
                    target=context.run,
                    args=(self._guarded, part),
                    name=f"message_bus relay {name}",
                    daemon=True,  # one that hangs in a handler must not keep the process
                )
            )
        for thread in self._threads:
            thread.start()

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            if self._error is None:
                self._error = error
            logger.critical("the relay stops: %s", error or type(error).__name__, exc_info=error)
            self.stop()

    def _drain(self) -> bool:
        """Wait for the threads; False if one is still at it after `drain_timeout`."""
        for line in self._lines:
            line.hear_no_more()
        deadline = monotonic() + self._drain_timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        left = [thread.name for thread in self._threads if thread.is_alive()]
        if left:
            logger.error(
                "not done after %.0f s, given up: %s; what they hold expires, others take over",
                self._drain_timeout,
                ", ".join(left),
            )
        return not left
