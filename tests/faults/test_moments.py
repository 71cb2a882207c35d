"""Relays that kill themselves with SIGKILL at each moment between fetch and commit; the next one goes on."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest

from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import Scenario
from tests.faults.moments import IN_A_HANDLER, MOMENTS, Doom
from tests.faults.scenario import APPS, Run, seed_of_this_run
from tests.waiting import wait_until

WORDS: Final = ("", "", "", "emit", "fail:1")
SORTS: Final = {
    "one by one": Settings(subscriptions=(ONCE,)),
    "in batches": Settings(subscriptions=(ONCE,), messages_per_commit=100),
    "outside": Settings(subscriptions=(SENDER,)),
    "side by side": Settings(subscriptions=(SENDER,), concurrency=4),
}
COMBINATIONS: Final = [(make, sort) for make in APPS for sort in SORTS]
SOME: Final = [(make, sort) for make in APPS for sort in ("in batches", "side by side")]


def die(run: Run, make: str, moment: str) -> None:
    """A relay works until it comes to this moment; what it had in hand is for the next one."""
    if moment.endswith("the careful reading"):  # which is the way of one that takes over
        die(run, make, IN_A_HANDLER)
    run.expire_leases()
    releases = moment.endswith("the release")
    doom = Doom(moment, count=1 if moment.endswith(("the claim", "the release")) else run.dice.randint(1, 3))
    with run.interrupted():
        relay = run.relay(make, settings=replace(run.settings, doom=doom))
        run.write(*WORDS)

        asked = False  # once: a second SIGTERM would end it at once

        def died() -> bool:
            nonlocal asked
            if run.is_delivered() and not asked:
                relay.send(signal.SIGTERM) if releases else run.write(*WORDS)
                asked = releases
            return relay.code is not None

        wait_until(died, timeout=30, message=f"it does not die {moment}")
        assert relay.code == -signal.SIGKILL, (moment, relay.errors)


def die_at(scenario: Scenario, make: str, sort: str, moments: Sequence[str]) -> None:
    """One death after the other, then a relay that lives."""
    with scenario(f"killed at {len(moments)} moments, {make}, {sort}", SORTS[sort]) as run:
        for moment in moments:
            die(run, make, moment)
        run.expire_leases()
        run.relay(make)


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "sort"), COMBINATIONS)
def test_killed_at_every_moment(scenario: Scenario, make: str, sort: str) -> None:
    """Killed before and after everything it does: nothing is lost, doubled or out of order (G2, G3, G5, S1, S6)."""
    die_at(scenario, make, sort, MOMENTS)


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "sort"), SOME)
def test_killed_at_every_moment_on_sqlite(scenario: Scenario, make: str, sort: str) -> None:
    """The same on a file (G2, G3, G5, S1, S6)."""
    die_at(scenario, make, sort, MOMENTS)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize(("make", "sort"), SOME[::3])
def test_killed_at_some_moments(scenario: Scenario, make: str, sort: str) -> None:
    """The short form: together they come to every second moment, which ones is for the dice (G2, G3, G5, S1, S6)."""
    moments = list(MOMENTS)
    random.Random(seed_of_this_run()).shuffle(moments)
    die_at(scenario, make, sort, moments[SOME.index((make, sort)) :: len(SOME)])
