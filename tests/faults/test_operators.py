"""Operators at work while relays are: they replay and discard dead letters, pause, move and rename, cancel messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from message_bus import DeadLetters, MessageBus, Schedule, Subscriptions
from message_bus.storage.tables import ACTIVE, DEAD
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Moved, Settings
from tests.faults.conftest import Scenario
from tests.faults.deploys import version
from tests.faults.history import Interruption
from tests.faults.scenario import APPS, Run, seconds
from tests.waiting import wait_until

MIX: Final = {"fail": 0.05, "reject": 0.05}  # half of the time: the application is in a mood
SETTINGS: Final = Settings(partitions=2, max_attempts=3, fetch_size=10)
SQLITE: Final = Settings(max_attempts=3, fetch_size=10)


class Replay:
    """A letter that was replayed: up to which effect that was before, and which letter."""

    def __init__(self, letter: Any, effect: int) -> None:
        self.subscription: str = letter.subscription
        self.position: int = letter.position
        self.key: str = letter.key
        self.effect = effect


class Operators:
    """Threads that do at random what operators do; they write down what must come of it."""

    def __init__(self, run: Run, *, threads: int) -> None:
        self.run = run
        self.discarded: dict[str, set[Any]] = {ONCE: set(), SENDER: set()}
        self.replays: list[Replay] = []
        self.cancelled: set[int] = set()
        self.delayed: set[int] = set()
        self.did: dict[str, int] = {}
        self._numbers = iter(range(-1, -1_000_000, -1))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(Random(run.seed + number),), name="operator")
            for number in range(threads)
        ]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Until the end of the block; then everything is active again."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert self._errors == []
        with self._session() as session:
            for name in self.run.settings.subscriptions:
                Subscriptions(session, tables=app.tables).resume(name)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self.run.engine) as session, session.begin():
            yield session

    def _work(self, dice: Random) -> None:
        deeds: list[Callable[[Random], object]] = [
            self.replay, self.replay, self.discard, self.discard_and_think_better_of_it, self.pause, self.resume,
            self.resume, self.delay, self.cancel,
        ]  # fmt: skip
        try:
            while not self._stop.wait(dice.uniform(0, 0.1)):
                deed = dice.choice(deeds)
                try:
                    deed(dice)
                except DBAPIError as error:
                    if "deadlock" not in str(error) and "locked" not in str(error):
                        raise
                self.did[deed.__name__] = self.did.get(deed.__name__, 0) + 1
        except BaseException as error:
            self._errors.append(error)

    def _letters(self, session: Session, dice: Random) -> list[Any]:
        found = DeadLetters(session, tables=app.tables).list(payload=True)
        return dice.sample(found, min(len(found), dice.randint(1, 4)))

    def replay(self, dice: Random) -> None:
        """Some of them, at once or spread over a second."""
        with self._session() as session:
            letters = self._letters(session, dice)
            report = DeadLetters(session, tables=app.tables).replay(
                letters=letters, per_second=dice.choice([None, 20]), by="a test"
            )
        if not report.letters:
            return
        e = app.effects
        with self.run.looking() as connection:  # after the commit: what was in hand then may come before
            effect = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(e.c.id), 0))) or 0
        with self._lock:
            self.replays += [Replay(letter, effect) for letter in report.letters]

    def discard(self, dice: Random) -> None:
        """Some of them."""
        with self._session() as session:
            letters = self._letters(session, dice)
            report = DeadLetters(session, tables=app.tables).discard(letters=letters, by="a test")
        numbers = {(letter.subscription, letter.position): letter.payload["n"] for letter in letters}
        with self._lock:
            for letter in report.letters:
                n = numbers[letter.subscription, letter.position]
                self.discarded[letter.subscription].add((letter.message, letter.key, n))

    def discard_and_think_better_of_it(self, dice: Random) -> None:
        """What is rolled back has not happened."""
        with Session(self.run.engine) as session:
            DeadLetters(session, tables=app.tables).discard(letters=self._letters(session, dice), by="a test")
            session.rollback()

    def pause(self, dice: Random) -> None:
        """One of the subscriptions."""
        with self._session() as session:
            Subscriptions(session, tables=app.tables).pause(dice.choice(self.run.settings.subscriptions))

    def resume(self, dice: Random) -> None:
        """All of them, for a pause is found seldom enough."""
        with self._session() as session:
            for name in self.run.settings.subscriptions:
                Subscriptions(session, tables=app.tables).resume(name)

    def delay(self, dice: Random) -> None:
        """Register a message for later."""
        with self._lock:
            n = next(self._numbers)
        message = Moved(key=f"later-{n % 5}", n=n)
        with self._session() as session:
            row = MessageBus.register_outbox_message(
                session, message, delay=timedelta(seconds=dice.uniform(0.05, 1))
            )
            session.execute(app.written.insert().values(message_id=row.id, key=message.key, n=n, does=""))
        with self._lock:
            self.delayed.add(n)

    def cancel(self, dice: Random) -> None:
        """Take some of these back, if it is not too late."""
        with self._session() as session:
            schedule = Schedule(session, tables=app.tables)
            found = schedule.list(payload=True)
            chosen = dice.sample(found, min(len(found), 2))
            if not chosen:
                return
            report = schedule.cancel([each.id for each in chosen], by="a test")
        numbers = {each.id: each.payload["n"] for each in chosen}
        with self._lock:
            self.cancelled |= {numbers[each.id] for each in report.messages}


def nothing_is_due_later(run: Run) -> bool:
    """Whether all delayed messages have entered the outbox, or were cancelled."""
    with run.looking() as connection:
        return not connection.scalar(sa.select(sa.func.count()).select_from(app.tables.schedule))


def check(run: Run, operators: Operators) -> None:
    """What was decided has happened; the checker is told what need not be there, and what may come late."""
    cancelled = {("Moved", f"later-{n % 5}", n) for n in operators.cancelled}
    e = app.effects
    with run.looking() as connection:
        effects = connection.execute(sa.select(e).order_by(e.c.id)).all()
    handled = {(row.subscription, (row.message, row.key, row.n)) for row in effects}
    by_position = {(row.subscription, row.position): (row.message, row.key, row.n) for row in effects}
    for name in (ONCE, SENDER):
        given_up = operators.discarded[name] | cancelled
        assert not {message for message in given_up if (name, message) in handled}
        run.excused[name] = given_up
        replayed = {(name, each.position) for each in operators.replays if each.subscription == name}
        run.out_of_turn[name] = {by_position[each] for each in replayed if each in by_position}
    assert _overtaken(operators.replays, effects) == []


def _overtaken(replays: list[Replay], effects: Any) -> list[tuple[str, int]]:
    """Replayed letters that were passed by later ones of their key before they were delivered (S3).

    Only one may pass, which was in hand when the decision was taken. A letter that has died again was replayed again: what
    counts is the last time. Asked of the transactional subscription, which has one message in hand.
    """
    last = {each.position: each for each in replays if each.subscription == ONCE}
    ids = {row.position: row.id for row in effects if row.subscription == ONCE}
    found: list[tuple[str, int]] = []
    for position, each in last.items():
        if position in ids:
            passed = [
                row.n
                for row in effects
                if row.subscription == ONCE
                and row.key == each.key
                and row.position > position
                and each.effect < row.id < ids[position]
            ]
            if len(passed) > 1:
                found.append((each.key, position))
    return found


def rename_there_and_back(run: Run, relays: list[Any]) -> None:
    """As the manual says: stop the workers, rename; here back again, too."""
    for relay in relays:
        assert relay.stop() == 0
    with Session(run.engine) as session, session.begin():
        Subscriptions(session, tables=app.tables).rename(ONCE, "elsewhere", by="a test")
    with Session(run.engine) as session, session.begin():
        Subscriptions(session, tables=app.tables).rename("elsewhere", ONCE, by="a test")


def move_back(run: Run) -> None:
    """The concurrent subscription gets everything once more; what is recorded about its messages is forgotten."""
    d, o = app.tables.delivery, app.tables.outbox
    recorded = sa.select(o.c.message, o.c.key, o.c.payload).join_from(d, o, d.c.position == o.c.position)
    lock = sa.select(app.tables.log).with_for_update()
    with Session(run.engine) as session, session.begin():
        session.execute(lock).all()
        session.execute(sa.select(app.tables.subscription).with_for_update()).all()
        dead = session.execute(recorded.where(d.c.subscription == SENDER, d.c.state == DEAD)).all()
        Subscriptions(session, tables=app.tables).reset(SENDER, "beginning", force=True, by="a test")
    # later ones of their keys have been delivered already
    run.out_of_turn[SENDER] = {(row.message, row.key, row.payload["n"]) for row in dead}


def operate(run: Run, make: str, *, relays: int, rate: float, span: float, threads: int) -> Operators:
    """Operators and writers beside relays, for so long."""
    began = time.time()
    operators = Operators(run, threads=threads)
    for _ in range(relays):
        run.relay(version("moody", make), lease=1.5)
    with run.writing(rate=rate, mix=MIX):
        wait_until(lambda: set(_states(run).values()) == {ACTIVE})
        with operators.at_work():
            until = time.monotonic() + span
            wait_until(lambda: time.monotonic() >= until, timeout=span + 10)
    # a pause that a relay finds takes its lease away, as a loss would
    run.interruptions += [Interruption(began, time.time())] * (1 + operators.did.get("pause", 0))
    wait_until(lambda: nothing_is_due_later(run), timeout=30)
    run.wait_until_delivered()
    return operators


def _states(run: Run) -> dict[str, str]:
    s = app.tables.subscription
    with run.looking() as connection:
        found = {row.name: row.state for row in connection.execute(sa.select(s.c.name, s.c.state))}
    return {name: found.get(name, "") for name in run.settings.subscriptions}


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_operators_under_load(scenario: Scenario, make: str, backend: str) -> None:
    """Nothing is lost that was not given up, nothing happens twice, a replayed letter holds its key back (S3, S9, G2, G3, G5)."""
    settings = SETTINGS if backend == "postgresql" else SQLITE
    with scenario(f"operators, {make}", settings) as run:
        rate = 40 if backend == "postgresql" else 20
        operators = operate(run, make, relays=2, rate=rate, span=seconds(8), threads=2)
        rename_there_and_back(run, run.relays)
        run.relay(version("mended", make))
        with Session(run.engine) as session, session.begin():
            letters = DeadLetters(session, tables=app.tables).replay(everything=True, by="a test").letters
        operators.replays += [Replay(letter, 1 << 60) for letter in letters]
        run.write("", "", "")
        run.wait_until_delivered()
        check(run, operators)
        assert len(operators.did) == 7, operators.did
        print(f"{operators.did}; {len(operators.replays)} replayed, {len(operators.cancelled)} cancelled")


@pytest.mark.slow
def test_operators(scenario: Scenario, backend: str) -> None:
    """The short form (S3, S9, G2, G3, G5)."""
    make = "make_async_bus" if backend == "postgresql" else "make_bus"
    with scenario(f"operators, short, {make}", SQLITE) as run:
        operators = operate(run, make, relays=1, rate=30, span=1.0, threads=1)
        check(run, operators)


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_moved_back_under_load(scenario: Scenario, make: str) -> None:
    """An operator moves the concurrent subscription back: everything comes once more, the other one notices nothing (G5, S1)."""
    with scenario(f"moved back under load, {make}", SETTINGS) as run:
        run.relay(make, lease=1.5)
        with run.writing(rate=40, mix={"fail:1": 0.05}):
            wait_until(lambda: len(run.effects(SENDER)) > 40)
            began = time.time()
            move_back(run)
            had = len(run.effects(SENDER))
            wait_until(lambda: len(run.effects(SENDER)) > had + 40, timeout=30)
            run.interruptions += [Interruption(began, time.time())] * len(run.effects(SENDER))
        run.wait_until_delivered()
        assert len(run.effects(SENDER)) >= had + len(set(run.effects(ONCE))) - 1
