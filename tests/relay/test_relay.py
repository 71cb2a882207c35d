"""`Relay` with threads: what it delivers, how it shares, how it stops, what it says about itself."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    Relay,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Subscriptions,
    Unavailable,
)
from tests.delivery.world import EFFECT, Noted, World, placed
from tests.waiting import wait_until

Relays = Callable[..., Relay]


def test_delivers_what_was_committed_before_and_after_its_start(world: World, relay_for: Relays) -> None:
    """Rows that wait when it starts, and rows that come later, in order, each once (G2, G3, G5)."""
    world.register(*placed("a", range(3)))
    with relay_for() as relay:
        relay.wait_until_idle()
        assert world.effects() == ["a:0", "a:1", "a:2"]
        world.register(*placed("a", range(3, 5)))
        relay.wait_until_idle()
        assert world.effects() == ["a:0", "a:1", "a:2", "a:3", "a:4"]


def test_finds_by_itself_what_another_process_has_committed(
    world: World, relay_for: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ring, which only commits of this process give, looking now and then is enough."""
    monkeypatch.setattr("message_bus.repositories.bells.ring", lambda: None)
    with relay_for() as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["1"])


def test_a_failed_message_is_tried_again_when_it_is_due(world: World, relay_for: Relays) -> None:
    """Its followers of the same key wait, those of other keys do not; then they come in order (G3, G7)."""
    world.settings(backoff=FixedDelay(0.2))
    world.fail("a:0", 2)
    world.register(*placed("a", range(2)), *placed("b", range(2)))
    with relay_for() as relay:
        wait_until(lambda: len(world.effects()) == 4)
        relay.wait_until_idle()
    assert world.effects() == ["b:0", "b:1", "a:0", "a:1"]
    assert world.deliveries() == []


def test_a_delayed_message_is_delivered_when_it_is_due(world: World, relay_for: Relays) -> None:
    """It enters the outbox by itself, and not before."""
    with relay_for() as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1), delay=timedelta(seconds=0.3))
        relay.wait_until_idle()
        assert world.effects() == []
        wait_until(lambda: world.effects() == ["1"])


def test_a_second_relay_stands_by_and_says_so_once(
    world: World, relay_for: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease of a partition is kept while nothing is to be done; the other one takes over when it is released."""
    caplog.set_level(logging.INFO, logger="message_bus.relay")
    second = relay_for()
    with relay_for() as first:
        first.wait_until_idle()
        with second:
            wait_until(lambda: second.health().partitions == {"dispatch[0]": "standby"})
            world.register(Noted(n=1))
            first.wait_until_idle()
            assert world.effects() == ["1"]
            first.stop()
            wait_until(lambda: second.health().partitions == {"dispatch[0]": "waiting"})
            world.register(Noted(n=2))
            second.wait_until_idle()
    assert world.effects() == ["1", "2"]
    assert [each.message for each in caplog.records if "standby" in each.message] == [
        "standby: another worker has partition 0 of subscription 'dispatch'"
    ]


def test_two_relays_share_the_partitions(world: World, relay_for: Relays) -> None:
    """Each partition belongs to one of them; together they deliver everything once, in order per key (G3, G6)."""
    world.settings(partitions=4)
    keys = [f"k{number}" for number in range(8)]
    with relay_for() as first, relay_for() as second:
        for n in range(5):
            world.register(*(each for key in keys for each in placed(key, [n])))
        wait_until(lambda: len(world.effects()) == 40)

        def owners() -> list[int]:
            both = [relay.health().partitions for relay in (first, second)]
            return [sum(each[part] in ("working", "waiting") for each in both) for part in both[0]]

        wait_until(lambda: owners() == [1, 1, 1, 1])
    done = world.effects()
    assert all(
        [note for note in done if note.startswith(f"{key}:")] == [f"{key}:{n}" for n in range(5)]
        for key in keys
    )


def test_a_stop_finishes_the_message_in_hand_and_begins_no_other(world: World, relay_for: Relays) -> None:
    """What was being handled is committed, the next one is left to others, and the lease is given back (G11)."""
    entered, leave = threading.Event(), threading.Event()

    def linger(context: Any) -> None:
        entered.set()
        assert leave.wait(10)

    world.before["a:0"] = linger
    world.register(*placed("a", range(3)))
    with relay_for() as relay:
        assert entered.wait(10)
        relay.stop()
        leave.set()
    assert world.effects() == ["a:0"]
    t = world.tables.subscription
    assert world.rows(sa.select(t.c.owner, t.c.position)) == [(None, 1)]


def test_what_is_not_done_in_time_is_left_behind(
    world: World, relay_for: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    """After drain_timeout the relay ends without the handler that hangs, and says which partition it was."""
    entered, leave = threading.Event(), threading.Event()

    def linger(context: Any) -> None:
        entered.set()
        assert leave.wait(10)

    world.before["a:0"] = linger
    world.register(*placed("a", range(1)))
    with relay_for(drain_timeout=timedelta(seconds=0.1)):
        assert entered.wait(10)
    assert "given up: message_bus relay dispatch[0]" in caplog.text
    leave.set()
    wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("message_bus")])
    assert world.effects() == ["a:0"]


def test_what_a_handler_cannot_reach_is_waited_for(world: World, relay_for: Relays) -> None:
    """Unavailable counts no attempt; the subscription backs off and goes on by itself (G8)."""
    world.fail("a:0", Unavailable("the bank"), Unavailable("the bank"))
    world.register(*placed("a", range(2)))
    with relay_for() as relay:
        wait_until(lambda: len(world.effects()) == 2)
        relay.wait_until_idle()
    assert world.effects() == ["a:0", "a:1"]
    assert world.deliveries() == []


def test_health(world: World, relay_for: Relays) -> None:
    """Live and ready while it works; neither before it starts nor after it has ended; the lag goes to zero."""
    world.register(*placed("a", range(3)))
    relay = relay_for()
    assert not relay.health().live
    with relay:
        relay.wait_until_idle()
        wait_until(lambda: relay.health().ready and relay.health().lag == 0)
        wait_until(lambda: relay.health().partitions == {"dispatch[0]": "waiting"})
        health = relay.health()
        assert (health.live, health.error) == (True, None)
        assert health.watermark_age == timedelta(0)
    assert not relay.health().live
    assert not relay.health().ready


def test_a_wrong_set_up_ends_it(
    engine: sa.Engine, session_factory: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    """Without its tables it stops, says why, and run() raises."""
    relay = Relay(MessageBus(), session_factory)
    with pytest.raises(Exception, match="message_bus_outbox"):
        relay.run()
    assert not relay.health().live
    assert "message_bus_outbox" in str(relay.health().error)
    assert "the relay stops" in caplog.text


def test_a_handler_that_ends_the_process_ends_it(world: World, relay_for: Relays) -> None:
    """SystemExit goes through run(), and the lease is left to expire, so that deaths are counted (S6)."""
    world.fail("a:0", SystemExit(7))
    world.register(*placed("a", range(1)))
    with pytest.raises(SystemExit) as raised:
        relay_for().run()
    assert raised.value.code == 7
    [(owner,)] = world.rows(sa.select(world.tables.subscription.c.owner))
    assert owner is not None


def test_its_threads_see_the_context_variables_of_whoever_started_it(world: World, relay_for: Relays) -> None:
    """As a web framework sets them, say, for a request's or a tenant's settings."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    seen: list[str] = []
    world.before["1"] = lambda context: seen.append(tenant.get())
    world.register(Noted(n=1))
    tenant.set("blue")
    with relay_for() as relay:
        relay.wait_until_idle()
    assert seen == ["blue"]


def test_a_paused_subscription_is_given_back_and_taken_again(world: World, relay_for: Relays) -> None:
    """The relay sees that an operator has paused it, and that it is active again."""
    t = world.tables.subscription
    with relay_for() as relay:
        relay.wait_until_idle()
        world.write(sa.update(t).values(state="paused"))
        wait_until(lambda: relay.health().partitions == {"dispatch[0]": "idle"})
        world.register(Noted(n=1))
        relay.wait_until_idle()
        assert world.effects() == []
        world.write(sa.update(t).values(state="active"))
        wait_until(lambda: world.effects() == ["1"])


def test_old_messages_are_pruned(world: World, relay_for: Relays) -> None:
    """What is older than the retention goes, once every subscription has passed it (G9)."""
    world.register(Noted(n=1))
    with relay_for() as relay:
        relay.wait_until_idle()
    with relay_for(retention=timedelta(0)):
        wait_until(lambda: world.rows(sa.select(sa.func.count()).select_from(world.tables.outbox)) == [(0,)])


def test_settings_are_checked_all_at_once(session_factory: sessionmaker[Session]) -> None:
    """Every problem is in one error; a wrong kind of session is named."""
    with pytest.raises(SettingsError) as raised:
        Relay(MessageBus(), session_factory, lease=timedelta(0), poll=timedelta(-1))
    assert len(raised.value.problems) == 2
    with pytest.raises(SettingsError, match="'object' is not an outbox handler"):
        Relay(MessageBus(), session_factory, projections=[object()])
    with pytest.raises(SettingsError, match="sessionmaker or an Engine, not on 'str'"):
        Relay(MessageBus(), "sqlite://")  # type: ignore[arg-type]


def test_an_engine_that_has_one_connection_is_refused() -> None:
    """The threads would commit each other's transactions."""
    with pytest.raises(SettingsError, match="gives one connection to everybody"):
        Relay(MessageBus(), sa.create_engine("sqlite://"))


class Ordered(Event, key="order"):
    order: str
    n: int


def test_concurrent_handlers_too(
    session_factory: sessionmaker[Session], tables: MessageBusTables, engine: sa.Engine
) -> None:
    """A subscription in concurrent mode is served in the same way; an Engine will do."""
    done: list[int] = []
    bus = MessageBus(event_handlers={Ordered: [lambda event: done.append(event.n)]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(name="c", mode="concurrent"))])
    with session_factory.begin() as session:
        EFFECT.metadata.create_all(session.connection())
        for n in range(5):
            bus.register_outbox_message(session, Ordered(order="a", n=n))
    with Relay(bus, engine) as relay:
        relay.wait_until_idle()
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.postgresql
def test_a_subscription_that_is_told_where_to_start_begins_at_once(world: World, relay_for: Relays) -> None:
    """A relay that runs hears an operator's decision, and the end of who wrote, long before its next round (S4)."""
    world.register(Noted(n=1))
    world.process()
    late = DispatchOutboxHandler(handlers={Noted: [world.on_noted]}, subscription=Subscription(name="late"))
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, late])
    with relay_for() as relay, world.sessions() as writer:
        relay.wait_until_idle()
        state = sa.select(world.tables.subscription.c.state).where(world.tables.subscription.c.name == "late")
        wait_until(lambda: world.rows(state) == [("idle",)])
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=2))
        repo.flush()
        with world.sessions.begin() as session:
            Subscriptions(session, tables=world.tables).start("late", "now", by="a test")
        writer.commit()
        wait_until(lambda: world.effects().count("2") == 2)
        relay.wait_until_idle()
    assert world.effects().count("1") == 1
