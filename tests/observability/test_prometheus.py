"""Metrics of handlers, the outbox and the workers: each moves when its cause happens, and none lies."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import (
    AsyncMessageBus,
    Event,
    MessageBus,
    MessageBusTables,
    OutboxHandlerABC,
    PrometheusMetrics,
    Query,
    SettingsError,
    Subscription,
    Unavailable,
)
from tests.delivery.world import AT_ONCE, Noted, Pay, Placed, World, placed
from tests.observability.scraping import own_metrics, series, value


@pytest.fixture
def metrics(world: World) -> PrometheusMetrics:
    """Observes the world's bus."""
    made = own_metrics()
    world.bus.observe(made)
    return made


# --- handlers


def test_calls_of_handlers(metrics: PrometheusMetrics, world: World) -> None:
    """Events, commands and queries, with and without success: counted and timed by type, handler and status."""

    class HowMany(Query[int]):
        pass

    def place(event: Placed, context: Any) -> None:
        raise ValueError("no")

    world.bus.set_event_handlers(Placed, [place, lambda event: None])
    world.bus.set_command_handler(Pay, lambda command: 1)
    world.bus.set_query_handler(HowMany, lambda query: 1)
    world.bus.handle(Placed(order="a", n=1))
    world.bus.handle(Pay(n=1))
    world.bus.ask(HowMany())
    assert series(metrics, "events_total") == {("Placed", "error"): 1, ("Placed", "success"): 1}
    assert series(metrics, "commands_total") == {("Pay", "success"): 1}
    assert value(metrics, "events_processing_seconds_count", event_type="Placed") == 2
    assert value(metrics, "commands_latency_seconds_count", command_type="Pay") == 1
    name = place.__qualname__
    assert value(metrics, "handler_duration_seconds_count", handler=name, status="error", type="Placed") == 1
    assert value(metrics, "handler_duration_seconds_count", status="success", type="HowMany") == 1
    assert 0 < value(metrics, "handler_duration_seconds_sum") < 60


async def test_calls_of_async_handlers() -> None:
    """The same on an AsyncMessageBus, where the whole of an awaited call is measured."""
    metrics = own_metrics()
    bus = AsyncMessageBus(on_event_error="raise")
    bus.observe(metrics)

    async def fail(event: Noted) -> None:
        raise ValueError("no")

    async def pay(command: Pay) -> str:
        return "paid"

    bus.set_event_handlers(Noted, [fail])
    bus.set_command_handler(Pay, pay)
    assert await bus.handle(Pay(n=1)) == ["paid"]
    with pytest.raises(ExceptionGroup):
        await bus.handle(Noted(n=1))
    assert series(metrics, "commands_total") == {("Pay", "success"): 1}
    assert series(metrics, "events_total") == {("Noted", "error"): 1}
    assert value(metrics, "handler_duration_seconds_count", handler=pay.__qualname__, status="success") == 1


# --- the way of a message


def test_registered_when_written(metrics: PrometheusMetrics, world: World) -> None:
    """By type, also delayed ones; what is rolled back before it was written does not count."""
    world.register(*placed("a", range(2)), Pay(n=1))
    world.register(Pay(n=2), delay=timedelta(hours=1))
    with world.sessions() as session:
        world.bus.register_outbox_message(session, Noted(n=1))
        session.rollback()
    assert series(metrics, "messages_registered_total") == {("Placed",): 2, ("Pay",): 2}


def test_delivered(metrics: PrometheusMetrics, world: World) -> None:
    """By subscription and type, in batches, with the time that they have waited."""
    world.settings(messages_per_commit=10)
    world.register(*placed("a", range(3)), Pay(n=1))
    world.process()
    assert series(metrics, "messages_delivered_total") == {("dispatch", "Placed"): 3, ("dispatch", "Pay"): 1}
    assert value(metrics, "batch_messages_count", subscription="dispatch") == 1
    assert value(metrics, "batch_messages_sum", subscription="dispatch") == 4
    assert value(metrics, "batch_duration_seconds_count", subscription="dispatch") == 1
    assert value(metrics, "batch_duration_seconds_sum", subscription="dispatch") > 0
    assert value(metrics, "delivery_delay_seconds_count", subscription="dispatch", type="Placed") == 3


def test_the_delay_is_what_a_message_has_waited(metrics: PrometheusMetrics, world: World) -> None:
    """From its writing, by the clock of the database."""
    world.register(Noted(n=1))
    outbox = world.tables.outbox
    [(created_at,)] = world.rows(sa.select(outbox.c.created_at))
    world.write(sa.update(outbox).values(created_at=created_at - timedelta(hours=1)))
    world.process()
    assert 3_600 <= value(metrics, "delivery_delay_seconds_sum", type="Noted") < 3_700


def test_failed_retried_held_dead(metrics: PrometheusMetrics, world: World) -> None:
    """A message that fails twice of two attempts, and one of its key that waits meanwhile."""
    world.settings(max_attempts=2)
    world.fail("a:0", 2)
    world.register(*placed("a", range(2)))
    world.process()
    world.process()
    world.process()
    what = {"subscription": "dispatch", "type": "Placed"}
    assert value(metrics, "messages_failed_total", **what) == 2
    assert value(metrics, "messages_retried_total", **what) == 1
    assert value(metrics, "messages_held_total", **what) == 1
    assert value(metrics, "messages_dead_total", **what) == 1
    assert value(metrics, "messages_delivered_total", **what) == 1


def test_what_has_killed_a_worker_has_failed(metrics: PrometheusMetrics, world: World) -> None:
    """The next one records it before it does anything else, which takes no time worth mentioning (S6)."""
    world.process()
    world.register(Noted(n=1))
    checkpoint, delivery = world.tables.subscription, world.tables.delivery
    world.write(
        sa.insert(delivery).values(subscription="dispatch", position=1, state="trying", attempts=0),
        sa.update(checkpoint).values(owner="dead", lease_until=checkpoint.c.created_at, position=1),
    )
    world.process()
    assert series(metrics, "messages_failed_total") == {("dispatch", "Noted"): 1}
    assert value(metrics, "batch_duration_seconds_sum") < 60


def test_passed_over(metrics: PrometheusMetrics, world: World) -> None:
    """A known event without handlers is neither delivered nor late."""
    world.bus.set_event_handlers(Noted, [])
    world.register(Noted(n=1))
    world.process()
    assert series(metrics, "messages_passed_over_total") == {("dispatch", "Noted"): 1}
    assert series(metrics, "messages_delivered_total") == {}
    assert series(metrics, "delivery_delay_seconds_count") == {}


def test_what_is_rolled_back_is_not_counted(metrics: PrometheusMetrics, world: World) -> None:
    """A worker that finds out at its commit that the lease is gone has delivered nothing (G6)."""
    checkpoint = world.tables.subscription

    def steal(context: Any) -> None:
        world.before.clear()
        context.db_session.execute(sa.update(checkpoint).values(epoch=checkpoint.c.epoch + 1))

    world.before["1"] = steal
    world.register(Noted(n=1))
    world.process()
    assert value(metrics, "events_total", status="success") == 1
    assert series(metrics, "messages_delivered_total") == {}
    assert series(metrics, "batch_messages_count") == {}
    assert value(metrics, "lease_changes_total", change="lost") == 1
    world.process()
    assert series(metrics, "messages_delivered_total") == {("dispatch", "Noted"): 1}


def test_promoted_and_pruned(metrics: PrometheusMetrics, world: World) -> None:
    """Delayed messages that enter the outbox, old ones that leave it."""
    world.register(Noted(n=1), delay=timedelta(hours=1))
    schedule, outbox = world.tables.schedule, world.tables.outbox
    world.write(sa.update(schedule).values(due_at=sa.select(schedule.c.created_at).scalar_subquery()))
    world.process()
    assert value(metrics, "messages_promoted_total") == 1
    [(created_at,)] = world.rows(sa.select(outbox.c.created_at))
    world.write(sa.update(outbox).values(created_at=created_at - timedelta(days=30)))
    assert value(metrics, "messages_pruned_total") == 0
    world.process()
    assert value(metrics, "messages_pruned_total") == 1


async def test_the_same_on_an_async_bus(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """Registered, delivered, recorded."""
    metrics = own_metrics()
    bus = AsyncMessageBus()
    bus.observe(metrics)
    bus.set_event_handlers(Noted, [lambda event: None])
    async with async_session_factory() as session:
        bus.register_outbox_message(session, Noted(n=1))
        await session.commit()
        await bus.process_outbox(session)
    assert value(metrics, "messages_registered_total", type="Noted") == 1
    assert value(metrics, "messages_delivered_total", type="Noted") == 1
    assert value(metrics, "lease_changes_total", change="claimed") == 1


# --- workers


class Send(OutboxHandlerABC):
    """Finds what it sends to out of reach, while it is told to."""

    subscription = Subscription(name="send", backoff=AT_ONCE)
    down = False

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        if self.down:
            raise Unavailable("the broker")


def test_outages(metrics: PrometheusMetrics, world: World) -> None:
    """Counted when they begin; whoever gives the partition back waits for nothing any more."""
    send = Send()
    world.bus.set_outbox_handlers([send])
    world.process()
    assert series(metrics, "outages_total") == {("send",): 0}
    assert series(metrics, "partitions_out_of_reach") == {("send",): 0}
    send.down = True
    world.register(Noted(n=1))
    world.process()
    assert series(metrics, "outages_total") == {("send",): 1}
    assert series(metrics, "partitions_out_of_reach") == {("send",): 0}


def test_lease_changes_are_there_before_they_happen(metrics: PrometheusMetrics, world: World) -> None:
    """A takeover that makes its series appear would be no increase to Prometheus; so all are there from the start."""
    world.process()
    assert series(metrics, "lease_changes_total") == {
        ("claimed", "dispatch"): 1,
        ("released", "dispatch"): 1,
        ("taken_over", "dispatch"): 0,
        ("lost", "dispatch"): 0,
    }


# --- labels


def test_a_type_that_nobody_knows_is_no_label(metrics: PrometheusMetrics, world: World) -> None:
    """A hostile name in a row is called "unknown", however often and however different."""
    world.settings(max_attempts=1)
    world.register(*(Noted(n=n) for n in range(3)))
    outbox = world.tables.outbox
    names = ["Robert'); DROP TABLE", 'x"} 1\nevil_metric{a="', "☃" * 100]
    for position, name in enumerate(names, 1):
        world.write(sa.update(outbox).where(outbox.c.position == position).values(message=name))
    world.process()
    assert series(metrics, "messages_dead_total") == {("dispatch", "unknown"): 3}
    exposition = metrics.generate_exposition(metrics.get_prometheus_registry()).decode()
    assert not any(part in exposition for part in ("DROP", "evil", "☃"))


def test_a_former_name_is_the_name_that_the_class_has_now(metrics: PrometheusMetrics, world: World) -> None:
    """Rows from before a renaming are counted with those from after it."""

    class Renamed(Event, renamed_from=("BeforeItWasRenamed",)):
        n: int

    world.bus.set_event_handlers(Renamed, [lambda event: None])
    world.register(Renamed(n=1), Renamed(n=2))
    outbox = world.tables.outbox
    world.write(sa.update(outbox).where(outbox.c.position == 1).values(message="BeforeItWasRenamed"))
    world.process()
    assert series(metrics, "messages_delivered_total") == {("dispatch", "Renamed"): 2}


def test_a_type_that_becomes_known_is_a_label_from_then_on(metrics: PrometheusMetrics, world: World) -> None:
    """A worker that learns its types late does not stay with "unknown"."""

    class LearnedLate(Event):
        n: int

    world.settings(max_attempts=1)
    world.register(Noted(n=1), Noted(n=2))
    outbox = world.tables.outbox
    world.write(sa.update(outbox).values(message="LearnedLate"))
    world.process(limit=1)
    world.bus.set_event_handlers(LearnedLate, [lambda event: None])
    world.process()
    assert series(metrics, "messages_dead_total") == {("dispatch", "unknown"): 1}
    # the dead letter is tried again, now that its type is known
    assert series(metrics, "messages_delivered_total") == {("dispatch", "LearnedLate"): 2}


# --- no harm


def test_metrics_that_cannot_be_kept_change_nothing(
    world: World,
    metrics: PrometheusMetrics,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is full in multi-process mode, say: it is logged, messages are delivered and handlers succeed."""

    def full(*labels: object) -> None:
        raise OSError(28, "No space left on device")

    for each in (metrics.handler_duration_seconds, metrics.messages_delivered_total, metrics.lease_changes_total,
                 metrics.messages_registered_total):  # fmt: skip
        monkeypatch.setattr(each, "labels", full)
    world.register(Noted(n=1))
    with caplog.at_level(logging.ERROR, logger="message_bus.observability"):
        assert world.process().delivered == 1
    assert world.effects() == ["1"]
    assert {record.name for record in caplog.records} == {"message_bus.observability"}
    assert len(caplog.records) == 4 + 1  # registered, claimed, handled, recorded, released


def test_a_bus_is_observed_once_by_the_same(world: World, metrics: PrometheusMetrics) -> None:
    """Everything would be counted twice."""
    with pytest.raises(SettingsError, match="observes this bus already"):
        world.bus.observe(metrics)


def test_two_buses_add_up() -> None:
    """One instance may observe the sync and the async bus of an application."""
    metrics = own_metrics()
    first, second = MessageBus(), MessageBus()
    for bus in (first, second):
        bus.observe(metrics)
        bus.set_event_handlers(Noted, [lambda event: None])
        bus.handle(Noted(n=1))
    assert series(metrics, "events_total") == {("Noted", "success"): 2}
