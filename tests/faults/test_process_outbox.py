"""`message-bus process-outbox`, killed with SIGKILL at random moments while others write; each run goes on where it ended."""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest

from tests.faults.app import ONCE, Settings
from tests.faults.conftest import Scenario
from tests.faults.moments import IN_A_HANDLER, MOMENTS, Doom
from tests.faults.nursery import Child
from tests.faults.scenario import APPS, LEASE, Run
from tests.waiting import wait_until

ENDINGS: Final = {0, 3, -signal.SIGKILL}  # all is well; something is retrying; killed
WORKING: Final = 0.4


def step(run: Run, make: str, doom: Doom | None = None) -> Child:
    """One call of the command."""
    return run.child(
        "message_bus.cli.main:main",
        ["process-outbox", "--app", f"tests.faults.app:{make}", "--lease", str(LEASE)],
        settings=replace(run.settings, doom=doom),
    )


def kill(run: Run, times: int) -> Counter[str]:
    """Let it be killed so many times, by itself or from outside; where it was killed, and how often it ended before.

    After one that has ended too early, however fast it was, comes one that cannot: it dies in the first handler.
    """
    killed: Counter[str] = Counter()
    doom: Doom | None = None
    while killed.total() - killed["ended before"] < times:
        run.expire_leases()  # else it finds the lease of a dead process, and reports it busy
        moment = run.dice.choice(["at any time", *MOMENTS]) if doom is None else doom.moment
        with run.interrupted():
            if moment == "at any time":
                child = step(run, run.dice.choice(APPS))
                time.sleep(run.dice.uniform(0, WORKING))
                child.kill()
            else:
                child = step(run, run.dice.choice(APPS), doom or Doom(moment, count=run.dice.randint(1, 20)))
            assert child.end() in ENDINGS, child.errors
        if child.code == -signal.SIGKILL:
            killed[moment] += 1
            doom = None
        else:
            killed["ended before"] += 1
            run.write("", key="certain")
            doom = Doom(IN_A_HANDLER)
        assert killed["ended before"] <= killed.total() / 2 + 1, (
            f"it does not die in its first handler: {child.errors}"
        )
    return killed


def finish(run: Run, make: str) -> None:
    """Call it until nothing is left."""

    def is_done() -> bool:
        run.expire_leases()
        child = step(run, make)
        assert child.end() in ENDINGS, child.errors
        return run.is_delivered()

    wait_until(is_done, timeout=120)


def kill_and_finish(scenario: Scenario, settings: Settings, *, times: int, threads: int, rate: float) -> None:
    """The whole run."""
    with scenario(f"process-outbox killed {times} times", settings) as run:
        with run.writing(threads=threads, rate=rate):
            killed = kill(run, times)
        finish(run, run.dice.choice(APPS))
        run.finish()
        print(f"  {dict(killed)}")


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_killed_50_times(scenario: Scenario) -> None:
    """50 kills beside three writers (G1-G6)."""
    kill_and_finish(scenario, Settings(messages_per_commit=20), times=50, threads=3, rate=15)


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.timeout(600)
def test_killed_20_times_on_sqlite(scenario: Scenario) -> None:
    """The same on a file, where every process waits for its turn (G1-G6)."""
    kill_and_finish(scenario, Settings(), times=20, threads=1, rate=15)


@pytest.mark.slow
def test_killed_3_times(scenario: Scenario) -> None:
    """The short form, for every run of the suite (G1-G6)."""
    kill_and_finish(scenario, Settings(), times=3, threads=1, rate=15)


@pytest.mark.slow
def test_a_handler_that_commits_on_its_own_is_found_out(scenario: Scenario) -> None:
    """These tests can fail: what is written outside of the given session is there twice after a kill (not G5)."""
    with scenario("a leaky handler", Settings(subscriptions=(ONCE,)), fails=True) as run:
        run.write(*[""] * 4, key="a")
        with run.interrupted():
            assert step(run, "make_leaky_bus", Doom(IN_A_HANDLER, count=3)).end() == -signal.SIGKILL
        finish(run, "make_leaky_bus")
        assert run.finish().problems == ["once: Moved 2 of 'a' had its effect more than once (G5)"]
