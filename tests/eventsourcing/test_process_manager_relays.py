"""Process managers on relays: events, commands and timeouts find each other without anybody processing by hand."""

# ruff: noqa: RUF012  (what a class declares is only read)

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncRelay,
    AsyncSQLAlchemyEventStore,
    Command,
    Event,
    MessageBus,
    MessageBusTables,
    ProcessManager,
    Relay,
    SQLAlchemyEventStore,
    when,
)
from tests.waiting import async_wait_until, wait_until


class Placed(Event):
    """Begins a process."""

    order_id: int


class Overdue(Event):
    """Ends it."""

    order_id: int


class Request(Command):
    """Sent at the beginning."""

    order_id: int


class Cancel(Command):
    """Sent at the end."""

    order_id: int


class Fulfilment(ProcessManager):
    """Waits for a moment, in vain."""

    correlate = {Placed: "order_id", Overdue: "order_id"}
    timeouts = (Overdue,)

    @when(Placed)
    def placed(self, event: Placed) -> None:
        """Ask, and wait."""
        self.send(Request(order_id=event.order_id))
        self.timeout_in(timedelta(milliseconds=50), Overdue(order_id=event.order_id))

    @when(Overdue)
    def overdue(self, event: Overdue) -> None:
        """Give up."""
        self.send(Cancel(order_id=event.order_id))
        self.complete()


def test_on_a_relay(session_factory: sessionmaker[Session], tables: MessageBusTables) -> None:
    """From the event log to the commands' handlers, and back by the timeout."""
    handled: list[Any] = []
    bus = MessageBus(command_handlers={Request: handled.append, Cancel: handled.append})
    with session_factory.begin() as session:
        SQLAlchemyEventStore(session).save("order-1", [Placed(order_id=1)])
    with Relay(bus, session_factory, process_managers=[Fulfilment()]):
        wait_until(lambda: len(handled) == 2, timeout=60)
        with session_factory.begin() as session:
            SQLAlchemyEventStore(session).save("order-2", [Placed(order_id=2)])
        wait_until(lambda: len(handled) == 4, timeout=60)
    assert handled == [
        Request(order_id=1),
        Cancel(order_id=1),
        Request(order_id=2),
        Cancel(order_id=2),
    ]
    with session_factory() as session:
        assert session.scalars(sa.select(tables.process.c.state)).all() == ["completed"] * 2
        assert session.scalars(sa.select(tables.delivery.c.error)).all() == []


@pytest.mark.postgresql
async def test_on_an_async_relay(
    async_engine: AsyncEngine,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """The same with tasks."""
    handled: list[Any] = []
    bus = AsyncMessageBus(command_handlers={Request: handled.append, Cancel: handled.append})
    async with async_session_factory() as session:
        await AsyncSQLAlchemyEventStore(session).save("order-1", [Placed(order_id=1)])
        await session.commit()
    async with AsyncRelay(bus, async_session_factory, process_managers=[Fulfilment()]):
        await async_wait_until(lambda: len(handled) == 2, timeout=60)
    assert handled == [Request(order_id=1), Cancel(order_id=1)]
    async with async_session_factory() as session:
        states = await session.scalars(sa.select(async_tables.process.c.state))
        assert states.all() == ["completed"]
