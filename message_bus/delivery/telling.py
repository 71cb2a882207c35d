"""What the log and error texts say about attempts. One colour; decides nothing."""

from __future__ import annotations

import logging
from typing import Any

from message_bus.delivery.jobs import Job
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.verdicts import Dead, Retry
from message_bus.errors import MessageDecodeError, UnknownMessageType
from message_bus.messages.message import Event

logger = logging.getLogger("message_bus.delivery")


def log_verdict(settings: Subscription, job: Job, verdict: Retry | Dead, error: Exception) -> None:
    """One line for a failed attempt: a warning if there is another, an error with its traceback if not."""
    extra = {
        "subscription": settings.name,
        "message_id": str(job.message.id),
        "message_type": job.message.message,
        "position": job.position,
        "attempt": job.attempts + 1,
    }
    match verdict:
        case Retry(delay=delay):
            logger.warning(
                "%s %s failed in subscription %r at attempt %d, again in %.1f s: %s",
                job.message.message,
                job.message.id,
                settings.name,
                job.attempts + 1,
                delay.total_seconds(),
                _said(error),
                extra=extra,
            )
        case Dead(reason=reason):
            logger.error(
                "%s is a dead letter of subscription %r: %s",
                job.message.message,
                settings.name,
                reason,
                exc_info=error,
                extra=extra,
            )


def log_crash(settings: Subscription, position: int, message: str | None, verdict: Retry | Dead) -> None:
    """One line for a message that the last worker had alone in hand when it died."""
    logger.error(
        "%s at position %d of subscription %r: %s",
        message or "a message that is gone",
        position,
        settings.name,
        f"a dead letter: {verdict.reason}"
        if isinstance(verdict, Dead)
        else "the worker died with it in hand",
        extra={"subscription": settings.name, "position": position, "message_type": message},
    )


def log_unwanted(settings: Subscription, position: int, message: str | None) -> None:
    """One line for a message that had failed or was held, of a type that was taken out of `types`."""
    logger.warning(
        "%s at position %d is passed over: subscription %r does not read its type any more",
        message,
        position,
        settings.name,
        extra={"subscription": settings.name, "position": position, "message_type": message},
    )


def log_stall(settings: Subscription, handlers: str, what: str, seconds: float) -> None:
    """One line for a handler that has blocked the event loop, and with it every heartbeat (S11)."""
    logger.error(
        "the event loop stood still for %.1f s while %s handled %s: no lease was renewed meanwhile (do what blocks in a "
        "thread, with asyncio.to_thread)",
        seconds,
        handlers,
        what,
        extra={"subscription": settings.name},
    )


def log_outage(settings: Subscription, error: Exception) -> None:
    """One line when something a subscription needs goes out of reach."""
    extra = {"subscription": settings.name}
    said = type(error).__name__
    logger.warning("subscription %r stops for now: out of reach: %s", settings.name, said, extra=extra)
    logger.debug("what is out of reach", exc_info=error, extra=extra)


def log_end_of_outage(settings: Subscription) -> None:
    """One line when it is in reach again."""
    logger.warning(
        "subscription %r goes on: what it needs is in reach again",
        settings.name,
        extra={"subscription": settings.name},
    )


def _said(error: Exception) -> str:
    """The error's type; its text only if it is one of ours, which hold no values."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, UnknownMessageType | MessageDecodeError) else name


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
