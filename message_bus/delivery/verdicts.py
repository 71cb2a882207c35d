"""What becomes of a message after an attempt: pure decisions over plain values.

    new ──ok──► delivered                     held ──head of its key──► an attempt
     └─error──► retrying ──ok──► delivered
                   └── attempts exhausted, Reject, cannot be decoded ──► dead

Called by the engine after each attempt; knows nothing of sessions or clocks.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from message_bus.delivery.subscription import Subscription
from message_bus.errors import MessageDecodeError, Reject, RetryLater, Unavailable

LONGEST_ERROR = 8 * 1024  # bytes kept of an error text and of a traceback
LONGEST_DELAY = timedelta(days=36_500)  # beyond it the databases' calendars end, and recording would fail

Redact = Callable[[str], str]

_SHORTEST_DETAIL = 8  # characters: what is shorter is replaced only as a whole
_PARAMETERS = re.compile(
    r"^[\s|]*\[parameters: .*?\]$", re.MULTILINE | re.DOTALL
)  # in a group behind a margin


@dataclass(frozen=True, slots=True)
class Delivered:
    """Handled: the checkpoint passes it."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Known, but nobody here wants it: the checkpoint passes it, and it is counted."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed: another attempt after `delay`; its key waits behind it."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up, for the reason said: kept as a dead letter."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outage:
    """Nothing was wrong with the message: no attempt is counted, the subscription backs off (G8)."""


class HandlerTimedOut(TimeoutError):
    """A handler ran for longer than `handler_timeout` and was cancelled: an attempt like any other that failed (S11)."""


Verdict = Delivered | PassedOver | Retry | Dead | Outage


def decide(
    error: Exception | None, *, attempt: int, settings: Subscription, chance: float, outage: bool = False
) -> Verdict:
    """Turn the outcome of attempt number `attempt` into a verdict.

    `chance` in [0, 1) is the dice of the back-off; `outage` says that the error came from a database out of reach.
    """
    if error is None:
        return Delivered()
    if isinstance(error, Reject):
        return Dead(f"rejected by the handler: {error.reason}" if error.reason else "rejected by the handler")
    if isinstance(error, MessageDecodeError):
        return Dead("cannot be decoded")
    if not isinstance(error, HandlerTimedOut) and (
        outage
        or any(isinstance(each, (Unavailable, *settings.unavailable_on)) for each in single_errors(error))
    ):
        return Outage()
    if isinstance(error, RetryLater) and error.delay is not None:
        return _retry_after(error.delay)
    if attempt >= settings.max_attempts and not isinstance(error, RetryLater):
        return Dead(f"gave up after {attempt} attempts")
    wait = settings.backoff.delay(attempt, chance=chance)
    return Dead("not to be tried again") if wait is None else _retry_after(wait)


def decide_crash(*, crashes: int, settings: Subscription, chance: float) -> Retry | Dead:
    """What becomes of a message that has killed its worker for the `crashes`th time (G7)."""
    if crashes >= settings.max_attempts:
        return Dead(f"killed the worker {crashes} times" if crashes > 1 else "killed the worker")
    # a policy that never tries again speaks of failures: who died may have been killed from outside
    return _retry_after(settings.backoff.delay(crashes, chance=chance) or timedelta(0))


def speaks_of_handlers(error: Exception) -> bool:
    """Whether the error may mean that handlers do not work; one that steers means that they do."""
    return not isinstance(error, Reject | RetryLater)


def _retry_after(delay: timedelta) -> Retry:
    # a negative delay would be due again in the same run, for ever
    return Retry(min(max(delay, timedelta(0)), LONGEST_DELAY))


def single_errors(error: Exception) -> Iterator[Exception]:
    """The error, or those of which it is a group (several event handlers failed)."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from single_errors(each)
    else:
        yield error


def error_text(error: BaseException, *, redact: Redact | None = None) -> str:
    """The error as it is stored: its type and text, without values of SQL statements, redacted, at most 8 KiB."""
    return _cut(f"{type(error).__qualname__}: {_storable(_text_of(error), error, redact)}")


def traceback_text(error: BaseException, *, redact: Redact | None = None) -> str:
    """The traceback as it is stored: without values of SQL statements, redacted; the last 8 KiB, where the cause is."""
    text = _storable("".join(traceback.format_exception(error)), error, redact)
    raw = text.encode()
    return text if len(raw) <= LONGEST_ERROR else "…" + raw[-LONGEST_ERROR:].decode(errors="ignore")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its str() failed>"


def _storable(text: str, error: BaseException, redact: Redact | None) -> str:
    # SQLAlchemy appends "[parameters: ...]" to its statement errors: values of the user's data
    text = _PARAMETERS.sub("[parameters left out]", text)
    for detail in _details_of(error):
        text = text.replace(detail, "[left out]")
    text = _redacted(text, redact).replace("\x00", "\\x00")
    # a lone surrogate (of a file's name, say) has no UTF-8, and would make recording the failure fail, run after run
    return text.encode(errors="backslashreplace").decode()


def _redacted(text: str, redact: Redact | None) -> str:
    """The text as the application lets it be seen; nothing of it if its function fails."""
    if redact is None:
        return text
    try:
        redacted: object = redact(text)
    except Exception as error:
        return f"<left out: redact= raised {type(error).__name__}>"
    return (
        redacted if isinstance(redacted, str) else f"<left out: redact= returned {type(redacted).__name__}>"
    )


def _details_of(error: BaseException) -> Iterator[str]:
    """What PostgreSQL's drivers add to an error as its DETAIL: the key or the whole row that did not fit, with its values."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        for detail in (
            getattr(getattr(each, "diag", None), "message_detail", None),
            getattr(each, "detail", None),
        ):
            if isinstance(detail, str) and detail:
                yield detail
                # in a group's traceback each line stands behind a margin
                yield from (line for line in detail.splitlines() if len(line) >= _SHORTEST_DETAIL)


def _cut(text: str) -> str:
    raw = text.encode()
    return text if len(raw) <= LONGEST_ERROR else raw[:LONGEST_ERROR].decode(errors="ignore") + "…"
