"""Relays that are killed and started again at random, under load; connections that are terminated again and again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from tests.faults import app
from tests.faults.app import ONCE, Settings
from tests.faults.conftest import Scenario
from tests.faults.nursery import Child
from tests.faults.scenario import APPS, Run, seconds

BUSY = Settings(messages_per_commit=100, partitions=4, concurrency=4, fetch_size=50)


@contextmanager
def two_processes_of_writers(run: Run, *, threads: int, rate: float) -> Iterator[Callable[[], None]]:
    """Writers beside the relays; what comes out kills one of the two processes, and starts another one."""
    writers = [run.writers(threads=threads, rate=rate) for _ in range(2)]

    def kill_one() -> None:
        writers.pop(0).kill()
        writers.append(run.writers(threads=threads, rate=rate))

    yield kill_one
    for child in writers:
        child.send(signal.SIGTERM)
        assert child.end() in (0, -signal.SIGTERM), child.errors


def kill_at_random(run: Run, *, span: float, most: int, threads: int, rate: float, at_least: int = 1) -> None:
    """For `span` seconds, and until so many relays were killed: start relays, kill them, a writer process now and then."""
    alive: list[Child] = []
    killed = 0
    until = time.monotonic() + span
    with two_processes_of_writers(run, threads=threads, rate=rate) as kill_writer:
        while time.monotonic() < until or killed < at_least:
            while len(alive) < run.dice.randint(min(2, most), most):
                alive.append(run.relay(run.dice.choice(APPS)))
            time.sleep(run.dice.uniform(0.05, 1.5))  # a relay starts, waits for a lease, or works
            with run.interrupted():
                alive.pop(run.dice.randrange(len(alive))).kill()
            killed += 1
            if run.dice.random() < 0.2:
                kill_writer()
    if not alive:
        run.relay()


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_killed_at_random_under_load(scenario: Scenario) -> None:
    """Two to four relays of both colours, killed and replaced for a minute under eight writers (G1-G6)."""
    with scenario("2 to 4 relays killed at random", BUSY) as run:
        kill_at_random(run, span=seconds(60), most=4, threads=4, rate=40, at_least=12)


@pytest.mark.slow
@pytest.mark.postgresql
def test_killed_at_random(scenario: Scenario) -> None:
    """The short form: two relays, four writers (G1-G6)."""
    with scenario("2 relays killed at random", BUSY) as run:
        kill_at_random(run, span=2, most=2, threads=2, rate=20)


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.timeout(600)
def test_killed_at_random_on_sqlite(scenario: Scenario) -> None:
    """The same on a file, where everybody waits for his turn (G1-G6)."""
    with scenario("2 relays killed at random", Settings(messages_per_commit=100)) as run:
        kill_at_random(run, span=seconds(20), most=2, threads=1, rate=10)


# --- connections ------------------------------------------------------------------------------------------------------


def terminate_some(run: Run) -> int:
    """End some connections to this database, other than this one; how many."""
    with run.engine.connect() as connection:
        pids = connection.scalars(
            sa.text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
        ).all()
        chosen = [pid for pid in pids if run.dice.random() < 0.5]
        connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM unnest(:pids) pid"), {"pids": chosen}
        )
        return len(chosen)


def terminate_again_and_again(run: Run, *, span: float, rate: float, at_least: int = 1) -> None:
    """For `span` seconds, and until so many connections were ended, under load."""
    relays = [run.relay(make) for make in APPS]
    terminated = 0
    with run.writing(threads=4, rate=rate) as writers:
        run.wait_for_more(5)
        until = time.monotonic() + span
        while time.monotonic() < until or terminated < at_least:
            with run.interrupted():
                terminated += terminate_some(run)
                time.sleep(run.dice.uniform(0, 0.3))  # what is answered late still belongs to it
            run.wait_for_more()
    assert [relay.code for relay in relays] == [None, None], [relay.errors for relay in relays]
    assert writers.acknowledged


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_backends_terminated_under_load(scenario: Scenario) -> None:
    """Connections of relays and writers end in the middle of batches: all go on, each effect is there once (G2, G5, G8)."""
    with scenario("backends terminated", BUSY) as run:
        terminate_again_and_again(run, span=seconds(20), rate=60, at_least=25)
        assert no_attempt_was_burnt(run)


@pytest.mark.slow
@pytest.mark.postgresql
def test_backends_terminated(scenario: Scenario) -> None:
    """The short form (G2, G5, G8)."""
    with scenario("backends terminated", BUSY) as run:
        terminate_again_and_again(run, span=1, rate=30)
        assert no_attempt_was_burnt(run)


def no_attempt_was_burnt(run: Run) -> bool:
    """Whether no effect was written at a later attempt than its message asks for (G8)."""
    run.finish()
    with run.looking() as connection:
        e, w = app.effects, app.written
        worst = sa.select(sa.func.max(e.c.attempt)).join_from(
            e, w, sa.and_(w.c.n == e.c.n, w.c.does == "")
        ).where(e.c.subscription == ONCE)  # fmt: skip
        return connection.scalar(worst) == 1
