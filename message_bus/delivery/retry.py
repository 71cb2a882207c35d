"""Back-off policies: how long to wait after attempt number n. Pure; randomness is handed in.

`RetryPolicy` is what a `Subscription` asks. Users write their own by giving a class the one method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from message_bus.errors import SettingsError

_MOST_DOUBLINGS = 64  # beyond it any delay has met its maximum, and floats would overflow


@runtime_checkable
class RetryPolicy(Protocol):
    """Says how long to wait between two attempts. Immutable, safe to share."""

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Say how long to wait after failed attempt number `attempt` (1 is the first); None: do not try again.

        `chance` in [0, 1) is drawn by the caller; a policy with jitter scales by it, others ignore it.
        """
        ...


def _refuse_negative(policy: str, **seconds: float) -> None:
    problems = _not_numbers(seconds) or [
        f"{name} is negative (use seconds >= 0)" for name, value in seconds.items() if not value >= 0
    ]
    if problems:
        raise SettingsError(policy, problems)


def _not_numbers(given: Mapping[str, object]) -> list[str]:
    return [
        f"{name} is a {type(value).__name__}, not a number of seconds (of a timedelta: .total_seconds())"
        for name, value in given.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]


@dataclass(frozen=True)
class NoRetry:
    """Never again: the first failure is the last."""

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Return None, always."""
        return None


@dataclass(frozen=True)
class FixedDelay:
    """The same `seconds` after every failure."""

    seconds: float = 1.0

    def __post_init__(self) -> None:
        _refuse_negative("FixedDelay", seconds=self.seconds)

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Return `seconds`, whatever the attempt."""
        return timedelta(seconds=self.seconds)


@dataclass(frozen=True)
class LinearBackoff:
    """`initial_delay`, then `increment` more each time, up to `max_delay`; all in seconds."""

    initial_delay: float = 1.0
    increment: float = 1.0
    max_delay: float = 600.0

    def __post_init__(self) -> None:
        _refuse_negative(
            "LinearBackoff",
            initial_delay=self.initial_delay,
            increment=self.increment,
            max_delay=self.max_delay,
        )

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Return `initial_delay + (attempt - 1) * increment`, at most `max_delay`."""
        return timedelta(seconds=min(self.initial_delay + (attempt - 1) * self.increment, self.max_delay))


@dataclass(frozen=True)
class ExponentialBackoff:
    """`initial_delay` seconds, times `multiplier` each time, up to `max_delay`; with `jitter`, a random part of that.

    Full jitter spreads the retries of many messages evenly; see M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015.
    """

    initial_delay: float = 1.0
    max_delay: float = 600.0
    multiplier: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        _refuse_negative("ExponentialBackoff", initial_delay=self.initial_delay, max_delay=self.max_delay)
        if not isinstance(self.multiplier, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            problem = f"multiplier is a {type(self.multiplier).__name__}, not a number"
            raise SettingsError("ExponentialBackoff", [problem])
        if not self.multiplier >= 1:
            raise SettingsError("ExponentialBackoff", ["multiplier is below 1 (the delays would shrink)"])

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Return `initial_delay * multiplier ** (attempt - 1)`, at most `max_delay`, scaled by `chance` if jittered."""
        grown = self.initial_delay * self.multiplier ** min(attempt - 1, _MOST_DOUBLINGS)
        return timedelta(seconds=min(grown, self.max_delay) * (chance if self.jitter else 1.0))
