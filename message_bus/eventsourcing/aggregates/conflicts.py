"""`retry_on_conflict`: do it again when somebody else was faster, and only then.

    order is loaded ─► it decides ─► save: ConcurrencyError ─┐
          ▲                                                  │ at most `attempts` times
          └──────────────────────────────────────────────────┘

One name for both colours: what returns an awaitable is awaited. It knows no store; anything that raises ConcurrencyError
and begins from the beginning when it is called again can be repeated.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar, overload

from message_bus._compat import pause, pause_async
from message_bus.delivery.retry import ExponentialBackoff, RetryPolicy
from message_bus.errors import ConcurrencyError, SettingsError

P = ParamSpec("P")
T = TypeVar("T")

BACKOFF: Final = ExponentialBackoff(initial_delay=0.01, max_delay=1.0)
"""Up to 10 ms after the first conflict, 20 ms after the second: with full jitter, so that rivals do not meet again."""


@overload
def retry_on_conflict(work: Callable[[], T], *, attempts: int = 3, backoff: RetryPolicy = BACKOFF) -> T: ...
@overload
def retry_on_conflict(
    *, attempts: int = 3, backoff: RetryPolicy = BACKOFF
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def retry_on_conflict(
    work: Callable[[], Any] | None = None, *, attempts: int = 3, backoff: RetryPolicy = BACKOFF
) -> Any:
    """Call `work` until it does not end in a ConcurrencyError, at most `attempts` times, and return what it returned.

        retry_on_conflict(lambda: ship("o-1"))              # await it, if ship is async

        @retry_on_conflict(attempts=5)
        def ship(order_id): ...

    `work` must begin at the beginning each time: load the aggregate, decide, save. Let it open its own transaction and
    commit it: then nothing of a failed attempt is left, and the next one sees what the other writer has committed. Inside
    a transaction of the caller's that works under READ COMMITTED only, and what `work` wrote before the conflict stays.

    Nothing but ConcurrencyError is repeated; the last one is raised with a note. `backoff` says how long to wait between
    two attempts.

    Raises: SettingsError, also for `@retry_on_conflict` without its parentheses; what `work` raises.
    """
    if type(attempts) is not int or attempts < 1:
        raise SettingsError("retry_on_conflict", ["attempts is not a number from 1"])
    again = _Again(attempts, backoff)
    if work is None:
        return functools.partial(_decorate, again)
    if not callable(work):
        problem = f"a {type(work).__name__!r} cannot be called (give a function without arguments)"
        raise SettingsError("retry_on_conflict", [problem])
    if _needs_arguments(work):
        problem = "what is to be repeated needs arguments (write @retry_on_conflict(), or give a lambda)"
        raise SettingsError("retry_on_conflict", [problem])
    return again.call(work)


class _Again:
    """How often, and after which time."""

    def __init__(self, attempts: int, backoff: RetryPolicy) -> None:
        self._attempts = attempts
        self._backoff = backoff

    def call(self, work: Callable[[], Any]) -> Any:
        for attempt in range(1, self._attempts + 1):
            try:
                result = work()
            except ConcurrencyError as error:
                pause(self._seconds(attempt, error))
            else:
                return self.awaited(result, work) if inspect.isawaitable(result) else result
        raise AssertionError("the last attempt returns or raises")

    async def awaited(self, first: Awaitable[Any], work: Callable[[], Awaitable[Any]]) -> Any:
        awaitable = first
        for attempt in range(1, self._attempts + 1):
            try:
                return await awaitable
            except ConcurrencyError as error:
                await pause_async(self._seconds(attempt, error))
            awaitable = work()
        raise AssertionError("the last attempt returns or raises")

    def _seconds(self, attempt: int, error: ConcurrencyError) -> float:
        delay = self._backoff.delay(attempt, chance=random.random())
        if attempt == self._attempts or delay is None:
            error.add_note(f"(this was attempt {attempt} of {self._attempts})")
            raise error
        return delay.total_seconds()


def _decorate(again: _Again, function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def repeated_async(*args: Any, **kwargs: Any) -> Any:
            return await again.call(lambda: function(*args, **kwargs))

        return repeated_async

    @functools.wraps(function)
    def repeated(*args: Any, **kwargs: Any) -> Any:
        return again.call(lambda: function(*args, **kwargs))

    return repeated


def _needs_arguments(work: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(work)
    except (TypeError, ValueError):  # a builtin that does not say
        return False
    try:
        signature.bind()
    except TypeError:
        return True
    return False


__all__ = ["BACKOFF", "retry_on_conflict"]
