"""Transactional delivery: effects exactly once, order per key, failures recorded."""

import contextlib
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import (
    DispatchOutboxHandler,
    InvalidMessage,
    LeaseLost,
    Registry,
    Reject,
    RetryLater,
    SessionOwnedBySubscription,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Unavailable,
    UnflushedWork,
    UnsupportedDatabase,
)
from tests.delivery.world import EFFECT, Noted, Pay, Placed, World, placed
from tests.waiting import wait_until


def test_a_registered_message_is_delivered_once(world: World) -> None:
    """G1, G2, G5: what was committed is handled, its effect is there once, and a second run finds nothing."""
    world.register(Placed(order="a", n=1), Noted(n=2), Pay(n=3))
    report = world.process()
    assert world.effects() == ["a:1", "2", "pay 3"]
    assert (report.delivered, report.passed_over, report.unsettled, report.ok) == (3, 0, 0, True)
    again = world.process()
    assert (again.delivered, again.ok) == (0, True)
    assert world.effects() == ["a:1", "2", "pay 3"]


def test_what_was_rolled_back_is_never_delivered(world: World) -> None:
    """G1: a message registered in a transaction that rolls back does not exist."""
    with world.sessions() as session:
        world.bus.register_outbox_message(session, Noted(n=1))
        session.rollback()
    world.register(Noted(n=2))
    assert world.process().delivered == 1
    assert world.effects() == ["2"]


def test_the_context_behind_the_outbox(world: World) -> None:
    """Handlers find the session, the outbox, the envelope and the attempt in their context."""
    seen: list[Any] = []
    world.before["a:1"] = lambda context: seen.append(
        (context.db_session, context.outbox, context.envelope, context.attempt, context["attempt"])
    )
    world.fail("a:1", 1)
    world.register(Placed(order="a", n=1), meta={"user": "u1"})
    world.process()
    world.process()
    (_, outbox, first, *attempt_1), (_, _, second, *attempt_2) = seen
    assert isinstance(outbox, SQLAlchemyOutBoxRepo)
    assert (attempt_1, attempt_2) == ([1, 1], [2, 2])
    assert first.id == second.id
    assert (first.name, first.type, first.key, first.meta) == ("Placed", "EVENT", "a", {"user": "u1"})
    assert first.message == Placed(order="a", n=1)
    assert first.position is not None
    assert first.created_at.tzinfo is not None


def test_a_failure_is_recorded_and_tried_again(world: World) -> None:
    """G7: the effects of a failed attempt are gone, its error is kept, the next run succeeds."""
    world.fail("1", ValueError("boom"))
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert world.effects() == ["2"]
    assert (report.delivered, report.retrying, report.ok) == (1, 1, False)
    t = world.tables.delivery
    [(error, traceback)] = world.rows(sa.select(t.c.error, t.c.traceback))
    assert error == "ValueError: boom"
    assert "_handle" in traceback
    report = world.process()
    assert (report.delivered, report.retrying, report.ok) == (1, 0, True)
    assert world.effects() == ["2", "1"]
    assert world.deliveries() == []


def test_a_failing_message_holds_back_its_own_key_only(world: World) -> None:
    """G3: followers of the failed message's key wait, untried, and come in order; other keys go on."""
    world.fail("a:1", 2)
    world.register(*placed("a", [1, 2, 3]), *placed("b", [1, 2]))
    report = world.process()
    assert world.effects() == ["b:1", "b:2"]
    assert (report.retrying, report.held) == (1, 2)
    world.register(Placed(order="a", n=4))
    assert (world.process().retrying, world.effects()) == (1, ["b:1", "b:2"])
    report = world.process()
    assert world.effects() == ["b:1", "b:2", "a:1", "a:2", "a:3", "a:4"]
    assert (report.delivered, report.ok) == (4, True)


def test_a_held_message_that_fails_becomes_the_head_of_its_key(world: World) -> None:
    """G3: released one by one; when a held one fails in turn, those behind it wait for it."""
    world.fail("a:1", 1)
    world.fail("a:2", 1)
    world.register(*placed("a", [1, 2, 3]))
    world.process()
    assert world.process().delivered == 1
    assert world.effects() == ["a:1"]
    assert [(state, attempts) for _, state, attempts in world.deliveries()] == [("retrying", 1), ("held", 0)]
    world.process()
    assert world.effects() == ["a:1", "a:2", "a:3"]


def test_messages_without_a_key_hold_back_nobody(world: World) -> None:
    """G3: an unkeyed failure is retried alone."""
    world.fail("1", 1)
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().held == 0


def test_a_message_that_keeps_failing_dies_and_its_key_goes_on(world: World) -> None:
    """G7: after max_attempts it is a dead letter with its error; by default the key continues."""
    world.settings(max_attempts=3)
    world.fail("a:1", 9)
    world.register(*placed("a", [1, 2]))
    assert [world.process().dead for _ in range(3)] == [0, 0, 1]
    assert world.effects() == ["a:2"]
    [(_, state, attempts)] = world.deliveries()
    assert (state, attempts) == ("dead", 3)
    report = world.process()
    assert (report.dead, report.ok) == (1, False)
    world.register(Placed(order="a", n=3))
    world.process()
    assert world.effects() == ["a:2", "a:3"]


def test_a_dead_letter_can_hold_its_key(world: World) -> None:
    """G7: with on_dead_letter='hold' nothing of the key moves until somebody decides."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]), Placed(order="b", n=1))
    world.process()
    world.register(Placed(order="a", n=3))
    report = world.process()
    assert world.effects() == ["b:1"]
    assert (report.dead, report.held) == (1, 2)
    t = world.tables.delivery
    world.write(sa.delete(t).where(t.c.state == "dead"))
    world.process()
    assert world.effects() == ["b:1", "a:2", "a:3"]


def test_reject_makes_a_dead_letter_at_once(world: World) -> None:
    """G7: a handler that says never is believed."""
    world.fail("1", Reject("card stolen"))
    world.register(Noted(n=1))
    assert world.process().dead == 1
    assert [state for _, state, _ in world.deliveries()] == ["dead"]


def test_retry_later_waits_as_long_as_it_says(world: World) -> None:
    """RetryLater sets the time of the next attempt and never exhausts the attempts."""
    world.settings(max_attempts=1)
    world.fail("1", RetryLater(timedelta(hours=1)), RetryLater(0))
    world.register(Noted(n=1))
    assert world.process().retrying == 1
    assert world.process().retrying == 1
    t = world.tables.delivery
    world.write(sa.update(t).values(next_attempt_at=t.c.created_at))
    assert world.process().retrying == 1
    assert world.process().delivered == 1


def test_a_failed_message_is_tried_once_per_run(world: World) -> None:
    """A retry without delay does not turn one run into an endless one."""
    world.settings(max_attempts=1_000)
    world.fail("1", 5)
    world.register(Noted(n=1))
    assert [world.process().delivered for _ in range(6)] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("error", [Unavailable("mail server"), ConnectionRefusedError("nobody there")])
def test_an_outage_burns_no_attempt(world: World, error: Exception) -> None:
    """G8: the subscription stops, nothing is recorded, the next run goes on in order."""
    world.fail("a:1", error)
    world.register(*placed("a", [1, 2]))
    report = world.process()
    assert (report.delivered, report.retrying, report.unavailable, report.ok) == (0, 0, ("dispatch",), False)
    assert world.deliveries() == []
    assert world.process().delivered == 2
    assert world.effects() == ["a:1", "a:2"]


def test_an_unknown_type_is_retried_and_delivered_once_it_is_known(world: World) -> None:
    """G7: in a rolling deploy an old worker meets a new type; a worker that knows it delivers it."""
    world.register(Noted(n=1))
    known, world.bus.registry = world.bus.registry, Registry()
    assert world.process().retrying == 1
    world.bus.registry = known
    assert world.process().delivered == 1


def test_what_cannot_be_decoded_is_a_dead_letter(world: World) -> None:
    """G7: a payload that does not fit its class is kept with an error that names the field, never the value."""
    world.register(Noted(n=1))
    t = world.tables.outbox
    world.write(sa.update(t).values(payload={"n": "hunter2"}))
    assert world.process().dead == 1
    d = world.tables.delivery
    [(error,)] = world.rows(sa.select(d.c.error))
    assert "'Noted'" in error
    assert "hunter2" not in error


def test_a_known_event_without_handlers_is_passed_over(world: World) -> None:
    """G7: nobody wants it: the checkpoint passes it and it is counted."""
    world.bus.set_event_handlers(Noted, [])
    world.register(Noted(n=1), Placed(order="a", n=1))
    report = world.process()
    assert (report.delivered, report.passed_over, report.ok) == (1, 1, True)


def test_what_handlers_emit_goes_into_the_outbox_in_their_transaction(world: World) -> None:
    """Emissions are delivered by the same run, inherit correlation and causation, and vanish if the handler fails."""
    world.before["1"] = lambda context: context.emit(Noted(n=2))
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    t = world.tables.outbox
    assert world.rows(sa.select(sa.func.count()).select_from(t)) == [(1,)]
    assert world.process().delivered == 2
    assert world.effects() == ["1", "2"]
    (first_id, first), (_, second) = world.rows(sa.select(t.c.id, t.c.headers).order_by(t.c.position))
    assert second["causation_id"] == str(first_id)
    assert second["correlation_id"] == first["correlation_id"]


@pytest.mark.parametrize("size", [2, 3, 10])
def test_messages_that_share_a_commit(world: World, size: int) -> None:
    """G5: above one message per commit a failure replays the batch one by one; every effect is there exactly once."""
    world.settings(messages_per_commit=size)
    world.fail("a:2", 2)  # in the batch, and alone
    world.register(*placed("a", [1, 2, 3]), *placed("b", [1, 2, 3]))
    report = world.process()
    assert world.effects() == ["a:1", "b:1", "b:2", "b:3"]
    assert (report.delivered, report.retrying, report.held) == (4, 1, 1)
    world.process()
    assert world.effects() == ["a:1", "b:1", "b:2", "b:3", "a:2", "a:3"]


def test_a_batch_is_one_commit(world: World) -> None:
    """With messages_per_commit the messages of a batch really share their commit."""
    world.settings(messages_per_commit=5)
    world.register(*[Noted(n=n) for n in range(10)])
    t = world.tables.subscription
    world.process()
    assert world.rows(sa.select(t.c.revision)) == [(2,)]


def test_commit_within_ends_a_batch_early(world: World) -> None:
    """A batch that takes longer than commit_within is committed with what it has."""
    world.settings(messages_per_commit=5, commit_within=timedelta(microseconds=1))
    world.register(*[Noted(n=n) for n in range(5)])
    assert world.process().delivered == 5
    assert world.rows(sa.select(world.tables.subscription.c.revision)) == [(5,)]
    assert world.effects() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("operation", ["commit", "rollback", "close"])
def test_a_handler_must_not_end_the_transaction(world: World, operation: str) -> None:
    """S10: commit, rollback and close raise; the message fails, nothing of it stays, the next one is fine."""
    world.before["1"] = lambda context: getattr(context.db_session, operation)()
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert world.effects() == ["2"]
    assert report.retrying == 1
    [(error,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert error.startswith(SessionOwnedBySubscription.__name__)
    assert f"{operation}()" in error


@pytest.mark.parametrize("operation", ["commit", "rollback", "close"])
def test_a_handler_that_ends_the_transaction_behind_our_back_fails(world: World, operation: str) -> None:
    """S10: committing the SessionTransaction itself is refused; ending it otherwise is found out afterwards."""
    world.before["1"] = lambda context: getattr(context.db_session.get_transaction(), operation)()
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().retrying == 1
    assert world.effects() == ["2"]


def test_event_handlers_with_a_subscription_of_their_own(world: World) -> None:
    """`handlers=` runs other handlers under another checkpoint; types that they do not want are none of their business."""
    mailed: list[int] = []

    def mail(event: Noted, context: Any) -> None:
        mailed.append(event.n)

    world.bus.set_outbox_handlers(
        [
            DispatchOutboxHandler(subscription=Subscription(name="dispatch")),
            DispatchOutboxHandler(handlers={Noted: [mail]}, subscription=Subscription(name="mail")),
        ]
    )
    world.register(Noted(n=1), Pay(n=2), Noted(n=3))
    report = world.process()
    assert {name: each.delivered for name, each in report.subscriptions.items()} == {"dispatch": 3, "mail": 2}
    assert mailed == [1, 3]
    with pytest.raises(SettingsError, match="of its own"):
        DispatchOutboxHandler(handlers={Noted: [mail]})


@pytest.mark.postgresql
def test_a_session_in_an_older_snapshot_is_refused(world: World) -> None:
    """W3: at REPEATABLE READ a reader could pass rows that it does not see; it is refused, with the remedy."""
    world.register(Noted(n=1))
    with world.sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        with pytest.raises(UnsupportedDatabase, match="READ COMMITTED"):
            world.bus.process_outbox(session)
    assert world.process().delivered == 1


def test_savepoints_of_a_handler_work(world: World) -> None:
    """S10: a handler may use begin_nested, released or rolled back."""

    def use_savepoints(context: Any) -> None:
        session = context.db_session
        with session.begin_nested():
            session.execute(sa.insert(EFFECT).values(note="kept"))
        nested = session.begin_nested()
        session.execute(sa.insert(EFFECT).values(note="undone"))
        nested.rollback()

    world.before["1"] = use_savepoints
    world.register(Noted(n=1))
    assert world.process().delivered == 1
    assert world.effects() == ["1", "kept"]


def test_a_handler_that_leaves_the_transaction_aborted_fails_its_own_message(world: World) -> None:
    """S10: a swallowed database error must not let COMMIT write nothing without a word."""

    def swallow(context: Any) -> None:
        with contextlib.suppress(sa.exc.DBAPIError):
            context.db_session.execute(sa.text("SELECT * FROM nowhere"))

    world.before["1"] = swallow
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    if world.sessions.kw["bind"].dialect.name == "postgresql":
        assert (report.retrying, world.effects()) == (1, ["2"])
    else:  # SQLite aborts the statement only
        assert (report.retrying, world.effects()) == (0, ["1", "2"])


@pytest.mark.postgresql
def test_two_runs_at_once(world: World) -> None:
    """One works, the other reports busy at once; no effect twice."""
    reports: list[Any] = []

    def run_another(context: Any) -> None:
        other = threading.Thread(target=lambda: reports.append(world.process()))
        other.start()
        other.join(20)

    world.before["1"] = run_another
    world.register(Noted(n=1), Noted(n=2))
    report = world.process()
    assert (report.delivered, report.busy) == (2, ())
    assert (reports[0].delivered, reports[0].busy, reports[0].ok) == (0, ("dispatch",), True)
    assert world.effects() == ["1", "2"]


@pytest.mark.postgresql
def test_a_worker_that_lost_its_lease_commits_nothing(world: World) -> None:
    """G6, S1: the lease is taken over while the handler runs: its effects are rolled back, the new owner's stay."""
    t = world.tables.subscription

    def steal(context: Any) -> None:
        world.write(sa.update(t).values(owner="thief", epoch=t.c.epoch + 1))

    world.before["1"] = steal
    world.register(Noted(n=1))
    report = world.process()
    assert (report.delivered, report.busy) == (0, ("dispatch",))
    assert world.effects() == []
    assert world.rows(sa.select(t.c.owner, t.c.position)) == [("thief", 0)]


@pytest.mark.postgresql
def test_a_worker_that_lost_its_lease_records_no_failure(world: World) -> None:
    """G6, S3: neither does a stale worker write a failure record."""
    t = world.tables.subscription
    world.before["1"] = lambda _: world.write(sa.update(t).values(owner="thief", epoch=t.c.epoch + 1))
    world.fail("1", 1)
    world.register(Noted(n=1))
    assert world.process().busy == ("dispatch",)
    assert world.deliveries() == []


@pytest.mark.postgresql
def test_the_heartbeat_keeps_the_lease_of_a_long_handler(world: World) -> None:
    """S2: while a handler runs longer than the lease, the lease is renewed from another connection."""
    t = world.tables.subscription

    def outlive_the_lease(context: Any) -> None:
        [(first,)] = world.rows(sa.select(t.c.lease_until))
        wait_until(lambda: world.rows(sa.select(t.c.lease_until)) > [(first + timedelta(seconds=1),)])

    world.before["1"] = outlive_the_lease
    world.register(Noted(n=1))
    report = world.process(lease=timedelta(seconds=0.5))
    assert (report.delivered, report.busy) == (1, ())


def test_the_commits_answer_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: the commit happened, its answer did not arrive: the effect must not be repeated."""
    world.register(Noted(n=1), Noted(n=2))
    dialect = world.sessions.kw["bind"].dialect
    real = dialect.do_commit
    lost: list[str] = []

    def commit_and_lose_the_answer(connection: Any) -> None:
        real(connection)
        if in_handler and not lost:
            lost.append("answer")
            raise sa.exc.OperationalError(
                "COMMIT", {}, Exception("server closed the connection unexpectedly")
            )

    in_handler: list[bool] = []
    world.before["1"] = lambda _: in_handler.append(True)
    monkeypatch.setattr(dialect, "do_commit", commit_and_lose_the_answer)
    world.process()
    monkeypatch.undo()
    world.process()
    assert lost
    assert world.effects() == ["1", "2"]


def test_a_commit_that_fails_is_a_failure_of_its_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1: a commit that raised and did not happen fails the message that it was for, and no other."""
    world.register(Noted(n=1), Noted(n=2))
    dialect = world.sessions.kw["bind"].dialect
    real = dialect.do_commit
    in_handler: list[bool] = []

    def refuse(connection: Any) -> None:
        if in_handler:
            in_handler.clear()
            raise sa.exc.IntegrityError("COMMIT", {}, Exception("deferred constraint"))
        real(connection)

    world.before["1"] = lambda _: in_handler.append(True)
    monkeypatch.setattr(dialect, "do_commit", refuse)
    report = world.process()
    assert (report.delivered, report.retrying, world.effects()) == (1, 1, ["2"])


def test_an_interrupted_worker_leaves_its_lease(world: World) -> None:
    """S6: on KeyboardInterrupt the batch is rolled back and the lease left to expire, so that the death is seen."""
    world.fail("1", KeyboardInterrupt())
    world.register(Noted(n=1))
    with pytest.raises(KeyboardInterrupt):
        world.process(lease=timedelta(seconds=0.3))
    assert world.effects() == []
    t = world.tables.subscription
    [(owner,)] = world.rows(sa.select(t.c.owner))
    assert owner is not None
    wait_until(lambda: world.process().delivered == 1)
    assert world.effects() == ["1"]


def test_epochs_grow_with_every_acquisition(world: World) -> None:
    """S2: every claim has a fresh owner token and the next epoch."""
    t = world.tables.subscription
    world.register(Noted(n=1))
    for expected in (1, 2, 3):
        world.process()
        assert world.rows(sa.select(t.c.epoch, t.c.owner)) == [(expected, None)]


def test_a_session_with_unfinished_work_is_refused(world: World) -> None:
    """G10: process_outbox commits, so it refuses a session whose work it would commit by accident."""
    with world.sessions() as session:
        world.bus.register_outbox_message(session, Noted(n=1))
        with pytest.raises(UnflushedWork, match="registered"):
            world.bus.process_outbox(session)


def test_handlers_see_fresh_rows_without_expire_on_commit(world: World) -> None:
    """A session that keeps entities over commits must not show a handler what an earlier one had loaded."""
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase):
        pass

    class Stock(Base):
        __tablename__ = "stock"
        id: Mapped[int] = mapped_column(primary_key=True)
        left: Mapped[int]

    seen: list[int] = []
    kept: list[Stock] = []  # a session forgets by itself what nobody refers to

    def read(context: Any) -> None:
        stock = context.db_session.get(Stock, 1)
        kept.append(stock)
        seen.append(stock.left)

    with world.sessions.begin() as session:
        Base.metadata.create_all(session.connection())
        session.add(Stock(id=1, left=10))
    world.before["1"] = read
    world.before["2"] = lambda context: context.db_session.execute(
        sa.update(Stock).values(left=9).execution_options(synchronize_session=False)
    )
    world.before["3"] = read
    world.register(Noted(n=1), Noted(n=2), Noted(n=3))
    world.sessions.configure(expire_on_commit=False)
    world.process()
    assert seen == [10, 9]


def test_bad_input_is_refused_at_registration(world: World) -> None:
    """A message that could not be decoded again never enters the outbox."""
    with world.sessions() as session:
        with pytest.raises(InvalidMessage, match="n is None"):
            world.bus.register_outbox_message(session, Noted(n=None))  # type: ignore[arg-type]
        session.commit()
    assert world.process().delivered == 0


def test_lease_lost_names_the_subscription() -> None:
    """The error of a lost lease says which one."""
    assert "'billing'" in str(LeaseLost("billing"))


def test_subscription_is_what_the_handler_says(world: World) -> None:
    """The name of the checkpoint is the subscription's."""
    world.settings(name="billing")
    world.register(Noted(n=1))
    report = world.process()
    assert set(report.subscriptions) == {"billing"}
    assert world.checkpoint("billing") == 1
    assert Subscription(name="billing").name == "billing"
