"""Operators against workers, writers, retention and each other (S1-S5, G3, G6): real interleavings on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import SettingsError, SQLAlchemyOutBoxRepo, Subscriptions
from message_bus.delivery.housekeeping import prune
from tests.admin.operators import LONG_AGO, Meanwhile, before
from tests.admin.test_subscriptions import apart, change, columns, delivered_to, listed
from tests.delivery.world import Noted, Placed, World, placed

pytestmark = pytest.mark.postgresql


def lease_ends(world: World) -> None:
    """Let the lease of whoever has it be over."""
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO))


def test_paused_while_a_worker_is_at_work(world: World) -> None:
    """S1: what it has in hand is committed once; nobody begins anew, and after a resume nothing is missing."""
    world.before["a:1"] = lambda _: change(world, "pause", "dispatch")
    world.register(*placed("a", [1, 2, 3]))
    assert world.process().busy == ()
    del world.before["a:1"]
    assert world.effects()[:1] == ["a:1"]
    world.register(*placed("a", [4]))
    seen = world.effects()
    assert (world.process().delivered, world.effects()) == (0, seen)
    change(world, "resume", "dispatch")
    world.process()
    assert world.effects() == ["a:1", "a:2", "a:3", "a:4"]


@pytest.mark.parametrize("action", ["reset", "rename", "drop", "repartition"])
def test_refused_while_a_handler_runs(world: World, action: str) -> None:
    """G3: an operator does not start the same messages elsewhere; the worker does not notice that it was asked."""
    arguments: dict[str, tuple[Any, ...]] = {"reset": (0,), "rename": ("new",), "repartition": (2,)}
    refused: list[str] = []

    def ask(_: object) -> None:
        with pytest.raises(SettingsError, match="a worker has the lease") as caught:
            change(world, action, "dispatch", *arguments.get(action, ()))
        refused.append(str(caught.value))

    world.before["1"] = ask
    world.register(Noted(n=1), Noted(n=2))
    assert (world.process().delivered, len(refused)) == (2, 1)


@pytest.mark.parametrize("action", ["reset", "repartition"])
def test_a_forced_change_fences_the_worker(world: World, action: str) -> None:
    """G6: what the old worker has in hand it cannot commit; after its lease the message is handled once."""
    world.before["1"] = lambda _: change(world, action, "dispatch", 0 if action == "reset" else 2, force=True)
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().busy == ("dispatch",)
    del world.before["1"]
    assert world.effects() == []
    if action == "repartition":
        delivered_to(world, "dispatch", partitions=2)
    assert world.process().busy == ("dispatch",)
    lease_ends(world)
    world.process()
    assert sorted(world.effects()) == ["1", "2"]


def test_a_claim_while_an_operator_decides(world: World) -> None:
    """A worker does not wait for the operator: it takes the subscription for busy, and finds it moved next time."""
    world.register(Noted(n=1))
    world.process()
    with world.sessions.begin() as session:
        Subscriptions(session).reset("dispatch", 0)
        assert world.process().busy == ("dispatch",)
    assert world.process().delivered == 1


def test_a_claim_just_before_the_operator_has_the_lock(world: World) -> None:
    """S3: the lease is looked at behind the lock: who has come first is seen."""
    from message_bus import Subscription
    from message_bus.delivery.lease import claim

    world.process()

    def take() -> None:
        with world.sessions.begin() as session:
            assert claim(session, world.tables, Subscription(name="dispatch"), 0, lease=timedelta(minutes=1))

    with (
        before(
            world,
            "ORDER BY message_bus_subscription.name, message_bus_subscription.partition FOR UPDATE",
            take,
        ),
        pytest.raises(SettingsError, match="a worker has the lease"),
    ):
        change(world, "reset", "dispatch", 0)


def test_retention_while_an_operator_rewinds(world: World) -> None:
    """S4: the pruner stays away meanwhile, and takes nothing that the rewound subscription has yet to deliver."""
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    world.write(sa.update(world.tables.outbox).values(created_at=LONG_AGO))

    def pruned() -> int:
        with world.sessions() as session:
            return prune(session, world.tables, older_than=timedelta(days=7))

    with world.sessions.begin() as session:
        Subscriptions(session).reset("dispatch", 0)
        assert pruned() == 0
    assert pruned() == 0
    assert world.process().delivered == 2


def test_rewound_while_retention_prunes(world: World) -> None:
    """S4: the operator waits for the pruner, and starts after what it has taken."""
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    world.write(sa.update(world.tables.outbox).values(created_at=LONG_AGO))
    operator = Meanwhile(world, lambda: change(world, "reset", "dispatch", "beginning"))
    with before(world, "DELETE FROM message_bus_outbox", operator.start), world.sessions() as session:
        assert prune(session, world.tables, older_than=timedelta(days=7)) == 2
    assert operator.waited
    assert operator.join().position == 2


def test_two_operators(world: World) -> None:
    """S3: the second waits for the first, and goes on from what it has left."""
    world.register(Noted(n=1))
    world.process()
    second = Meanwhile(world, lambda: change(world, "repartition", "dispatch", 3))
    with before(world, "DELETE FROM message_bus_subscription", second.start):
        change(world, "repartition", "dispatch", 2)
    assert second.waited
    assert second.join().before == (1, 1)
    assert len(listed(world)) == 3


def test_an_operator_drops_what_another_one_renames(world: World) -> None:
    """S3: the name that the second one was given is nobody's any more."""
    world.process()
    second = Meanwhile(world, lambda: change(world, "drop", "dispatch"))
    with before(world, "UPDATE message_bus_subscription", second.start):
        change(world, "rename", "dispatch", "mail")
    with pytest.raises(SettingsError, match=r"no subscription is called 'dispatch' \(there are: 'mail'\)"):
        second.join()


def test_made_while_an_operator_drops(world: World) -> None:
    """S2, S4: an application that makes the subscription anew waits for the drop, and its epochs go on."""
    world.process()
    [(epoch,)] = columns(world, "epoch")
    again = Meanwhile(world, world.process)
    with before(world, "DELETE FROM message_bus_delivery", again.start):
        change(world, "drop", "dispatch")
    again.join()
    world.process()
    [(after,)] = columns(world, "epoch")
    assert after > epoch


def test_not_now_while_a_writer_is_open(world: World) -> None:
    """G2: its messages have positions already: "now" would pass them over unseen. Back is always possible."""
    world.register(Noted(n=1))
    world.process()
    with world.sessions() as writer:
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=2))
        repo.flush()
        with world.sessions() as session:
            with pytest.raises(SettingsError, match="is still open: `message-bus doctor` names it"):
                Subscriptions(session).reset("dispatch", "now")
            session.rollback()
            assert Subscriptions(session).reset("dispatch", 1).position == 1
        writer.commit()
    assert change(world, "reset", "dispatch", "now").position == 2


def test_now_waits_a_little_for_a_writer(world: World) -> None:
    """W6: a writer that ends within two seconds is in nobody's way."""
    world.process()
    with world.sessions() as writer:
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=1))
        repo.flush()
        looks: list[str] = []

        def commit_at_the_third(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "pg_locks" in statement:
                looks.append(statement)
                if len(looks) == 3:
                    writer.commit()

        engine = world.sessions.kw["bind"]
        sa.event.listen(engine, "before_cursor_execute", commit_at_the_third)
        try:
            assert change(world, "reset", "dispatch", "now").position == 1
        finally:
            sa.event.remove(engine, "before_cursor_execute", commit_at_the_third)


def test_divided_while_a_writer_is_open(world: World) -> None:
    """S5, G2: what it commits later lies behind the position of all partitions: nothing is lost, nothing twice."""
    apart(world)
    with world.sessions() as writer:
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        for event in (Placed(order="a", n=6), Placed(order="d", n=6), Noted(n=6)):
            world.bus.register_outbox_message(repo, event)
        repo.flush()
        world.register(Placed(order="a", n=7), Placed(order="d", n=7))
        change(world, "repartition", "dispatch", 3, hold=True)
        writer.commit()
    world.settings(max_attempts=3, partitions=3)
    world.process()
    effects = world.effects()
    assert len(effects) == len(set(effects)) == 25
    for order in "ad":
        assert [each for each in effects if each[0] == order] == [f"{order}:{n}" for n in range(1, 8)]


def test_a_failure_in_what_was_held(world: World) -> None:
    """G3: what was held by a repartition is like any other message: its failure holds its key, and only that."""
    apart(world)
    change(world, "repartition", "dispatch", 1, hold=True)
    world.settings(max_attempts=3)
    pending = [n for n in range(1, 6) if f"d:{n}" not in world.effects()]
    world.fail(f"d:{pending[0]}", 1)
    report = world.process()
    assert (report.retrying, report.held) == (1, len(pending) - 1)
    world.process()
    assert [each for each in world.effects() if each[0] == "d"] == [f"d:{n}" for n in range(1, 6)]
