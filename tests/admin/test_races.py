"""Operators against workers, and against each other (S1, S3, S4, G3, G9, G10): real interleavings on PostgreSQL.

What the other does in the middle of ours is put there by a handler, or by a hook on the statement before which it has to
happen; so every interleaving is the same each time. (On SQLite there is one writer at a time: nothing can interleave.)
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import DeadLetters
from message_bus.delivery.housekeeping import prune
from tests.admin.operators import LONG_AGO, Meanwhile, before, discard, letters, replay, states
from tests.delivery.world import Noted, Placed, World, placed

pytestmark = pytest.mark.postgresql

LOCKS_MINE = "revision, message_bus_subscription.state, set_config("


def kill(world: World, *events: Placed) -> None:
    """Register events whose first attempt kills them."""
    for event in events:
        world.fail(f"{event.order}:{event.n}", 1)
    world.register(*events)
    world.process()


# --- a replay while a worker is at work -------------------------------------------------------------------------------


def test_a_replay_while_its_key_is_being_handled(world: World) -> None:
    """G3, S3: the message in hand is finished; what the worker has read behind it waits for the replayed one."""
    kill(world, *placed("a", [1]))
    world.before["a:2"] = lambda _: replay(world)
    world.register(*placed("a", [2, 3, 4]), Placed(order="b", n=1))
    report = world.process()
    assert (report.delivered, report.busy, report.held) == (5, (), 0)
    assert [each for each in world.effects() if each[0] == "a"] == ["a:2", "a:1", "a:3", "a:4"]


def test_a_replayed_letter_that_fails_again_holds_its_key(world: World) -> None:
    """G3: as long as it is retrying, what the worker had read behind it is held, and follows in order."""
    kill(world, *placed("a", [1]))
    world.settings(max_attempts=3)
    world.fail("a:1", 1)
    world.before["a:2"] = lambda _: replay(world)
    world.register(*placed("a", [2, 3, 4]))
    report = world.process()
    assert (world.effects(), report.retrying, report.held) == (["a:2"], 1, 2)
    world.process()
    assert world.effects() == ["a:2", "a:1", "a:3", "a:4"]


def test_a_replay_while_held_messages_of_its_key_are_released(world: World) -> None:
    """G3: neither do messages that the worker has read from the delivery table pass the replayed one."""
    kill(world, *placed("a", [1]))
    world.settings(max_attempts=3)
    world.fail("a:2", 1)
    world.register(*placed("a", [2, 3]))
    world.process()
    world.before["a:2"] = lambda _: replay(world)
    report = world.process()
    assert (world.effects(), report.busy) == (["a:2", "a:1", "a:3"], ())


def test_a_replay_while_messages_that_share_a_commit_are_repeated(world: World) -> None:
    """G3, S1: the batch failed and is repeated one by one: from what is known by then, not from what was read before."""
    kill(world, *placed("a", [1]))
    world.settings(max_attempts=3, messages_per_commit=10)
    world.fail("a:3", 3)
    world.before["a:3"] = lambda _: replay(world)
    world.register(*placed("a", [2, 3, 4]))
    report = world.process()
    assert (world.effects(), report.retrying, report.held) == (["a:1", "a:2"], 1, 1)
    world.process()
    assert world.effects() == ["a:1", "a:2", "a:3", "a:4"]


def test_a_replay_while_another_failure_is_about_to_be_recorded(world: World) -> None:
    """S3, S1: before the worker has the lock, the replay goes first; the failure is recorded once, and both are in order."""
    kill(world, *placed("a", [1]))
    world.settings(max_attempts=3)
    world.fail("a:2", 1)
    world.register(*placed("a", [2, 3]))
    with before(world, LOCKS_MINE, lambda: replay(world)):
        report = world.process()
    assert (report.busy, world.effects()) == ((), ["a:1"])
    assert world.deliveries() == [(2, "retrying", 1), (3, "held", 0)]
    world.process()
    assert world.effects() == ["a:1", "a:2", "a:3"]


def test_a_replay_waits_while_a_failure_is_being_recorded(world: World) -> None:
    """S3: once the worker has the lock, the operator waits for its commit, and sees what it has recorded."""
    kill(world, *placed("a", [1]))
    world.fail("a:2", 1)
    world.register(*placed("a", [2]))
    operator = Meanwhile(world, lambda: replay(world, subscription="dispatch"))
    with before(world, "INSERT INTO message_bus_delivery", operator.start):
        report = world.process()
    assert operator.waited
    assert operator.join().count == 2  # the one that had just died, too
    assert report.busy == ()
    world.process()
    assert world.effects() == ["a:1", "a:2"]


def test_concurrent_mode_repeats_nothing_that_was_sent(world: World) -> None:
    """S3: what a worker has sent when an operator decides is recorded as sent, not sent again."""
    seen: list[int] = []

    def send(event: Noted) -> None:
        seen.append(event.n)
        if event.n == 0 and len(seen) == 1:
            raise ValueError
        if event.n == 2:
            replay(world)

    world.bus.set_event_handlers(Noted, [send])
    world.settings(mode="concurrent", max_attempts=1)
    world.register(Noted(n=0))
    world.process()
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    report = world.process()
    assert (seen, report.delivered, report.busy, report.ok) == ([0, 1, 2, 3, 0], 4, (), True)


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
@pytest.mark.parametrize("happens", [True, False])
def test_a_replay_while_the_answer_to_a_commit_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, happens: bool, mode: str
) -> None:
    """S1: also when an operator has decided something meanwhile, the worker finds out whether its commit has happened."""
    tried: list[int] = []

    def handle(event: Noted) -> None:
        tried.append(event.n)
        if len(tried) < 3:
            raise ValueError

    world.bus.set_event_handlers(Noted, [handle])
    world.settings(mode=mode, max_attempts=1)
    world.register(Noted(n=0))
    world.process()
    world.settings(mode=mode, max_attempts=3)
    world.register(Noted(n=1))
    world.process()
    dialect = world.sessions.kw["bind"].dialect
    real = dialect.do_commit

    def commit(connection: Any) -> None:
        if len(tried) < 3:
            real(connection)
            return
        monkeypatch.undo()
        if happens:
            real(connection)
        else:
            connection.rollback()  # its locks are gone with the connection that was lost
        replay(world)
        raise sa.exc.OperationalError("COMMIT", {}, ConnectionResetError("lost"))

    monkeypatch.setattr(dialect, "do_commit", commit)
    report = world.process()
    assert tried == ([0, 1, 1, 0] if happens else [0, 1, 1, 0, 1])
    assert (report.delivered, report.busy, report.ok) == (2, (), True)


def test_a_handler_that_replays_on_its_own_session(world: World) -> None:
    """G5, S1: what a handler decides is part of its message's commit; it does not stand in its own worker's way."""
    kill(world, *placed("a", [1]), *placed("b", [1]))
    fails = [1]

    def replay_all(context: Any) -> None:
        DeadLetters(context.db_session, tables=world.tables).replay(everything=True)
        if fails.pop():
            fails.append(0)
            raise ValueError

    world.settings(max_attempts=3)
    world.before["1"] = replay_all
    world.register(Noted(n=1))
    report = world.process()
    assert (report.retrying, report.dead, report.busy, world.effects()) == (1, 2, (), [])
    report = world.process()
    assert (report.ok, report.busy, world.effects()) == (True, (), ["1", "a:1", "b:1"])


# --- two operators ----------------------------------------------------------------------------------------------------


def test_two_operators_replay_the_same_letter(world: World) -> None:
    """S3: the second waits for the first, and finds nothing left to do."""
    kill(world, *placed("a", [1]))
    second = Meanwhile(world, lambda: replay(world))
    with before(world, "UPDATE message_bus_delivery", second.start):
        assert replay(world).count == 1
    assert second.waited
    assert second.join().count == 0
    assert world.process().delivered == 1
    assert world.effects() == ["a:1"]


def test_an_operator_discards_what_another_one_replays(world: World) -> None:
    """S3: a letter that was replayed, and died of something else, is not what the other one had selected."""
    kill(world, *placed("a", [1]))
    world.fail("a:1", KeyError("another reason"))

    def replay_and_process() -> int:
        replayed = replay(world).count
        world.process()
        return replayed

    other = Meanwhile(world, replay_and_process)
    with before(world, "DELETE FROM message_bus_delivery", other.start):
        assert discard(world, error="failure 0").count == 1
    assert other.join() == 0
    assert (letters(world), world.effects()) == ([], [])


def test_operators_of_several_subscriptions_lock_in_one_order(world: World) -> None:
    """S3: whatever the order in which their letters come, no two operators wait for each other."""
    from message_bus import DispatchOutboxHandler, Subscription

    names = ("one", "two", "three")
    world.bus.set_outbox_handlers(
        [DispatchOutboxHandler(subscription=Subscription(name=name, max_attempts=1)) for name in names]
    )
    for n in (1, 2):
        world.fail(f"a:{n}", 3)
    world.register(*placed("a", [1, 2]))
    world.process()
    seen: list[str] = []
    with before(world, "FOR UPDATE", lambda: seen.append("locked")):
        assert replay(world).subscriptions == ("one", "three", "two")
    assert seen == ["locked"]
    assert world.process().delivered == 6


# --- the owner, retention, and a rollback ------------------------------------------------------------------------------


def test_a_discard_while_the_owner_holds_its_key(world: World) -> None:
    """G3, S3: held messages, and one that the worker is about to hold, follow in order within the same run."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    kill(world, *placed("a", [1]))
    world.register(*placed("a", [2, 3]))
    assert world.process().held == 2
    world.before["b:1"] = lambda _: discard(world)
    world.register(Placed(order="b", n=1), Placed(order="a", n=4))
    report = world.process()
    assert (report.ok, report.busy, world.effects()) == (True, (), ["b:1", "a:2", "a:3", "a:4"])


def test_a_replay_while_the_owner_holds_its_key(world: World) -> None:
    """G3: a dead letter that holds its key, replayed in the middle of a run, goes before all that waits for it."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    kill(world, *placed("a", [1]))
    world.register(*placed("a", [2, 3]))
    world.process()
    world.before["b:1"] = lambda _: replay(world)
    world.register(Placed(order="b", n=1), Placed(order="a", n=4))
    report = world.process()
    assert (report.ok, report.busy, world.effects()) == (True, (), ["b:1", "a:1", "a:2", "a:3", "a:4"])


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_pruning_while_an_operator_decides(world: World, action: str) -> None:
    """G9, S4: before the operator's commit the pruner keeps the message, and does not wait for him."""
    kill(world, *placed("a", [1]))
    world.write(sa.update(world.tables.outbox).values(created_at=LONG_AGO))
    with world.sessions() as operator:
        getattr(DeadLetters(operator, tables=world.tables), action)(everything=True)
        with world.sessions() as pruner:
            assert prune(pruner, world.tables, older_than=timedelta(days=1)) == 0
        operator.commit()
    report = world.process()
    assert (report.delivered, report.pruned) == ((1, 1) if action == "replay" else (0, 1))


def test_an_operator_who_rolls_back(world: World) -> None:
    """G10: a replay and a discard that are rolled back in the middle of a run change nothing, and disturb nobody."""
    kill(world, *placed("a", [1]), *placed("b", [1]))

    def change_ones_mind(_: Any) -> None:
        with world.sessions() as session:
            dead_letters = DeadLetters(session, tables=world.tables)
            assert dead_letters.replay(ids=[letters(world)[0].id or ""]).count == 1
            assert dead_letters.discard(everything=True).count == 1
            session.rollback()

    world.before["a:2"] = change_ones_mind
    world.register(*placed("a", [2, 3]))
    report = world.process()
    assert (report.delivered, report.dead, report.busy) == (2, 2, ())
    assert world.effects() == ["a:2", "a:3"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_worker_waits_for_an_operator(world: World, end: str) -> None:
    """S3, G6: while an operator's transaction is open the worker's commit waits; it loses neither lease nor message."""
    kill(world, *placed("a", [1]))
    world.register(*placed("a", [2, 3]))
    worker = Meanwhile(world, world.process)
    with (
        world.sessions() as session
    ):  # between the worker's claim, which would skip a locked row, and its commit
        world.before["a:2"] = lambda _: DeadLetters(session, tables=world.tables).replay(everything=True)
        worker.start()
        assert worker.waited
        assert states(world) == {1: "dead"}
        getattr(session, end)()
    report = worker.join()
    assert report.busy == ()
    assert world.effects() == (["a:2", "a:1", "a:3"] if end == "commit" else ["a:2", "a:3"])
