"""Subscriptions of the event log: the same engine, the same guarantees, another log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    AsyncRelay,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    OutboxHandlerABC,
    Relay,
    SettingsError,
    Subscription,
    WiringError,
)
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.repositories import bells
from message_bus.repositories.in_memory import InMemoryOutBoxRepo
from tests.delivery.world import EFFECT, Noted, World, placed
from tests.waiting import wait_until

Relays = Callable[..., Relay]


class Events(OutboxHandlerABC):
    """Writes an effect for each event, in the session it is given."""

    log = "events"
    default_mode = "transactional"

    def __init__(self, **settings: Any) -> None:
        self.subscription = Subscription(**{"name": "events", "backoff": FixedDelay(0.05), **settings})
        self.failures: dict[str, int] = {}

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        payload = outbox_message.payload
        note = f"{outbox_message.key}:{payload['n']}"
        context.db_session.execute(sa.insert(EFFECT).values(note=note))
        if self.failures.get(note):
            self.failures[note] -= 1
            raise ValueError("not yet")


def append(world: World, stream: str, *numbers: int) -> None:
    """Commit events of a stream."""
    with world.sessions.begin() as session:
        SQLAlchemyEventStore(session, tables=world.tables).save(stream, placed(stream, numbers))


def test_process_outbox_reads_both_logs(world: World) -> None:
    """Each subscription has the messages of its log, though their positions are the same numbers (G2, G3)."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.register(Noted(n=7))
    append(world, "a", 1, 2)
    report = world.process()
    assert report.delivered == 3
    assert sorted(world.effects()) == ["7", "a:1", "a:2"]
    assert (world.checkpoint("dispatch"), world.checkpoint("events")) == (1, 2)
    assert world.process().delivered == 0


def test_a_stream_is_a_key(world: World) -> None:
    """A failing event holds back its own stream only; what failed is recorded and comes in order (G3, G7)."""
    handler = Events(backoff=FixedDelay(0))
    handler.failures["a:1"] = 2
    world.bus.set_outbox_handlers([handler])
    append(world, "a", 1)
    append(world, "b", 1)
    append(world, "a", 2)
    report = world.process()
    assert (report.delivered, report.retrying, report.held) == (1, 1, 1)
    assert world.effects() == ["b:1"]
    wait_until(lambda: world.process().ok)
    assert world.effects() == ["b:1", "a:1", "a:2"]


def test_a_failure_in_one_log_is_none_in_the_other(world: World) -> None:
    """Delivery rows of events keep no outbox row from being processed, listed or pruned (G9)."""
    handler = Events(max_attempts=1)
    handler.failures["a:1"] = 9
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, handler])
    append(world, "a", 1)
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.dead) == (1, 1)
    with world.sessions() as session:
        from message_bus import SQLAlchemyOutBoxRepo
        from message_bus.admin.retention import prune

        assert SQLAlchemyOutBoxRepo(session, tables=world.tables).list_unprocessed() == []
        from datetime import timedelta

        assert prune(session, timedelta(0), tables=world.tables) == 1


def test_a_relay_reads_both_logs(world: World, relay_for: Relays) -> None:
    """`projections=` and `process_managers=` run beside the bus's own; what is idle is all of it."""
    append(world, "a", 1)
    with relay_for(projections=[Events()]) as relay:
        relay.wait_until_idle()
        assert world.effects() == ["a:1"]
        world.register(Noted(n=1))
        append(world, "a", 2)
        wait_until(lambda: len(world.effects()) == 3)
        assert set(relay.health().partitions) == {"dispatch[0]", "events[0]"}
        assert relay.health().ready


@pytest.mark.postgresql
def test_an_event_that_is_committed_late_is_not_lost(world: World, relay_for: Relays) -> None:
    """W1-W3 hold for the event log: a later position that is committed first does not hide the earlier one (G2, G4)."""
    with relay_for(projections=[Events()]) as relay, world.sessions() as slow:
        SQLAlchemyEventStore(slow, tables=world.tables).save("slow", placed("slow", [1]))
        append(world, "fast", 1)
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["1"])
        slow.commit()
        relay.wait_until_idle()
        assert world.effects() == ["1", "slow:1", "fast:1"]


async def test_an_async_relay_reads_both_logs(
    world: World, async_session_factory: async_sessionmaker[AsyncSession]
) -> None:
    """The other colour."""

    class AsyncEvents(AsyncOutboxHandlerABC):
        log = "events"
        default_mode = "transactional"
        subscription = Subscription(name="events")

        async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            await context.db_session.execute(sa.insert(EFFECT).values(note=outbox_message.key))

    append(world, "a", 1, 2)
    async with AsyncRelay(
        AsyncMessageBus(), async_session_factory, tables=world.tables, projections=[AsyncEvents()]
    ) as relay:
        await relay.wait_until_idle()
        assert world.effects() == ["a", "a"]


def test_companions_come_along(world: World, relay_for: Relays) -> None:
    """A handler may need others beside it."""

    class Leader(Events):
        def companions(self) -> list[Events]:
            return [Events(name="follower")]

    append(world, "a", 1)
    with relay_for(process_managers=[Leader()]) as relay:
        relay.wait_until_idle()
        assert set(relay.health().partitions) == {"dispatch[0]", "events[0]", "follower[0]"}
    assert world.effects() == ["a:1", "a:1"]
    with pytest.raises(SettingsError, match="more than one outbox handler is called 'follower'"):
        world.bus.set_outbox_handlers([Leader(), Events(name="follower")])


def test_a_name_belongs_to_one_log(world: World) -> None:
    """A subscription of the outbox does not go on as one of the event log, whose positions mean something else."""
    world.process()
    world.bus.set_outbox_handlers([Events(name="dispatch")])
    with pytest.raises(
        SettingsError, match="it reads the log 'events', but in the database it reads 'outbox'"
    ):
        world.process()


def test_a_repository_of_your_own_has_no_events() -> None:
    """It is an outbox and nothing else."""
    bus = MessageBus()
    bus.set_outbox_handlers([Events()])
    with pytest.raises(WiringError, match="'events' read another log than the outbox"):
        bus.process_outbox(InMemoryOutBoxRepo())


def test_an_unknown_log_is_refused(session_factory: Callable[[], Session], tables: MessageBusTables) -> None:
    """At the start, by name."""

    class Lost(Events):
        log = "inbox"  # type: ignore[assignment]

    bus = MessageBus()
    bus.set_outbox_handlers([Lost()])
    with session_factory() as session, pytest.raises(SettingsError, match="'inbox' is not a log"):
        bus.process_outbox(session)


def test_process_outbox_goes_on_until_nothing_is_left(world: World) -> None:
    """What one subscription gives another is delivered in the same run, whatever their order; a failure is tried once."""

    class Reaction(Events):
        def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            super()._handle(outbox_message, context)
            if outbox_message.payload["n"] < 3:
                world.bus.register_outbox_message(context.outbox, Noted(n=outbox_message.payload["n"]))

    def on_noted(event: Noted, context: Any) -> None:
        store = SQLAlchemyEventStore(context.db_session, tables=world.tables)
        store.save("a", placed("a", [event.n + 1]))

    handler = Reaction(backoff=FixedDelay(0))
    world.bus.set_event_handlers(Noted, [on_noted])
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, handler])
    handler.failures["b:9"] = 99
    append(world, "b", 9)
    append(world, "a", 1)
    report = world.process()
    assert world.effects() == ["a:1", "a:2", "a:3"]
    assert (report.delivered, report.retrying) == (5, 1)
    assert [attempts for _, _, attempts in world.deliveries()] == [1]
    assert handler.failures["b:9"] == 98


def test_relays_of_this_process_are_rung_for(world: World) -> None:
    """A commit that has saved events wakes them at once, as one that has registered messages does."""
    rung: list[str] = []

    def bell() -> None:
        rung.append("now")

    bells.hang(bell)
    try:
        append(world, "a", 1)
        assert rung == ["now"]
        with world.sessions() as session:
            SQLAlchemyEventStore(session, tables=world.tables).save("a", placed("a", [2]))
            session.rollback()
        assert rung == ["now"]
    finally:
        bells.take_down(bell)
