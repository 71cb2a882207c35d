"""An owner that is frozen with SIGSTOP past its lease, and thawed when another one has taken over (G6, S7)."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Final

import pytest
import sqlalchemy as sa

from tests.faults import app
from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import ASYNC_AT_LEAST, SYNC_AT_LEAST, Scenario
from tests.faults.moments import IN_A_HANDLER, Doom
from tests.faults.scenario import APPS, Run
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql  # on SQLite one that is frozen in a transaction keeps everybody out

LEASE: Final = 1.0
MOMENTS: Final = (IN_A_HANDLER, "after the reading", "before the recording")


def freeze(run: Run, make: str, moment: str) -> tuple[int, int]:
    """Freeze one at this moment, let another one do everything, thaw it: its pid, and how many effects it had by then."""
    doom = Doom(moment, count=2 if moment == IN_A_HANDLER else 1, signal=signal.SIGSTOP)
    run.write(*[""] * 10, key="a")
    run.write(*[""] * 10, key="b")
    with run.interrupted():
        frozen = run.relay(make, settings=replace(run.settings, doom=doom), lease=LEASE)
        frozen.wait_until_frozen()
        other = run.relay(make, lease=LEASE)
        run.wait_until_delivered(timeout=20)
        had = effects_of(run, frozen.pid)
        frozen.thaw()
        wait_until(lambda: "lost" in frozen.errors, message="the thawed relay does not notice")
        run.write(*[""] * 10, key="a")
        run.wait_until_delivered()
    assert other.code is None, other.errors
    assert frozen.code is None, frozen.errors
    return frozen.pid, had


def effects_of(run: Run, pid: int) -> int:
    """How many effects this process has."""
    with run.looking() as connection:
        return connection.scalar(
            sa.select(sa.func.count()).select_from(app.effects).where(app.effects.c.pid == pid)
        ) or 0  # fmt: skip


@pytest.mark.parametrize("make", ASYNC_AT_LEAST)
def test_frozen_in_a_transactional_handler(scenario: Scenario, make: str) -> None:
    """What the stale owner has in hand when it wakes up is rolled back: it commits nothing any more (G5, G6, S1)."""
    with scenario(
        f"frozen in a handler, {make}", Settings(subscriptions=(ONCE,), messages_per_commit=100)
    ) as run:
        pid, had = freeze(run, make, IN_A_HANDLER)
        assert had == 0
        assert effects_of(run, pid) == 0


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("make", APPS)
def test_frozen_at_moments(scenario: Scenario, make: str, moment: str, size: int) -> None:
    """Wherever it is frozen while it holds no lock (G5, G6, S1)."""
    with scenario(
        f"frozen {moment}, {make}", Settings(subscriptions=(ONCE,), messages_per_commit=size)
    ) as run:
        pid, had = freeze(run, make, moment)
        assert effects_of(run, pid) == had


@pytest.mark.parametrize("make", SYNC_AT_LEAST)
def test_frozen_in_a_concurrent_handler(scenario: Scenario, make: str) -> None:
    """The stale owner repeats at most what it had in hand, and records nothing (G3, G6)."""
    with scenario(f"frozen outside, {make}", Settings(subscriptions=(SENDER,), concurrency=2)) as run:
        pid, had = freeze(run, make, IN_A_HANDLER)
        assert effects_of(run, pid) <= had + run.settings.concurrency


@pytest.mark.parametrize("make", SYNC_AT_LEAST)
def test_frozen_with_the_checkpoint_locked(scenario: Scenario, make: str) -> None:
    """One that is frozen between its last statement and COMMIT keeps nobody out for much longer than a lease (S7)."""
    with scenario(
        f"frozen before COMMIT, {make}", Settings(subscriptions=(ONCE,), messages_per_commit=100)
    ) as run:
        pid, had = freeze(run, make, "before the COMMIT")
        assert effects_of(run, pid) == had
