"""What the log says about messages, and what error texts call handlers. One colour; decides nothing.

One line for each verdict, once the commit that records it has happened: WARNING for a failure that is tried again, ERROR
for a dead letter, DEBUG for all that is well. Every line has the same `extra=` fields (`FIELDS`). No line holds a value
of a message: of an error it names the type. At DEBUG the traceback follows, as it is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from message_bus.delivery.jobs import Change, Crashed, Failed, Held, Job, Sent, Unwanted
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.verdicts import Dead, Retry, single_errors, traceback_text
from message_bus.errors import MessageDecodeError, Reject, UnknownMessageType
from message_bus.messages.envelope import CORRELATION_ID
from message_bus.messages.message import Event
from message_bus.observability.observer import Part

logger = logging.getLogger("message_bus.delivery")

FIELDS: Final = (
    "subscription",
    "partition",
    "log",
    "message_id",
    "message_type",
    "position",
    "attempt",
    "verdict",
    "correlation_id",
    "error_type",
)
"""The attributes that a record about messages has; what is not known, or does not apply, is None."""

_LONGEST_NAME: Final = 200


def tells_everything() -> bool:
    """Whether anybody wants to hear of messages with which all is well."""
    return logger.isEnabledFor(logging.DEBUG)


def log_verdicts(part: Part, settings: Subscription, told: Iterable[Change | Sent]) -> None:
    """One line for each message of which a commit has just recorded what became of it."""
    everything = tells_everything()
    for each in told:
        match each:
            case Failed():
                _log_failure(part, settings, each)
            case Sent(job=job, handled=handled) if everything:
                verdict = "delivered" if handled else "passed over"
                extra = _fields(part, job, verdict=verdict, attempt=job.attempts + 1)
                logger.debug(
                    "%s is %s by subscription %r",
                    _name(job),
                    verdict,
                    part.subscription,
                    extra=extra,
                )
            case Held(job=job) if everything:
                logger.debug(
                    "%s is held by subscription %r: an earlier message of its key is not done",
                    _name(job),
                    part.subscription,
                    extra=_fields(part, job, verdict="held"),
                )
            case _:
                pass


def _log_failure(part: Part, settings: Subscription, failed: Failed) -> None:
    job, error = failed.job, failed.error
    extra = _fields(part, job, attempt=job.attempts + 1, error=error)
    match failed.verdict:
        case Retry(delay=delay):
            logger.warning(
                "%s failed in subscription %r at attempt %d, again in %.1f s: %s",
                _name(job),
                part.subscription,
                job.attempts + 1,
                delay.total_seconds(),
                _said(error),
                extra={**extra, "verdict": "retrying"},
            )
        case Dead(reason=reason):
            logger.error(
                "%s is a dead letter of subscription %r: %s: %s (`message-bus dead-letters show %s` shows all of it)",
                _name(job),
                part.subscription,
                "rejected by the handler" if isinstance(error, Reject) else reason,
                _said(error),
                job.message.id,
                extra={**extra, "verdict": "dead"},
            )
    if tells_everything():
        logger.debug("%s", traceback_text(error, redact=settings.redact), extra=extra)


def log_crash(part: Part, crashed: Crashed, message: str | None) -> None:
    """One line for a message that the last worker had alone in hand when it died."""
    verdict = crashed.verdict
    is_dead = isinstance(verdict, Dead)
    logger.error(
        "%s at position %d of subscription %r: %s",
        "a message that is gone" if message is None else _harmless(message),
        crashed.position,
        part.subscription,
        f"a dead letter: {verdict.reason}"
        if isinstance(verdict, Dead)
        else "the worker died with it in hand",
        extra={**_of_row(part, crashed, message), "verdict": "dead" if is_dead else "retrying"},
    )


def log_unwanted(part: Part, unwanted: Unwanted, message: str | None) -> None:
    """One line for a message that had failed or was held, of a type that was taken out of `types`."""
    logger.warning(
        "%s at position %d is passed over: subscription %r does not read its type any more",
        "a message that is gone" if message is None else _harmless(message),
        unwanted.position,
        part.subscription,
        extra={**_of_row(part, unwanted, message), "verdict": "passed over"},
    )


def log_stall(part: Part, handlers: str, job: Job, seconds: float) -> None:
    """One line for a handler that has blocked the event loop, and with it every heartbeat (S11)."""
    logger.error(
        "the event loop stood still for %.1f s while %s handled %s: no lease was renewed meanwhile (do what blocks in a "
        "thread, with asyncio.to_thread)",
        seconds,
        handlers,
        _name(job),
        extra=_fields(part, job, attempt=job.attempts + 1),
    )


def log_outage(part: Part, settings: Subscription, error: Exception) -> None:
    """One line when something a subscription needs goes out of reach."""
    extra = {**_about(part), "error_type": type(error).__name__}
    logger.warning(
        "subscription %r stops for now: out of reach: %s",
        part.subscription,
        type(error).__name__,
        extra=extra,
    )
    if tells_everything():
        logger.debug("%s", traceback_text(error, redact=settings.redact), extra=extra)


def log_end_of_outage(part: Part) -> None:
    """One line when it is in reach again."""
    logger.warning(
        "subscription %r goes on: what it needs is in reach again", part.subscription, extra=_about(part)
    )


def fields_of_own_row(message_id: Any, message: str | None) -> dict[str, Any]:
    """The fields of a line about a row of a repository that users wrote themselves."""
    return {**dict.fromkeys(FIELDS), "message_id": str(message_id), "message_type": message}


def _fields(
    part: Part,
    job: Job,
    *,
    verdict: str | None = None,
    attempt: int | None = None,
    error: Exception | None = None,
) -> dict[str, Any]:
    return {
        **_about(part),
        "message_id": str(job.message.id),
        "message_type": job.message.message,
        "position": job.position,
        "attempt": attempt,
        "verdict": verdict,
        "correlation_id": _correlation_of(job),
        "error_type": None if error is None else type(error).__name__,
    }


def _of_row(part: Part, change: Crashed | Unwanted, message: str | None) -> dict[str, Any]:
    return {
        **_about(part),
        "message_id": None if change.message_id is None else str(change.message_id),
        "message_type": message,
        "position": change.position,
    }


def _about(part: Part) -> dict[str, Any]:
    known = {"subscription": part.subscription, "partition": part.partition, "log": part.log}
    return {**dict.fromkeys(FIELDS), **known}


def _correlation_of(job: Job) -> str | None:
    try:
        return job.message.headers.get(CORRELATION_ID)
    except Exception:  # somebody else has written these headers, and a log line must not fail on them
        return None


def _name(job: Job) -> str:
    """The message, as a line may name it: an unknown type is whatever somebody has written into the table."""
    return f"{_harmless(job.message.message)} {job.message.id}"


def _harmless(name: str) -> str:
    """A name that stays on its line and cannot speak to a terminal."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}…"
    return name if name.isprintable() else ascii(name)


def _said(error: Exception) -> str:
    """The error's type; its text only if it is one of ours that holds no words of the user's."""
    name = type(error).__name__
    if isinstance(error, ExceptionGroup):  # several handlers have failed
        return f"{name} of {', '.join(sorted({type(each).__name__ for each in single_errors(error)}))}"
    ours = type(error) in (UnknownMessageType, MessageDecodeError) and error.__cause__ is None
    return f"{name}: {_harmless(str(error))}" if ours else name


def handlers_of(handler: Any, message_name: str) -> str:
    """The names of the handlers that a message of this type goes to, as far as they can be found."""
    bus = getattr(handler, "bus", None)
    cls = bus.registry.get(message_name) if bus is not None else None
    if bus is None or cls is None:
        return type(handler).__name__
    found = bus.get_event_handlers(cls) if issubclass(cls, Event) else [bus.get_command_handler(cls)]
    return ", ".join(map(_name_of, found)) or type(handler).__name__


def _name_of(handler: Any) -> str:
    return getattr(handler, "__qualname__", None) or type(handler).__name__
