"""Writers wake a relay that is asleep, and pay nothing while none is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from message_bus import AsyncRelay, MessageBus, MessageBusTables, Relay
from message_bus.relay.pace import Pace
from message_bus.storage.channel import channel_name, fall_asleep, wake_up
from message_bus.storage.logs import quoted_name
from tests.delivery.test_async import AsyncWorld, Step
from tests.delivery.world import EFFECT, Noted, World, placed
from tests.waiting import async_wait_until, wait_until

pytestmark = pytest.mark.postgresql


class Ear:
    """Hears the notifications for an outbox."""

    def __init__(self, engine: sa.Engine, tables: MessageBusTables) -> None:
        self._connection = psycopg.connect(
            engine.url.set(drivername="postgresql").render_as_string(False), autocommit=True
        )
        with engine.connect() as connection:
            name = connection.scalar(channel_name(), {"log_table": quoted_name(connection, tables.outbox)})
        self._connection.execute(f'LISTEN "{name}"')

    def heard(self) -> int:
        """How many were heard since the last time; all that were sent before are there already."""
        self._connection.execute("SELECT 1")  # a notification comes before the answer to what is asked later
        return sum(1 for _ in self._connection.notifies(timeout=0))

    def close(self) -> None:
        """Listen no more."""
        self._connection.close()


@pytest.fixture
def ear(engine: sa.Engine, tables: MessageBusTables) -> Iterator[Ear]:
    """Hears what is notified during the test."""
    made = Ear(engine, tables)
    yield made
    made.close()


@pytest.fixture
def no_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of this process are as silent to a relay as those of another one."""
    monkeypatch.setattr("message_bus.repositories.bells.ring", lambda: None)


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has fallen asleep does not look by itself any more."""
    usual = Pace.next
    monkeypatch.setattr(Pace, "next", lambda pace, signs: 600.0 if pace.drowsy else usual(pace, signs))


def set_asleep(session: Session, tables: MessageBusTables, seconds: float) -> None:
    """Do as a relay does that falls asleep; a negative number: as one did that has died since."""
    session.execute(sa.insert(tables.log).values(log="outbox"))
    session.execute(fall_asleep(tables), {"asleep": seconds})
    session.commit()


def is_asleep(world: World) -> bool:
    """Whether writers are asked to notify."""
    return world.rows(sa.select(world.tables.log.c.asleep_until)) not in ([], [(None,)])


def one(session: Session, tables: MessageBusTables) -> None:
    """Register one message."""
    MessageBus.register_outbox_message(session, Noted(n=1))


def many(session: Session, tables: MessageBusTables) -> None:
    """Register several messages."""
    for n in range(5):
        MessageBus.register_outbox_message(session, Noted(n=n))


def delayed(session: Session, tables: MessageBusTables) -> None:
    """Register a message for later: the relay has to know when it is due."""
    MessageBus.register_outbox_message(session, Noted(n=1), delay=timedelta(seconds=5))


def on_connection(session: Session, tables: MessageBusTables) -> None:
    """Register a message on the Core connection."""
    MessageBus.register_outbox_message(session.connection(), Noted(n=1))


@pytest.mark.parametrize("write", [one, many, delayed, on_connection])
def test_a_commit_notifies_once_while_a_relay_is_asleep(
    write: Callable[[Session, MessageBusTables], None],
    session_factory: Callable[[], Session],
    tables: MessageBusTables,
    ear: Ear,
) -> None:
    """However many messages, and only when it is committed."""
    with session_factory() as session:
        set_asleep(session, tables, 30.0)
        write(session, tables)
        session.rollback()
        assert ear.heard() == 0
        write(session, tables)
        session.commit()
        assert ear.heard() == 1


@pytest.mark.parametrize("asleep", [None, -1.0])
@pytest.mark.parametrize("write", [one, many, delayed, on_connection])
def test_a_commit_notifies_nobody_while_none_is_asleep(
    asleep: float | None,
    write: Callable[[Session, MessageBusTables], None],
    session_factory: Callable[[], Session],
    tables: MessageBusTables,
    ear: Ear,
) -> None:
    """A NOTIFY makes commits wait for each other: none when relays are awake, there is none, or it died long ago."""
    with session_factory() as session:
        if asleep is not None:
            set_asleep(session, tables, asleep)
        write(session, tables)
        session.commit()
    assert ear.heard() == 0


async def test_async_writers_notify_too(
    async_engine: AsyncEngine, engine: sa.Engine, async_tables: MessageBusTables
) -> None:
    """On either driver."""
    with Session(engine) as session:
        set_asleep(session, async_tables, 30.0)
    ear = Ear(engine, async_tables)
    async with AsyncSession(async_engine) as session:
        MessageBus.register_outbox_message(session, Noted(n=1))
        await session.commit()
    assert ear.heard() == 1
    ear.close()


def test_tables_in_another_schema_have_a_channel_of_their_own(engine: sa.Engine, schema: str) -> None:
    """Whether the schema is named, translated or found by the search_path: the channel is that of the table."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}_tenant")
    try:
        named = MessageBusTables(schema=f"{schema}_tenant")
        named.create_all(engine)
        other = MessageBusTables()
        other.create_all(engine)
        with Session(engine) as session:
            set_asleep(session, named, 30.0)
        here, there = Ear(engine, other), Ear(engine, named)
        translated = engine.execution_options(schema_translate_map={None: f"{schema}_tenant"})
        for bind, heard in ((engine, 0), (translated, 1)):
            with Session(bind) as session, session.begin():
                MessageBus.register_outbox_message(session, Noted(n=1))
            assert (here.heard(), there.heard()) == (0, heard)
        here.close()
        there.close()
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema}_tenant CASCADE")


def test_who_fell_asleep_later_stays_known(
    session_factory: Callable[[], Session], tables: MessageBusTables
) -> None:
    """A relay that wakes up takes back what it had seen, not what another one has said since."""
    with session_factory() as session:
        set_asleep(session, tables, 30.0)
        seen = session.scalars(sa.select(tables.log.c.asleep_until)).one()
        session.execute(fall_asleep(tables), {"asleep": 30.0})
        session.execute(wake_up(tables), {"seen": seen})
        later = session.scalars(sa.select(tables.log.c.asleep_until)).one()
        assert later is not None
        session.execute(wake_up(tables), {"seen": later})
        assert session.scalars(sa.select(tables.log.c.asleep_until)).one() is None


@pytest.mark.usefixtures("no_bells", "no_polling")
def test_a_sleeping_relay_is_woken(world: World, relay_for: Callable[..., Relay]) -> None:
    """Again and again: it does not look by itself, and hears each commit; while it is awake writers need not notify."""
    with relay_for(poll=timedelta(seconds=60)):
        for n in range(3):
            wait_until(lambda: is_asleep(world))
            world.register(*placed("a", [n]))
            wait_until(lambda n=n: world.effects()[-1:] == [f"a:{n}"])


@pytest.mark.usefixtures("no_polling")
def test_a_commit_of_this_process_rings(
    world: World, relay_for: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a notification, and without looking: a session that has written messages tells the relay beside it."""
    monkeypatch.setattr(Pace, "drowsy", True)
    with relay_for(poll=timedelta(seconds=60), listen=False) as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["1"])
        with world.sessions() as session:
            with session.begin_nested():
                world.bus.register_outbox_message(session, Noted(n=2))
            session.commit()
        wait_until(lambda: world.effects() == ["1", "2"])


@pytest.mark.usefixtures("no_bells", "no_polling")
async def test_a_sleeping_async_relay_is_woken(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """The same for tasks, on either driver."""
    async with async_session_factory.begin() as session:
        await (await session.connection()).run_sync(EFFECT.metadata.create_all)
    world = AsyncWorld(async_session_factory, async_tables)
    asleep = sa.select(async_tables.log.c.asleep_until)

    async def is_asleep() -> bool:
        async with async_session_factory() as session:
            return await session.scalar(asleep) is not None

    async with AsyncRelay(world.bus, async_session_factory, poll=timedelta(seconds=60)):
        for n in range(3):
            await async_wait_until(is_asleep)
            await world.register(Step(order="a", n=n))

            async def has_come(n: int = n) -> bool:
                return (await world.effects())[-1:] == [f"a:{n}"]

            await async_wait_until(has_come)


@pytest.mark.usefixtures("no_bells", "no_polling")
def test_who_had_written_before_it_fell_asleep_is_not_overlooked(
    world: World, relay_for: Callable[..., Relay]
) -> None:
    """Its commit notifies nobody, but its position was drawn: the relay looks until that is settled."""
    with relay_for(poll=timedelta(seconds=60)), world.sessions() as session:
        world.bus.register_outbox_message(session, Noted(n=7))
        session.flush()
        MessageBus.register_outbox_message(session.connection(), Noted(n=8))  # written at once
        wait_until(lambda: is_asleep(world))
        session.commit()
        wait_until(lambda: sorted(world.effects()) == ["7", "8"])


@pytest.mark.usefixtures("no_bells", "no_polling")
def test_two_sleepers_are_both_woken(world: World, relay_for: Callable[..., Relay]) -> None:
    """Each has one of two partitions."""
    world.settings(partitions=2)
    with relay_for(poll=timedelta(seconds=60)) as first, relay_for(poll=timedelta(seconds=60)) as second:
        for relay in (first, second):
            wait_until(lambda relay=relay: relay.health().ready)
        for n in range(3):
            wait_until(lambda: is_asleep(world))
            world.register(*placed("a", [n]), *placed("b", [n]), *placed("c", [n]))
            wait_until(lambda n=n: len(world.effects()) == 3 * (n + 1))


@pytest.mark.usefixtures("no_bells", "no_polling")
def test_a_delayed_message_wakes_it_when_cron_moves_it(world: World, relay_for: Callable[..., Relay]) -> None:
    """What `process_outbox` elsewhere moves into the outbox is heard of, too."""
    from message_bus.delivery.housekeeping import promote_due

    with relay_for(poll=timedelta(seconds=60)) as relay:
        wait_until(lambda: is_asleep(world))
        with world.sessions() as session:
            session.execute(
                sa.update(world.tables.log).values(asleep_until=None)
            )  # nobody hears of the delay
            world.bus.register_outbox_message(session, Noted(n=7), delay=timedelta(milliseconds=1))
            session.commit()
            wait_until(lambda: promote_due(session, world.tables) == 1)
        wait_until(lambda: world.effects() == ["7"])
        assert relay.health().live


def test_it_listens_again_after_an_outage(world: World, relay_for: Callable[..., Relay]) -> None:
    """The listening connection is ended: the relay makes another one."""
    listening = sa.text(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND datname = current_database()"
    )

    def pids() -> list[Any]:
        with world.sessions() as session:
            return list(session.scalars(listening))

    with relay_for():
        wait_until(pids)
        (before,) = pids()
        with world.sessions() as session:
            session.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": before})
        wait_until(lambda: pids() not in ([], [before]))
        wait_until(lambda: is_asleep(world))


def test_without_listening_nobody_is_asked_to_notify(world: World, relay_for: Callable[..., Relay]) -> None:
    """`listen=False`, as behind a pooler in transaction mode: it looks, and writers are left alone."""
    with relay_for(listen=False) as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        relay.wait_until_idle()
        assert world.effects() == ["1"]
        assert not is_asleep(world)


@pytest.mark.usefixtures("no_bells")
def test_notifications_that_do_not_arrive(
    world: World,
    relay_for: Callable[..., Relay],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pooler that hands the listening connection to others: said once, with the remedy; it polls and lets writers be."""
    caplog.set_level(logging.WARNING, logger="message_bus.relay")
    monkeypatch.setattr("message_bus.relay.listening._SOON", 0.05)
    monkeypatch.setattr("message_bus.relay.listening.channel_name", lambda: sa.select(sa.literal("another")))
    with relay_for() as relay:
        wait_until(lambda: "do not reach the relay" in caplog.text)
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["1"])
        assert relay.health().ready
        assert not is_asleep(world)
    assert caplog.text.count("listen=False") == 1
