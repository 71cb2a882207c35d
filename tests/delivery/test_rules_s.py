"""The rules of subscriptions (S1-S10, G2, G3, G6, W3-W9 as the engine uses them): each fails without its rule.

Somebody else's work in the middle of ours is put there by a hook on the statement before which it has to happen, or by
a handler; so every interleaving is the same each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from message_bus import (
    DispatchOutboxHandler,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Unavailable,
    UnflushedWork,
    UnsupportedDatabase,
)
from message_bus.delivery import housekeeping
from message_bus.delivery.housekeeping import promote_due, prune
from message_bus.storage import housekeeping_statements, statements
from message_bus.storage.types import utc_now
from tests.delivery.world import EFFECT, Noted, Placed, World, placed
from tests.waiting import wait_until

LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")
FAR_AWAY = sa.text("'2100-01-01 00:00:00.000000'")


class Base(DeclarativeBase):
    pass


class Note(Base):
    """An entity that handlers and callers leave unflushed."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)


def _on(world: World) -> str:
    return str(world.sessions.kw["bind"].dialect.name)


@contextmanager
def _watching(world: World, see: Callable[[sa.Connection, str], object]) -> Iterator[None]:
    """Call `see(connection, statement)` before each statement on the world's engine."""

    def hook(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        see(connection, " ".join(statement.split()))

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", hook)
    try:
        yield
    finally:
        sa.event.remove(engine, "before_cursor_execute", hook)


@contextmanager
def _before(world: World, text: str, do: Callable[[sa.Connection], object]) -> Iterator[None]:
    """Call `do(connection)` once, before the first statement that has `text` in it."""
    done: list[bool] = []

    def see(connection: sa.Connection, statement: str) -> None:
        if text in statement and not done:
            done.append(True)
            do(connection)

    with _watching(world, see):
        yield
    assert done, f"no statement had {text!r} in it"


def _meanwhile(world: World, context: Any, statement: Any) -> None:
    """What another process does while a handler runs; on SQLite nobody else can, so the handler's session does it."""
    if _on(world) == "postgresql":
        world.write(statement)
    else:
        context.db_session.execute(statement)


# --- G2: nothing lost ----------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_rows_above_the_settled_position_wait(world: World) -> None:
    """G2, W3: a visible row above the settled position is not read together with one below it."""
    world.settings(fetch_size=2)
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    early = world.sessions()

    def draw_a_position_and_let_another_pass(_: Any) -> None:
        repo = SQLAlchemyOutBoxRepo(early, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=4))
        repo.flush()
        world.register(Noted(n=5))

    world.before["1"] = draw_a_position_and_let_another_pass
    world.before["3"] = lambda _: early.commit()
    world.process()
    early.close()
    assert world.effects() == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("size", "fails"), [(1, False), (2, False), (3, True)])
def test_a_death_between_two_commits_of_one_read(world: World, size: int, fails: bool) -> None:
    """G2: each commit moves the checkpoint over what it covers, not over what was read with it."""
    world.settings(messages_per_commit=size)
    world.register(*[Noted(n=n) for n in range(4)])
    if fails:  # the batch is replayed message by message
        world.fail("0", 1)
    deaths = [KeyboardInterrupt()]
    s = world.tables.subscription

    def die(context: Any) -> None:
        if deaths and context.db_session.scalar(sa.select(s.c.position)) > 0:
            raise deaths.pop()

    for n in "123":
        world.before[n] = die
    with pytest.raises(KeyboardInterrupt):
        world.process()
    world.write(sa.update(s).values(lease_until=LONG_AGO))
    world.process()
    assert sorted(world.effects()) == ["0", "1", "2", "3"]


# --- G3: order per key ---------------------------------------------------------------------------------------------


def test_a_new_message_waits_behind_held_ones(world: World) -> None:
    """G3, S3: the failed head is delivered, those held behind it not yet: what comes new must not pass them."""
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2, 3]))
    world.process()
    world.register(Placed(order="a", n=4))
    world.process()
    assert world.effects() == ["a:1", "a:2", "a:3", "a:4"]


@pytest.mark.parametrize("state", ["retrying", "trying"])
def test_every_blocking_state_holds_its_key(world: World, state: str) -> None:
    """G3, S3: a key is blocked while a row of it is retrying or being tried."""
    world.register(Placed(order="b", n=0))
    world.process()
    d = world.tables.delivery
    row = {"subscription": "dispatch", "position": 0, "key": "a", "key_hash": 1, "state": state}
    world.write(sa.insert(d).values(**row, next_attempt_at=FAR_AWAY))
    world.register(Placed(order="a", n=1), Placed(order="b", n=1))
    assert world.process().held == 1
    assert world.effects() == ["b:0", "b:1"]


def test_a_dead_letter_that_holds_its_key_holds_it_within_its_batch(world: World) -> None:
    """G3, G7: with on_dead_letter='hold' the followers read together with the dying message wait as well."""
    world.settings(max_attempts=1, on_dead_letter="hold", messages_per_commit=10)
    world.fail("a:1", 2)
    world.register(*placed("a", [1, 2]))
    report = world.process()
    assert (report.dead, report.held, world.effects()) == (1, 1, [])


def test_a_dead_letter_lets_its_key_go_on_within_its_batch(world: World) -> None:
    """G7: with the default 'continue' nothing is held, and the run delivers the followers itself."""
    world.settings(max_attempts=1)
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]))
    report = world.process()
    assert (report.dead, report.held, world.effects()) == (1, 0, ["a:2"])
    assert world.rows(sa.select(world.tables.subscription.c.revision)) == [(2,)]


# --- S1, G6: compare-and-set, the lost answer ---------------------------------------------------------------------


COMPARED = pytest.mark.parametrize("column", ["epoch", "owner", "position", "revision"])


def _check_that_nothing_is_committed(world: World, column: str) -> None:
    s = world.tables.subscription
    changed: Any = "thief" if column == "owner" else s.c[column] + 1
    world.before["1"] = lambda context: _meanwhile(world, context, sa.update(s).values({column: changed}))
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.delivered, report.busy, world.effects(), world.deliveries()) == (0, ("dispatch",), [], [])


@COMPARED
def test_each_part_of_the_compare_and_set(world: World, column: str) -> None:
    """S1, G6: epoch, owner, position and revision each stop a commit of progress that is outdated."""
    _check_that_nothing_is_committed(world, column)


@COMPARED
@pytest.mark.postgresql
def test_each_part_of_the_compare_and_set_for_a_failure(world: World, column: str) -> None:
    """G6: neither is a failure recorded. (On SQLite nobody can change anything while a handler writes.)"""
    world.fail("1", 1)
    _check_that_nothing_is_committed(world, column)


def test_the_checkpoint_is_the_last_statement(world: World) -> None:
    """S1: entities and messages that a handler leaves unflushed are written before the checkpoint moves."""
    with world.sessions.begin() as session:
        Base.metadata.create_all(session.connection())
    seen: list[str] = []

    def leave_unflushed(context: Any) -> None:
        context.db_session.add(Note(id=1))
        context.emit(Noted(n=2))

    world.before["1"] = leave_unflushed
    world.register(Noted(n=1))
    with _watching(world, lambda _, statement: seen.append(statement)):
        world.process()
    first_checkpoint = next(
        i for i, each in enumerate(seen) if each.startswith("UPDATE") and "SET position" in each
    )
    written = [
        i
        for i, each in enumerate(seen)
        if any(f"INSERT INTO {table} " in each for table in ("note", "message_bus_outbox"))
    ]
    assert len(written) == 2
    assert max(written) < first_checkpoint


def lose_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, *, when: Callable[[], bool], happens: bool
) -> None:
    """The next COMMIT for which `when()` holds raises as if its answer were lost; did it happen?"""
    dialect = world.sessions.kw["bind"].dialect
    real = dialect.do_commit
    lost: list[bool] = []

    def commit(connection: Any) -> None:
        if lost or not when():
            real(connection)
            return
        lost.append(True)
        if happens:
            real(connection)
        raise sa.exc.OperationalError("COMMIT", {}, ConnectionResetError("lost"))

    monkeypatch.setattr(dialect, "do_commit", commit)


@pytest.mark.parametrize("happens", [True, False])
def test_the_answer_to_a_retrys_commit_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, happens: bool
) -> None:
    """S1: a retry leaves the position as it is, so only the revision tells whether its commit has happened."""
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    tried: list[int] = []
    world.before["1"] = lambda _: tried.append(1)
    lose_the_answer(world, monkeypatch, when=lambda: bool(tried), happens=happens)
    report = world.process()
    assert (report.delivered, report.busy, report.retrying) == (1, (), 0)
    assert (world.effects(), len(tried)) == (["1"], 1 if happens else 2)


@pytest.mark.parametrize("size", [1, 3])
def test_a_commit_in_doubt_and_nobody_to_ask(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """S1: the answer is lost, and the database cannot be asked at once: the row is read again before anything repeats."""
    world.settings(messages_per_commit=size)
    world.register(*[Noted(n=n) for n in range(3)])
    tried: list[str] = []
    for n in range(3):
        world.before[str(n)] = lambda context: tried.append(str(context.envelope.message.n))
    refused: list[bool] = []

    def refuse(_: sa.Connection, statement: str) -> None:
        if tried and not refused and "revision" in statement and statement.startswith("SELECT"):
            refused.append(True)
            raise sa.exc.OperationalError(statement, {}, ConnectionResetError("still lost"))

    lose_the_answer(world, monkeypatch, when=lambda: bool(tried), happens=True)
    with _watching(world, refuse):
        world.process()
    monkeypatch.undo()
    world.process()
    assert refused
    assert (world.effects(), tried) == (["0", "1", "2"], ["0", "1", "2"])


# --- S2: leases ------------------------------------------------------------------------------------------------------


def test_every_acquisition_has_a_token_of_its_own(world: World) -> None:
    """S2: the owner token says which acquisition it is, not which process."""
    tokens: list[str] = []
    s = world.tables.subscription
    for n in (1, 2):
        world.before[str(n)] = lambda context: tokens.append(context.db_session.scalar(sa.select(s.c.owner)))
        world.register(Noted(n=n))
        world.process()
    assert len({*tokens, None}) == 3


def test_epochs_go_on_where_dropped_subscriptions_ended(world: World) -> None:
    """S2: a subscription that is dropped and made again does not repeat an epoch."""
    world.write(sa.insert(world.tables.log).values(log="outbox", last_epoch=41))
    world.process()
    assert world.rows(sa.select(world.tables.subscription.c.epoch)) == [(42,)]


def test_a_claim_that_was_overtaken_fails(world: World) -> None:
    """S2: the claim is a compare-and-set on the epoch, for databases that lock no rows."""
    world.process()
    name = world.tables.subscription.name

    def overtake(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"UPDATE {name} SET epoch = epoch + 1")

    with _before(world, "SET epoch=", overtake):
        assert world.process().busy == ("dispatch",)


def test_progress_renews_the_lease_and_never_shortens_it(world: World) -> None:
    """S2: each commit of progress makes the lease last longer; one that lasts longer already is left alone."""
    s = world.tables.subscription
    years: list[int] = []

    def look_and_change(lease_until: Any) -> Callable[[Any], None]:
        def handle(context: Any) -> None:
            years.append(context.db_session.scalar(sa.select(s.c.lease_until)).year)
            context.db_session.execute(sa.update(s).values(lease_until=lease_until))

        return handle

    world.before["1"] = look_and_change(LONG_AGO)
    world.before["2"] = look_and_change(FAR_AWAY)
    world.before["3"] = look_and_change(FAR_AWAY)
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    world.process()
    assert 2020 < years[1] < 2100 == years[2]


@pytest.mark.postgresql
def test_a_claim_never_waits(world: World) -> None:
    """S2: a checkpoint row that somebody has locked is busy, at once."""
    world.process()
    with world.sessions() as other:
        other.execute(sa.select(world.tables.subscription).with_for_update())
        assert world.process().busy == ("dispatch",)


@pytest.mark.postgresql
def test_instants_are_the_clocks_not_the_transactions(world: World) -> None:
    """S2: within one transaction the database's clock goes on."""
    with world.sessions() as session:
        first = session.scalar(sa.select(utc_now()))
        assert session.scalar(sa.select(utc_now())) > first


# --- S3: the checkpoint row is locked first -------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("errors", [0, 1])
def test_the_lock_stands_between_handler_and_delivery_rows(world: World, errors: int) -> None:
    """S3: the checkpoint row is locked after the handler has run, and before delivery rows are changed."""
    world.fail("a:1", 1)
    world.register(*placed("a", [1]))
    world.process()
    if errors:
        world.fail("a:1", errors)
    seen: list[str] = []
    with _watching(world, lambda _, statement: seen.append(statement)):
        world.process()
    t = world.tables
    kinds = {
        f"INSERT INTO {EFFECT.name}": "effect",
        f"UPDATE {t.delivery.name}": "record",
        f"DELETE FROM {t.delivery.name}": "record",
        f"UPDATE {t.subscription.name} SET position": "checkpoint",
    }
    story = [
        "lock" if "revision" in each and each.endswith("FOR UPDATE") else kind
        for each in seen
        for kind in [next((kinds[start] for start in kinds if each.startswith(start)), "")]
        if kind or ("revision" in each and each.endswith("FOR UPDATE"))
    ]
    assert story == ["effect", "lock", "record", "checkpoint"]


def _check_that_the_operator_wins(world: World, *failures: int) -> None:
    d = world.tables.delivery
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    world.fail("1", *failures)
    world.before["1"] = lambda context: _meanwhile(world, context, sa.update(d).values(state="dead"))
    assert world.process().delivered == 0
    assert world.effects() == []
    if _on(world) == "postgresql":
        assert world.deliveries() == [(1, "dead", 1)]
    world.before.clear()
    assert world.process().busy == ()


def test_an_operator_is_faster(world: World) -> None:
    """S3: a row that was changed while its message was in hand is not touched; the effect is undone; nobody waits."""
    _check_that_the_operator_wins(world)


@pytest.mark.postgresql
def test_an_operator_is_faster_than_a_failure(world: World) -> None:
    """S3: neither is the failure recorded over what the operator has decided."""
    _check_that_the_operator_wins(world, 1)


# --- S4, G9: creation and retention ---------------------------------------------------------------------------------


def _age(world: World) -> None:
    world.write(sa.update(world.tables.outbox).values(created_at=LONG_AGO))


@pytest.mark.postgresql
def test_creating_waits_for_the_pruner(world: World) -> None:
    """S4: a subscription that is made while somebody prunes starts behind what is pruned."""
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    late = Subscription(name="late", start=0)
    world.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=late)])
    with world.sessions() as pruner:
        pruner.execute(statements.try_lock_log(world.tables), {"log": "outbox"}).one()
        creator = threading.Thread(target=world.process)
        creator.start()
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        try:
            wait_until(lambda: world.rows(waiting) == [(1,)] or not creator.is_alive())
            pruner.execute(sa.delete(world.tables.outbox).where(world.tables.outbox.c.position == 1))
            pruner.execute(housekeeping_statements.note_pruned(world.tables), {"of_log": "outbox", "to": 1})
            created = world.rows(sa.select(sa.func.count()).where(world.tables.subscription.c.name == "late"))
            pruner.commit()
        finally:
            creator.join(20)
    assert created == [(0,)]
    assert world.effects() == ["1", "2", "2"]


@pytest.mark.parametrize("start", ["beginning", 0, 1])
def test_a_subscription_starts_behind_what_is_pruned(world: World, start: Any) -> None:
    """S4: a dead letter that retention has kept is no place to start from: messages after it are gone."""
    world.settings(max_attempts=1)
    world.fail("1", 1)
    world.register(*[Noted(n=n) for n in range(4)])
    world.process()
    _age(world)
    world.register(Noted(n=4))
    assert world.process().pruned == 3
    late = Subscription(name="late", start=start)
    world.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=late)])
    assert world.process().delivered == 1
    assert world.effects() == ["0", "2", "3", "4", "4"]


@pytest.mark.postgresql
def test_the_pruner_looks_for_subscriptions_behind_the_lock(world: World) -> None:
    """S4: a subscription made just before the pruner got the lock is seen by it."""
    world.register(Noted(n=1))
    world.process()
    _age(world)
    s = world.tables.subscription
    made = sa.insert(s).values(name="new", partition=0, log="outbox", position=0, epoch=0)
    with (
        _before(world, "INSERT INTO message_bus_log", lambda _: world.write(made)),
        world.sessions() as session,
    ):
        assert prune(session, world.tables, older_than=timedelta(0)) == 0


def test_an_idle_subscription_holds_retention(world: World) -> None:
    """G9: nobody has told it where to start, so nothing may be taken from it."""
    world.register(Noted(n=1))
    world.process()
    handlers = [DispatchOutboxHandler(subscription=Subscription(name=name)) for name in ("dispatch", "late")]
    world.bus.set_outbox_handlers(handlers)
    assert world.process().idle == ("late",)
    _age(world)
    assert world.process().pruned == 0


@pytest.mark.postgresql
def test_the_pruner_is_not_blind(world: World) -> None:
    """W9: before it decides, row security is switched off, so that hidden rows are an error."""
    seen: list[str] = []
    with _watching(world, lambda _, statement: seen.append(statement)), world.sessions() as session:
        prune(session, world.tables, older_than=timedelta(0))
    off = seen.index("SET LOCAL row_security = off")
    assert off < next(i for i, each in enumerate(seen) if "min(" in each)


# --- S5: partitions ---------------------------------------------------------------------------------------------------


def test_failed_messages_belong_to_their_partition(world: World) -> None:
    """S5: a due message of a partition that somebody else has leased is left to it."""
    world.settings(partitions=3)
    for order in "abcdef":
        world.fail(f"{order}:1", 1)
    world.register(*[Placed(order=order, n=1) for order in "abcdef"])
    world.process()
    s, d = world.tables.subscription, world.tables.delivery
    world.write(sa.update(s).where(s.c.partition == 0).values(owner="other", lease_until=FAR_AWAY))
    [(theirs,)] = world.rows(sa.select(sa.func.count()).where(d.c.key_hash % 3 == 0))
    assert 0 < theirs < 6
    report = world.process()
    assert (report.delivered, report.retrying, report.busy) == (6 - theirs, theirs, ("dispatch",))


# --- S6-S8, G8: endings and outages ----------------------------------------------------------------------------------


def test_a_transient_error_is_tried_again_by_the_same_run(world: World) -> None:
    """S7: after a serialization failure or a lost connection the message is delivered, at attempt one."""
    attempts: list[int] = []
    world.before["1"] = lambda context: attempts.append(context.attempt)
    world.fail("1", *[sa.exc.OperationalError("x", {}, ConnectionResetError()) for _ in range(2)])
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.unavailable, attempts) == (1, (), [1, 1, 1])


def test_transient_errors_that_do_not_pass_end_the_run(world: World) -> None:
    """S7, G8: after the third time in a row the subscription stops; nothing is recorded."""
    world.fail("1", *[sa.exc.OperationalError("x", {}, ConnectionResetError()) for _ in range(9)])
    world.register(Noted(n=1))
    report = world.process()
    assert (report.unavailable, world.deliveries(), len(world.failing["1"])) == (("dispatch",), [], 6)


def test_a_read_that_fails_is_repeated(world: World) -> None:
    """S7: an outage while reading is an outage like any other."""
    world.register(Noted(n=1))

    def refuse(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("SELECT", {}, ConnectionResetError())

    with _before(world, "AS payload", refuse):
        assert world.process().delivered == 1


def test_an_outage_stops_all_partitions(world: World) -> None:
    """G8: what one partition cannot reach, the others need not try."""
    world.settings(partitions=3)
    orders = "abcdefgh"
    for order in orders:
        world.fail(f"{order}:1", Unavailable("mail"))
    world.register(*[Placed(order=order, n=1) for order in orders])
    assert world.process().unavailable == ("dispatch",)
    assert sum(map(len, world.failing.values())) == len(orders) - 1


def test_an_error_that_is_not_an_outage_gives_the_lease_back(world: World) -> None:
    """S6: nobody died and nothing is in hand: the next run meets the same error, not a busy subscription."""
    world.register(Noted(n=1))
    world.process()
    world.write(sa.update(world.tables.subscription).values(position=99))
    for _ in range(2):
        with pytest.raises(Exception, match="sequence stands at"):
            world.process()


# --- S9: the schedule -------------------------------------------------------------------------------------------------


def _schedule(world: World, *minutes: int) -> None:
    """Delayed messages n = 0, 1, ... that became due so many minutes ago."""
    s = world.tables.schedule
    for n, ago in enumerate(minutes):
        world.register(Noted(n=n), delay=timedelta(hours=1))
        due = statements.utc_after(-60.0 * ago)
        world.write(sa.update(s).where(s.c.due_at > utc_now()).values(due_at=due))


def test_batches_of_the_mover_go_by_due_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: when more is due than one batch takes, the first batch has what became due first."""
    monkeypatch.setattr(housekeeping, "BATCH", 1)
    _schedule(world, 1, 3, 2)
    assert world.process().promoted == 3
    assert world.effects() == ["1", "2", "0"]


@pytest.mark.postgresql
def test_one_mover_at_a_time(world: World) -> None:
    """S9: while one mover works the other leaves the schedule alone, else their rows could enter in another order."""
    _schedule(world, 1)
    with world.sessions() as first, world.sessions() as second:
        first.execute(statements.insert_or_ignore("postgresql", world.tables.log).values(log="outbox"))
        first.commit()
        first.execute(statements.try_lock_log(world.tables), {"log": "outbox"})
        assert promote_due(second, world.tables) == 0
    with world.sessions() as session:
        assert promote_due(session, world.tables) == 1


# --- G10, W7: what is refused ------------------------------------------------------------------------------------------


def test_unflushed_entities_are_refused(world: World) -> None:
    """G10: process_outbox commits, so it refuses a session with entities that are not flushed."""
    with world.sessions() as session:
        session.add(Note(id=1))
        with pytest.raises(UnflushedWork, match="unflushed"):
            world.bus.process_outbox(session)


@pytest.mark.postgresql
def test_a_log_that_would_lose_messages_is_refused(world: World) -> None:
    """W7: the log is checked before anything is read from it."""
    world.write(sa.text(f"ALTER TABLE {world.tables.outbox.name} SET UNLOGGED"))
    with pytest.raises(UnsupportedDatabase, match="unlogged"):
        world.process()


@pytest.mark.sqlite
def test_autocommit_is_refused_on_sqlite(world: World) -> None:
    """G5: with AUTOCOMMIT effects would not be committed together with the checkpoint."""
    url = world.sessions.kw["bind"].url
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    world.register(Noted(n=1))
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
        world.bus.process_outbox(connection)
    engine.dispose()
