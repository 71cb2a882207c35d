"""The asynchronous engine: the same source as the synchronous one, so the roads that differ are what is tested."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    DispatchOutboxHandler,
    Event,
    MessageBusTables,
    Subscription,
)
from message_bus.testing import drain
from tests.delivery.world import AT_ONCE, EFFECT
from tests.waiting import async_wait_until


class Step(Event, key="order"):
    order: str
    n: int


class AsyncWorld:
    """An AsyncMessageBus with one handler that writes an effect and fails on demand."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], tables: MessageBusTables) -> None:
        self.sessions = sessions
        self.tables = tables
        self.failing: dict[str, list[BaseException]] = {}
        self.before: dict[str, Any] = {}
        self.bus = AsyncMessageBus()
        self.bus.set_event_handlers(Step, [self.on_step])
        self.settings()

    def settings(self, **settings: Any) -> None:
        """Run the bus's handlers under a subscription with these settings."""
        settings = {"name": "dispatch", "backoff": AT_ONCE, "commit_within": timedelta(minutes=1), **settings}
        self.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(**settings))])

    async def on_step(self, event: Step, context: Any) -> None:
        """Write the effect `order:n`."""
        note = f"{event.order}:{event.n}"
        await context.db_session.execute(sa.insert(EFFECT).values(note=note))
        if note in self.before:
            await self.before[note](context)
        if self.failing.get(note):
            raise self.failing[note].pop(0)

    async def register(self, *messages: Step) -> None:
        """Register messages in one transaction."""
        async with self.sessions.begin() as session:
            for message in messages:
                self.bus.register_outbox_message(session, message)

    async def process(self, **options: Any) -> Any:
        """One process_outbox in a session of its own."""
        async with self.sessions() as session:
            return await self.bus.process_outbox(session, **options)

    async def effects(self) -> list[str]:
        """The notes of all effects, in order."""
        async with self.sessions() as session:
            return list(await session.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)))


@pytest.fixture
async def world(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> AsyncWorld:
    """A fresh application in a fresh database."""
    async with async_session_factory.begin() as session:
        await (await session.connection()).run_sync(EFFECT.metadata.create_all)
    return AsyncWorld(async_session_factory, async_tables)


def steps(order: str, *numbers: int) -> list[Step]:
    """Events of one order."""
    return [Step(order=order, n=n) for n in numbers]


async def test_delivered_once_and_in_order(world: AsyncWorld) -> None:
    """G1, G2, G3, G5 with asyncio, on each driver: failures held back per key, effects once."""
    world.failing["a:1"] = [ValueError("boom")]
    await world.register(*steps("a", 1, 2), *steps("b", 1))
    report = await world.process()
    assert (report.delivered, report.retrying, report.held) == (1, 1, 1)
    report = await world.process()
    assert (report.delivered, report.ok) == (2, True)
    assert await world.effects() == ["b:1", "a:1", "a:2"]


async def test_messages_that_share_a_commit(world: AsyncWorld) -> None:
    """G5: an optimistic batch with a failure in it, replayed one by one."""
    world.settings(messages_per_commit=10)
    world.failing["a:2"] = [ValueError("1"), ValueError("2")]
    await world.register(*steps("a", 1, 2, 3), *steps("b", 1))
    assert (await world.process()).retrying == 1
    assert await world.effects() == ["a:1", "b:1"]
    await world.process()
    assert await world.effects() == ["a:1", "b:1", "a:2", "a:3"]


async def test_a_cancelled_run_commits_nothing_of_the_message_in_hand(world: AsyncWorld) -> None:
    """Cancelling process_outbox rolls the message in hand back and leaves the lease to expire (S6)."""
    started = asyncio.Event()

    async def wait_for_ever(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    world.before["a:1"] = wait_for_ever
    await world.register(*steps("a", 1))
    running = asyncio.create_task(world.process())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await world.effects() == []
    assert (await world.process()).busy == ("dispatch",)


@pytest.mark.postgresql
async def test_the_heartbeat_renews_the_lease(world: AsyncWorld) -> None:
    """S2: a handler longer than the lease keeps it."""
    from message_bus.delivery.process_async import process_outbox_async

    t = world.tables.subscription

    async def lease_until() -> Any:
        async with world.sessions() as session:
            return await session.scalar(sa.select(t.c.lease_until))

    async def outlive_the_lease(_: Any) -> None:
        first = await lease_until()

        async def is_renewed() -> bool:
            return bool(await lease_until() > first + timedelta(seconds=1))

        await async_wait_until(is_renewed)

    world.before["a:1"] = outlive_the_lease
    await world.register(*steps("a", 1))
    async with world.sessions() as session:
        report = await process_outbox_async(world.bus, session, lease=timedelta(seconds=0.5))
    assert report.delivered == 1


async def test_own_async_outbox_handlers(world: AsyncWorld) -> None:
    """AsyncOutboxHandlerABC: rows outside of a transaction, at least once."""
    sent: list[int] = []

    class Send(AsyncOutboxHandlerABC):
        async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            async with context.sessions() as session:
                assert (await session.execute(sa.select(EFFECT))).all() == []
            sent.append(outbox_message.payload["n"])

    world.bus.set_outbox_handlers([Send()])
    await world.register(*steps("a", 1, 2))
    assert (await world.process()).delivered == 2
    assert sent == [1, 2]


async def test_drain_inside_a_transaction(world: AsyncWorld) -> None:
    """W2 with asyncio: everything inside an outer transaction that is rolled back."""
    engine = world.sessions.kw["bind"]
    async with engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            world.bus.register_outbox_message(session, Step(order="a", n=1))
            assert (await drain(world.bus, session)).delivered == 1
        await outer.rollback()
    assert await world.effects() == []


async def test_process_outbox_on_a_connection(world: AsyncWorld) -> None:
    """Wherever a repository is accepted, a connection is: its transactions are committed."""
    await world.register(*steps("a", 1))
    connection: AsyncConnection
    async with world.sessions.kw["bind"].connect() as connection:
        assert (await world.bus.process_outbox(connection)).delivered == 1
    assert await world.effects() == ["a:1"]
