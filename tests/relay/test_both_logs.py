"""What two logs, two lines and repeated rounds must not change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import (
    DispatchOutboxHandler,
    FixedDelay,
    MessageBus,
    OutboxHandlerABC,
    PositionBehind,
    Relay,
    SchemaError,
    SQLAlchemyOutBoxRepo,
    Subscription,
    UnsupportedDatabase,
)
from message_bus.admin.subscriptions import Subscriptions
from message_bus.delivery.jobs import Stop
from message_bus.delivery.worker import Worker
from message_bus.eventsourcing.stores.deleting import delete_stream
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.relay import stations
from message_bus.storage.watermark import Watermark
from tests.delivery.world import Noted, World, placed
from tests.relay.test_reading_events import Events, append
from tests.waiting import wait_until

Relays = Callable[..., Relay]


@contextmanager
def statements_of(engine: Any) -> Iterator[list[str]]:
    """The SQL that an engine runs meanwhile."""
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


class Other(OutboxHandlerABC):
    """A second subscription of the outbox that takes everything."""

    subscription = Subscription(name="other")

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        pass


# --- process_outbox -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logs", ["two subscriptions", "two logs"])
def test_a_bad_deploy_does_not_try_the_whole_backlog(world: World, logs: str) -> None:
    """After 20 different keys have failed the rest is left untried, however many subscriptions there are (G8)."""
    world.settings(max_attempts=1)
    second = Other() if logs == "two subscriptions" else Events()
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, second])
    for n in range(50):
        world.fail(str(n), 1)
    world.register(*(Noted(n=n) for n in range(50)))
    append(world, "a", 1)
    report = world.process()
    assert report.suspicious == ("dispatch",)
    assert report.dead == 20


def test_a_quiet_event_log_is_not_waited_for(world: World) -> None:
    """That the outbox is further than the event log is no reason to wait for anything (W6)."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.register(*(Noted(n=n) for n in range(20)))
    append(world, "a", 1)
    assert world.process().delivered == 21
    with statements_of(world.sessions.kw["bind"]) as seen:
        assert world.process().delivered == 0
    looks = [each for each in seen if "pg_locks" in each or "sqlite_sequence" in each]
    assert len(looks) <= 6, len(looks)


@pytest.mark.postgresql
def test_an_open_event_writer_is_waited_for(world: World) -> None:
    """W6 holds for each log: what is not settled yet is waited for, though the outbox has nothing to wait for."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.process()
    with world.sessions() as slow:
        SQLAlchemyEventStore(slow, tables=world.tables).save("slow", placed("slow", [1]))
        committing = threading.Timer(0.3, slow.commit)
        committing.start()
        report = world.process()
        committing.join()
    assert report.delivered == 1


@pytest.mark.postgresql
def test_unsettled_events_are_reported(world: World) -> None:
    """`unsettled` counts what cannot be passed yet in every log that was read (W6)."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.process()
    with world.sessions() as slow:
        SQLAlchemyEventStore(slow, tables=world.tables).save("slow", placed("slow", [1]))
        append(world, "fast", 1)
        report = world.process()
        slow.rollback()
    assert (report.delivered, report.unsettled) == (0, 1)


@pytest.mark.parametrize("log", ["outbox", "events"])
def test_a_log_behind_its_checkpoint_is_named(world: World, log: str) -> None:
    """The error says which log it is, and its remedy is about that log (W8)."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    append(world, "a", 1)
    world.register(Noted(n=1))
    world.process()
    t = world.tables.subscription
    world.write(sa.update(t).where(t.c.log == log).values(position=99))
    with pytest.raises(PositionBehind, match=f"log '{log}'") as caught:
        world.process()
    assert ("event" in str(caught.value)) == (log == "events")


def test_partitions_give_each_other_something_to_do(world: World) -> None:
    """Nothing is left, also where one partition of the only subscription registers for another."""
    world.settings(partitions=4)

    def on_noted(event: Noted, context: Any) -> None:
        if event.n < 8:
            world.bus.register_outbox_message(context.outbox, Noted(n=event.n + 1))

    world.bus.set_event_handlers(Noted, [on_noted])
    world.register(Noted(n=0))
    assert world.process().delivered == 9


def test_a_limit_holds_over_all_rounds(world: World) -> None:
    """No subscription tries more than `limit` messages in one run, and the run ends."""

    class Echo(Events):
        def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            world.bus.register_outbox_message(context.outbox, Noted(n=outbox_message.payload["n"]))

    def on_noted(event: Noted, context: Any) -> None:
        SQLAlchemyEventStore(context.db_session, tables=world.tables).save("a", placed("a", [event.n + 1]))

    world.bus.set_event_handlers(Noted, [on_noted])
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Echo()])
    append(world, "a", 1)
    report = world.process(limit=5)
    assert {name: each.delivered for name, each in report.subscriptions.items()} == {
        "dispatch": 5,
        "events": 5,
    }


def test_only_leaves_the_other_log_alone(world: World) -> None:
    """`only=` names subscriptions of either log."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    append(world, "a", 1)
    world.register(Noted(n=1))
    assert world.process(only=["events"]).delivered == 1
    assert world.effects() == ["a:1"]


def test_a_busy_subscription_does_not_stop_the_other(world: World) -> None:
    """Who holds one lease keeps nobody from the rest; it is reported once."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.process()
    t = world.tables.subscription
    world.write(
        sa.update(t)
        .where(t.c.name == "events")
        .values(owner="somebody", lease_until=sa.text("'2999-01-01 00:00:00.000000+00:00'"))
    )
    append(world, "a", 1)
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.busy) == (1, ("events",))


# --- names and logs -------------------------------------------------------------------------------------------


def test_a_worker_of_another_log_gets_no_lease(world: World) -> None:
    """Who thinks that a subscription reads another log would pass over its messages: it cannot claim it (G2)."""
    world.bus.set_outbox_handlers([Events(name="one")])
    world.process()
    handler = DispatchOutboxHandler(subscription=Subscription(name="one"))
    handler.attach(world.bus)
    worker = Worker(
        world.bus,
        handler,
        handler.subscription,
        0,
        tables=world.tables,
        watermark=Watermark(world.tables),
        lease=timedelta(seconds=30),
        stop=Stop(),
    )
    with world.sessions() as session:
        claimed = worker.claim(session)
        if claimed:
            worker.release(session)
    assert not claimed


# --- a database that has not been upgraded ----------------------------------------------------------------------


def _forget_event_tables(world: World) -> None:
    t = world.tables
    with world.sessions.begin() as session:
        for table in (t.event, t.stream, t.snapshot, t.process, t.saga, t.projection):
            session.execute(sa.text(f"DROP TABLE {table.name}"))


def test_without_the_new_tables_the_outbox_works(world: World, relay_for: Relays) -> None:
    """A package that is newer than the database delivers what is in the outbox."""
    _forget_event_tables(world)
    world.register(Noted(n=1))
    assert world.process().delivered == 1
    world.register(Noted(n=2))
    with relay_for() as relay:
        relay.wait_until_idle()
    assert world.effects() == ["1", "2"]


def test_without_the_new_tables_a_reader_of_events_is_told(world: World, relay_for: Relays) -> None:
    """What to run is in the error, of process_outbox and of the relay."""
    _forget_event_tables(world)
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    with pytest.raises(SchemaError, match=r"run `message-bus db upgrade`.*\n.*event"):
        world.process()
    with relay_for() as relay, pytest.raises(SchemaError, match=r"run `message-bus db upgrade`.*\n.*event"):
        relay.wait_until_idle()


# --- a relay ------------------------------------------------------------------------------------------------------


def test_a_relay_for_projections_alone_becomes_ready(world: World) -> None:
    """No subscription of the outbox is nothing to wait for."""
    bus = MessageBus()
    bus.set_outbox_handlers([Events()])
    with Relay(bus, world.sessions, poll=timedelta(seconds=0.05)) as relay:
        append(world, "a", 1)
        wait_until(lambda: world.effects() == ["a:1"])
        wait_until(lambda: relay.health().ready, message="never ready")


def test_a_relay_for_projections_alone_promotes_in_time(world: World) -> None:
    """A delayed message enters the outbox when it is due, whoever reads it."""
    bus = MessageBus()
    bus.set_outbox_handlers([Events()])
    with Relay(bus, world.sessions, poll=timedelta(seconds=0.05)):
        append(world, "a", 1)
        wait_until(lambda: world.effects() == ["a:1"])
        world.register(Noted(n=1), delay=timedelta(seconds=0.2))
        o = world.tables.outbox
        wait_until(lambda: world.rows(sa.select(o.c.id)), timeout=20.0)


def test_messages_do_not_wake_the_readers_of_events(world: World, relay_for: Relays) -> None:
    """A commit of messages costs those who read the event log nothing."""
    append(world, "a", 1)
    with relay_for(projections=[Events()], poll=timedelta(seconds=30)) as relay:
        relay.wait_until_idle()
        station = relay._lines[1].stations[0]
        runs: list[int] = []
        run = station.worker.run
        station.worker.run = lambda *given, **more: (runs.append(1), run(*given, **more))[1]
        for n in range(20):
            world.register(Noted(n=n))
            wait_until(lambda n=n: str(n) in world.effects())
        assert len(runs) <= 5


def test_events_are_waited_for_through_chains(world: World, relay_for: Relays) -> None:
    """What a message makes of an event, and that of a message again, is all delivered when it is idle."""

    class Reaction(Events):
        def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            super()._handle(outbox_message, context)
            if outbox_message.payload["n"] < 5:
                world.bus.register_outbox_message(context.outbox, Noted(n=outbox_message.payload["n"]))

    def on_noted(event: Noted, context: Any) -> None:
        SQLAlchemyEventStore(context.db_session, tables=world.tables).save("a", placed("a", [event.n + 1]))

    world.bus.set_event_handlers(Noted, [on_noted])
    append(world, "a", 1)
    with relay_for(projections=[Reaction()]) as relay:
        relay.wait_until_idle()
        assert world.effects() == [f"a:{n}" for n in range(1, 6)]


@pytest.mark.postgresql
def test_a_station_that_lost_its_connection_does_not_wait_for_the_next_poll(
    world: World, relay_for: Relays
) -> None:
    """The watcher, which sleeps, is told of an outage by whoever meets it: it is the one that says that it is over."""
    with relay_for(poll=timedelta(seconds=60), listen=False) as relay:
        relay.wait_until_idle()
        station, board = relay._lines[0].stations[0], relay._lines[0].board
        wait_until(lambda: relay._lines[0]._watcher._pace._pause > 8.0, timeout=60)
        board.outage(ConnectionError("as a station says it"))
        began = monotonic()
        wait_until(lambda: not board.down, timeout=60)
        assert monotonic() - began < 2.5, station.state


def test_a_deleted_stream_leaves_no_failure_behind(world: World) -> None:
    """A message that is gone is not retrying for ever: nobody can try it, or decide about it."""
    handler = Events(name="events", backoff=FixedDelay(0))
    handler.failures["a:1"] = 99
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, handler])
    append(world, "a", 1)
    append(world, "a", 2)
    assert not world.process().ok
    with world.sessions.begin() as session:
        delete_stream(session, "a", by="test", tables=world.tables)
    handler.failures.clear()
    wait_until(lambda: world.process().ok, timeout=3)
    append(world, "a", 3)
    assert world.process().delivered == 1
    assert world.deliveries() == []


def test_only_the_outbox_needs_no_event_log(world: World) -> None:
    """`only=` of a log that is there works while the other one is not there yet (an upgrade in progress)."""
    _forget_event_tables(world)
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    world.register(Noted(n=1))
    assert world.process(only=["dispatch"]).delivered == 1


def test_a_commit_of_events_in_this_process_wakes_the_relay(world: World, relay_for: Relays) -> None:
    """As one of messages does: without notifications nobody waits for the next poll."""
    with relay_for(projections=[Events()], poll=timedelta(seconds=60), listen=False) as relay:
        relay.wait_until_idle()
        wait_until(lambda: all(line._watcher._pace._pause > 8.0 for line in relay._lines), timeout=60)
        began = monotonic()
        append(world, "a", 1)
        wait_until(lambda: world.effects() == ["a:1"], timeout=60)
        assert monotonic() - began < 2.5  # of the five that it would sleep


@pytest.mark.postgresql
def test_a_hidden_event_is_refused_not_passed_over(
    world: World, administration: sa.Engine, database_url: sa.URL, schema: str
) -> None:
    """Row security on the event table is met at the start, and by whoever reads (W7, W9)."""
    role = f"reader_{schema}"
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    append(world, "a", 1)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT ALL ON SCHEMA {schema} TO {role}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
        connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_checkpoint() TO {role}")
        connection.exec_driver_sql(
            f"ALTER TABLE {schema}.{world.tables.event.name} ENABLE ROW LEVEL SECURITY"
        )
    options = f"-csearch_path={schema} -crole={role}"
    made = sa.create_engine(database_url.set(query={**database_url.query, "options": options}))
    try:
        with (
            Session(made) as session,
            pytest.raises(UnsupportedDatabase, match=r"row-level security on .*event"),
        ):
            world.bus.process_outbox(SQLAlchemyOutBoxRepo(session, tables=world.tables))
        relay = Relay(world.bus, made)
        with relay, pytest.raises(UnsupportedDatabase, match=r"row-level security on .*event"):
            relay.wait_until_idle()
    finally:
        made.dispose()
        with administration.connect() as connection:
            connection.exec_driver_sql(
                f"REVOKE ALL ON FUNCTION pg_catalog.pg_control_checkpoint() FROM {role}"
            )
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")


@pytest.mark.postgresql
@pytest.mark.parametrize("start", ["now", "beginning", 1])
def test_a_second_reader_of_events_starts_where_it_is_told(world: World, start: Any) -> None:
    """Places in the event log are its own: what is committed late at one below "now" comes, the rest does not (S4)."""
    world.register(*(Noted(n=100 + n) for n in range(9)))
    world.bus.set_outbox_handlers([Events()])
    append(world, "a", 1)
    append(world, "b", 1)
    world.process()
    before = len(world.effects())
    world.bus.set_outbox_handlers([Events(), Events(name="second", start=start)])
    with world.sessions() as slow:
        SQLAlchemyEventStore(slow, tables=world.tables).save("slow", placed("slow", [1]))
        append(world, "c", 1)
        world.process()
        slow.commit()
    append(world, "d", 1)
    world.process()
    world.process()
    t = world.tables.subscription
    assert world.rows(sa.select(t.c.position).where(t.c.name == "second")) == [(5,)]
    found = sorted(world.effects()[before:])
    first = ["c:1", "d:1", "slow:1"]
    late = {"now": ["d:1", "slow:1"], "beginning": ["a:1", "b:1", *first], 1: ["b:1", *first]}
    assert found == sorted([*first, *late[start]])


@pytest.mark.postgresql
def test_a_relay_needs_two_more_connections_for_a_second_log(world: World, relay_for: Relays) -> None:
    """A watcher and a listener each, and none of it for those who read the outbox only."""
    pool = world.sessions.kw["bind"].pool
    for projections, expected in (([], 2), ([Events()], 4)):
        with relay_for(projections=projections) as relay:
            relay.wait_until_idle()
            wait_until(lambda relay=relay: all(line.board.listening for line in relay._lines))
            wait_until(lambda expected=expected: pool.checkedout() == expected)


def test_inside_a_transaction_that_is_rolled_back(world: World) -> None:
    """Events that were saved in it are settled for whoever processes in it (W2)."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Events()])
    with world.sessions.kw["bind"].connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            SQLAlchemyEventStore(session, tables=world.tables).save("a", placed("a", [1, 2]))
            repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
            world.bus.register_outbox_message(repo, Noted(n=1))
            session.commit()
            report = world.bus.process_outbox(repo)
            assert (report.delivered, report.unsettled) == (3, 0)
        outer.rollback()
    assert world.effects() == []


def test_epochs_do_not_start_again_in_another_log(world: World) -> None:
    """A name that was dropped and is made again, for the other log, goes on with higher epochs (S2)."""
    world.bus.set_outbox_handlers([Events(name="one")])
    for _ in range(3):
        world.process()
    t = world.tables.subscription
    [(before,)] = world.rows(sa.select(t.c.epoch))
    with world.sessions.begin() as session:
        Subscriptions(session, tables=world.tables).drop("one")
    world.settings(name="one")
    world.process()
    [(after,)] = world.rows(sa.select(t.c.epoch))
    assert after > before


def test_stations_go_on_though_the_watcher_cannot_look(
    world: World, relay_for: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, too: what fails for another reason than an outage shows that the database is there."""
    monkeypatch.setattr(stations, "LONGEST_TRUST", 1.0)
    with relay_for(listen=False) as relay:
        relay.wait_until_idle()
        world.write(sa.text(f"DROP TABLE {world.tables.schedule.name}"))
        board = relay._lines[0].board
        board.outage(ConnectionError("as a station says it"))
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["1"], timeout=30)


def test_both_lines_come_back_after_an_outage(world: World, relay_for: Relays) -> None:
    """Each station waits for the watcher of its own log."""
    with relay_for(projections=[Events()], listen=False) as relay:
        relay.wait_until_idle()
        for line in relay._lines:
            line.board.outage(ConnectionError("as a station says it"))
        append(world, "a", 1)
        world.register(Noted(n=1))
        wait_until(lambda: len(world.effects()) == 2)
        wait_until(lambda: relay.health().ready)


def test_a_handler_that_saves_events_does_not_keep_the_relay_awake(world: World, relay_for: Relays) -> None:
    """The session of a station lives on: that it saved something once does not make each of its commits ring."""

    def on_noted(event: Noted, context: Any) -> None:
        SQLAlchemyEventStore(context.db_session, tables=world.tables).save("a", placed("a", [event.n]))

    world.bus.set_event_handlers(Noted, [on_noted])
    with relay_for(projections=[Events()], listen=False) as relay:
        world.register(Noted(n=1))
        wait_until(lambda: world.effects() == ["a:1"])
        board = relay._lines[0].board
        before = board.rings
        threading.Event().wait(1.0)  # nothing is to happen
        assert board.rings - before <= 3
