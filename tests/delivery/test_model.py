"""Histories drawn at random, against a model of what must come of them.

A history is a list of steps: transactions that register messages, runs of `process_outbox` that die, lose the answer
to a COMMIT, lose their lease, or just end at a limit, and operators who replay and discard dead letters, between runs and
in the middle of one. Its handler fails by a script. After each step the invariants of
G2, G3, G5, G6 and G7 are looked up in the tables. `MESSAGE_BUS_MODEL_EXAMPLES=1000` draws more than the default.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    DeadLetter,
    DeadLetters,
    DispatchOutboxHandler,
    Event,
    MessageBus,
    MessageBusTables,
    OutboxReport,
    Reject,
    RetryLater,
    Subscription,
    Unavailable,
)
from tests.delivery.world import AT_ONCE, EFFECT

EXAMPLES = int(os.environ.get("MESSAGE_BUS_MODEL_EXAMPLES", "0"))
LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")
CHILD = 1_000  # the message that number n emits has number n + CHILD
PAYLOAD_THAT_NOBODY_CAN_DECODE = {"n": "x"}

Failure = Literal[
    "error", "reject", "later", "unavailable", "transient", "swallow", "commit", "steal", "replay", "discard"
]
Point = Literal["handler", "checkpoint", "before commit", "after commit", "answer lost", "commit refused"]


class Happened(Event, key="order"):
    n: int
    order: str | None = None
    emits: bool = False


class Death(BaseException):
    """The process dies here."""


@dataclass(frozen=True)
class Message:
    order: str | None
    fails: tuple[Failure, ...]
    emits: bool
    corrupt: bool


@dataclass(frozen=True)
class Register:
    messages: tuple[Message, ...]
    commits: bool


@dataclass(frozen=True)
class Process:
    limit: int | None
    messages_per_commit: int
    fetch_size: int
    trouble: tuple[Point, int] | None  # where, and at which passing


@dataclass(frozen=True)
class Operate:
    action: Literal["replay", "discard"]
    which: Literal["all", "first", "last"]
    commits: bool


@dataclass(frozen=True)
class History:
    mode: Literal["transactional", "concurrent"]
    partitions: int
    max_attempts: int
    on_dead_letter: Literal["continue", "hold"]
    steps: tuple[Register | Process | Operate, ...]


_failures = st.sampled_from(
    [
        *("error", "error", "reject", "later", "unavailable", "transient", "swallow", "commit", "steal"),
        *("replay", "replay", "discard"),
    ]
)
_messages = st.builds(
    Message,
    order=st.sampled_from(["a", "a", "b", "c", "d", None]),
    fails=st.one_of(st.just(()), st.lists(_failures, max_size=3).map(tuple)),
    emits=st.booleans(),
    corrupt=st.sampled_from([False, False, False, False, True]),
)
_points = st.sampled_from(
    ["handler", "checkpoint", "before commit", "after commit", "answer lost", "commit refused"]
)
_steps = st.one_of(
    st.builds(
        Register,
        messages=st.lists(_messages, min_size=1, max_size=5).map(tuple),
        commits=st.sampled_from([True, True, True, False]),
    ),
    st.builds(
        Process,
        limit=st.sampled_from([None, None, 1, 2, 3]),
        messages_per_commit=st.sampled_from([1, 3, 10]),
        fetch_size=st.sampled_from([1, 2, 100]),
        trouble=st.one_of(st.none(), st.tuples(_points, st.integers(1, 14))),
    ),
    st.builds(
        Operate,
        action=st.sampled_from(["replay", "replay", "discard"]),
        which=st.sampled_from(["all", "first", "last"]),
        commits=st.sampled_from([True, True, True, False]),
    ),
)
_histories = st.builds(
    History,
    mode=st.sampled_from(["transactional", "transactional", "concurrent"]),
    partitions=st.integers(1, 3),
    max_attempts=st.integers(1, 3),
    on_dead_letter=st.sampled_from(["continue", "hold"]),
    steps=st.lists(_steps, min_size=2, max_size=9).map(tuple),
)

# the same crowded together: few keys, much dies, and operators decide in the middle of a batch
_with_operators = st.builds(
    History,
    mode=st.just("transactional"),
    partitions=st.just(1),
    max_attempts=st.integers(1, 2),
    on_dead_letter=st.sampled_from(["continue", "continue", "hold"]),
    steps=st.lists(
        st.one_of(
            st.builds(
                Register,
                messages=st.lists(
                    st.builds(
                        Message,
                        order=st.sampled_from(["a", "a", "b"]),
                        fails=st.lists(
                            st.sampled_from(["reject", "replay", "discard", "error"]), max_size=2
                        ).map(tuple),
                        emits=st.just(False),
                        corrupt=st.just(False),
                    ),
                    min_size=2,
                    max_size=6,
                ).map(tuple),
                commits=st.just(True),
            ),
            st.builds(
                Process,
                limit=st.none(),
                messages_per_commit=st.sampled_from([1, 1, 3]),
                fetch_size=st.just(100),
                trouble=st.none(),
            ),
        ),
        min_size=3,
        max_size=9,
    ).map(tuple),
)


@dataclass
class Model:
    """What the history has done so far, beside the database that it was done to."""

    sessions: sessionmaker[Session]
    tables: MessageBusTables
    history: History
    bus: MessageBus = field(default_factory=MessageBus)
    script: dict[int, list[Failure]] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # effects of concurrent mode
    checkpoints: dict[int, int] = field(default_factory=dict)
    drawn: int = 0
    once_dead: set[int] = field(default_factory=set)  # positions that an operator has seen dead
    discarded: set[int] = field(default_factory=set)
    too_early: list[Any] = field(default_factory=list)
    died: bool = False  # somebody has, and since then no run has come to an end
    one_by_one: bool = True
    stolen: bool = False
    trouble: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus.set_event_handlers(Happened, [self.handle])
        self.subscribe(1, 100)

    def subscribe(self, messages_per_commit: int, fetch_size: int) -> None:
        """Settings of the next run; those that decide about order stay as they are."""
        self.one_by_one = messages_per_commit == 1
        subscription = Subscription(
            name="dispatch",
            mode=self.history.mode,
            partitions=self.history.partitions,
            max_attempts=self.history.max_attempts,
            on_dead_letter=self.history.on_dead_letter,
            messages_per_commit=messages_per_commit,
            fetch_size=fetch_size,
            backoff=AT_ONCE,
        )
        self.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=subscription)])

    # --- the handler ---

    def handle(self, event: Happened, context: Any) -> None:
        """Write an effect, emit, and fail by the script."""
        db_session: Session | None = context.get("db_session")
        if db_session is not None:
            self.look_for_earlier_ones(event, context)
            db_session.execute(sa.insert(EFFECT).values(note=str(event.n)))
        if event.emits:
            context.emit(Happened(n=event.n + CHILD, order=event.order))
        self.pass_point("handler")
        script = self.script.get(event.n)
        if script:
            self.fail(script.pop(0), db_session)
        if db_session is None:
            self.sent.append(event.n)

    def fail(self, failure: Failure, db_session: Session | None) -> None:
        """What the script says."""
        match failure:
            case "reject":
                raise Reject("no")
            case "later":
                raise RetryLater(0)
            case "unavailable":
                raise Unavailable("mail")
            case "transient":
                raise sa.exc.OperationalError("x", {}, ConnectionResetError())
            case "swallow" if db_session is not None:
                try:
                    db_session.execute(sa.text("SELECT * FROM nowhere"))
                except sa.exc.DBAPIError:
                    return
            case "commit" if db_session is not None:
                db_session.commit()
            case "steal" if db_session is None or self.is_postgresql:
                self.steal()
            case "replay" | "discard" if db_session is None or self.is_postgresql:
                self.operate(Operate(failure, "all", commits=True))
            case _:
                raise ValueError("failed")

    def steal(self) -> None:
        """Our lease has run out, and another process delivers all there is, while our handler still runs."""
        self.stolen = True
        self.expire_leases()
        trouble, self.trouble = self.trouble, []
        with self.sessions() as session:
            self.bus.process_outbox(session)
        self.trouble = trouble

    # --- steps ---

    @property
    def is_postgresql(self) -> bool:
        """Whether others can write while a handler's transaction is open."""
        return bool(self.sessions.kw["bind"].dialect.name == "postgresql")

    def register(self, step: Register) -> None:
        """One transaction of the application."""
        numbers = range(self.drawn, self.drawn + len(step.messages))
        self.drawn += len(step.messages)
        with self.sessions() as session:
            for n, message in zip(numbers, step.messages, strict=True):
                self.script[n] = list(message.fails)
                self.bus.register_outbox_message(
                    session, Happened(n=n, order=message.order, emits=message.emits and not message.corrupt)
                )
            if not step.commits:
                session.rollback()
                return
            session.commit()
            self.committed += numbers
            t = self.tables.outbox
            rows = session.execute(sa.select(t.c.position).order_by(t.c.position.desc()).limit(len(numbers)))
            positions = [row.position for row in rows][::-1]
            for position, message in zip(positions, step.messages, strict=True):
                if message.corrupt:
                    values = {"payload": PAYLOAD_THAT_NOBODY_CAN_DECODE}
                    session.execute(sa.update(t).where(t.c.position == position).values(values))
            session.commit()

    def process(self, step: Process) -> None:
        """One run, with its trouble; whoever died is found out when the lease has run out."""
        self.subscribe(step.messages_per_commit, step.fetch_size)
        self.trouble = list(step.trouble or ())
        self.stolen = False
        before = len(self.effects())
        try:
            with self.passing(), self.sessions() as session:
                report = self.bus.process_outbox(session, limit=step.limit)
        except (Death, Unavailable):
            self.died = True
            self.expire_leases()
            return
        finally:
            troubled = step.trouble is not None and not self.trouble
            self.trouble = []
        assert bool(report.busy) <= (self.stolen or troubled)
        self.expire_leases()
        self.check_report(report, gained=len(self.effects()) - before, troubled=troubled or self.stolen)
        if step.limit is None and not (report.unavailable or report.busy):
            self.died = False
            self.check_nothing_waits_for_nothing()

    def operate(self, step: Operate) -> None:
        """An operator decides about dead letters."""
        trouble, self.trouble = self.trouble, []
        with self.sessions() as session:
            dead_letters = DeadLetters(session, tables=self.tables)
            found = dead_letters.list(limit=None)
            chosen = {"all": found, "first": found[:1], "last": found[-1:]}[step.which]
            decide = dead_letters.replay if step.action == "replay" else dead_letters.discard
            assert decide(letters=chosen).count == len(chosen)
            if step.commits:
                session.commit()
                self.note(step, chosen)
        self.trouble = trouble

    def note(self, step: Operate, chosen: list[DeadLetter]) -> None:
        """What was dead may be delivered late, or never."""
        positions = {letter.position for letter in chosen}
        self.once_dead |= positions
        if step.action == "discard":
            self.discarded |= positions

    def expire_leases(self) -> None:
        """Time passes."""
        with self.sessions.begin() as session:
            session.execute(sa.update(self.tables.subscription).values(lease_until=LONG_AGO))

    def pass_point(self, point: Point) -> None:
        """The trouble of this run happens here if this is the passing it waits for."""
        if self.trouble and self.trouble[0] == point:
            self.trouble[1] -= 1
            if self.trouble[1] == 0:
                self.trouble = []
                if point in ("answer lost", "commit refused"):
                    raise sa.exc.OperationalError("COMMIT", {}, ConnectionResetError())
                raise Death

    @contextmanager
    def passing(self) -> Iterator[None]:
        """While it lasts, commits and checkpoint statements are points."""
        engine = self.sessions.kw["bind"]
        real = engine.dialect.do_commit

        def commit(connection: Any) -> None:
            self.pass_point("before commit")
            self.pass_point("commit refused")
            real(connection)
            self.pass_point("after commit")
            self.pass_point("answer lost")

        def statement(_: object, __: object, text: str, *___: object) -> None:
            if text.startswith("UPDATE message_bus_subscription SET position"):
                self.pass_point("checkpoint")

        engine.dialect.do_commit = commit
        sa.event.listen(engine, "before_cursor_execute", statement)
        try:
            yield
        finally:
            sa.event.remove(engine, "before_cursor_execute", statement)
            del engine.dialect.do_commit

    # --- invariants ---

    def rows(self, *columns: Any, order_by: Any = None) -> list[Any]:
        """Rows of one table."""
        with self.sessions() as session:
            return list(session.execute(sa.select(*columns).order_by(order_by)))

    def effects(self) -> list[int]:
        """Numbers of the messages that had an effect, in its order."""
        if self.history.mode == "concurrent":
            return self.sent
        return [int(row.note) for row in self.rows(EFFECT.c.note, order_by=EFFECT.c.id)]

    def deliveries(self) -> list[Any]:
        """The delivery table."""
        return self.rows(*self.tables.delivery.c, order_by=self.tables.delivery.c.position)

    def log(self) -> dict[int, Any]:
        """Position -> row of the outbox."""
        t = self.tables.outbox
        return {row.position: row for row in self.rows(t.c.position, t.c.key, t.c.key_hash, t.c.payload)}

    def check(self) -> None:
        """What holds after every step."""
        effects = self.effects()
        assert self.too_early == [], "G3: begun before an earlier one of its key"
        log = self.log()
        position_of = {row.payload["n"]: position for position, row in log.items() if row.payload["n"] != "x"}
        if self.history.mode == "transactional":
            assert max(Counter(effects).values(), default=1) == 1, "G5: an effect is there twice"
        emitted = [n for n in position_of if n >= CHILD]
        if self.history.mode == "transactional":
            assert set(emitted) <= {n + CHILD for n in effects}, "G5: emitted without its effect"
        # in concurrent mode a worker that lost its lease can still have sent what has died in the other one's hands
        dead = {row.position for row in self.deliveries() if row.state == "dead"} | self.once_dead
        for key in "abcd":
            first = [position_of[n] for n in dict.fromkeys(effects) if log[position_of[n]].key == key]
            first = [position for position in first if position not in dead]
            assert first == sorted(first), f"G3: key {key!r} in order {first}"
        s = self.tables.subscription
        for row in self.rows(s.c.partition, s.c.position):
            assert row.position >= self.checkpoints.get(row.partition, 0), "a checkpoint went back"
            self.checkpoints[row.partition] = row.position
        for row in self.deliveries():
            assert row.position <= self.checkpoints[self.partition_of(row)], "recorded before it was passed"
            # who dies with one message in hand, carefully, leaves it `trying`, until a run comes as far as its partition (G7)
            assert row.state in ("retrying", "held", "dead", *(["trying"] if self.died else []))
            n = log[row.position].payload["n"]
            assert row.position not in self.discarded, "discarded, and there again"
            if self.history.mode == "transactional":
                assert n not in effects, "G5: an effect of what is not delivered"

    def look_for_earlier_ones(self, event: Happened, context: Any) -> None:
        """G3, S3: whatever an operator has replayed, no message is begun before the open ones in front of it.

        (Of several messages that share a commit all are begun with the first.)
        """
        if event.order is None or not self.one_by_one:
            return
        o, d = self.tables.outbox, self.tables.delivery
        position = sa.select(o.c.position).where(o.c.id == context.envelope.id).scalar_subquery()
        blocking = ["retrying", "held"] + (["dead"] if self.history.on_dead_letter == "hold" else [])
        earlier = sa.select(d.c.position, d.c.state).where(
            d.c.key == event.order, d.c.position < position, d.c.state.in_(blocking)
        )
        # an assertion would be a failure of the handler, like any other
        self.too_early += [(event.n, row) for row in context.db_session.execute(earlier)]

    def partition_of(self, row: Any) -> int:
        """Where a message belongs (S5)."""
        number = row.position if row.key_hash is None else row.key_hash
        return int(number % self.history.partitions)

    def check_report(self, report: OutboxReport, *, gained: int, troubled: bool) -> None:
        """The report agrees with the tables."""
        states = Counter(row.state for row in self.deliveries())
        counted = (report.retrying, report.held, report.dead)
        assert counted == (states["retrying"] + states["trying"], states["held"], states["dead"])
        assert report.unsettled == 0
        assert report.ok == (not any(counted) and not report.unavailable)
        if not troubled:
            assert report.delivered == gained

    def check_nothing_waits_for_nothing(self) -> None:
        """After a run to the end, every held message has an earlier one of its key that it waits for (S3)."""
        blocking = {"retrying"} | ({"dead"} if self.history.on_dead_letter == "hold" else set())
        rows = self.deliveries()
        for row in rows:
            if row.state == "held":
                assert any(
                    each.key == row.key and each.position < row.position and each.state in blocking
                    for each in rows
                ), f"nothing holds position {row.position}"

    def finish(self) -> None:
        """Nothing fails any more: now everything is delivered or dead, or held behind a dead letter."""
        self.script.clear()
        for _ in range(3):
            self.process(Process(limit=None, messages_per_commit=3, fetch_size=2, trouble=None))
            self.check()
        log = self.log()
        rows = self.deliveries()
        assert {row.state for row in rows} <= {"dead", "held"}
        if self.history.on_dead_letter == "continue":
            assert {row.state for row in rows} <= {"dead"}
        left = {row.position for row in rows}
        effects = set(self.effects())
        for position, row in log.items():
            assert position in left | self.discarded or row.payload["n"] in effects, (
                f"G2: position {position} is lost"
            )
        known = {row.payload["n"] for row in log.values()}
        corrupt = sum(row.payload["n"] == "x" for row in log.values())
        assert len(self.committed) == len({n for n in known if n != "x" and n < CHILD}) + corrupt, "G1"
        self.clear_up()

    def clear_up(self) -> None:
        """Operators replay what is dead and discard what cannot be decoded: then nothing is left, and all is delivered."""
        to_the_end = Process(limit=None, messages_per_commit=1, fetch_size=100, trouble=None)
        while rows := self.deliveries():
            self.operate(Operate("replay", "all", commits=True))
            self.process(to_the_end)
            self.check()
            self.operate(Operate("discard", "first", commits=True))
            self.process(to_the_end)
            self.check()
            assert len(self.deliveries()) < len(rows), "nothing moves"
        log, effects = self.log(), set(self.effects())
        unheard = {position for position, row in log.items() if row.payload["n"] not in effects}
        assert unheard <= self.discarded, "G2: neither delivered nor discarded"


def _play(history: History, sessions: sessionmaker[Session], tables: MessageBusTables) -> None:
    with sessions.begin() as session:
        EFFECT.metadata.create_all(session.connection())
        for table in (
            EFFECT,
            tables.outbox,
            tables.subscription,
            tables.delivery,
            tables.log,
            tables.schedule,
        ):
            session.execute(sa.delete(table))
        if session.connection().dialect.name == "postgresql":
            session.execute(sa.text(f"TRUNCATE {tables.outbox.name} RESTART IDENTITY"))
        else:
            session.execute(sa.text("DELETE FROM sqlite_sequence"))
    model = Model(sessions, tables, history)
    for step in history.steps:
        match step:
            case Register():
                model.register(step)
            case Process():
                model.process(step)
            case Operate():
                model.operate(step)
        model.check()
    model.finish()


_checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.sqlite
@pytest.mark.timeout(900)
@settings(max_examples=EXAMPLES or 20, suppress_health_check=_checks, deadline=None)
@given(history=_histories)
def test_any_history_on_sqlite(
    history: History, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """G1-G3, G5-G7: whatever happens, in whatever order: each once, in order of its key, none lost."""
    _play(history, session_factory, tables)


@pytest.mark.postgresql
@pytest.mark.timeout(900)
@settings(max_examples=EXAMPLES or 10, suppress_health_check=_checks, deadline=None)
@given(history=_histories)
def test_any_history_on_postgresql(
    history: History, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """The same, where the lease can also be taken over while a handler's transaction is open (G6)."""
    _play(history, session_factory, tables)


@pytest.mark.postgresql
@pytest.mark.timeout(900)
@settings(max_examples=EXAMPLES or 10, suppress_health_check=_checks, deadline=None)
@given(history=_with_operators)
def test_any_history_with_operators_on_postgresql(
    history: History, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """G3, S3: operators replay and discard while batches are in hand; no message begins before an open one of its key."""
    _play(history, session_factory, tables)
