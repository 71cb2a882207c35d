"""S6 and S7: workers that fall silent with the partition's row locked, and workers that come back."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import OutboxHandlerABC, Unavailable
from message_bus.delivery.hands import Hands
from message_bus.delivery.jobs import Stop
from message_bus.delivery.worker import Worker
from message_bus.storage.outages import is_outage
from message_bus.storage.watermark import Watermark
from tests.delivery.world import Noted, World
from tests.waiting import wait_until

LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")


def _worker(world: World, lease: timedelta = timedelta(seconds=30)) -> Worker:
    [handler] = world.bus.outbox_handlers
    assert isinstance(handler, OutboxHandlerABC)
    assert handler.subscription is not None
    return Worker(
        world.bus,
        handler,
        handler.subscription,
        0,
        tables=world.tables,
        watermark=Watermark(world.tables),
        lease=lease,
        stop=Stop(),
        hands=Hands(),
    )


def _states(world: World) -> list[Any]:
    d = world.tables.delivery
    return world.rows(sa.select(d.c.position, d.c.state, d.c.attempts, d.c.crashes))


def _expire(world: World) -> None:
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO))


def _taken_over(world: World) -> Worker:
    """A worker in careful mode."""
    world.process()
    world.register(Noted(n=1))
    s = world.tables.subscription
    world.write(sa.update(s).values(owner="dead", lease_until=LONG_AGO))
    return _worker(world)


# --- S7: who is silent does not hold the row ----------------------------------------------------------------------


SETTING = sa.text("SELECT current_setting('idle_in_transaction_session_timeout')")


@pytest.mark.postgresql
@pytest.mark.parametrize("step", ["claim", "lock", "advance", "renew"])
def test_who_holds_the_row_must_not_be_silent(world: World, step: str) -> None:
    """S7: the server ends a transaction that has locked the partition's row and is idle for one lease."""
    world.process()
    worker = _worker(world, timedelta(seconds=7))
    with world.sessions() as session:
        if step == "claim":
            from message_bus.delivery.lease import claim

            claim(session, world.tables, worker.settings, 0, lease=timedelta(seconds=7))
            assert session.scalar(SETTING) == "7s"
            return
        before = session.scalar(SETTING)
        assert worker.claim(session)
        assert worker.lease is not None
        assert session.scalar(SETTING) == before  # it ends with the transaction: pools are left as they were
        seen: list[Any] = []
        if step == "lock":
            worker.lease.lock(session)
            seen.append(session.scalar(SETTING))
        elif step == "advance":
            worker.lease.advance(session, worker.lease.at.position)
            seen.append(session.scalar(SETTING))
        else:
            real = session.commit

            def commit() -> None:
                seen.append(session.scalar(SETTING))
                real()

            session.__dict__["commit"] = commit
            assert worker.lease.renew(session)
        assert seen == ["7s"]


@pytest.mark.postgresql
def test_a_batch_that_reads_ahead_must_not_be_silent_either(world: World) -> None:
    """S7: the statement that moves the checkpoint and reads on does it, too."""
    world.settings(fetch_size=1)
    world.register(Noted(n=1), Noted(n=2))
    seen: list[Any] = []

    def see(session: Session) -> None:
        seen.append(session.scalar(SETTING))

    with world.sessions() as session:
        sa.event.listen(session, "before_commit", see)
        world.bus.process_outbox(session)
    assert seen.count("30s") >= 3


@pytest.mark.postgresql
def test_a_frozen_worker_lets_go_of_the_row(world: World) -> None:
    """S7: frozen between the lock and the commit, it holds nobody up for longer than its lease; it commits nothing."""
    world.process()
    world.register(Noted(n=1))
    worker = _worker(world, timedelta(seconds=0.5))
    with world.sessions() as frozen:
        assert worker.claim(frozen)
        assert worker.lease is not None
        worker.lease.lock(frozen)
        wait_until(lambda: world.process().delivered == 1)
        with pytest.raises(sa.exc.DBAPIError) as raised:
            worker.lease.advance(frozen, 1)
        assert is_outage(raised.value)
        frozen.invalidate()
    assert world.effects() == ["1"]


@pytest.mark.postgresql
def test_somebodys_own_transaction_is_left_alone(world: World) -> None:
    """G10: in a test that is rolled back the setting would stay to its end, and whoever debugs it be thrown out."""
    world.register(Noted(n=1))
    engine = world.sessions.kw["bind"]
    with engine.connect() as connection:
        before = connection.scalar(SETTING)
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            assert world.bus.process_outbox(session).delivered == 1
        assert connection.scalar(SETTING) == before
        connection.rollback()


# --- S6: who comes back has not died --------------------------------------------------------------------------------


def _lose_the_database(world: World, worker: Worker, session: Session) -> None:
    """The database goes away while a message is tried carefully, and stays away for longer than the lease."""
    engine = world.sessions.kw["bind"]
    gone: list[bool] = []

    def refuse(*_: object) -> None:
        if gone:
            raise sa.exc.OperationalError("x", {}, ConnectionResetError())

    def go(_: Any) -> None:
        gone.append(True)
        raise sa.exc.OperationalError("x", {}, ConnectionResetError())

    sa.event.listen(engine, "before_cursor_execute", refuse)
    world.before["1"] = go
    try:
        with pytest.raises(sa.exc.OperationalError):
            worker.run(session)
        worker.release(session, or_leave=True)
    finally:
        sa.event.remove(engine, "before_cursor_execute", refuse)
        del world.before["1"]
    assert _states(world) == [(1, "trying", 0, 0)]
    _expire(world)


def test_a_worker_that_comes_back_has_not_died(world: World) -> None:
    """S6: the lease ended meanwhile, but nobody else had it: no crash is counted, the attempt is taken back."""
    worker = _taken_over(world)
    with world.sessions() as session:
        assert worker.claim(session)
        _lose_the_database(world, worker, session)
        assert worker.claim(session)
        seen: list[Any] = []
        crashes = world.tables.delivery.c.crashes
        world.before["1"] = lambda context: seen.extend(context.db_session.scalars(sa.select(crashes)))
        tally = worker.run(session)
        worker.release(session)
    assert (tally.delivered, seen, _states(world), world.effects()) == (1, [0], [], ["1"])


def test_another_cannot_know(world: World) -> None:
    """S6: whoever takes over from one that is silent counts a crash; coming back later takes nothing of it back."""
    worker = _taken_over(world)
    with world.sessions() as session:
        assert worker.claim(session)
        _lose_the_database(world, worker, session)
        world.fail("1", 1)
        world.process()
        world.process()
        assert _states(world) == [(1, "retrying", 1, 1)]
        assert worker.claim(session)
        assert worker.lease is not None
        assert worker.lease.unfinished is None
        worker.run(session)
        worker.release(session)
    assert world.effects() == ["1"]


def test_nothing_else_is_tried_before_the_attempt_is_taken_back(world: World) -> None:
    """S6, G2: while the database comes and goes, the recorded attempt is not forgotten for that at the next message."""
    worker = _taken_over(world)
    world.register(Noted(n=2))
    engine = world.sessions.kw["bind"]
    refused: list[str] = []

    def refuse(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE") and "delivery" in statement and len(refused) < 2:
            refused.append(statement)
            raise sa.exc.OperationalError("x", {}, ConnectionResetError())

    def go(_: Any) -> None:
        del world.before["1"]
        raise sa.exc.OperationalError("x", {}, ConnectionResetError())

    world.before["1"] = go
    sa.event.listen(engine, "before_cursor_execute", refuse)
    try:
        with world.sessions() as session:
            assert worker.claim(session)
            while worker.run(session).unavailable:
                pass
            worker.release(session)
    finally:
        sa.event.remove(engine, "before_cursor_execute", refuse)
    assert len(refused) == 2
    assert (world.effects(), _states(world)) == (["1", "2"], [])


# --- G8: an outage is said once -----------------------------------------------------------------------------------------


def test_an_outage_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """G8: one line when it begins, one when it is over, however many attempts lie between."""
    world.register(Noted(n=1))
    world.fail("1", *[Unavailable("mail") for _ in range(5)])
    world.process()
    caplog.clear()
    worker = _worker(world)
    with world.sessions() as session, caplog.at_level(logging.WARNING, "message_bus"):
        assert worker.claim(session)
        for _ in range(4):
            assert worker.run(session).unavailable
        assert worker.run(session).delivered == 1
        assert worker.run(session).delivered == 0
        worker.release(session)
    assert [record.getMessage() for record in caplog.records] == [
        "subscription 'dispatch' stops for now: out of reach: Unavailable",
        "subscription 'dispatch' goes on: what it needs is in reach again",
    ]


# --- the heartbeat is a sign of life -------------------------------------------------------------------------------------


def test_a_heartbeat_is_a_sign_of_life(world: World) -> None:
    """S2: a relay acquires its lease once and keeps it for weeks: each heartbeat says that the subscription is seen."""
    s = world.tables.subscription
    world.process()
    worker = _worker(world)
    with world.sessions() as session:
        assert worker.claim(session)
        world.write(sa.update(s).values(seen_at=LONG_AGO))
        assert worker.lease is not None
        assert worker.lease.renew(session)
        worker.release(session)
    [(seen_at, created_at)] = world.rows(sa.select(s.c.seen_at, s.c.created_at))
    assert seen_at >= created_at


# --- S7: after an outage ------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_heartbeat_does_not_end_a_doubt(world: World) -> None:
    """S7, G8: after an outage only a write of the session that records proves that what handlers do can be recorded."""
    world.process()
    world.register(Noted(n=1))
    called: list[Any] = []
    world.bus.set_event_handlers(Noted, [lambda event, context: called.append(event)])
    worker = _worker(world)
    with world.sessions() as session, world.sessions() as heartbeat:
        assert worker.claim(session)
        assert worker.lease is not None
        worker.lease.doubt()
        assert worker.lease.renew(heartbeat)
        assert worker.lease.over

        def read_only(session: Session, transaction: object, connection: sa.Connection) -> None:
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))

        sa.event.listen(session, "after_begin", read_only)
        assert worker.run(session).outage is not None
        assert called == []
        sa.event.remove(session, "after_begin", read_only)
        assert worker.run(session).delivered == 1
        assert len(called) == 1
        assert not worker.lease.over
        worker.release(session)
