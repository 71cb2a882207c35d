"""Relays and a database that goes away: backends terminated, the server stopped and started again (G2, G5, G8)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from message_bus import AsyncRelay, MessageBusTables, Relay
from tests.conftest import unavailable
from tests.crashing import crash
from tests.delivery.test_async import AsyncWorld, Step
from tests.delivery.world import EFFECT, World, placed
from tests.servers import PostgreSQL, ServerNotAvailable
from tests.waiting import async_wait_until, wait_until

pytestmark = pytest.mark.postgresql


def terminate_all(session: Any) -> None:
    """End every other connection to this database."""
    session.execute(
        sa.text(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    )


def test_backends_terminated_in_the_middle_of_a_batch(world: World, relay_for: Callable[..., Relay]) -> None:
    """All connections end twice while a handler is at it; each message has its effect once, no attempt is counted."""
    terminated: list[str] = []

    def terminate(context: Any) -> None:
        if len(terminated) < 2:
            terminated.append("now")
            other = sa.create_engine(world.sessions.kw["bind"].url, poolclass=sa.NullPool)
            with other.connect() as connection:
                terminate_all(connection)

    world.before["a:5"] = terminate
    world.register(*placed("a", range(10)))
    with relay_for() as relay:
        wait_until(lambda: len(terminated) == 2)
        wait_until(lambda: relay.health().ready)
        relay.wait_until_idle()
    assert world.effects() == [f"a:{n}" for n in range(10)]
    assert world.deliveries() == []


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """A server that this test may crash."""
    try:
        started = PostgreSQL.start()
    except ServerNotAvailable as error:
        unavailable(str(error))
        raise
    yield started
    started.remove()


class Numbers:
    """Registers one number after the other. Of those whose commit raised nobody knows whether it happened."""

    def __init__(self) -> None:
        self.last = -1
        self.committed: list[int] = []

    def next(self) -> int:
        """The number to register now."""
        self.last += 1
        return self.last

    def check(self, key: str, effects: list[str]) -> None:
        """Of one key: what was committed is there, nothing twice, in order."""
        mine = [int(note.partition(":")[2]) for note in effects if note.startswith(f"{key}:")]
        assert mine == sorted(set(mine))
        assert set(self.committed) <= set(mine)


def register(world: World, numbers: Numbers) -> bool:
    """Register the next number for two keys, if the server lets us."""
    n = numbers.next()
    try:
        world.register(*placed("a", [n]), *placed("b", [n]))
    except DBAPIError:
        return False
    numbers.committed.append(n)
    return True


@pytest.mark.slow
def test_the_server_crashes_and_comes_back(server: PostgreSQL, caplog: pytest.LogCaptureFixture) -> None:
    """The relay goes on by itself, says once per outage that the database was away, and does nothing twice."""
    caplog.set_level(logging.INFO, logger="message_bus.relay")
    engine = sa.create_engine(server.url)
    tables = MessageBusTables()
    tables.create_all(engine)
    world = World(sessionmaker(engine), tables)
    world.settings(partitions=2)
    numbers = Numbers()
    with Relay(world.bus, engine, poll=timedelta(seconds=0.1), lease=timedelta(seconds=2)) as relay:
        relay.wait_until_idle()
        for _ in range(3):
            assert register(world, numbers)
            crash(engine.url)
            wait_until(lambda: register(world, numbers), timeout=30)
            wait_until(lambda: relay.health().ready, timeout=30)
        wanted = {f"{key}:{n}" for key in "ab" for n in numbers.committed}
        wait_until(lambda: wanted <= set(world.effects()), timeout=30)
        assert relay.health().live
    for key in "ab":
        numbers.check(key, world.effects())
    engine.dispose()
    assert (
        1
        <= sum("out of reach" in each.message for each in caplog.records if each.name == "message_bus.relay")
        <= 6
    )


@pytest.mark.slow
async def test_the_server_crashes_and_comes_back_async(server: PostgreSQL) -> None:
    """The same with tasks."""
    engine = create_async_engine(server.url)
    tables = MessageBusTables()
    async with engine.begin() as connection:
        await connection.run_sync(tables.create_all)
        await connection.run_sync(EFFECT.metadata.create_all)
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine, expire_on_commit=False)
    world = AsyncWorld(sessions, tables)
    async with AsyncRelay(
        world.bus, engine, poll=timedelta(seconds=0.1), lease=timedelta(seconds=2)
    ) as relay:
        await relay.wait_until_idle()
        numbers = Numbers()

        async def register_step() -> bool:
            n = numbers.next()
            try:
                await world.register(Step(order="a", n=n))
            except DBAPIError:
                return False
            numbers.committed.append(n)
            return True

        async def is_done() -> bool:
            return {f"a:{n}" for n in numbers.committed} <= set(await world.effects())

        assert await register_step()
        crash(engine.url)
        await async_wait_until(register_step, timeout=30)
        await async_wait_until(lambda: relay.health().ready, timeout=30)
        await async_wait_until(is_done, timeout=30)
        numbers.check("a", await world.effects())
    await engine.dispose()
