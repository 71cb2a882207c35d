"""Processes that die in the middle of a saga: it ends all the same, and every effect is there once (G5)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
import sqlalchemy as sa

from message_bus import MessageBusTables
from tests.eventsourcing import saga_app
from tests.eventsourcing.saga_app import EFFECT, FAILS, expected, made, moments
from tests.faults.nursery import Child, Nursery


@pytest.fixture(scope="module")
def processes() -> Iterator[Nursery]:
    """Where the processes come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


class Ground:
    """A database with the table of effects, and processes that work on it."""

    def __init__(self, nursery: Nursery, url: sa.URL, engine: sa.Engine, directory: Path) -> None:
        self._nursery = nursery
        self._url = url.render_as_string(hide_password=False)
        self._errors = directory / "errors.txt"
        self.engine = engine
        EFFECT.metadata.create_all(engine)

    def start(self, call: str, *arguments: str) -> Child:
        """A process."""
        where = f"{saga_app.__name__}:{call}"
        return self._nursery.start(where, [self._url, *arguments], environment={}, errors=self._errors)

    def notes(self, saga_id: str) -> list[str]:
        """What was written down."""
        with self.engine.connect() as connection:
            found = sa.select(EFFECT.c.note).where(EFFECT.c.saga_id == saga_id).order_by(EFFECT.c.id)
            return list(connection.scalars(found))

    def die_and_resume(self, saga_id: str, moment: str, turn: int, *options: str) -> list[str]:
        """Kill a process there, let another one go on; the notes."""
        child = self.start("run_and_die", saga_id, moment, str(turn), *options)
        assert child.end() == -SIGKILL, child.errors
        before = self.notes(saga_id)
        assert before == expected(saga_id)[: len(before)]
        made().resume_unfinished(self.engine)
        outcome = made().run(self.engine, saga_id)
        assert outcome.status == ("compensated" if FAILS in saga_id else "completed")
        return self.notes(saga_id)


@pytest.fixture
def ground(
    processes: Nursery,
    database_url: sa.URL,
    engine: sa.Engine,
    tables: MessageBusTables,
    tmp_path: Path,
) -> Ground:
    """On each backend."""
    return Ground(processes, database_url, engine, tmp_path)


SOME = [
    ("fine", "in the step", 1),
    ("fine", "before the COMMIT", 3),
    ("fine", "after the COMMIT", 5),
    (FAILS, "after the COMMIT", 5),
    (FAILS, "before the COMMIT", 7),
]


@pytest.mark.slow
def test_killed_at_some_moments(ground: Ground) -> None:
    """The short form: in a step, before and after its COMMIT, forwards and backwards."""
    for kind, moment, turn in SOME:
        saga_id = f"{kind} {moment} {turn}"
        assert ground.die_and_resume(saga_id, moment, turn) == expected(saga_id)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["fine", FAILS])
def test_killed_at_every_moment(ground: Ground, kind: str) -> None:
    """Every step of a saga, and every step of undoing one: inside of it, before and after its COMMIT."""
    for moment, turn in moments(kind):
        saga_id = f"{kind} {moment} {turn}"
        assert ground.die_and_resume(saga_id, moment, turn) == expected(saga_id)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "turn", "twice"), [("fine", 3, "s3"), (FAILS, 7, "undo s3")])
def test_the_crashes_find_state_that_is_saved_apart(ground: Ground, kind: str, turn: int, twice: str) -> None:
    """With the rule taken out, state in another transaction than the effects, a step is done twice: the tests would see it."""
    notes = ground.die_and_resume(kind, "before the COMMIT", turn, "apart")
    assert notes.count(twice) == 2


def kill_at_random(ground: Ground, *, span: float, most: int, count: int) -> None:
    """Processes that run the same sagas, killed and replaced for a while; then everything is as it must be."""
    dice = random.Random()
    ids = [f"{'fine' if number % 2 else FAILS} {number}" for number in range(count)]
    alive = [ground.start("run_many", *ids) for _ in range(most)]
    until = time.monotonic() + span
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.01, 0.1))  # a process starts, or works
        victim = alive.pop(dice.randrange(len(alive)))
        assert victim.kill() in (0, -SIGKILL), victim.errors
        alive.append(ground.start("run_many", *ids))
    for child in alive:
        assert child.end(timeout=300) == 0, child.errors
    for saga_id in ids:
        outcome = made().outcome(ground.engine, saga_id)
        assert outcome is not None
        assert outcome.status == ("compensated" if FAILS in saga_id else "completed")
        assert ground.notes(saga_id) == expected(saga_id)


@pytest.mark.slow
def test_killed_at_random(ground: Ground) -> None:
    """The short form: two processes, eight sagas."""
    kill_at_random(ground, span=1, most=2, count=8)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_killed_at_random_for_long(ground: Ground) -> None:
    """Four processes that run the same two hundred sagas and resume what the dead have left."""
    kill_at_random(ground, span=20, most=4, count=200)
