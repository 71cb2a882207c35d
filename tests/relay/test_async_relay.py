"""`AsyncRelay` with tasks: the same source for what it does, so what is tested is the life of its tasks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from message_bus import AsyncMessageBus, AsyncRelay, FixedDelay, MessageBusTables, SettingsError, Unavailable
from message_bus.relay.stations_async import AsyncStation
from tests.delivery.test_async import AsyncWorld, Step
from tests.delivery.world import EFFECT
from tests.waiting import async_wait_until

Relays = Callable[..., AsyncRelay]


@pytest.fixture
async def world(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> AsyncWorld:
    """A fresh application in a fresh database."""
    async with async_session_factory.begin() as session:
        await session.run_sync(lambda sync: EFFECT.metadata.create_all(sync.connection()))
    return AsyncWorld(async_session_factory, async_tables)


@pytest.fixture
def relay_for(world: AsyncWorld) -> Relays:
    """Makes relays that look often."""

    def make(**options: Any) -> AsyncRelay:
        return AsyncRelay(world.bus, world.sessions, **{"poll": timedelta(seconds=0.1), **options})

    return make


def steps(order: str, numbers: range) -> list[Step]:
    """Events of one order."""
    return [Step(order=order, n=n) for n in numbers]


async def test_delivers_what_was_committed_before_and_after_its_start(
    world: AsyncWorld, relay_for: Relays
) -> None:
    """Rows that wait when it starts, and rows that come later, in order, each once (G2, G3, G5)."""
    await world.register(*steps("a", range(3)))
    async with relay_for() as relay:
        await relay.wait_until_idle()
        assert await world.effects() == ["a:0", "a:1", "a:2"]
        await world.register(*steps("a", range(3, 5)))
        await relay.wait_until_idle()
    assert await world.effects() == ["a:0", "a:1", "a:2", "a:3", "a:4"]


async def test_a_failed_message_is_tried_again_when_it_is_due(world: AsyncWorld, relay_for: Relays) -> None:
    """Its followers wait, those of other keys do not; an outage of what it needs is waited for (G3, G7, G8)."""
    world.settings(backoff=FixedDelay(0.2))
    world.failing["a:0"] = [ValueError("no"), Unavailable("the bank")]
    await world.register(*steps("a", range(2)), *steps("b", range(2)))

    async def is_done() -> bool:
        return len(await world.effects()) == 4

    async with relay_for() as relay:
        await async_wait_until(is_done)
        await relay.wait_until_idle()
    assert await world.effects() == ["b:0", "b:1", "a:0", "a:1"]


async def test_a_second_relay_stands_by_and_takes_over(
    world: AsyncWorld, relay_for: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, and works when the first has given the lease back."""
    caplog.set_level(logging.INFO, logger="message_bus.relay")
    second = relay_for()
    async with relay_for() as first:
        await first.wait_until_idle()
        async with second:
            await async_wait_until(lambda: second.health().partitions == {"dispatch[0]": "standby"})
            first.stop()
            await async_wait_until(lambda: second.health().partitions == {"dispatch[0]": "waiting"})
            await world.register(*steps("a", range(1)))
            await second.wait_until_idle()
    assert await world.effects() == ["a:0"]
    assert len([each for each in caplog.records if each.message.startswith("standby")]) == 1


async def test_a_stop_finishes_the_message_in_hand_and_begins_no_other(
    world: AsyncWorld, relay_for: Relays
) -> None:
    """What was being handled is committed, the next one is left to others, and the lease is given back (G11)."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def linger(context: Any) -> None:
        entered.set()
        await leave.wait()

    world.before["a:0"] = linger
    await world.register(*steps("a", range(3)))
    async with relay_for() as relay:
        await entered.wait()
        relay.stop()
        leave.set()
    assert await world.effects() == ["a:0"]
    async with world.sessions() as session:
        assert await session.scalar(sa.select(world.tables.subscription.c.owner)) is None


async def test_what_is_not_done_in_time_is_cancelled(world: AsyncWorld, relay_for: Relays) -> None:
    """After drain_timeout the handler that hangs is cancelled and rolled back; its lease is left to expire."""
    entered = asyncio.Event()

    async def hang(context: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    world.before["a:0"] = hang
    await world.register(*steps("a", range(1)))
    async with relay_for(drain_timeout=timedelta(seconds=0.1)):
        await entered.wait()
    assert await world.effects() == []
    async with world.sessions() as session:
        assert await session.scalar(sa.select(world.tables.subscription.c.owner)) is not None


async def test_health(world: AsyncWorld, relay_for: Relays) -> None:
    """Live and ready while it works, neither before nor after."""
    await world.register(*steps("a", range(3)))
    relay = relay_for()
    assert not relay.health().live
    async with relay:
        await relay.wait_until_idle()
        await async_wait_until(lambda: relay.health().ready and relay.health().lag == 0)
        assert relay.health().live
    assert not relay.health().live
    assert not relay.health().ready


async def test_a_wrong_set_up_ends_it(async_engine: AsyncEngine) -> None:
    """Without its tables it stops, and run() says why."""
    relay = AsyncRelay(AsyncMessageBus(), async_engine)
    with pytest.raises(Exception, match="message_bus_outbox"):
        await relay.run()
    assert not relay.health().live


async def test_its_tasks_see_the_context_variables_of_whoever_started_it(
    world: AsyncWorld, relay_for: Relays
) -> None:
    """As a web framework sets them."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    seen: list[str] = []

    async def see(context: Any) -> None:
        seen.append(tenant.get())

    world.before["a:0"] = see
    await world.register(*steps("a", range(1)))
    tenant.set("blue")
    async with relay_for() as relay:
        await relay.wait_until_idle()
    assert seen == ["blue"]


async def test_a_session_of_the_other_colour_is_refused(async_engine: AsyncEngine) -> None:
    """Named, with the remedy."""
    with pytest.raises(SettingsError, match="or use Relay"):
        AsyncRelay(AsyncMessageBus(), async_engine.sync_engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
async def test_a_handler_that_ends_the_process_ends_it(
    world: AsyncWorld, relay_for: Relays, mode: str
) -> None:
    """SystemExit goes through run(), not past it: the other tasks are ended, the lease is left to expire (S6)."""
    world.settings(mode=mode, concurrency=4)

    async def leave(event: Step, context: Any) -> None:
        raise SystemExit(7)

    world.bus.set_event_handlers(Step, [leave])
    await world.register(*steps("a", range(1)), *steps("b", range(1)))
    with pytest.raises(SystemExit) as raised:
        await relay_for().run()
    assert raised.value.code == 7
    async with world.sessions() as session:
        assert await session.scalar(sa.select(world.tables.subscription.c.owner)) is not None


async def test_a_cancellation_that_got_lost(
    world: AsyncWorld, relay_for: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that raises an error of its own in place of the cancellation does not keep the relay for ever (G11)."""
    lost: list[str] = []
    usual = AsyncStation.serve

    async def serve(station: AsyncStation) -> None:
        try:
            await usual(station)
        except asyncio.CancelledError:
            if not lost:
                lost.append("once")
                await asyncio.Event().wait()
            raise

    monkeypatch.setattr(AsyncStation, "serve", serve)
    relay = relay_for()
    running = asyncio.create_task(relay.run())
    await async_wait_until(lambda: relay.health().ready)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)
    assert lost


@pytest.mark.parametrize("async_backend", ["asyncpg"], indirect=True)
async def test_asyncpg_asks_nothing_outside_a_transaction(
    world: AsyncWorld, relay_for: Relays, async_engine: AsyncEngine
) -> None:
    """It prepares and runs a statement in two steps: a pooler in transaction mode may send them to different servers."""
    outside: list[str] = []

    def note(connection: Any, cursor: Any, text: str, *rest: object) -> None:
        if not connection.connection.driver_connection.is_in_transaction():
            outside.append(text)

    sa.event.listen(async_engine.sync_engine, "after_cursor_execute", note)
    world.settings(backoff=FixedDelay(0.05))
    world.failing["a:1"] = [ValueError("no")]
    async with relay_for(listen=False) as relay:
        await world.register(*steps("a", range(3)))
        await relay.wait_until_idle()
        await async_wait_until(lambda: _has(world, 3))
    assert outside == []


async def _has(world: AsyncWorld, effects: int) -> bool:
    return len(await world.effects()) == effects
