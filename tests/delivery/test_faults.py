"""Faults that were found by trying to break the engine, each named after what goes wrong."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from message_bus import (
    AsyncMessageBus,
    DispatchOutboxHandler,
    InvalidOutboxMessage,
    MessageBusTables,
    OutboxHandlerABC,
    RetryLater,
    SettingsError,
    Subscription,
)
from message_bus.delivery.process import process_outbox
from tests.delivery.world import AT_ONCE, EFFECT, Noted, Placed, World, placed
from tests.waiting import wait_until


def _dialect(world: World) -> str:
    return str(world.sessions.kw["bind"].dialect.name)


# --- odd errors -------------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [ValueError("\udcff"), Unprintable(), ValueError("a\x00b")],
    ids=["surrogate", "unprintable", "nul"],
)
def test_an_error_whose_text_cannot_be_stored(world: World, error: Exception) -> None:
    """G7: whatever text an error has, the failure is recorded, and others are not held up."""
    world.fail("1", error)
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.retrying, report.delivered) == (1, 1)
    [(text,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert text.startswith(type(error).__name__)


@pytest.mark.parametrize("delay", [timedelta(seconds=-5), timedelta.min, timedelta.max])
def test_an_absurd_delay(world: World, delay: timedelta) -> None:
    """G7: a delay below zero does not turn one run into an endless one, one beyond the calendar can be recorded."""
    world.fail("1", *[RetryLater(delay) for _ in range(9)])
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.retrying, report.delivered, len(world.failing["1"])) == (1, 1, 8)
    [(next_attempt_at,)] = world.rows(sa.select(world.tables.delivery.c.next_attempt_at))
    assert next_attempt_at is not None


@pytest.mark.postgresql
def test_a_transient_error_among_several_handlers(world: World) -> None:
    """S7: one handler meets a serialization failure, the next the aborted transaction: no attempt is counted."""
    attempts: list[int] = []

    def first(event: Noted, context: Any) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            raising = "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"
            context.db_session.execute(sa.text(raising))

    def second(event: Noted, context: Any) -> None:
        context.db_session.execute(sa.insert(EFFECT).values(note="second"))

    world.bus.set_event_handlers(Noted, [first, second])
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.retrying, attempts) == (1, 0, [1, 1])


def test_an_outage_among_several_handlers(world: World) -> None:
    """G8: what the settings call an outage is one, also when another handler of the event failed as well."""

    class MailServerDown(Exception):
        pass

    def down(event: Noted) -> None:
        raise MailServerDown

    def broken(event: Noted) -> None:
        raise ValueError

    world.settings(unavailable_on=(MailServerDown,))
    world.bus.set_event_handlers(Noted, [broken, down])
    world.register(Noted(n=1))
    report = world.process()
    assert (report.unavailable, world.deliveries()) == (("dispatch",), [])


# --- odd sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["commit", "rollback"])
@pytest.mark.parametrize("of", ["connection", "transaction"])
def test_a_handler_that_ends_the_connections_transaction(world: World, operation: str, of: str) -> None:
    """S10: past the session, through its connection: nothing of the message stays, and the next one is fine."""

    def end(context: Any) -> None:
        connection = context.db_session.connection()
        getattr(connection if of == "connection" else connection.get_transaction(), operation)()

    world.before["1"] = end
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (world.effects(), report.retrying) == (["2"], 1)


def test_a_handler_that_leaves_a_savepoint_open(world: World) -> None:
    """S10: the savepoint is part of the message's commit."""

    def leave_open(context: Any) -> None:
        context.db_session.begin_nested()
        context.db_session.execute(sa.insert(EFFECT).values(note="in the savepoint"))

    world.before["1"] = leave_open
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().delivered == 2
    assert world.effects() == ["1", "in the savepoint", "2"]


def test_a_handler_that_leaves_a_savepoint_open_and_fails(world: World) -> None:
    """S10: a failure undoes the savepoint and what was before it."""

    def leave_open(context: Any) -> None:
        context.db_session.begin_nested()
        context.emit(Noted(n=3))
        world.bus.register_outbox_message(context.outbox, Noted(n=4))
        raise ValueError

    world.before["1"] = leave_open
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().retrying == 1
    assert world.effects() == ["2"]


@pytest.mark.parametrize("size", [1, 5])
def test_a_connection_that_is_in_a_transaction(world: World, size: int) -> None:
    """G10: a failing handler is rolled back to a savepoint; what the caller has done on the connection stays its own."""
    world.settings(messages_per_commit=size)
    world.register(Noted(n=1), Noted(n=2))
    world.fail("1", 2)
    with world.sessions.kw["bind"].connect() as connection:
        connection.execute(sa.insert(EFFECT).values(note="mine"))
        report = world.bus.process_outbox(connection)
        assert connection.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)).all() == ["mine", "2"]
        connection.rollback()
    assert (report.delivered, report.retrying, world.effects()) == (1, 1, [])


def test_a_session_whose_rollback_is_its_callers(world: World) -> None:
    """G10: a session that joined a transaction which a failing handler would roll back is refused, with the remedy."""
    with world.sessions.kw["bind"].connect() as connection:
        connection.execute(sa.insert(EFFECT).values(note="mine"))
        with Session(connection) as session, pytest.raises(SettingsError, match="create_savepoint"):
            world.bus.process_outbox(session)
        assert connection.scalars(sa.select(EFFECT.c.note)).all() == ["mine"]
        connection.rollback()


def test_a_handler_that_commits_in_a_tests_transaction(world: World) -> None:
    """S10: on a session that joined a test's transaction the SessionTransaction's commit is refused as well."""
    world.before["1"] = lambda context: context.db_session.get_transaction().commit()
    world.register(Noted(n=1), Noted(n=2))
    with world.sessions.kw["bind"].connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            assert world.bus.process_outbox(session).retrying == 1
            assert session.scalars(sa.select(EFFECT.c.note)).all() == ["2"]
        connection.rollback()


@pytest.mark.postgresql
def test_a_pool_with_one_connection(world: World) -> None:
    """The heartbeat finds no connection while a handler holds the only one: it is late, and nobody waits for it."""
    url = world.sessions.kw["bind"].url
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    s = world.tables.subscription
    world.register(*[Noted(n=n) for n in range(3)])
    beats = threading.Event()
    asked = engine.pool.connect

    def connect() -> Any:
        beats.set()
        return asked()

    engine.pool.connect = connect  # type: ignore[method-assign]

    def outlive_a_beat(_: Any) -> None:
        beats.clear()
        assert beats.wait(10)

    world.before["1"] = outlive_a_beat
    with Session(engine) as session:
        report = process_outbox(world.bus, session, lease=timedelta(seconds=0.3))
    engine.dispose()
    assert (report.delivered, world.rows(sa.select(s.c.owner))) == (3, [(None,)])


# --- concurrent mode --------------------------------------------------------------------------------------------------


class Slow(OutboxHandlerABC):
    """Takes until the lease that was there when it began would have ended."""

    subscription = Subscription(backoff=AT_ONCE)

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        s = self.world.tables.subscription
        [(first,)] = self.world.rows(sa.select(s.c.lease_until))
        wait_until(lambda: self.world.rows(sa.select(s.c.lease_until)) > [(first,)])


def test_a_batch_that_takes_longer_than_the_lease(world: World) -> None:
    """S2: on SQLite, too, the lease is renewed; else two workers would take a slow batch from each other for ever."""
    world.bus.set_outbox_handlers([Slow(world)])
    world.register(Noted(n=1))
    assert world.process(lease=timedelta(seconds=0.6)).delivered == 1


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
def test_an_emission_that_the_database_refuses(world: World, mode: str) -> None:
    """G7: a message registered under an id that is taken fails the message in hand, and no other."""
    taken = uuid4()
    world.register(Noted(n=9), id=taken)
    world.process()
    seen: list[int] = []

    def emit(event: Noted, context: Any) -> None:
        seen.append(event.n)
        context.emit(Placed(order="x", n=event.n))
        if event.n == 2:
            world.bus.register_outbox_message(context.outbox, Noted(n=8), id=taken)

    world.bus.set_event_handlers(Noted, [emit])
    world.bus.set_event_handlers(Placed, [lambda event: seen.append(-event.n)])
    world.settings(mode=mode)
    world.register(Noted(n=1), Noted(n=2), Noted(n=3))
    report = world.process()
    assert (report.delivered, report.retrying, seen) == (4, 1, [1, 2, 3, -1, -3])


def test_an_emission_that_cannot_be_encoded(world: World) -> None:
    """G7: in concurrent mode a row that does not fit fails the handler that registers it."""
    refused: list[Exception] = []

    def emit(event: Noted, context: Any) -> None:
        try:
            world.bus.register_outbox_message(context.outbox, Noted(n=8), id="not a UUID")
        except InvalidOutboxMessage as error:
            refused.append(error)

    world.bus.set_event_handlers(Noted, [emit])
    world.settings(mode="concurrent")
    world.register(Noted(n=1))
    assert (world.process().delivered, len(refused)) == (1, 1)


def test_what_a_failing_handler_registered_is_dropped(world: World) -> None:
    """G1: in concurrent mode, too, nothing of a failed attempt enters the outbox."""

    def register(event: Noted, context: Any) -> None:
        if event.n < 9:
            world.bus.register_outbox_message(context.outbox, Noted(n=9))
        if event.n == 1 and context.attempt == 1:
            raise ValueError

    world.bus.set_event_handlers(Noted, [register])
    world.settings(mode="concurrent")
    world.register(Noted(n=1), Noted(n=2))
    t = world.tables.outbox
    world.process()
    assert world.rows(sa.select(sa.func.count()).select_from(t)) == [(3,)]
    world.process()
    assert world.rows(sa.select(sa.func.count()).select_from(t)) == [(4,)]


# --- races and operators ------------------------------------------------------------------------------------------------


def test_a_delayed_message_whose_id_is_taken(world: World) -> None:
    """S9: one row of the schedule that can never enter the outbox does not stop all delivery."""
    taken = uuid4()
    world.register(Noted(n=1), id=taken)
    world.register(Noted(n=2), id=taken, delay=timedelta(hours=1))
    world.register(Noted(n=3), delay=timedelta(hours=1))
    t = world.tables.schedule
    world.write(sa.update(t).values(due_at=t.c.created_at))
    report = world.process()
    assert (report.delivered, report.promoted, world.effects()) == (2, 1, ["1", "3"])
    assert world.rows(sa.select(t.c.id)) == []


def test_a_dead_letter_that_is_set_back_by_hand(world: World) -> None:
    """G7: `state = 'retrying'` is all an operator has to write."""
    t = world.tables.delivery
    world.settings(max_attempts=1)
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    world.write(sa.update(t).values(state="retrying"))
    assert world.process().delivered == 1


def test_a_failed_message_whose_row_vanished(world: World) -> None:
    """G3: when somebody has deleted the message that its key waited for, those behind it are delivered."""
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]))
    world.process()
    world.write(sa.delete(world.tables.outbox).where(world.tables.outbox.c.position == 1))
    report = world.process()
    assert (report.delivered, report.retrying, world.effects()) == (1, 1, ["a:2"])


def test_the_databases_clock_steps_back(world: World) -> None:
    """G7: what failed looks due again at once: still it is tried once a run, or its attempts would be gone in a moment."""
    d = world.tables.delivery
    world.fail("a:1", 5)
    world.register(*placed("a", [1, 2]), Noted(n=1))
    ago = sa.update(d).values(next_attempt_at=sa.text("'2020-01-01 00:00:00.000000'"))
    world.before["1"] = lambda context: context.db_session.execute(ago.where(d.c.state == "retrying"))
    report = world.process()
    assert (report.retrying, report.held, report.delivered) == (1, 1, 1)
    assert [(state, attempts) for _, state, attempts in world.deliveries()] == [("retrying", 1), ("held", 0)]


def test_a_long_chain_of_held_messages(world: World) -> None:
    """G3: what one key has held is released in batches: the work grows with its length, not with its square."""
    world.settings(fetch_size=20)
    world.fail("a:0", 1)
    world.register(*placed("a", range(60)))
    world.process()
    reads: list[str] = []

    def see(_: object, __: object, statement: str, *___: object) -> None:
        reads.append(statement)

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", see)
    report = world.process()
    sa.event.remove(engine, "before_cursor_execute", see)
    assert (report.delivered, world.effects()) == (60, [f"a:{n}" for n in range(60)])
    assert sum("stuck" in each for each in reads) == 4


def test_a_held_message_that_fails_stops_its_chain(world: World) -> None:
    """G3: of a chain that is being released the rest waits again when one fails; other keys go on."""
    world.fail("a:0", 1)
    world.fail("b:0", 1)
    world.fail("a:1", 1)
    world.register(*placed("a", range(4)), *placed("b", range(2)))
    world.process()
    report = world.process()
    assert (world.effects(), report.retrying, report.held) == (["a:0", "b:0", "b:1"], 1, 2)
    world.process()
    assert world.effects() == ["a:0", "b:0", "b:1", "a:1", "a:2", "a:3"]


@pytest.mark.postgresql
def test_two_processes_create_the_same_subscriptions(world: World) -> None:
    """S4: both find none and go on to make them, at the same moment: one set of rows, no error, nobody idle."""
    world.settings(partitions=3)
    world.register(Noted(n=1))
    together = threading.Barrier(2, timeout=10)
    engine = world.sessions.kw["bind"]
    arrived: set[threading.Thread] = set()

    def meet(_: object, __: object, statement: str, *___: object) -> None:
        if "INSERT INTO message_bus_log" in statement and threading.current_thread() not in arrived:
            arrived.add(threading.current_thread())
            together.wait()

    reports: list[Any] = []
    threads = [threading.Thread(target=lambda: reports.append(world.process())) for _ in range(2)]
    sa.event.listen(engine, "before_cursor_execute", meet)
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    sa.event.remove(engine, "before_cursor_execute", meet)
    assert [report.idle for report in reports] == [(), ()]
    assert sum(report.delivered for report in reports) == 1
    s = world.tables.subscription
    assert world.rows(sa.select(s.c.partition, s.c.state).order_by(s.c.partition)) == [
        (0, "active"),
        (1, "active"),
        (2, "active"),
    ]


# --- asyncio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["SET position", "COMMIT"])
async def test_cancelled_at_the_commit(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
) -> None:
    """G5, S6: a run that is cancelled at its last statements has either delivered the message or not, never twice."""
    async with async_session_factory.begin() as session:
        await (await session.connection()).run_sync(EFFECT.metadata.create_all)
    bus = AsyncMessageBus()
    running: list[asyncio.Task[Any]] = []
    handled: list[int] = []

    async def handle(event: Noted, context: Any) -> None:
        await context.db_session.execute(sa.insert(EFFECT).values(note="1"))
        handled.append(event.n)

    bus.set_event_handlers(Noted, [handle])
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(name="dispatch"))])
    engine = async_session_factory.kw["bind"].sync_engine

    def cancel(*arguments: Any) -> None:
        if handled and len(running) == 1 and (statement == "COMMIT" or statement in arguments[2]):
            running.append(running[0])
            running[0].cancel()

    sa.event.listen(engine, "commit" if statement == "COMMIT" else "before_cursor_execute", cancel)

    async def process() -> Any:
        async with async_session_factory() as session:
            return await bus.process_outbox(session)

    async with async_session_factory.begin() as session:
        bus.register_outbox_message(session, Noted(n=1))
    running.append(asyncio.create_task(process()))
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    async with async_session_factory.begin() as session:
        await session.execute(sa.update(async_tables.subscription).values(owner=None))
    report = await process()
    assert report.ok
    async with async_session_factory() as session:
        assert list(await session.scalars(sa.select(EFFECT.c.note))) == ["1"]
