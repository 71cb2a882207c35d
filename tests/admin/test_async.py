"""The asynchronous twin: the same source, so the roads that differ are what is tested."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session, async_sessionmaker

from message_bus import (
    AsyncDeadLetters,
    AsyncMessageBus,
    DispatchOutboxHandler,
    MessageBusTables,
    Subscription,
)
from tests.delivery.world import AT_ONCE, Placed, placed


class AsyncWorld:
    """An AsyncMessageBus whose handler kills what it is told to kill."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.sessions = sessions
        self.deadly: list[int] = []
        self.handled: list[int] = []
        self.meanwhile: dict[int, Any] = {}
        self.bus = AsyncMessageBus()
        self.bus.set_event_handlers(Placed, [self.on_placed])
        settings = Subscription(name="dispatch", max_attempts=1, backoff=AT_ONCE)
        self.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])

    async def on_placed(self, event: Placed, context: Any) -> None:
        """Fail, or remember what was handled."""
        if event.n in self.deadly:
            self.deadly.remove(event.n)
            raise ValueError(f"failure {event.n}")
        if event.n in self.meanwhile:
            await self.meanwhile.pop(event.n)()
        self.handled.append(event.n)

    async def register(self, *numbers: int) -> None:
        """Register messages of one key."""
        async with self.sessions.begin() as session:
            for event in placed("a", numbers):
                self.bus.register_outbox_message(session, event)

    async def process(self) -> Any:
        """One process_outbox in a session of its own."""
        async with self.sessions() as session:
            return await self.bus.process_outbox(session)


@pytest.fixture
async def world(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> AsyncWorld:
    """An application with two dead letters."""
    made = AsyncWorld(async_session_factory)
    made.deadly = [1, 2]
    await made.register(1, 2)
    await made.process()
    return made


async def test_found_replayed_and_discarded(world: AsyncWorld) -> None:
    """G7, G10: the whole road, on a session."""
    async with world.sessions() as session:
        dead_letters = AsyncDeadLetters(session)
        [first, second] = await dead_letters.list(error="FAILURE", payload=True)
        assert (first.payload, first.traceback is None) == ({"order": "a", "n": 1}, False)
        assert await dead_letters.get(second.id or "", payload=True) == second
        assert await dead_letters.list(after=first, payload=True) == [second]
        assert (await dead_letters.replay(everything=True, dry_run=True)).count == 2
        assert (await dead_letters.replay(letters=[first], per_second=1_000)).count == 1
        assert (await dead_letters.discard(ids=[second.id or ""])).count == 1
        assert await dead_letters.count() == 0
        await session.rollback()
        assert await dead_letters.count() == 2
        await dead_letters.replay(letters=[first])
        await dead_letters.discard(everything=True)
        await session.commit()
    assert ((await world.process()).ok, world.handled) == (True, [1])


async def test_where_it_works(world: AsyncWorld) -> None:
    """On an AsyncConnection and on an async_scoped_session."""
    engine = world.sessions.kw["bind"]
    async with engine.connect() as connection:
        assert isinstance(connection, AsyncConnection)
        assert await AsyncDeadLetters(connection).count() == 2
        assert (await AsyncDeadLetters(connection).discard(everything=True)).count == 2
        await connection.rollback()
    scoped = async_scoped_session(world.sessions, scopefunc=lambda: 1)
    assert await AsyncDeadLetters(scoped).count() == 2
    await scoped.remove()


@pytest.mark.postgresql
async def test_a_replay_while_its_key_is_being_handled(world: AsyncWorld) -> None:
    """G3, S3: the message in hand is finished; what was read behind it waits for the replayed ones."""

    async def replay() -> None:
        async with world.sessions.begin() as session:
            await AsyncDeadLetters(session).replay(everything=True)

    world.meanwhile[3] = replay
    await world.register(3, 4, 5)
    report = await world.process()
    assert (report.ok, report.busy, world.handled) == (True, (), [3, 1, 2, 4, 5])


async def test_nothing_is_dead(async_engine: Any, async_tables: MessageBusTables) -> None:
    """In an empty database nothing is found, and nothing locked."""
    async with AsyncSession(async_engine) as session:
        dead_letters = AsyncDeadLetters(session)
        assert await dead_letters.list() == []
        assert (await dead_letters.replay(everything=True)).letters == ()
        assert (await session.execute(sa.select(async_tables.subscription))).all() == []
