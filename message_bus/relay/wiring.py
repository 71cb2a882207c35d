"""What both relays check before they start, and how a signal or a second one ends them. No colour."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Final, NoReturn

from sqlalchemy import Engine, NullPool, QueuePool

from message_bus.delivery.subscription import Subscription
from message_bus.errors import SettingsError
from message_bus.relay.health import Health
from message_bus.storage.logs import OUTBOX_LOG

logger: Final = logging.getLogger("message_bus.relay")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class AnyRelay(ABC):
    """What both relays have, whatever their colour."""

    bus: Any
    handlers: Sequence[tuple[Any, Subscription]]
    """The outbox handlers of its bus, and what it was given beside them, each with its settings."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to finish what is in hand and end; returns at once. Any thread may call it, also twice."""

    @abstractmethod
    def health(self) -> Health:
        """Say how it is; reads nothing from the database."""


def check_settings(
    name: str,
    *,
    lease: timedelta,
    poll: timedelta,
    retention: timedelta | None,
    drain_timeout: timedelta,
) -> None:
    """Raise a SettingsError that lists every problem at once."""
    problems = [
        f"{what} must be longer than zero"
        for what, span in (("lease", lease), ("poll", poll), ("drain_timeout", drain_timeout))
        if span <= timedelta(0)
    ]
    if retention is not None and retention < timedelta(0):
        problems.append("retention must not be negative (None: keep everything)")
    if problems:
        raise SettingsError(name, problems)


def check_engine(name: str, engine: Any) -> None:
    """Raise SettingsError unless every thread or task can get a connection of its own."""
    if not isinstance(engine, Engine):
        raise SettingsError(name, ["it works on connections of its own (bind the sessions to an engine)"])
    if not isinstance(engine.pool, QueuePool | NullPool):
        raise SettingsError(
            name,
            [
                (
                    f"a {type(engine.pool).__name__} gives one connection to everybody "
                    "(use a file or a server, with the default pool)"
                )
            ],
        )


def check_lists(name: str, **given: Any) -> None:
    """Raise SettingsError for an option that wants several and was given one."""
    problems = [
        f"{option} is a {type(value).__name__!r}, not a list (write {option}=[...])"
        for option, value in given.items()
        if not isinstance(value, Iterable)
    ]
    if problems:
        raise SettingsError(name, problems)


def subscriptions_of(name: str, bus: Any, others: Sequence[Any]) -> list[tuple[Any, Subscription]]:
    """The outbox handlers of a bus, and others that the relay was given, each with its settings under its final name."""
    handlers: Sequence[Any] | None = getattr(bus, "outbox_handlers", None)
    if handlers is None:
        raise SettingsError(
            name, [f"{type(bus).__name__} is not a bus (give a MessageBus or AsyncMessageBus)"]
        )
    return [
        (handler, (handler.subscription or Subscription()).named(type(handler).__name__))
        for handler in (*handlers, *bus.attach_outbox_handlers(others, beside=handlers))
    ]


def by_log(
    handlers: Sequence[tuple[Any, Subscription]],
) -> dict[str, list[tuple[Any, Subscription]]]:
    """The same by the log that they read; the outbox comes first, and is there in any case."""
    found: dict[str, list[tuple[Any, Subscription]]] = {OUTBOX_LOG: []}
    for handler, settings in handlers:
        found.setdefault(handler.log, []).append((handler, settings))
    return found


def end_now(code: int) -> NoReturn:
    """End the process, whatever its threads are doing: leases are left to expire, transactions roll back (G11)."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT, end the process at the second; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            end_now(128 + number)
        # not here: whatever the main thread was in the middle of may hold the lock that `stop` needs
        threading.Thread(target=stop_and_say, args=(number,), name="message_bus stop", daemon=True).start()

    def stop_and_say(number: int) -> None:
        stop()
        logger.info("%s: what is in hand is finished, then the relay ends", signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
