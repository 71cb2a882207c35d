"""S11 with asyncio: handlers that swallow their cancellation, and handlers that block the event loop."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    AsyncRelay,
    MessageBusTables,
    Subscription,
)
from message_bus.delivery.process_async import process_outbox_async
from tests.delivery.world import AT_ONCE, EFFECT, Noted
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

LEASE = timedelta(seconds=0.6)


class Stubborn(AsyncOutboxHandlerABC):
    """Writes an effect; the first time it goes on for as long as it likes, whoever cancels it."""

    subscription = Subscription(
        name="stubborn", mode="transactional", backoff=AT_ONCE, handler_timeout=timedelta(seconds=0.1)
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.go_on = asyncio.Event()

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        note = f"call {self.calls}"
        first = self.calls == 1
        await context.db_session.execute(sa.insert(EFFECT).values(note=note))
        while first and not self.go_on.is_set():
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                continue


class Blocking(AsyncOutboxHandlerABC):
    """Blocks the event loop, the first time; what others do in this time, `meanwhile`, is done before."""

    subscription = Subscription(name="blocking", mode="transactional", backoff=AT_ONCE)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.attempts: list[int] = []
        self.meanwhile: Any = None

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.attempts.append(context.attempt)
        await context.db_session.execute(sa.insert(EFFECT).values(note="blocked"))
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        seconds, self.seconds = self.seconds, 0.0
        time.sleep(seconds)  # noqa: ASYNC251


async def _made(
    sessions: async_sessionmaker[AsyncSession], handler: AsyncOutboxHandlerABC
) -> AsyncMessageBus:
    bus = AsyncMessageBus()
    bus.set_outbox_handlers([handler])
    async with sessions.begin() as session:
        await (await session.connection()).run_sync(EFFECT.metadata.create_all)
        bus.register_outbox_message(session, Noted(n=1))
    return bus


async def _effects(sessions: async_sessionmaker[AsyncSession]) -> list[str]:
    async with sessions() as session:
        return list(await session.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)))


async def test_a_handler_that_swallows_its_cancellation(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """S11, G6: past the grace its lease is not renewed, it is not live, another takes over; what it commits late is refused."""
    sessions = async_session_factory
    stubborn = Stubborn()
    bus = await _made(sessions, stubborn)
    relay = AsyncRelay(bus, sessions, lease=LEASE, drain_timeout=timedelta(seconds=10))

    async def another_takes_over() -> bool:
        async with sessions() as session:
            return (await process_outbox_async(bus, session, lease=LEASE)).delivered == 1

    async with relay:
        await async_wait_until(lambda: stubborn.calls == 1)
        assert relay.health().live
        await async_wait_until(lambda: not relay.health().live)
        await async_wait_until(another_takes_over, timeout=20)
        stubborn.go_on.set()
    assert (stubborn.calls, await _effects(sessions)) == (2, ["call 2"])
    assert "runs for longer than its handler_timeout" in caplog.text


@pytest.mark.parametrize("lost", [True, False])
async def test_a_handler_that_blocks_the_event_loop(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
) -> None:
    """S11: it is named once the loop runs again; a lease that was lost that way burns no attempt."""
    sessions = async_session_factory
    blocking = Blocking(2.2)
    bus = await _made(sessions, blocking)
    s = async_tables.subscription

    async def steal() -> None:
        async with sessions.begin() as session:
            await session.execute(sa.update(s).values(owner="another", epoch=s.c.epoch + 1))

    if lost:
        blocking.meanwhile = steal
    async with sessions() as session:
        report = await process_outbox_async(bus, session, lease=timedelta(seconds=30))
    assert "the event loop stood still for" in caplog.text
    assert "Blocking handled Noted" in caplog.text
    if not lost:
        assert (report.delivered, await _effects(sessions)) == (1, ["blocked"])
        return
    assert (report.delivered, report.busy, await _effects(sessions)) == (0, ("blocking",), [])
    async with sessions.begin() as session:
        assert list(await session.scalars(sa.select(async_tables.delivery.c.position))) == []
        await session.execute(sa.update(s).values(owner=None, lease_until=None))
    async with sessions() as session:
        assert (await bus.process_outbox(session)).delivered == 1
    assert (blocking.attempts, await _effects(sessions)) == ([1, 1], ["blocked"])
