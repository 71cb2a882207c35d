"""Faults that were found by trying to break the engine: odd errors, odd sessions, races, operators."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, MessageBus, RetryLater, SQLAlchemyOutBoxRepo, Subscription, SettingsError
from message_bus.delivery.process import process_outbox
from tests.delivery.world import EFFECT, Noted, Placed, World, placed


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [ValueError("\udcff"), Unprintable(), ValueError("a\x00b")], ids=["surrogate", "unprintable", "nul"])
def test_an_error_whose_text_cannot_be_stored(world: World, error: Exception) -> None:
    """G7: whatever text an error has, it is recorded, and others are not held up."""
    world.fail("1", error)
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.retrying, report.delivered) == (1, 1)


@pytest.mark.parametrize("delay", [timedelta(seconds=-5), timedelta.max, timedelta.min])
def test_an_absurd_delay(world: World, delay: timedelta) -> None:
    """G7: a negative delay does not turn one run into an endless one, nor does one beyond the calendar stop the run."""
    world.fail("1", *[RetryLater(delay) for _ in range(50)])
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.retrying, report.delivered) == (1, 1)
    assert len(world.failing["1"]) == 49
    t = world.tables.delivery
    assert world.rows(sa.select(t.c.next_attempt_at))[0][0] is not None


@pytest.mark.postgresql
def test_a_transient_error_among_several_handlers(world: World) -> None:
    """S7: the first handler meets a serialization failure, the second the aborted transaction: no attempt is counted."""
    seen: list[int] = []

    def first(event: Noted, context: Any) -> None:
        seen.append(event.n)
        if len(seen) == 1:
            context.db_session.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"))

    def second(event: Noted, context: Any) -> None:
        context.db_session.execute(sa.insert(EFFECT).values(note=f"second {event.n}"))

    world.bus.set_event_handlers(Noted, [first, second])
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.retrying, len(seen)) == (1, 0, 2)


def test_a_handler_that_commits_the_connection(world: World) -> None:
    """S10: the connection's commit is refused too; nothing of the failing message stays."""
    world.before["1"] = lambda context: context.db_session.connection().commit()
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (world.effects(), report.retrying) == (["2"], 1)


def test_a_handler_that_rolls_the_connection_back(world: World) -> None:
    """S10: so is its rollback."""
    world.before["1"] = lambda context: context.db_session.connection().rollback()
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (world.effects(), report.retrying) == (["2"], 1)


def test_an_open_savepoint(world: World) -> None:
    """S10."""
    world.before["1"] = lambda context: (context.db_session.begin_nested(), context.db_session.execute(sa.insert(EFFECT).values(note="in")))
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (world.effects(), report.delivered) == (["1", "in", "2"], 2)


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
def test_an_emission_that_cannot_be_stored(world: World, mode: str) -> None:
    """G7: a message registered under an id that is taken fails the message in hand, no other."""
    taken = uuid4()
    world.register(Noted(n=9), id=taken)
    world.process()
    seen: list[int] = []

    def emit(event: Noted, context: Any) -> None:
        seen.append(event.n)
        if event.n == 2:
            MessageBus.register_outbox_message(context.outbox, Noted(n=8), id=taken)
        else:
            context.emit(Placed(order="x", n=event.n))

    world.bus.set_event_handlers(Noted, [emit])
    world.bus.set_event_handlers(Placed, [lambda e: seen.append(-e.n)])
    world.settings(mode=mode)
    world.register(Noted(n=1), Noted(n=2), Noted(n=3))
    report = world.process()
    assert (report.delivered, report.retrying) == (4, 1)
    assert seen == [1, 2, 3, -1, -3]


def test_a_delayed_message_whose_id_is_taken(world: World) -> None:
    """S9: one bad row of the schedule does not stop delivery for ever."""
    taken = uuid4()
    world.register(Noted(n=1), id=taken)
    world.register(Noted(n=2), id=taken, delay=timedelta(hours=1))
    t = world.tables.schedule
    world.write(sa.update(t).values(due_at=t.c.created_at))
    report = world.process()
    assert (report.delivered, world.effects()) == (1, ["1"])
    assert world.rows(sa.select(t.c.id)) == []


@pytest.mark.parametrize("size", [1, 5])
def test_connection_in_a_transaction(world: World, size: int) -> None:
    """G10."""
    world.settings(messages_per_commit=size)
    world.register(Noted(n=1), Noted(n=2))
    world.fail("1", 2)
    with world.sessions.kw["bind"].connect() as connection:
        connection.execute(sa.insert(EFFECT).values(note="mine"))
        report = world.bus.process_outbox(connection)
        assert connection.scalars(sa.select(EFFECT.c.note)).all() == ["mine", "2"]
        connection.rollback()
    assert (report.delivered, report.retrying) == (1, 1)
    assert world.effects() == []


def test_operator_change_does_not_stall(world: World) -> None:
    """S3: when an operator was faster, the lease is not left behind."""
    t = world.tables.delivery
    world.fail("1", 1)
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    if world.sessions.kw["bind"].dialect.name == "sqlite":
        pytest.skip()
    world.before["1"] = lambda _: world.write(sa.update(t).values(state="dead"))
    world.process()
    world.before.clear()
    s = world.tables.subscription
    assert world.rows(sa.select(s.c.owner)) == [(None,)]
    assert world.process().busy == ()


def test_replay_by_hand(world: World) -> None:
    """G7."""
    t = world.tables.delivery
    world.settings(max_attempts=1)
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    world.write(sa.update(t).values(state="retrying"))
    assert world.process().delivered == 1


@pytest.mark.postgresql
def test_creation_race(world: World) -> None:
    """S4."""
    world.register(Noted(n=1))
    barrier = threading.Barrier(2)
    reports: list[Any] = []
    errors: list[Any] = []

    def hook(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO message_bus_log" in statement and not threading.current_thread().done:
            threading.current_thread().done = True
            barrier.wait(10)

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", hook)

    def go() -> None:
        threading.current_thread().done = False
        try:
            reports.append(world.process())
        except BaseException as error:
            errors.append(error)
    ts = [threading.Thread(target=go) for _ in range(2)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    sa.event.remove(engine, "before_cursor_execute", hook)
    assert errors == []
    assert sum(r.delivered for r in reports) == 1
    assert [r.idle for r in reports] == [(), ()]


@pytest.mark.parametrize("size", [1, 3])
def test_commit_in_doubt_and_nobody_to_ask(world: World, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: the answer is lost and the first question too."""
    world.settings(messages_per_commit=size)
    world.register(*[Noted(n=n) for n in range(3)])
    dialect = world.sessions.kw["bind"].dialect
    real = dialect.do_commit
    calls: list[int] = []
    asked: list[int] = []
    engine = world.sessions.kw["bind"]
    for n in range(3):
        world.before[str(n)] = lambda _, n=n: calls.append(n)

    def lose(connection: Any) -> None:
        real(connection)
        if calls and not asked:
            asked.append(1)
            raise sa.exc.OperationalError("COMMIT", {}, ConnectionResetError("lost"))

    def refuse(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if asked == [1] and "SELECT message_bus_subscription.position" in statement:
            asked.append(2)
            raise sa.exc.OperationalError(statement, {}, ConnectionResetError("still lost"))

    monkeypatch.setattr(dialect, "do_commit", lose)
    sa.event.listen(engine, "before_cursor_execute", refuse)
    world.process()
    monkeypatch.undo()
    sa.event.remove(engine, "before_cursor_execute", refuse)
    world.process()
    assert asked == [1, 2]
    assert world.effects() == ["0", "1", "2"]
    assert calls == [0, 1, 2]
