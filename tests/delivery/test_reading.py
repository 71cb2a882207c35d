"""What a subscription reads: settled rows only, each once; where it starts; what it filters."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    DispatchOutboxHandler,
    MessageBusTables,
    PositionBehind,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
)
from message_bus.messages.keys import key_hash
from tests.delivery.world import AT_ONCE, Noted, Pay, Placed, World, placed


@pytest.mark.postgresql
def test_what_is_not_settled_is_reported_and_delivered_later(world: World) -> None:
    """W6: behind an open writer nothing is passed over: it is waited for a bounded time, then reported."""
    world.process()
    with world.sessions() as early:
        repo = SQLAlchemyOutBoxRepo(early, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=1))
        repo.flush()  # position 1 is drawn and not committed
        world.register(Noted(n=2))
        report = world.process()
        assert (report.delivered, report.unsettled) == (0, 1)
        early.commit()
    report = world.process()
    assert (report.delivered, report.unsettled) == (2, 0)
    assert world.effects() == ["1", "2"]


@pytest.mark.postgresql
def test_a_run_waits_for_writers_that_are_about_to_commit(world: World) -> None:
    """W6: a writer that commits while the run looks again is delivered by that run."""
    world.process()
    early = world.sessions()
    repo = SQLAlchemyOutBoxRepo(early, tables=world.tables)
    world.bus.register_outbox_message(repo, Noted(n=1))
    repo.flush()
    world.register(Noted(n=2), Pay(n=3))
    looks = 0

    def commit_at_the_third_look(
        connection: sa.Connection, cursor: object, statement: str, *_: object
    ) -> None:
        nonlocal looks
        looks += "pg_locks" in statement
        if looks == 3 and early.in_transaction():
            early.commit()

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", commit_at_the_third_look)
    report = world.process()
    sa.event.remove(engine, "before_cursor_execute", commit_at_the_third_look)
    early.close()
    assert (report.delivered, report.unsettled) == (3, 0)
    assert world.effects() == ["1", "2", "pay 3"]


@pytest.mark.postgresql
def test_the_checkpoint_passes_gaps(world: World) -> None:
    """S8: positions that a rollback took away do not hold the checkpoint, or retention would wait for ever."""
    with world.sessions() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=1))
        repo.flush()
        session.rollback()
    world.process()
    assert world.checkpoint() == 1


def test_a_filtered_subscription_passes_what_it_does_not_want(world: World) -> None:
    """S8: with `types` other messages are not handled, and the checkpoint still passes them."""
    world.settings(types=[Noted])
    world.register(*placed("a", [1, 2]), Noted(n=1), Pay(n=2), Placed(order="a", n=3))
    report = world.process()
    assert (report.delivered, world.effects(), world.checkpoint()) == (1, ["1"], 5)


@pytest.mark.parametrize("fetch_size", [1, 2, 3, 100])
def test_fetch_size_only_changes_how_much_is_read_at_once(world: World, fetch_size: int) -> None:
    """Any fetch_size delivers everything once and in order."""
    world.settings(fetch_size=fetch_size)
    world.fail("a:2", 1)
    world.register(*placed("a", [1, 2, 3]), *placed("b", [1, 2]))
    world.process()
    world.process()
    assert world.effects() == ["a:1", "b:1", "b:2", "a:2", "a:3"]


def test_partitions_share_the_keys(world: World) -> None:
    """S5: n partitions together deliver everything once, each key in order."""
    world.settings(partitions=3)
    world.register(
        *[Placed(order=order, n=n) for n in range(3) for order in "abcdef"], Noted(n=1), Noted(n=2)
    )
    report = world.process()
    assert report.delivered == 20
    effects = world.effects()
    assert len(set(effects)) == 20
    for order in "abcdef":
        assert [each for each in effects if each.startswith(order)] == [f"{order}:{n}" for n in range(3)]
    t = world.tables.subscription
    assert world.rows(sa.select(t.c.partition, t.c.position).order_by(t.c.partition)) == [
        (0, 20),
        (1, 20),
        (2, 20),
    ]


def test_another_number_of_partitions_is_refused(world: World) -> None:
    """S5: the count lives in the database; a worker with another one does nothing."""
    world.process()
    world.settings(partitions=2)
    with pytest.raises(SettingsError, match="the database has 1"):
        world.process()


def test_limit_ends_a_run(world: World) -> None:
    """At most `limit` messages are handed to a subscription's handlers, in order."""
    world.register(*[Noted(n=n) for n in range(5)])
    assert [world.process(limit=2).delivered for _ in range(3)] == [2, 2, 1]
    assert world.effects() == ["0", "1", "2", "3", "4"]
    with pytest.raises(SettingsError, match="limit"):
        world.process(limit=0)


def test_a_limit_starves_no_partition(world: World) -> None:
    """Who stands furthest behind comes first, however much is written to the others between two runs."""
    world.settings(partitions=2)
    busy, quiet = (next(key for key in "abcdefgh" if key_hash(key) % 2 == each) for each in range(2))
    world.register(*[Placed(order=busy, n=n) for n in range(10)], Placed(order=quiet, n=100))
    for _ in range(4):
        world.process(limit=5)
        world.register(*[Placed(order=busy, n=n) for n in range(5)])
    assert f"{quiet}:100" in world.effects()


# --- where a subscription starts ---------------------------------------------------------------------------------


def _handlers(*subscriptions: Subscription) -> list[DispatchOutboxHandler]:
    return [DispatchOutboxHandler(subscription=each) for each in subscriptions]


def test_the_first_subscriptions_of_a_log_start_at_its_beginning(world: World) -> None:
    """All that are there when a log is first processed get everything."""
    world.bus.set_outbox_handlers(_handlers(Subscription(name="a"), Subscription(name="b")))
    world.register(Noted(n=1))
    report = world.process()
    assert {name: each.delivered for name, each in report.subscriptions.items()} == {"a": 1, "b": 1}
    assert (report.delivered, world.effects()) == (2, ["1", "1"])


def test_only_chooses_subscriptions(world: World) -> None:
    """`only` runs some subscriptions; the others keep their place in the log."""
    world.bus.set_outbox_handlers(_handlers(Subscription(name="a"), Subscription(name="b")))
    world.register(Noted(n=1))
    assert set(world.process(only=["b"]).subscriptions) == {"b"}
    assert world.process().subscriptions["a"].delivered == 1
    with pytest.raises(SettingsError, match="'c'"):
        world.process(only=["c"])


def test_a_subscription_added_to_a_log_with_history_is_idle_until_told(world: World) -> None:
    """Nothing is replayed or skipped by accident: a new reader of an old log waits for `start`."""
    world.register(Noted(n=1))
    world.process()
    world.bus.set_outbox_handlers(_handlers(Subscription(name="dispatch"), Subscription(name="late")))
    world.register(Noted(n=2))
    report = world.process()
    assert (report.idle, report.subscriptions["late"].delivered) == (("late",), 0)
    world.bus.set_outbox_handlers(
        _handlers(Subscription(name="dispatch"), Subscription(name="late", start="beginning"))
    )
    assert world.process().subscriptions["late"].delivered == 2


@pytest.mark.parametrize(("start", "delivered"), [("beginning", 3), ("now", 0), (2, 1), (0, 3), (99, 0)])
def test_start(world: World, start: object, delivered: int) -> None:
    """A new subscription starts where it is told: the beginning, now, or after a position."""
    world.register(*[Noted(n=n) for n in range(3)])
    world.process()
    late = Subscription(name="late", start=start)  # type: ignore[arg-type]
    if start == 99:
        world.bus.set_outbox_handlers(_handlers(late))
        with pytest.raises(PositionBehind):
            world.process()
        return
    world.bus.set_outbox_handlers(_handlers(late))
    assert world.process().delivered == delivered


def test_start_at_a_time(world: World) -> None:
    """A time starts before the first row registered at or after it."""
    world.register(*[Noted(n=n) for n in range(3)])
    world.process()
    t = world.tables.outbox
    noon = datetime.now(UTC) - timedelta(hours=12)
    for position in (1, 2, 3):
        at = noon + timedelta(hours=position)
        world.write(sa.update(t).where(t.c.position == position).values(created_at=at))
    for hours, delivered in ((1, 3), (2, 2), (2.5, 1), (4, 0)):
        late = Subscription(name=f"late{hours}", start=noon + timedelta(hours=hours))
        world.bus.set_outbox_handlers(_handlers(late))
        assert world.process().delivered == delivered


@pytest.mark.postgresql
def test_a_sequence_behind_the_checkpoint_is_an_error(world: World) -> None:
    """W8: after a restore the run refuses to say that there is nothing to do."""
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    world.write(sa.text(f"TRUNCATE {world.tables.outbox.name} RESTART IDENTITY"))
    with pytest.raises(PositionBehind, match="setval"):
        world.process()


# --- inside somebody else's transaction --------------------------------------------------------------------------


def test_everything_inside_a_transaction_that_is_rolled_back(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """W2: register, process and check inside a test's outer transaction; afterwards nothing is left."""
    world = World(session_factory, tables)
    world.settings(backoff=AT_ONCE)
    engine = session_factory.kw["bind"]
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            world.bus.register_outbox_message(session, Noted(n=1))
            session.commit()
            world.fail("1", 1)
            assert world.bus.process_outbox(session).retrying == 1
            assert world.bus.process_outbox(session).delivered == 1
        outer.rollback()
    assert world.effects() == []
    assert world.rows(sa.select(sa.func.count()).select_from(tables.outbox)) == [(0,)]
