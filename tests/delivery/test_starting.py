"""Where a new subscription begins when it is told "now" or a time, also while somebody writes (S4, G2)."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, Relay, SQLAlchemyOutBoxRepo, Subscription
from message_bus.storage.types import utc_now
from tests.delivery.world import AT_ONCE, Noted, Placed, World
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql


def _add(world: World, start: Any, **settings: Any) -> None:
    world.bus.set_outbox_handlers([
        DispatchOutboxHandler(subscription=Subscription(name="dispatch")),
        DispatchOutboxHandler(
            subscription=Subscription(name="late", start=start, backoff=AT_ONCE, **settings)
        ),
    ])  # fmt: skip


def _writing(world: World, *messages: Any) -> Session:
    """A transaction that has drawn positions, and is open."""
    session = world.sessions()
    repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
    for message in messages:
        world.bus.register_outbox_message(repo, message)
    repo.flush()
    return session


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for open writers."""
    from message_bus.delivery.patience import Patience

    monkeypatch.setattr(Patience, "wait", lambda *_: False)


def _start_of(world: World, kind: str) -> Any:
    return "now" if kind == "now" else world.rows(sa.select(utc_now()))[0][0]


@pytest.mark.parametrize("kind", ["now", "time"])
@pytest.mark.parametrize("first_is_done", [True, False])
@pytest.mark.usefixtures("impatient")
def test_what_was_committed_before_is_not_delivered(world: World, kind: str, first_is_done: bool) -> None:
    """S4: with a writer open, "now" does not mean the beginning; what commits later is delivered, each once."""
    world.register(Noted(n=1), Noted(n=2))
    if first_is_done:
        world.process()
    before = world.effects()
    with _writing(world, Noted(n=3)) as early, _writing(world, Noted(n=0)) as undone:
        world.register(Noted(n=4))
        _add(world, _start_of(world, kind))
        world.process(only=["late"])
        world.register(Noted(n=5))
        assert world.process(only=["late"]).idle == ("late",)
        early.commit()
        undone.rollback()
    report = world.process(only=["late"])
    assert (world.effects()[len(before) :], report.ok) == (["3", "5"], True)
    assert world.deliveries() == []


def test_a_writer_that_ends_soon_is_waited_for(world: World) -> None:
    """W6, S4: one run makes the subscription and delivers what commits during it."""
    world.register(Noted(n=1))
    world.process()
    early = _writing(world, Noted(n=2))
    d = world.tables.delivery

    def commit_early() -> None:
        wait_until(lambda: world.rows(sa.select(d.c.position)) == [(2,)])
        early.commit()
        early.close()

    writer = threading.Thread(target=commit_early)
    writer.start()
    _add(world, "now")
    delivered = world.process(only=["late"]).delivered
    writer.join(20)
    assert (delivered, world.effects()) == (1, ["1", "2"])


@pytest.mark.usefixtures("impatient")
def test_late_ones_keep_the_order_of_their_key(world: World) -> None:
    """G3, S4: a message that appears below "now" comes before a newer one of its key, in its partition."""
    world.register(Noted(n=1))
    world.process()
    early = _writing(world, Placed(order="a", n=1), Placed(order="b", n=1))
    _add(world, "now", partitions=3)
    world.process(only=["late"])
    early.commit()
    early.close()
    world.register(Placed(order="a", n=2), Placed(order="b", n=2))
    world.fail("a:1", 1)
    assert world.process(only=["late"]).held == 1
    world.process(only=["late"])
    effects = world.effects()[1:]
    for order in "ab":
        assert [each for each in effects if each[0] == order] == [f"{order}:1", f"{order}:2"]


@pytest.mark.usefixtures("impatient")
def test_a_subscription_on_an_empty_table_begins_now_too(world: World) -> None:
    """S4: the first one of a log as well: positions that were drawn are not taken for history."""
    early = _writing(world, Noted(n=1))
    world.settings(start="now")
    world.process()
    early.commit()
    early.close()
    assert (world.process().delivered, world.effects()) == (1, ["1"])


@pytest.mark.usefixtures("impatient")
def test_a_relay_begins_when_the_writer_has_ended(world: World) -> None:
    """S4: nothing of history, everything after it; soon, not at the next round in a minute."""
    world.register(Noted(n=1))
    world.process()
    early = _writing(world, Noted(n=2))
    _add(world, "now")
    with Relay(world.bus, world.sessions):
        s = world.tables.subscription
        wait_until(lambda: world.rows(sa.select(s.c.state).where(s.c.name == "late")) == [("idle",)])
        early.commit()
        early.close()
        world.register(Noted(n=3))
        wait_until(lambda: len(world.effects()) == 5)
    assert sorted(world.effects()) == ["1", "2", "2", "3", "3"]


def test_start_is_a_time_with_a_zone(world: World) -> None:
    """S4: a time long ago is the beginning of what is kept."""
    world.register(Noted(n=1))
    world.process()
    _add(world, datetime.fromisoformat("2020-01-01T00:00:00+00:00"))
    assert world.process(only=["late"]).delivered == 1
