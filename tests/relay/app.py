"""An application for relays in processes of their own: handlers write effects, and some do as they are told.

A handler of "linger" says "entered" on stdout and waits for a line on stdin. `--app tests.relay.app:make_bus`, or the
others below.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from message_bus import (
    AsyncMessageBus,
    AsyncRelay,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    Relay,
    Subscription,
    configure_sqlite,
)
from tests.delivery.world import EFFECT


class Done(Event, key="key"):
    """Its handler writes the effect `key:n`."""

    key: str
    n: int


def _note(event: Done) -> str:
    if event.key == "linger":
        sys.stdout.write("entered\n")
        sys.stdout.flush()
        sys.stdin.readline()
    return f"{event.key}:{event.n}"


def write(event: Done, context: Any) -> None:
    """Write the effect."""
    context.db_session.execute(sa.insert(EFFECT).values(note=_note(event)))


async def write_async(event: Done, context: Any) -> None:
    """Write the effect."""
    await context.db_session.execute(sa.insert(EFFECT).values(note=_note(event)))


def _handlers() -> list[DispatchOutboxHandler]:
    return [DispatchOutboxHandler(subscription=Subscription(name="dispatch", backoff=FixedDelay(0.05)))]


def make_bus() -> MessageBus:
    """A sync application."""
    bus = MessageBus(event_handlers={Done: [write]})
    bus.set_outbox_handlers(_handlers())
    return bus


def make_async_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    bus = AsyncMessageBus(event_handlers={Done: [write_async]})
    bus.set_outbox_handlers(_handlers())
    return bus


def make_relay() -> Relay:
    """A relay, ready made."""
    engine = sa.create_engine(os.environ["MESSAGE_BUS_DATABASE_URL"])
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    return Relay(make_bus(), engine, poll=timedelta(seconds=0.1))


def make_async_relay() -> AsyncRelay:
    """The same in asyncio."""
    url = sa.make_url(os.environ["MESSAGE_BUS_DATABASE_URL"])
    if url.get_backend_name() == "sqlite":
        return AsyncRelay(
            make_async_bus(), configure_sqlite(create_async_engine(url.set(drivername="sqlite+aiosqlite")))
        )
    return AsyncRelay(make_async_bus(), create_async_engine(url), poll=timedelta(seconds=0.1))
