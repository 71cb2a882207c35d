"""A worker that knows when the next failed message is due does not ask before; whatever may have changed that is noticed.

What it believes to know holds for a second at most; here for an hour, so that only the rules help.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from message_bus import OutboxHandlerABC, Relay, RetryLater
from message_bus.admin import DeadLetters
from message_bus.delivery import reading
from message_bus.delivery.hands import Hands
from message_bus.delivery.jobs import Stop
from message_bus.delivery.worker import Worker
from message_bus.storage.watermark import Watermark
from tests.delivery.world import Noted, Placed, World
from tests.waiting import wait_until

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST_GUESS", HOUR.total_seconds())


def work(world: World, *, runs: int) -> Worker:
    """A worker of the dispatch subscription that has the lease and has run so often; its transaction is over."""
    [handler] = world.bus.outbox_handlers
    assert isinstance(handler, OutboxHandlerABC)
    assert handler.subscription is not None
    worker = Worker(
        world.bus, handler, handler.subscription, 0, tables=world.tables, watermark=Watermark(world.tables),
        lease=HOUR, stop=Stop(), hands=Hands(),
    )  # fmt: skip
    world.process()  # makes the subscription
    with world.sessions() as session:
        assert worker.claim(session)
        for _ in range(runs):
            worker.run(session)
    return worker


def run(world: World, worker: Worker) -> None:
    """Another run, in which the worker knows what a relay's watcher would tell it of operators."""
    assert worker.lease is not None
    with world.sessions() as session:
        worker.lease.reload(session)
        worker.run(session)


def test_what_waits_is_not_asked_for_with_each_batch(world: World) -> None:
    """A key that fails for long costs the others a look at what blocks them, and no look at what is due."""
    world.settings(messages_per_commit=10, fetch_size=10)
    world.fail("a:1", RetryLater(HOUR))
    world.register(Placed("a", 1))
    world.process()
    world.register(*(Noted(n) for n in range(50)))
    asked: list[str] = []

    def note(conn: object, cursor: object, text: str, *rest: object) -> None:
        asked.extend(["due"] if " AS stuck" in text else [])

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        assert world.process().delivered == 50
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 1


def test_a_clock_that_begins_before_zero(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `monotonic` begins is nobody's business: what is due is asked for at once (S2)."""
    monkeypatch.setattr(reading, "monotonic", lambda: -7_200.0)
    world.settings()
    world.fail("a:1", 1)
    world.register(Placed("a", 1))
    world.process()
    world.process()
    assert world.effects() == ["a:1"]


def test_what_fails_meanwhile_is_tried_when_it_is_due(world: World) -> None:
    """Its own failures tell it that there may be something sooner (G7)."""
    world.settings()
    world.fail("a:1", RetryLater(HOUR))
    world.fail("2", 1)
    world.register(Placed("a", 1))
    worker = work(world, runs=1)
    world.register(Noted(2))
    run(world, worker)
    assert world.deliveries() == [(1, "retrying", 1), (2, "retrying", 1)]
    run(world, worker)
    assert world.effects() == ["2"]


def test_an_operators_decision_is_met_at_once(world: World) -> None:
    """A dead letter that is replayed is tried in the next run (S3)."""
    world.settings(max_attempts=1)
    world.fail("a:1", 1)
    world.fail("b:1", RetryLater(HOUR))
    world.register(Placed("a", 1), Placed("b", 1))
    worker = work(world, runs=1)
    with world.sessions.begin() as session:
        assert DeadLetters(session, tables=world.tables).replay(everything=True).count == 1
    run(world, worker)
    assert world.effects() == ["a:1"]


def test_a_relay_sees_that_it_is_due_sooner(world: World) -> None:
    """When the database's clock has been set, its watcher finds what is due all the same (G7)."""
    world.settings()
    world.fail("a:1", RetryLater(HOUR))
    world.register(Placed("a", 1), Placed("a", 2))
    with Relay(world.bus, world.sessions, tables=world.tables, poll=timedelta(seconds=0.05)) as relay:
        relay.wait_until_idle()
        assert world.deliveries() == [(1, "retrying", 1), (2, "held", 0)]
        world.register(Noted(1))
        relay.wait_until_idle()
        d = world.tables.delivery
        earlier = sa.text("'2020-01-01 00:00:00.000000'")
        world.write(sa.update(d).where(d.c.state == "retrying").values(next_attempt_at=earlier))
        wait_until(lambda: "a:2" in world.effects(), timeout=20)
    assert world.effects() == ["1", "a:1", "a:2"]
