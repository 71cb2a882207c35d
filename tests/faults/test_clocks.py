"""Workers whose clocks are hours apart and step back: all times are the database's (S2)."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus.storage.types import utc_now
from tests.faults import app
from tests.faults.app import Moved, Settings
from tests.faults.conftest import Scenario
from tests.faults.scenario import APPS, Run, seconds
from tests.faults.writing import register
from tests.waiting import wait_until

HOUR: Final = 3_600.0
AHEAD, BEHIND, JUMPING = (5 * HOUR, 0.0), (-7 * HOUR, 0.0), (0.0, -3 * HOUR)
"""Offset and swing, as `clocks` takes them."""


def instants_of(run: Run) -> list[object]:
    """All instants that are stored: they must lie within the run, by the server's clock."""
    t = app.tables
    columns = [
        t.outbox.c.created_at,
        t.delivery.c.next_attempt_at,
        t.subscription.c.lease_until,
        app.effects.c.at,
    ]
    with run.looking() as connection:
        return [
            instant for column in columns for instant in connection.scalars(sa.select(column).where(column.is_not(None)))
        ]  # fmt: skip


def hours_apart(run: Run, *, span: float, rate: float) -> None:
    """Relays and writers with wrong clocks, killed one after the other."""
    with run.looking() as connection:
        began = connection.scalar(sa.select(utc_now()))
    assert began is not None
    alive = [run.relay("make_bus", clock=AHEAD), run.relay("make_async_bus", clock=BEHIND)]
    writers = run.writers(threads=1, rate=rate, clock=BEHIND)
    with run.writing(threads=2, rate=rate):
        run.wait_for_more(5)
        with Session(run.engine) as session, session.begin():
            delayed = Moved(key="delayed", n=0)
            register(session, delayed, delay=timedelta(seconds=1))
        until = time.monotonic() + span
        for number in range(1_000):
            with run.interrupted():
                alive.pop(0).kill()
            clock = (JUMPING, BEHIND, AHEAD)[number % 3]
            alive.append(run.relay(run.dice.choice(APPS), clock=clock))
            run.wait_for_more()
            if time.monotonic() > until:
                break
    writers.send(signal.SIGTERM)
    assert writers.end() == 0, writers.errors
    wait_until(lambda: delayed.n in run.effects(), timeout=30)
    run.wait_until_delivered()
    with run.looking() as connection:
        ended = connection.scalar(sa.select(utc_now()))
    assert ended is not None
    early, late = began - timedelta(seconds=1), ended + timedelta(minutes=1)
    assert [each for each in instants_of(run) if not early <= each <= late] == []  # type: ignore[operator]


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_clocks_hours_apart(scenario: Scenario) -> None:
    """Leases, retries and delays go by the database's clock, whoever looks at them (G2, G5, S2)."""
    with scenario("clocks hours apart", Settings(messages_per_commit=10, partitions=2)) as run:
        hours_apart(run, span=seconds(20), rate=30)


@pytest.mark.slow
@pytest.mark.postgresql
def test_two_clocks_hours_apart(scenario: Scenario) -> None:
    """The short form (G2, G5, S2)."""
    with scenario("clocks hours apart", Settings(messages_per_commit=10)) as run:
        hours_apart(run, span=0, rate=10)
