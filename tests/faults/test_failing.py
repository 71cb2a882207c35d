"""Messages whose handlers fail: their key waits for them, nobody else does."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from dataclasses import replace
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DeadLetters
from message_bus.storage.tables import DEAD, HELD, RETRYING
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Moved, Settings
from tests.faults.conftest import Scenario
from tests.faults.scenario import APPS, Run, seconds
from tests.faults.writing import register
from tests.waiting import wait_until

POISON: Final = "poison"
TEN_PERCENT: Final = {"fail:2": 0.1}


def commit(run: Run, messages: list[Moved]) -> None:
    """Commit them in one transaction."""
    with Session(run.engine) as session, session.begin():
        for message in messages:
            register(session, message)


def states(run: Run, key: str = POISON) -> list[tuple[str, str, int]]:
    """Subscription, state and attempts of what is recorded about a key, in position order."""
    d = app.tables.delivery
    rows = sa.select(d.c.subscription, d.c.state, d.c.attempts).where(d.c.key == key).order_by(d.c.position)
    with run.looking() as connection:
        return [(name, state, attempts) for name, state, attempts in connection.execute(rows)]


def attempts_of_effects(run: Run, reader: str) -> dict[str, set[int]]:
    """At which attempts the messages that say the same had their effect."""
    e, w = app.effects, app.written
    found: dict[str, set[int]] = {}
    rows = sa.select(w.c.does, e.c.attempt).join_from(e, w, e.c.message_id == w.c.message_id)
    with run.looking() as connection:
        for does, attempt in connection.execute(rows.where(e.c.subscription == reader)):
            found.setdefault(does, set()).add(attempt)
    return found


# --- every tenth message fails twice ----------------------------------------------------------------------------------


def fail_twice(run: Run, *, relays: int, rate: float, until: float) -> None:
    """Relays of both colours work while 10 % of what is written fails twice."""
    for number in range(relays):
        run.relay(APPS[number % 2])
    with run.writing(rate=rate, mix=TEN_PERCENT):
        wait_until(lambda: time.monotonic() >= until, timeout=600)
    run.wait_until_delivered()
    assert attempts_of_effects(run, ONCE) == {"": {1}, "fail:2": {3}}


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("relays", "partitions", "messages_per_commit"), [(4, 4, 1), (2, 4, 100)])
def test_ten_percent_fail_twice(
    scenario: Scenario, relays: int, partitions: int, messages_per_commit: int
) -> None:
    """20 keys, 4 workers: every key in order, effects exactly once (G3, G5)."""
    settings = Settings(partitions=partitions, messages_per_commit=messages_per_commit, concurrency=4)
    name = f"10 % fail twice, {relays} relays, {partitions} partitions, {messages_per_commit} per commit"
    with scenario(name, settings) as run:
        fail_twice(run, relays=relays, rate=100, until=time.monotonic() + seconds(8))


@pytest.mark.slow
def test_some_fail_twice(scenario: Scenario) -> None:
    """The short form: 4 workers in 2 processes (G3, G5)."""
    with scenario("10 % fail twice, short", Settings(partitions=4, messages_per_commit=10)) as run:
        fail_twice(run, relays=2, rate=60, until=time.monotonic() + 1.5)


# --- one key that fails for ever ----------------------------------------------------------------------------------------

ROUNDS: Final = 5
RATE: Final = 150.0  # messages a second
BACKOFF: Final = 1.0  # seconds, again and again: the default begins with it and then doubles


class Measured:
    """One thread that writes at a steady rate, and remembers when each commit was answered."""

    def __init__(self, run: Run, first: int, *, seconds: float) -> None:
        self.answered: dict[int, float] = {}
        self._run = run
        self._numbers = range(first, first + int(seconds * RATE))
        self._thread = threading.Thread(target=self._write, name="writer")

    def write(self) -> None:
        """Write them all, and wait until the relay has delivered them."""
        self._thread.start()
        self._thread.join()
        assert len(self.answered) == len(self._numbers)

    def _write(self) -> None:
        started = time.monotonic()
        with Session(self._run.engine) as session:
            for index, n in enumerate(self._numbers):
                time.sleep(max(0.0, started + index / RATE - time.monotonic()))
                register(session, Moved(key=f"key-{n % 20:02}", n=n))
                session.commit()
                self.answered[n] = time.time()

    def latencies(self, reader: str) -> list[float]:
        """From each commit's answer to the effect, in seconds, sorted."""
        e = app.effects
        mine = sa.select(e.c.n, e.c.at).where(
            e.c.subscription == reader, e.c.n.between(self._numbers[0], self._numbers[-1])
        )
        with self._run.looking() as connection:
            rows = list(connection.execute(mine))
        return sorted(row.at.timestamp() - self.answered[row.n] for row in rows)


def mend(run: Run, failing: Moved) -> None:
    """Let it succeed at its next attempt: so that one run can measure again and again, with and without it."""
    o = app.tables.outbox
    d = app.tables.delivery
    with run.engine.begin() as connection:
        position = connection.scalar(sa.select(d.c.position).where(d.c.state == RETRYING))
        connection.execute(
            o.update()
            .where(o.c.position == position)
            .values(payload={"key": POISON, "n": failing.n, "does": ""})
        )


def p(share: float, values: list[float]) -> float:
    """The value that so large a share is at or below."""
    return values[min(len(values) - 1, int(share * len(values)))]


def measure(run: Run, first: int, span: float, readers: tuple[str, ...]) -> dict[str, list[float]]:
    """The latencies of one stretch of messages, by reader."""
    measured = Measured(run, first, seconds=span)
    measured.write()
    wait_until(
        lambda: all(len(measured.latencies(each)) >= len(measured.answered) for each in readers), timeout=60
    )
    return {each: measured.latencies(each) for each in readers}


@pytest.mark.load  # it measures: nothing else may run beside it
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reader", [ONCE, SENDER])
def test_one_key_fails_for_ever(scenario: Scenario, reader: str) -> None:
    """The p99 of the other keys stays within 1.5 times of what it is without that key (G3)."""
    settings = Settings(subscriptions=(reader,), max_attempts=1_000_000, backoff=BACKOFF, concurrency=4)
    ratios: list[float] = []
    with scenario(f"one key fails for ever, {reader}", settings) as run:
        run.relay()
        span = seconds(3)
        measure(run, 1_000, 1, (reader,))
        for number in range(1, ROUNDS + 1):
            without = measure(run, number * 100_000, span, (reader,))[reader]
            failing = Moved(key=POISON, n=number, does="fail")
            commit(run, [failing, *(Moved(key=POISON, n=number * 1_000 + each) for each in range(20))])
            wait_until(lambda: states(run)[:1] and states(run)[0][2] > 0)
            beside = measure(run, number * 100_000 + 50_000, span, (reader,))[reader]
            assert states(run)[0][1] == RETRYING
            assert [state for _, state, _ in states(run)[1:]] == [HELD] * 20
            ratios.append(p(0.99, beside) / p(0.99, without))
            sys.stdout.write(
                f"round {number}: without p50 {p(0.5, without) * 1e3:.1f} p99 {p(0.99, without) * 1e3:.1f} ms, "
                f"beside p50 {p(0.5, beside) * 1e3:.1f} p99 {p(0.99, beside) * 1e3:.1f} ms: {ratios[-1]:.2f}\n"
            )
            mend(run, failing)
            run.wait_until_delivered()
    sys.stdout.write(
        f"p99 beside a key that fails for ever: {statistics.median(ratios):.2f} of that without\n"
    )
    assert statistics.median(ratios) <= 1.5


# --- one poisoned key among many ----------------------------------------------------------------------------------------


def poison_among(run: Run, keys: int) -> tuple[Moved, list[Moved]]:
    """One message for each key, in three rounds; the first of one key fails always. That one, and its followers."""
    where = run.dice.randrange(keys)
    named = [POISON if each == where else f"key-{each:04}" for each in range(keys)]
    rounds = [
        [Moved(key=key, n=number * keys + each) for each, key in enumerate(named)] for number in range(3)
    ]
    poisoned = rounds[0][where] = replace(rounds[0][where], does="fail")
    for messages in rounds:
        commit(run, messages)
    return poisoned, [messages[where] for messages in rounds[1:]]


def delivered_of_poison(run: Run, reader: str) -> list[int]:
    """The numbers of that key's effects, in order."""
    e = app.effects
    mine = sa.select(e.c.n).where(e.c.subscription == reader, e.c.key == POISON).order_by(e.c.id)
    with run.looking() as connection:
        return list(connection.scalars(mine))


def one_among(scenario: Scenario, make: str, keys: int, settings: Settings) -> None:
    """The others are delivered while it is retried; it dies; what follows it is delivered, or held until it is discarded."""
    holds = settings.on_dead_letter == "hold"
    with scenario(f"one poisoned key of {keys:,}, {settings.on_dead_letter}, {make}", settings) as run:
        poisoned, followers = poison_among(run, keys)
        run.relay(make)
        others = 3 * (keys - 1)
        wait_until(lambda: all(len(run.effects(each)) >= others for each in (ONCE, SENDER)), timeout=60)
        found = {each: [row for row in states(run) if row[0] == each] for each in (ONCE, SENDER)}
        for mine in found.values():  # nobody has waited for it
            assert [state for _, state, _ in mine] in ([RETRYING, HELD, HELD], [DEAD, HELD, HELD], [DEAD])
        wait_until(lambda: [row[1] for row in states(run)].count(DEAD) == 2, timeout=60)
        assert {row[2] for row in states(run) if row[1] == DEAD} == {settings.max_attempts}
        if holds:
            assert [row[1] for row in states(run)].count(HELD) == 4
            assert delivered_of_poison(run, ONCE) == delivered_of_poison(run, SENDER) == []
            _discard(run, poisoned)
        expected = [each.n for each in followers]
        wait_until(lambda: {len(delivered_of_poison(run, each)) for each in (ONCE, SENDER)} == {2})
        assert delivered_of_poison(run, ONCE) == delivered_of_poison(run, SENDER) == expected


def _discard(run: Run, poisoned: Moved) -> None:
    excused: Any = {("Moved", POISON, poisoned.n)}
    run.excused.update({ONCE: excused, SENDER: excused})
    with Session(run.engine) as session, session.begin():
        assert DeadLetters(session, tables=app.tables).discard(everything=True).count == 2


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "on_dead_letter"), [("make_bus", "continue"), ("make_async_bus", "hold")])
def test_one_poisoned_key_of_1000(scenario: Scenario, make: str, on_dead_letter: str) -> None:
    """One of 1,000 keys fails for ever: it alone is retried, dies and holds back (G3, G7)."""
    settings = Settings(messages_per_commit=100, max_attempts=10, backoff=0.2, on_dead_letter=on_dead_letter)
    one_among(scenario, make, 1_000, settings)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("on_dead_letter", ["continue", "hold"])
def test_one_poisoned_key_of_100(scenario: Scenario, on_dead_letter: str) -> None:
    """The short form (G3, G7)."""
    settings = Settings(messages_per_commit=100, max_attempts=5, backoff=0.2, on_dead_letter=on_dead_letter)
    one_among(scenario, "make_bus", 100, settings)
