"""A subscription is added to a log with history, while writers and relays are at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import SQLAlchemyOutBoxRepo, Subscriptions
from message_bus.storage.types import utc_now
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Moved, Settings
from tests.faults.conftest import Scenario
from tests.faults.history import Message
from tests.faults.scenario import APPS, Run, seconds
from tests.faults.writing import register
from tests.waiting import wait_until

MIX: Final = {"fail:1": 0.05}  # no "emit": who asks when an Echo was written?
PLACES: Final = ("beginning", "now", "position", "time", "told")
OPEN: Final = -1_000  # the numbers of messages that are written, but not committed for a while


@dataclass(frozen=True)
class Past:
    """What had been written before: its messages, where it ends, and when."""

    messages: set[Message]
    position: int
    ended_at: datetime


def committed(run: Run) -> set[Message]:
    """What is committed at this moment."""
    with run.looking() as connection:
        rows = connection.execute(sa.select(app.written.c.key, app.written.c.n))
        return {("Moved", key, n) for key, n in rows}


def write_past(run: Run, count: int) -> Past:
    """At least so many messages, all committed before anything else happens."""
    with run.writing(rate=500, mix=MIX):
        wait_until(lambda: len(committed(run)) >= count)
    with run.looking() as connection:
        position, now = connection.execute(
            sa.select(sa.func.max(app.tables.outbox.c.position), utc_now())
        ).one()
    return Past(committed(run), position, now)


def states(run: Run) -> set[str]:
    """Of the late subscription's partitions; none before it is made."""
    s = app.tables.subscription
    with run.looking() as connection:
        return set(connection.scalars(sa.select(s.c.state).where(s.c.name == SENDER)))


@contextmanager
def open_for_a_while(run: Run) -> Iterator[None]:
    """A transaction that has drawn positions already is committed a moment after the subscription was made."""

    def write() -> None:
        with Session(run.engine) as session, session.begin():
            for n in range(OPEN, OPEN + 5):
                register(session, Moved(key="key-00", n=n))
            SQLAlchemyOutBoxRepo(session).flush()
            drawn.set()
            made.wait()
            ended.wait(0.2)  # longer than a look, shorter than anybody's patience

    drawn, made, ended = threading.Event(), threading.Event(), threading.Event()
    thread = threading.Thread(target=write, name="slow writer")
    thread.start()
    try:
        assert drawn.wait(10)
        yield
        wait_until(lambda: states(run))
    finally:
        made.set()
        thread.join()


def add(run: Run, make: str, place: str, past: Past) -> tuple[set[Message], set[Message]]:
    """Start a relay that has the late subscription, too: what it may leave out, and what it must not deliver."""
    start = {"position": past.position, "time": past.ended_at.isoformat(), "told": None}.get(place, place)
    run.settings = replace(run.settings, subscriptions=(ONCE, SENDER), start=start)
    before = committed(run)
    run.relay(make)
    if place == "told":
        wait_until(lambda: states(run) == {"idle"})
        before = committed(run)
        with Session(run.engine) as session, session.begin():
            Subscriptions(session, tables=app.tables).start(SENDER, "now", by="a test")
    wait_until(lambda: states(run))
    match place:
        case "beginning":
            return set(), set()
        case "now":
            return committed(run), before  # what was committed meanwhile is on this side, or on that one
        case "told":
            return committed(run), before
        case _:
            return past.messages, past.messages


def add_late(
    scenario: Scenario, make: str, place: str, *, past: int, span: float, rate: float, partitions: int = 1
) -> None:
    """Write the past, go on writing, add the subscription, and see what it gets."""
    early = Settings(subscriptions=(ONCE,), messages_per_commit=10, partitions=partitions)
    with scenario(f"a late subscription: {place}, {make}", early) as run:
        before = write_past(run, past)
        run.relay(make)
        wait_until(
            run.effects
        )  # or the second relay would make the first subscription, where it makes its own
        # an operator is told to come back when there are open writers
        is_crowded = run.engine.dialect.name == "postgresql" and place != "told"
        with run.writing(rate=rate, mix=MIX):
            with open_for_a_while(run) if is_crowded else nullcontext():
                may_lack, forbidden = add(run, make, place, before)
            run.excused[SENDER] = may_lack
            wait_until(lambda: states(run) == {"active"}, timeout=30)
            until = time.monotonic() + span
            wait_until(lambda: time.monotonic() >= until, timeout=span + 10)
        run.wait_until_delivered()
        e = app.effects
        with run.looking() as connection:
            rows = connection.execute(
                sa.select(e.c.message, e.c.key, e.c.n).where(e.c.subscription == SENDER)
            )
            delivered = {(message, key, n) for message, key, n in rows}
        assert not delivered & forbidden
        assert delivered


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("place", "make"), [*zip(PLACES, cycle(APPS), strict=False)])
def test_added_under_load(scenario: Scenario, make: str, place: str) -> None:
    """It gets what it must from where it starts: all of it, in order, and nothing that lies clearly before (S4, G2, G3)."""
    add_late(scenario, make, place, past=200, span=seconds(1.5), rate=60, partitions=2)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["now", "time"])
def test_added(scenario: Scenario, place: str) -> None:
    """The short form (S4, G2, G3)."""
    add_late(scenario, "make_bus", place, past=50, span=0.3, rate=40)
