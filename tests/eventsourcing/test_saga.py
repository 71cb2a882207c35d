"""Sagas on real databases: each step's effects are committed with how far the saga has come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    NoRetry,
    RetryLater,
    SettingsError,
    Unavailable,
)
from message_bus.errors import SagaChanged, SagaNotFound, WiringError
from message_bus.eventsourcing.sagas.saga import Saga
from message_bus.eventsourcing.sagas.saga_async import AsyncSaga
from message_bus.eventsourcing.sagas.saga_steps import SagaContext, SagaStep
from message_bus.storage import saga_statements

NOTE = sa.Table(
    "saga_note",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
)
AT_ONCE = FixedDelay(0)


class Reserved(Event):
    """What a step says."""

    order: int


@dataclass
class Shop:
    """Steps that note what they did, and fail when they are told to."""

    sessions: sessionmaker[Session]
    failing: dict[str, list[BaseException]] = field(default_factory=dict)
    contexts: list[SagaContext] = field(default_factory=list)

    def step(self, name: str, *, undo: bool = True, result: Any = None, **options: Any) -> SagaStep:
        """A step that writes `name order`, and one that writes `undo name order result`."""

        def action(context: SagaContext) -> Any:
            self._note(name, f"{name} {context.arguments['order']}", context)
            return result

        def compensation(context: SagaContext) -> None:
            note = f"undo {name} {context.arguments['order']} {context.result}"
            self._note(f"undo {name}", note, context)

        return SagaStep(action, compensation if undo else None, name=name, **options)

    def _note(self, name: str, note: str, context: SagaContext) -> None:
        self.contexts.append(context)
        if context.session is None:
            with self.sessions.begin() as session:
                session.execute(sa.insert(NOTE).values(note=note))
        else:
            context.session.execute(sa.insert(NOTE).values(note=note))
        if self.failing.get(name):
            raise self.failing[name].pop(0)

    def notes(self) -> list[str]:
        """What is in the database."""
        with self.sessions() as session:
            return list(session.scalars(sa.select(NOTE.c.note).order_by(NOTE.c.id)))


@pytest.fixture
def shop(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Shop:
    """A shop with its table."""
    with session_factory.begin() as session:
        NOTE.metadata.create_all(session.connection())
    return Shop(session_factory)


def test_a_saga_from_its_first_step_to_its_end(shop: Shop) -> None:
    """Each step sees the arguments and the results of those before it; the outcome holds all results."""
    saga = Saga("order", [shop.step("reserve", result={"units": [1, 2]}), shop.step("charge", result="c1")])
    outcome = saga.run(shop.sessions, "7", {"order": 7})
    assert (outcome.status, outcome.ok, outcome.ended) == ("completed", True, True)
    assert outcome.results == {"reserve": {"units": [1, 2]}, "charge": "c1"}
    assert shop.notes() == ["reserve 7", "charge 7"]
    assert [context.results for context in shop.contexts] == [{}, {"reserve": {"units": [1, 2]}}]
    assert [context.idempotency_key for context in shop.contexts] == ["order/7/reserve", "order/7/charge"]
    # an ended one is only looked at
    assert saga.run(shop.sessions, "7") == outcome
    assert saga.outcome(shop.sessions, "7") == outcome
    assert saga.outcome(shop.sessions, "8") is None
    assert shop.notes() == ["reserve 7", "charge 7"]


def test_on_an_engine(shop: Shop, engine: sa.Engine) -> None:
    """An engine does in place of a factory of sessions; anything else is refused."""
    assert Saga("order", [shop.step("a")]).run(engine, "7", {"order": 7}).ok
    with pytest.raises(SettingsError, match="'int' makes no sessions"):
        Saga("order", []).run(3, "7")  # type: ignore[arg-type]


# --- the ancestors' faults ----------------------------------------------------------------------------------------------


def test_saga_compensates_the_step_that_failed(shop: Shop) -> None:
    """It must not: the step that failed has not happened; those before it are undone, last first."""
    shop.failing = {"c": [ValueError("no")]}
    saga = Saga("order", [shop.step(name) for name in "abcd"])
    outcome = saga.run(shop.sessions, "7", {"order": 7})
    assert (outcome.status, outcome.failed_step, outcome.error) == ("compensated", "c", "ValueError: no")
    assert shop.notes() == ["a 7", "b 7", "undo b 7 None", "undo a 7 None"]
    assert outcome.left_undone == ()


def test_saga_loses_the_original_arguments(shop: Shop) -> None:
    """It must not: compensations get the arguments of the saga and the result of their step, whatever was done to the copies."""

    def spoil(context: SagaContext) -> str:
        arguments: Any = context.arguments
        arguments["order"] = 0
        results: Any = context.results
        results.clear()
        raise ValueError("no")

    steps = [shop.step("a", result=["r", 1]), SagaStep(spoil)]
    outcome = Saga("order", steps).run(shop.sessions, "7", {"order": 7})
    assert outcome.status == "compensated"
    assert shop.notes() == ["a 7", "undo a 7 ['r', 1]"]
    assert outcome.results == {"a": ["r", 1]}


def test_saga_restarts_at_step_0(shop: Shop) -> None:
    """It must not: after a crash it goes on with the step that was in hand."""
    shop.failing = {"c": [KeyboardInterrupt()]}
    saga = Saga("order", [shop.step(name) for name in "abcd"])
    with pytest.raises(KeyboardInterrupt):
        saga.run(shop.sessions, "7", {"order": 7})
    assert shop.notes() == ["a 7", "b 7"]
    again = Saga("order", [shop.step(name) for name in "abcd"])  # as another process would
    assert again.run(shop.sessions, "7").ok
    assert shop.notes() == ["a 7", "b 7", "c 7", "d 7"]


def test_max_attempts_alone_are_made(shop: Shop) -> None:
    """Who says how often need not say when: there is a back-off; without either an action is tried once."""
    shop.failing = {"a": [ValueError("no")]}
    saga = Saga("order", [shop.step("a", max_attempts=2)])
    assert saga.run(shop.sessions, "7", {"order": 7}).ok
    every: list[dict[str, Any]] = [{"max_attempts": 1}, {}]
    for options in every:
        shop.failing = {"a": [ValueError("no")]}
        once = Saga(f"once {len(options)}", [shop.step("a", **options)])
        assert once.run(shop.sessions, "7", {"order": 7}).status == "compensated"


def test_a_copy_of_a_step_is_tried_as_often() -> None:
    """What a step was not told stays untold: `replace` changes nothing else."""
    step = SagaStep(print, name="a")
    assert replace(step, name="b").retry == NoRetry()
    assert (step.max_attempts, SagaStep(print, max_attempts=3).max_attempts) == (5, 3)
    assert SagaStep(print, max_attempts=3, retry=NoRetry()).retry == NoRetry()


def test_an_attempt_that_asks_for_a_later_one_has_not_failed(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """RetryLater is one line at INFO, without a traceback."""
    shop.failing = {"a": [RetryLater(timedelta(0))]}
    with caplog.at_level(logging.INFO, "message_bus.eventsourcing"):
        assert Saga("order", [shop.step("a")]).run(shop.sessions, "7", {"order": 7}).ok
    [record] = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert "the action of step 'a' asks for a later attempt at attempt 1" in record.getMessage()


def test_saga_hangs_on_no_steps(shop: Shop) -> None:
    """It must not: without steps it is completed at once."""
    assert Saga("nothing", []).run(shop.sessions, "7", {"order": 7}).ok


def test_retry_drops_the_result(shop: Shop) -> None:
    """It must not: what the attempt that succeeded returned is the step's result."""
    shop.failing = {"a": [ValueError("1"), ValueError("2")]}
    saga = Saga("order", [shop.step("a", result=42, retry=AT_ONCE), shop.step("b")])
    outcome = saga.run(shop.sessions, "7", {"order": 7})
    assert outcome.results == {"a": 42, "b": None}
    assert [context.attempt for context in shop.contexts] == [1, 2, 3, 1]
    assert shop.notes() == ["a 7", "b 7"]
    assert outcome.error is None


def test_retry_retries_programming_errors(shop: Shop) -> None:
    """It must not: an error of the code ends the attempts at once, and the saga is undone."""
    shop.failing = {"b": [TypeError("int + str")]}
    saga = Saga("order", [shop.step("a"), shop.step("b", retry=AT_ONCE)])
    assert saga.run(shop.sessions, "7", {"order": 7}).status == "compensated"
    assert [context.step for context in shop.contexts] == ["a", "b", "a"]


# --- attempts -----------------------------------------------------------------------------------------------------------


def test_attempts_are_exhausted(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """`max_attempts` are made, each is logged with its error, then the saga is undone."""
    shop.failing = {"b": [ValueError("no")] * 5}
    saga = Saga("order", [shop.step("a"), shop.step("b", retry=AT_ONCE, max_attempts=3)])
    outcome = saga.run(shop.sessions, "7", {"order": 7})
    assert (outcome.status, len(shop.failing["b"])) == ("compensated", 2)
    assert caplog.text.count("the action of step 'b' failed at attempt") == 3


def test_compensation_that_fails_is_tried_again(shop: Shop) -> None:
    """A compensation that fails at first is tried again, and the saga is compensated."""
    shop.failing = {"b": [ValueError("no")], "undo a": [ValueError("not yet")] * 2}
    saga = Saga("order", [shop.step("a", compensation_retry=AT_ONCE), shop.step("b")])
    assert saga.run(shop.sessions, "7", {"order": 7}).status == "compensated"
    assert shop.notes() == ["a 7", "undo a 7 None"]


def test_what_cannot_be_undone_is_said(shop: Shop) -> None:
    """A compensation that fails for good is left undone, the earlier ones still run; later it can be tried again."""
    shop.failing = {"c": [ValueError("no")], "undo b": [ValueError("never")] * 2}
    saga = Saga(
        "order",
        [
            shop.step("a"),
            shop.step("b", compensation_retry=AT_ONCE, max_compensation_attempts=2),
            shop.step("c"),
        ],
    )
    outcome = saga.run(shop.sessions, "7", {"order": 7})
    assert (outcome.status, outcome.left_undone, outcome.error) == ("failed", ("b",), "ValueError: no")
    assert shop.notes() == ["a 7", "b 7", "undo a 7 None"]
    assert saga.resume_unfinished(shop.sessions) == []
    again = saga.compensate_again(shop.sessions, "7")
    assert (again.status, again.left_undone) == ("compensated", ())
    assert shop.notes()[-1] == "undo b 7 None"
    assert saga.compensate_again(shop.sessions, "7") == again
    with pytest.raises(SagaNotFound, match="there is no saga 'order' with the id '8'") as caught:
        saga.compensate_again(shop.sessions, "8")
    assert isinstance(caught.value, LookupError)
    assert (caught.value.name, caught.value.saga_id) == ("order", "8")


def test_a_step_that_asks_for_a_later_attempt(shop: Shop) -> None:
    """RetryLater is obeyed even without a policy; who resumes does not wait, and says that it is running."""
    shop.failing = {"a": [RetryLater(timedelta(hours=1))]}
    saga = Saga("order", [shop.step("a")])
    with shop.sessions.begin() as session:
        saga.start(session, "7", {"order": 7})
    [outcome] = saga.resume_unfinished(shop.sessions)
    assert (outcome.status, outcome.ended) == ("running", False)
    [outcome] = saga.resume_unfinished(shop.sessions)
    assert (outcome.status, shop.notes(), len(shop.contexts)) == ("running", [], 1)


def test_an_outage_counts_nothing(shop: Shop) -> None:
    """G8: what is out of reach ends the run, not the saga; the attempt does not count."""
    shop.failing = {
        "b": [ConnectionRefusedError(), Unavailable("closed")],
        "undo a": [ConnectionResetError()],
    }
    saga = Saga("order", [shop.step("a"), shop.step("b"), shop.step("c")])
    for _ in range(2):
        with pytest.raises(Unavailable, match="step 'b' met something out of reach"):
            saga.run(shop.sessions, "7", {"order": 7})
    assert shop.notes() == ["a 7"]
    shop.failing["c"] = [ValueError("no")]
    with pytest.raises(Unavailable, match="step 'a'"):
        saga.run(shop.sessions, "7")
    assert shop.contexts[-1].compensating
    assert saga.run(shop.sessions, "7").status == "compensated"
    assert {context.attempt for context in shop.contexts} == {1}


# --- transactions -------------------------------------------------------------------------------------------------------


def test_a_failed_attempt_leaves_nothing(shop: Shop) -> None:
    """G5: effects and messages of an attempt that failed are rolled back; those of the one that succeeded are there once."""
    bus = MessageBus()
    failures = [ValueError("once")]

    def reserve(context: SagaContext) -> None:
        context.session.execute(sa.insert(NOTE).values(note="reserved"))
        bus.register_outbox_message(context.outbox, Reserved(order=7))
        if failures:
            raise failures.pop()

    assert Saga("order", [SagaStep(reserve, retry=AT_ONCE)]).run(shop.sessions, "7").ok
    assert shop.notes() == ["reserved"]
    with shop.sessions() as session:
        assert session.scalars(sa.select(MessageBusTables().outbox.c.message)).all() == ["Reserved"]


def test_a_step_does_not_end_its_transaction(shop: Shop) -> None:
    """G5: `commit` in an action is refused, so effects cannot be there without their saga."""

    def commits(context: SagaContext) -> None:
        context.session.execute(sa.insert(NOTE).values(note="x"))
        context.session.commit()

    outcome = Saga("order", [SagaStep(commits)]).run(shop.sessions, "7")
    assert outcome.status == "compensated"
    assert outcome.error is not None
    assert outcome.error.startswith("SessionOwnedBySubscription")
    assert shop.notes() == []


@pytest.mark.postgresql
def test_an_error_of_the_database_that_an_action_swallows(shop: Shop) -> None:
    """G5: the transaction has failed, whatever the action says; the step has not happened, and the saga says so."""

    def careless(context: SagaContext) -> None:
        with suppress(sa.exc.ProgrammingError):
            context.session.execute(sa.text("SELECT no_such_column"))

    outcome = Saga("order", [shop.step("a"), SagaStep(careless)]).run(shop.sessions, "7", {"order": 7})
    assert (outcome.status, outcome.failed_step) == ("compensated", "careless")


def test_a_result_that_is_no_json_fails_its_step(shop: Shop) -> None:
    """It could not be handed to later steps after a crash; what the step did in the database has not happened."""
    outcome = Saga("order", [shop.step("a"), shop.step("b", result=object())]).run(
        shop.sessions, "7", {"order": 7}
    )
    assert (outcome.status, outcome.failed_step) == ("compensated", "b")
    assert shop.notes() == ["a 7", "undo a 7 None"]
    outside = Saga("outside", [shop.step("c", result=object(), transactional=False)])
    assert outside.run(shop.sessions, "7", {"order": 7}).status == "compensated"
    assert shop.notes()[2:] == ["c 7", "undo c 7 None"]  # which has happened, so it is undone


def test_tables_of_another_name(shop: Shop, engine: sa.Engine) -> None:
    """The saga's row, and what its steps register, go where its tables are."""
    own = MessageBusTables(prefix="own_")
    own.create_all(engine)

    def say(context: SagaContext) -> None:
        MessageBus.register_outbox_message(context.outbox, Reserved(order=7))

    assert Saga("order", [SagaStep(say)], tables=own).run(shop.sessions, "7").ok
    with shop.sessions() as session:
        assert session.scalars(sa.select(own.saga.c.state)).all() == ["completed"]
        assert session.scalars(sa.select(own.outbox.c.message)).all() == ["Reserved"]
    own.drop_all(engine)


def test_started_in_the_callers_transaction(shop: Shop) -> None:
    """G1, G10: a saga is there if and only if the transaction that started it commits; resuming runs it."""
    saga = Saga("order", [shop.step("a")])
    with shop.sessions() as session:
        saga.start(session, "1", {"order": 1})
        session.rollback()
    with shop.sessions() as session:
        saga.start(session, "2", {"order": UUID(int=2)})
        saga.start(session, "2")
        session.commit()
    assert [outcome.id for outcome in saga.resume_unfinished(shop.sessions)] == ["2"]
    assert shop.notes() == [f"a {UUID(int=2)}"]


def test_arguments_that_are_not_the_original_ones(shop: Shop) -> None:
    """One id is one saga: other arguments are refused, the same ones and none are not."""
    saga = Saga("order", [shop.step("a")])
    assert saga.run(shop.sessions, "7", {"order": 7}).ok
    assert saga.run(shop.sessions, "7", {"order": 7}).ok
    assert saga.run(shop.sessions, "7").ok
    with pytest.raises(SagaChanged, match="started with other arguments"):
        saga.run(shop.sessions, "7", {"order": 8})
    for wrong in ("", 7):
        with pytest.raises(SettingsError, match="its id must be a str"):
            saga.run(shop.sessions, wrong, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="its arguments must be a mapping"):
        saga.run(shop.sessions, "8", [1])  # type: ignore[arg-type]
    with pytest.raises(WiringError, match="its arguments cannot be stored as JSON"):
        saga.run(shop.sessions, "8", {"order": object()})
    assert saga.outcome(shop.sessions, "8") is None


def test_in_a_transaction_that_is_rolled_back(shop: Shop, engine: sa.Engine) -> None:
    """As users' test suites do: sessions on one connection, whose transaction ends with the test."""
    with engine.connect() as connection:
        outer = connection.begin()
        inside = sessionmaker(connection, join_transaction_mode="create_savepoint")
        shop.failing = {"b": [ValueError("no")]}
        saga = Saga("order", [shop.step("a"), shop.step("b")])
        assert saga.run(inside, "7", {"order": 7}).status == "compensated"
        assert connection.scalars(sa.select(NOTE.c.note)).all() == ["a 7", "undo a 7 None"]
        outer.rollback()
    assert (shop.notes(), saga.outcome(shop.sessions, "7")) == ([], None)


def test_steps_that_are_not_the_ones_it_was_started_with(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """New steps behind those that are done are fine; others are refused, and do not stop other sagas from being resumed."""
    shop.failing = {"b": [KeyboardInterrupt()]}
    with pytest.raises(KeyboardInterrupt):
        Saga("order", [shop.step("a"), shop.step("b")]).run(shop.sessions, "7", {"order": 7})
    other = Saga("order", [shop.step("x"), shop.step("a")])
    with pytest.raises(SagaChanged, match="has begun with the steps a, but is now defined as x, a"):
        other.run(shop.sessions, "7")
    with shop.sessions.begin() as session:
        other.start(session, "8", {"order": 8})
    assert [(outcome.id, outcome.ok) for outcome in other.resume_unfinished(shop.sessions)] == [("8", True)]
    assert "saga 'order', id '7' cannot go on: SagaChanged" in caplog.text
    assert Saga("order", [shop.step("a"), shop.step("c")]).run(shop.sessions, "7").ok
    assert shop.notes() == ["a 7", "x 8", "a 8", "c 7"]


def test_many_are_resumed_in_pages(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """`limit` bounds a call; without it all are found, page by page."""
    monkeypatch.setattr("message_bus.eventsourcing.sagas.saga._PAGE", 2)
    saga = Saga("order", [shop.step("a")])
    with shop.sessions.begin() as session:
        for number in range(5):
            saga.start(session, str(number), {"order": number})
    assert {each.id for each in saga.resume_unfinished(shop.sessions, limit=3)} == {"0", "1", "2"}
    assert {each.id for each in saga.resume_unfinished(shop.sessions)} == {"3", "4"}
    assert saga.resume_unfinished(shop.sessions) == []


def test_a_saga_that_kills_its_process_does_not_starve_the_others(shop: Shop) -> None:
    """They are resumed in any order, so those behind it have their turn sooner or later."""

    def kills(context: SagaContext) -> None:
        if context.saga_id == "0":
            raise KeyboardInterrupt

    saga = Saga("order", [SagaStep(kills)])
    with shop.sessions.begin() as session:
        for number in range(5):
            saga.start(session, str(number))
    for _ in range(1_000):
        with suppress(KeyboardInterrupt):
            saga.resume_unfinished(shop.sessions)
        outcomes = [saga.outcome(shop.sessions, str(number)) for number in range(5)]
        if all(outcome is not None and outcome.ok for outcome in outcomes[1:]):
            break
    assert [outcome.status for outcome in outcomes if outcome is not None] == ["running", *["completed"] * 4]


# --- steps with outside effects -------------------------------------------------------------------------------------------


def test_an_outside_step_is_recorded_before_it_is_tried(shop: Shop) -> None:
    """Its attempt is in the database while it runs, it has no session, and each attempt has the same key."""
    seen: list[Any] = []

    def call(context: SagaContext) -> str:
        with shop.sessions() as session:
            data = session.scalar(sa.select(MessageBusTables().saga.c.data))
        assert data is not None
        seen.append((data["trying"], context.session, context.outbox, context.idempotency_key))
        if len(seen) < 2:
            raise KeyboardInterrupt
        return "ok"

    saga = Saga("order", [shop.step("a"), SagaStep(call, transactional=False)])
    with pytest.raises(KeyboardInterrupt):
        saga.run(shop.sessions, "7", {"order": 7})
    assert saga.run(shop.sessions, "7").results == {"a": None, "call": "ok"}
    assert seen == [("call", None, None, "order/7/call")] * 2


@pytest.mark.postgresql
@pytest.mark.parametrize("transactional", [True, False])
def test_a_saga_in_hand_is_left_alone(shop: Shop, transactional: bool) -> None:
    """While one process runs a step, another one that resumes passes it by; its death would let go of the row."""
    begun, end = threading.Event(), threading.Event()

    def slow(context: SagaContext) -> None:
        begun.set()
        assert end.wait(60)

    saga = Saga("order", [SagaStep(slow, transactional=transactional)])
    thread = threading.Thread(target=saga.run, args=(shop.sessions, "7", {}))
    thread.start()
    try:
        assert begun.wait(60)
        assert saga.resume_unfinished(shop.sessions) == []
    finally:
        end.set()
        thread.join()
    outcome = saga.outcome(shop.sessions, "7")
    assert outcome is not None
    assert outcome.ok


# --- two at once --------------------------------------------------------------------------------------------------------


def _unlocked(tables: MessageBusTables, *, skip: bool) -> Any:
    return saga_statements.read(tables)


def _unguarded(tables: MessageBusTables) -> Any:
    t = tables.saga
    return (
        sa.update(t)
        .where(t.c.name == sa.bindparam("saga_name"), t.c.id == sa.bindparam("saga_id"))
        .values(
            state=sa.bindparam("new_state"),
            data=sa.bindparam("new_data", type_=t.c.data.type),
            error=sa.bindparam("new_error"),
        )
    )


RULES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "in place": lambda patch: None,
    "without locks": lambda patch: patch.setattr(saga_statements, "lock", _unlocked),
    "without revisions": lambda patch: patch.setattr(saga_statements, "save", _unguarded),
}


@pytest.mark.postgresql
@pytest.mark.parametrize("rule", [*RULES, "without either"])
def test_two_that_run_one_saga(shop: Shop, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is done once, and both see how it ended; either rule alone suffices, without both a step is done twice."""
    for name in RULES if rule == "without either" else [rule]:
        RULES[name](monkeypatch)
    both = threading.Barrier(2)

    def together(context: SagaContext) -> None:
        context.session.execute(sa.insert(NOTE).values(note=context.step))
        if rule in ("without locks", "without either"):
            both.wait(60)  # both have read the same progress

    def plain(context: SagaContext) -> None:
        context.session.execute(sa.insert(NOTE).values(note=context.step))

    saga = Saga("order", [SagaStep(together), SagaStep(plain)])
    with shop.sessions.begin() as session:
        saga.start(session, "7")
    outcomes: list[Any] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(saga.run(shop.sessions, "7"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.status for outcome in outcomes] == ["completed"] * 2
    assert (shop.notes().count("together") == 1) is (rule != "without either")


@pytest.mark.slow
def test_many_that_run_many_sagas(shop: Shop) -> None:
    """Four threads run and resume the same ten sagas, some of which fail: every effect is there once."""

    def fails(context: SagaContext) -> None:
        if int(context.saga_id) % 3 == 0:
            raise ValueError("no")

    saga = Saga("order", [shop.step("a"), shop.step("b"), SagaStep(fails), shop.step("c")])

    def work(number: int) -> None:
        for each in range(10):
            saga.run(shop.sessions, str(each), {"order": each})
        if number % 2:
            saga.resume_unfinished(shop.sessions)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"{step} {each}" for each in range(10) for step in "ab"}
    expected |= {f"c {each}" for each in range(10) if each % 3}
    expected |= {f"undo {step} {each} None" for each in range(0, 10, 3) for step in "ab"}
    assert sorted(shop.notes()) == sorted(expected)


@pytest.mark.postgresql
def test_a_database_out_of_reach(shop: Shop, database_url: sa.URL) -> None:
    """G8: it is Unavailable, whatever was asked."""
    away = sa.create_engine(database_url.update_query_dict({"host": "/nowhere"}))
    saga = Saga("order", [shop.step("a")])
    with pytest.raises(Unavailable, match="out of reach while starting"):
        saga.run(away, "7", {"order": 7})
    with pytest.raises(Unavailable, match="out of reach while looking"):
        saga.resume_unfinished(away)


# --- asyncio ------------------------------------------------------------------------------------------------------------


async def test_an_async_saga(async_engine: AsyncEngine, async_tables: MessageBusTables) -> None:
    """Actions may be async or not; the rest is as it is for a Saga."""
    async with async_engine.begin() as connection:
        await connection.run_sync(NOTE.metadata.create_all)
    failures: list[Exception] = [ConnectionResetError(), ValueError("no")]

    async def reserve(context: SagaContext) -> dict[str, int]:
        await context.session.execute(sa.insert(NOTE).values(note=f"reserve {context.arguments['order']}"))
        return {"units": 2}

    async def release(context: SagaContext) -> None:
        await context.session.execute(sa.insert(NOTE).values(note=f"release {context.result}"))

    def outside(context: SagaContext) -> None:
        assert context.session is None

    async def charge(context: SagaContext) -> None:
        raise failures.pop(0)

    saga = AsyncSaga(
        "order",
        [SagaStep(reserve, release), SagaStep(outside, transactional=False), SagaStep(charge)],
    )
    with pytest.raises(Unavailable):
        await saga.run(async_engine, "7", {"order": 7})
    [outcome] = await saga.resume_unfinished(async_engine)
    assert (outcome.status, outcome.failed_step) == ("compensated", "charge")
    async with async_engine.connect() as connection:
        notes = await connection.scalars(sa.select(NOTE.c.note).order_by(NOTE.c.id))
        assert notes.all() == ["reserve 7", "release {'units': 2}"]
    assert await saga.outcome(async_engine, "7") == outcome


def test_logs_name_the_saga(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A failure is one line with names, its traceback, and fields for machines."""
    shop.failing = {"a": [ValueError("no")]}
    with caplog.at_level(logging.WARNING, "message_bus.eventsourcing"):
        Saga("order", [shop.step("a")]).run(shop.sessions, "7", {"order": 7})
    [record] = caplog.records
    assert (
        record.getMessage() == "saga 'order', id '7': the action of step 'a' failed at attempt 1: ValueError"
    )
    assert (vars(record)["saga"], vars(record)["saga_id"], vars(record)["step"]) == ("order", "7", "a")
    assert record.exc_info is not None


def test_a_run_waits_for_the_next_attempt(shop: Shop) -> None:
    """`run` lets the time of the policy pass, by the database's clock, and then tries again."""
    shop.failing = {"a": [ValueError("no")]}
    saga = Saga("order", [shop.step("a", retry=FixedDelay(0.05))])
    assert saga.run(shop.sessions, "7", {"order": 7}).ok
    assert [context.attempt for context in shop.contexts] == [1, 2]
