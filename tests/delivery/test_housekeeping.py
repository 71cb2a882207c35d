"""Delayed messages and retention."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from message_bus import DispatchOutboxHandler, Subscription
from tests.delivery.world import Noted, Placed, World
from tests.waiting import wait_until


def _age(world: World, *positions: int) -> None:
    """Make rows look as if they were registered long ago."""
    t = world.tables.outbox
    world.write(
        sa.update(t)
        .where(t.c.position.in_(positions))
        .values(created_at=sa.text("'2020-01-01 00:00:00.000000'"))
    )


def _positions(world: World) -> list[int]:
    t = world.tables.outbox
    return [position for (position,) in world.rows(sa.select(t.c.position).order_by(t.c.position))]


def test_a_delayed_message_waits_until_it_is_due(world: World) -> None:
    """A message with a delay is in the schedule, not in the outbox, until the database's clock says it is due."""
    world.register(Noted(n=1), delay=timedelta(hours=1))
    world.register(Noted(n=2))
    report = world.process()
    assert (report.delivered, report.promoted, world.effects()) == (1, 0, ["2"])
    t = world.tables.schedule
    world.write(sa.update(t).values(due_at=t.c.created_at))
    report = world.process()
    assert (report.delivered, report.promoted, world.effects()) == (1, 1, ["2", "1"])
    assert world.rows(sa.select(t.c.id)) == []


def test_a_short_delay_passes_by_itself(world: World) -> None:
    """A due message needs no help but process_outbox."""
    world.register(Noted(n=1), delay=timedelta(milliseconds=50))
    wait_until(lambda: world.process().delivered == 1)
    assert world.effects() == ["1"]


def test_due_messages_enter_in_the_order_in_which_they_became_due(world: World) -> None:
    """S9: by due time, whatever the order of registration."""
    for n, minutes in ((1, 30), (2, 10), (3, 20)):
        world.register(Placed(order="a", n=n), delay=timedelta(minutes=minutes))
    t = world.tables.schedule
    [*rows] = world.rows(sa.select(t.c.id, t.c.due_at))
    for message_id, due_at in rows:
        world.write(sa.update(t).where(t.c.id == message_id).values(due_at=due_at - timedelta(hours=1)))
    assert world.process().promoted == 3
    assert world.effects() == ["a:2", "a:3", "a:1"]


def test_a_delayed_message_keeps_its_identity(world: World) -> None:
    """Id, key, meta and headers of a delayed message are those it was registered with."""
    world.register(Placed(order="a", n=1), delay=timedelta(hours=1), meta={"user": "u"})
    s, o = world.tables.schedule, world.tables.outbox
    names = ("id", "type", "message", "version", "key", "key_hash", "meta", "headers", "payload")
    before = world.rows(sa.select(*(s.c[name] for name in names)))
    world.write(sa.update(s).values(due_at=s.c.created_at))
    world.process()
    assert world.rows(sa.select(*(o.c[name] for name in names))) == before


def test_old_rows_that_everybody_has_passed_are_pruned(world: World) -> None:
    """G9: rows older than the retention go; young ones stay."""
    world.register(*[Noted(n=n) for n in range(4)])
    world.process()
    _age(world, 1, 2, 3)
    report = world.process()
    assert (report.pruned, _positions(world)) == (3, [4])
    t = world.tables.log
    assert world.rows(sa.select(t.c.pruned_to)) == [(3,)]


def test_what_a_subscription_has_not_passed_is_never_pruned(world: World) -> None:
    """G9: the slowest subscription, even an idle one, holds retention."""
    both = [DispatchOutboxHandler(subscription=Subscription(name=name)) for name in ("dispatch", "slow")]
    world.bus.set_outbox_handlers(both)
    world.register(Noted(n=1), Noted(n=2))
    world.process(only=["dispatch"])
    _age(world, 1, 2)
    assert world.process(only=["dispatch"]).pruned == 0
    assert world.process().pruned == 2


def test_failed_rows_are_never_pruned(world: World) -> None:
    """G9: retrying, held and dead rows stay, and what is behind them goes all the same."""
    world.settings(max_attempts=2)
    world.fail("a:1", 9)
    world.fail("b:1", 1)
    world.register(Placed(order="a", n=1), Placed(order="a", n=2), Placed(order="b", n=1), Noted(n=1))
    world.process()
    _age(world, 1, 2, 3, 4)
    assert world.process(limit=1).pruned == 1  # a:1 dies; a:2 is held, b:1 retries
    assert _positions(world) == [1, 2, 3]
    world.process()
    assert _positions(world) == [1]


def test_without_any_subscription_nothing_is_pruned(world: World) -> None:
    """S4: nobody has read it, so nobody has passed it."""
    from message_bus.delivery.housekeeping import prune

    world.register(Noted(n=1))
    _age(world, 1)
    with world.sessions() as session:
        assert prune(session, world.tables, older_than=timedelta(0)) == 0
    assert _positions(world) == [1]


def test_a_subscription_made_after_pruning_starts_after_what_is_gone(world: World) -> None:
    """S4: creation starts at or after pruned_to."""
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    _age(world, 1)
    world.process()
    late = Subscription(name="late", start="beginning")
    world.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=late)])
    assert world.process().delivered == 1
    t = world.tables.subscription
    assert world.rows(sa.select(t.c.position).where(t.c.name == "late")) == [(2,)]


@pytest.mark.postgresql
def test_pruning_and_creating_exclude_each_other(world: World) -> None:
    """S4: while a subscription is being created the pruner waits outside, and sees it when it comes in."""
    from message_bus.delivery.housekeeping import prune
    from message_bus.storage import statements

    world.register(Noted(n=1))
    world.process()
    _age(world, 1)
    with world.sessions() as creating:
        creating.execute(statements.lock_log(world.tables), {"log": "outbox"})
        t = world.tables.subscription
        creating.execute(
            sa.insert(t).values(name="new", partition=0, partitions=1, log="outbox", position=0, epoch=0)
        )
        with world.sessions() as pruner:
            assert prune(pruner, world.tables, older_than=timedelta(0)) == 0
        creating.commit()
    with world.sessions() as pruner:
        assert prune(pruner, world.tables, older_than=timedelta(0)) == 0
    assert _positions(world) == [1]
