"""An application as `--app` finds one: buses, a factory, and the ways in which one can be wrong."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

from message_bus import (
    AsyncMessageBus,
    Context,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    Subscription,
)


class Asked(Event, key="topic"):
    """An event whose handler does what its `wish` says."""

    topic: str
    wish: str = "succeed"


class Unreachable(ConnectionError):
    """Something outside that does not answer."""


def grant(event: Asked, context: Context) -> None:
    """Succeed, fail, find something unreachable, or take a minute."""
    if event.wish == "fail":
        raise RuntimeError("the secret of Asked is s3cret")
    if event.wish == "be unreachable":
        raise Unreachable
    if event.wish == "never end":
        print("at work", flush=True)
        threading.Event().wait(60)


async def grant_async(event: Asked, context: Context) -> None:
    """The same on an AsyncMessageBus."""
    if event.wish == "never end":
        print("at work", flush=True)
        await asyncio.sleep(60)
    grant(event, context)


def make_bus() -> MessageBus:
    """A bus with one subscription, which gives up after two attempts."""
    made = MessageBus(event_handlers={Asked: [grant]})
    made.set_outbox_handlers(
        [
            DispatchOutboxHandler(
                subscription=Subscription(name="asked", max_attempts=2, backoff=FixedDelay(0))
            )
        ]
    )
    return made


def make_two() -> MessageBus:
    """A bus with two subscriptions."""
    made = MessageBus(event_handlers={Asked: [grant]})
    made.set_outbox_handlers(
        [
            DispatchOutboxHandler(subscription=Subscription(name="first")),
            DispatchOutboxHandler(handlers={Asked: [grant]}, subscription=Subscription(name="second")),
        ]
    )
    return made


bus = make_bus()
async_bus = AsyncMessageBus(event_handlers={Asked: [grant_async]})
nested = SimpleNamespace(bus=bus)
no_bus = 42


def raises() -> MessageBus:
    """A factory that fails."""
    raise KeyError("SHOP_SETTINGS")


async def make_async() -> AsyncMessageBus:
    """A factory that nobody awaits."""
    return async_bus


def returns_nothing() -> None:
    """A factory that forgets to return its bus."""
