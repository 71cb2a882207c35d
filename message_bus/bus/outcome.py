"""What came of a dispatch, as values: `Outcome` with its `Failure`s. Returned by `bus.dispatch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from message_bus.messages.message import Message


@dataclass(frozen=True, slots=True)
class Failure:
    """An event handler that raised: which one, on which message, and what."""

    message: Message
    handler: Any
    error: Exception


@dataclass(frozen=True, slots=True)
class Outcome:
    """`results`: what `handle` returns, in handling order. `failures`: the event handlers that failed, in that order."""

    results: list[Any]
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """No event handler failed."""
        return not self.failures
