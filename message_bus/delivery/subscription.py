"""`Subscription`: the settings of one named reader of a log. A plain value; every outbox handler has one.

The name is the identity of the checkpoint in the database: keep it when a handler's class is renamed. Whatever is
left at None takes the handler's own default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from message_bus.delivery.retry import ExponentialBackoff, RetryPolicy
from message_bus.errors import SettingsError
from message_bus.messages.message import Message

Mode = Literal["transactional", "concurrent"]
Start = Literal["beginning", "now"] | int | datetime

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """How one outbox handler (or projection, or process manager) reads its log.

    `name`: None means the handler's class name. `mode`: "transactional" runs the handlers of a message on a session
    whose commit also moves the checkpoint (G5); "concurrent" runs them without a transaction and records afterwards.
    `start`: where a new subscription begins: "beginning", "now", a time (aware), or a position it starts after. "now"
    leaves out what is committed already; as long as a transaction that has written messages is open it waits, idle.
    `types`: only these message types; None is all. What had failed or was held of a type that is taken out is passed
    over; its dead letters stay. `messages_per_commit`: above 1 messages share one commit, for at
    most `commit_within`. `fetch_size`: rows read at once, at least as many as share a commit. `partitions`: parallel parts
    by key. `concurrency`: keys in hand at once in concurrent mode. `max_attempts`, `backoff`: then a dead letter.
    `unavailable_on`: exception types that mean an outage (G8). `on_dead_letter`: whether a key continues after a dead
    letter or is held.
    `handler_timeout`: how long the handling of one message may take; None is for ever. An async handler is cancelled
    then, a failed attempt; a sync one cannot be: its worker loses the lease, and another one takes over (S11).
    `redact`: is given the text of an error, and its traceback, and returns what may be stored and shown of it. Parameters
    of SQL statements are gone before. If it fails, nothing of the text is kept.

    Raises: SettingsError listing every problem at once.
    """

    name: str | None = None
    mode: Mode | None = None
    start: Start | None = None
    types: Collection[type[Message]] | None = None
    messages_per_commit: int = 1
    commit_within: timedelta = timedelta(seconds=1)
    fetch_size: int = 100
    partitions: int = 1
    concurrency: int = 1
    max_attempts: int = 20
    backoff: RetryPolicy = ExponentialBackoff(initial_delay=1.0, max_delay=600.0)  # noqa: RUF009  (frozen)
    unavailable_on: tuple[type[Exception], ...] = (ConnectionError,)
    on_dead_letter: Literal["continue", "hold"] = "continue"
    handler_timeout: timedelta | None = timedelta(minutes=5)
    redact: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SettingsError(f"Subscription {self.name!r}" if self.name else "Subscription", problems)

    def named(self, default: str) -> Subscription:
        """Return the same settings, under `default` if they have no name yet."""
        return self if self.name is not None else replace(self, name=default)

    def _problems(self) -> list[str]:
        problems: list[str] = []
        if self.name is not None and not 0 < len(self.name) <= _LONGEST_NAME:
            problems.append(f"name must have 1 to {_LONGEST_NAME} characters")
        if self.mode not in (None, "transactional", "concurrent"):
            problems.append(f"mode {self.mode!r} is unknown (use 'transactional' or 'concurrent')")
        if isinstance(self.start, str) and self.start not in ("beginning", "now"):
            problems.append(
                f"start {self.start!r} is unknown (use 'beginning', 'now', a position or an aware datetime)"
            )
        if isinstance(self.start, datetime) and self.start.tzinfo is None:
            problems.append("start is a naive datetime (give it a timezone)")
        if isinstance(self.start, int) and (isinstance(self.start, bool) or self.start < 0):
            problems.append("start must be a position >= 0")
        problems += [
            f"{name} must be a whole number >= 1"
            for name in ("messages_per_commit", "fetch_size", "partitions", "concurrency", "max_attempts")
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool) or value < 1
        ]
        if self.commit_within <= timedelta(0):
            problems.append("commit_within must be longer than zero")
        if self.handler_timeout is not None and self.handler_timeout <= timedelta(0):
            problems.append("handler_timeout must be longer than zero (None: for ever)")
        if isinstance(self.backoff, type) or not callable(getattr(self.backoff, "delay", None)):
            problems.append("backoff must be a RetryPolicy (an instance, such as ExponentialBackoff())")
        if self.redact is not None and not callable(self.redact):
            problems.append("redact must be a function that takes a text and returns what may be shown of it")
        if self.on_dead_letter not in ("continue", "hold"):
            problems.append(f"on_dead_letter {self.on_dead_letter!r} is unknown (use 'continue' or 'hold')")
        if self.types is not None and not self.types:
            problems.append("types is empty: nothing would ever be delivered (None: all types)")
        return problems
