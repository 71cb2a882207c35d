"""The number of partitions is changed under load; relays that think of the old one notice, others take their place."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import Subscriptions
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import Scenario
from tests.faults.deploys import version
from tests.faults.nursery import Child
from tests.faults.scenario import APPS, Run, seconds
from tests.waiting import wait_until

REFUSED: Final = 1
MIX: Final = {"emit": 0.05, "fail:1": 0.05, "fail:3": 0.02, "reject": 0.01}


def counts(run: Run) -> set[tuple[str, int, int]]:
    """How many rows each subscription has, and how many they say."""
    s = app.tables.subscription
    with run.looking() as connection:
        rows = Counter((row.name, row.partitions) for row in connection.execute(sa.select(s)))
    return {(name, said, found) for (name, said), found in rows.items()}


def start(run: Run, make: str, partitions: int) -> Child:
    """A relay that thinks of this number."""
    settings = replace(run.settings, partitions=partitions)
    return run.relay(version("impatient", make), settings=settings, lease=1.5)


def repartition(run: Run, partitions: int) -> int:
    """Divide both subscriptions anew, whatever their workers are doing; how many messages had to be held."""
    with Session(run.engine) as session, session.begin():
        operator = Subscriptions(session, tables=app.tables)
        # one transaction, so that nobody finds one of them changed
        changes = [
            operator.repartition(name, partitions, hold=True, force=True, by="a test")
            for name in (ONCE, SENDER)
        ]
    return sum(change.held for change in changes)


def change(run: Run, makes: list[str], relays: list[Child], number: int) -> tuple[list[Child], int]:
    """Another number while everything runs: the relays that work then, and how many messages had to be held."""
    too_early = start(run, makes[0], number)
    assert too_early.end() == REFUSED
    assert "(set it to" in too_early.errors
    deaf = run.relay(makes[0], lease=1.5)  # looks at its subscriptions once a minute, as relays do
    wait_until(lambda: deaf.log.exists() and deaf.errors.count("standby") == 2 * run.settings.partitions)
    held = repartition(run, number)
    for relay in relays:  # within one round of their housekeepers
        assert relay.end() == REFUSED
        assert f"but the database has {number} (set it to {number})" in relay.errors
    assert counts(run) == {(name, number, number) for name in (ONCE, SENDER)}
    run.settings = replace(run.settings, partitions=number)
    return [start(run, make, number) for make in makes], held


def change_under_load(
    scenario: Scenario, makes: list[str], numbers: list[int], *, rate: float, span: float
) -> None:
    """From one number to the next; some relays are deployed too early, some go on with the old number."""
    settings = Settings(partitions=numbers[0], messages_per_commit=10, max_attempts=8)
    with scenario(f"{' → '.join(map(str, numbers))} partitions", settings) as run, run.interrupted():
        run.codes_allowed.add(REFUSED)
        relays = [start(run, make, numbers[0]) for make in makes]
        held = 0
        with run.writing(rate=rate, mix=MIX):
            wait_until(lambda: counts(run) == {(name, numbers[0], numbers[0]) for name in (ONCE, SENDER)})
            for number in numbers[1:]:
                _let_work(run, span)
                relays, more = change(run, makes, relays, number)
                held += more
            _let_work(run, span)
        run.wait_until_delivered()
        print(f"{held} messages were held to bring partitions to one position")


def _let_work(run: Run, span: float) -> None:
    """For so long, and until something was delivered."""
    count, until = len(run.effects()), time.monotonic() + span
    wait_until(lambda: time.monotonic() >= until and len(run.effects()) > count, timeout=span + 30)


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("makes", [["make_bus", "make_bus"], list(reversed(APPS))], ids=["sync", "mixed"])
def test_repartition_under_load(scenario: Scenario, makes: list[str]) -> None:
    """Every key stays in order, effects are there once, relays with the old number end and say why (S5, G3, G5, G6)."""
    change_under_load(scenario, makes, [1, 4, 2, 3], rate=40, span=seconds(1.5))


@pytest.mark.slow
@pytest.mark.postgresql
def test_repartition(scenario: Scenario) -> None:
    """The short form (S5, G3, G5, G6)."""
    change_under_load(scenario, ["make_bus"], [2, 3], rate=40, span=0.2)
