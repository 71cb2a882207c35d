"""Retention all the time, beside delivery, failing messages, and subscriptions that are made and moved back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import Subscriptions
from message_bus.admin.retention import prune
from message_bus.storage.tables import DEAD
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import Scenario
from tests.faults.deploys import version
from tests.faults.history import Interruption
from tests.faults.scenario import APPS, Run, seconds
from tests.waiting import wait_until

KEYS: Final = tuple(f"key-{number:03}" for number in range(200))
MIX: Final = {"fail:2": 0.05, "reject": 0.02}
SETTINGS: Final = Settings(messages_per_commit=10, partitions=2, backoff=0.1)
DAYS: Final = "0.000001"  # a tenth of a second
AGES: Final = (timedelta(0), timedelta(seconds=0.3), timedelta(seconds=1))

# the database says what happens to it: what was removed too early, and where a subscription has been put
_SPY: Final = """
CREATE TABLE fault_gone_early (position bigint, why text);
CREATE TABLE fault_start (subscription text, position bigint, pruned_to bigint, effect bigint);

CREATE FUNCTION fault_on_prune() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO fault_gone_early SELECT OLD.position, name || ' is at ' || position
        FROM message_bus_subscription WHERE position < OLD.position
    UNION ALL SELECT OLD.position, subscription || ' has it as ' || state
        FROM message_bus_delivery WHERE position = OLD.position;
    RETURN NULL;
END $$;
CREATE TRIGGER fault_on_prune AFTER DELETE ON message_bus_outbox FOR EACH ROW EXECUTE FUNCTION fault_on_prune();

CREATE FUNCTION fault_on_start() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO fault_start VALUES (NEW.name, NEW.position, (SELECT max(pruned_to) FROM message_bus_log),
        (SELECT coalesce(max(id), 0) FROM fault_effect));
    RETURN NULL;
END $$;
CREATE TRIGGER fault_on_making AFTER INSERT ON message_bus_subscription
    FOR EACH ROW EXECUTE FUNCTION fault_on_start();
CREATE TRIGGER fault_on_rewinding AFTER UPDATE ON message_bus_subscription
    FOR EACH ROW WHEN (NEW.position < OLD.position) EXECUTE FUNCTION fault_on_start();
"""


def rows(run: Run, query: str, **parameters: object) -> list[tuple[Any, ...]]:
    """What the database says."""
    with run.looking() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query), parameters)]


def assert_nothing_gone_early(run: Run) -> None:
    """Nobody has pruned what a subscription had not passed, or what it had on record (G9)."""
    assert rows(run, "SELECT position, why FROM fault_gone_early") == []


def is_pruned(run: Run) -> bool:
    """Whether anything was removed."""
    return bool(rows(run, "SELECT 1 FROM message_bus_log WHERE pruned_to > 0"))


@contextmanager
def pruning(run: Run) -> Iterator[None]:
    """Two threads prune again and again."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(dice: Random) -> None:
        try:
            while not stop.wait(dice.uniform(0, 0.05)):
                with Session(run.engine) as session:
                    prune(session, dice.choice(AGES), tables=app.tables)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(Random(run.seed + number),), name="pruner") for number in range(2)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


class Rewinder:
    """Moves the concurrent subscription back, or drops it so that a relay makes it anew; sees what it then gets."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def drop(self) -> None:
        """Forget it; a relay makes it again, from the beginning of what is kept. What is gone by then, it does not get."""
        run = self.run
        before = len(self._starts())
        with Session(run.engine) as session, session.begin():
            Subscriptions(session, tables=app.tables).drop(SENDER, force=True, by="a test")
        wait_until(lambda: len(self._starts()) > before, timeout=30)
        position, pruned_to, effect = self._starts()[-1]
        assert position == pruned_to
        gone = (
            "SELECT message, key, n FROM fault_effect WHERE subscription = :once AND position <= :start"
            " UNION SELECT message, key, (payload ->> 'n')::bigint FROM message_bus_outbox WHERE position <= :start"
        )
        self._excuse(rows(run, gone, once=ONCE, start=position))
        self._see(position, effect)

    def rewind(self) -> None:
        """Move it back to the beginning of what is kept, or to some position after that. Its dead letters are forgotten."""
        run = self.run
        before = len(self._starts())
        recorded = (
            "SELECT o.message, o.key, (o.payload ->> 'n')::bigint FROM message_bus_outbox o"
            " JOIN message_bus_delivery USING (position) WHERE subscription = :name"
        )
        with Session(run.engine) as session, session.begin():
            low = session.scalars(sa.text("SELECT pruned_to FROM message_bus_log FOR UPDATE")).one()
            locked = sa.text("SELECT position FROM message_bus_subscription WHERE name = :name FOR UPDATE")
            high = min(session.scalars(locked, {"name": SENDER}))
            to = "beginning" if high < low or run.dice.random() < 0.5 else run.dice.randint(low, high)
            forgotten = [tuple(row) for row in session.execute(sa.text(recorded), {"name": SENDER})]
            self._excuse(forgotten)
            # later ones of the keys of those that are dead have been delivered already
            dead = session.execute(sa.text(f"{recorded} AND state = 'dead'"), {"name": SENDER})
            run.out_of_turn[SENDER] = {*run.out_of_turn.get(SENDER, ()), *map(tuple, dead)}
            change = Subscriptions(session, tables=app.tables).reset(SENDER, to, force=True, by="a test")
        assert change.position is not None
        if len(self._starts()) > before:  # else it was there already
            position, pruned_to, effect = self._starts()[-1]
            assert position == change.position >= pruned_to
            self._see(position, effect)

    def _excuse(self, messages: list[tuple[Any, ...]]) -> None:
        self.run.excused[SENDER] = {*self.run.excused.get(SENDER, ()), *messages}

    def _starts(self) -> list[tuple[int, int, int]]:
        found = rows(
            self.run,
            "SELECT position, pruned_to, effect FROM fault_start WHERE subscription = :name ORDER BY ctid",
            name=SENDER,
        )
        return [(position, pruned_to, effect) for position, pruned_to, effect in found]

    def _see(self, start: int, effect: int) -> None:
        """Everything behind the start that was there when it was put there is delivered after that."""
        run = self.run
        ((high,),) = rows(run, "SELECT coalesce(max(position), 0) FROM message_bus_outbox")
        behind = "SELECT 1 FROM message_bus_subscription WHERE name = :name AND position < :high"
        waits = "SELECT 1 FROM message_bus_delivery WHERE subscription = :name AND position <= :high AND state <> :dead"

        def is_there() -> bool:
            assert_nothing_gone_early(run)
            return not rows(run, f"{behind} UNION ALL {waits}", name=SENDER, high=high, dead=DEAD)

        wait_until(is_there, timeout=90, message="it does not get to where the log was")
        lacking = rows(
            run,
            "SELECT e.position FROM fault_effect e WHERE e.subscription = :once AND e.position > :start"
            " AND e.position <= :high AND NOT EXISTS (SELECT 1 FROM fault_effect s WHERE s.subscription = :sender"
            " AND s.position = e.position AND s.id > :effect)",
            once=ONCE, sender=SENDER, start=start, high=high, effect=effect,
        )  # fmt: skip
        assert lacking == [], f"not delivered after it was put to {start}"


def race(run: Run, make: str, *, rate: float, span: float, relays: int, drops: int, rewinds: int) -> None:
    """Retention beside everything, for so long; so often the subscription is dropped, then moved back."""
    with run.engine.begin() as connection:
        for statement in _SPY.split(";\n\n"):
            connection.execute(sa.text(statement))
    for _ in range(relays):
        run.relay(version("impatient", make), "--retention", DAYS, lease=1.5)
    rewinder = Rewinder(run)
    until = time.monotonic() + span
    began = time.time()
    with run.writing(rate=rate, keys=KEYS, mix=MIX), pruning(run):
        wait_until(lambda: len(rows(run, "SELECT 1 FROM message_bus_subscription")) == 4)
        for _ in range(drops):
            rewinder.drop()
        done = 0
        while done < rewinds or time.monotonic() < until:
            rewinder.rewind()
            done += 1
        run.write("reject", key="refused")  # so that something stays on record
        wait_until(lambda: is_pruned(run), message="nothing is old enough to be removed")
    assert_nothing_gone_early(run)
    # whoever moves a subscription back wants repetitions: as many as there are messages
    run.interruptions += [Interruption(began, time.time())] * len(run.effects(ONCE))
    run.wait_until_delivered()
    assert_nothing_gone_early(run)
    orphans = (
        "SELECT position FROM message_bus_delivery EXCEPT SELECT position FROM message_bus_outbox"
        " UNION ALL SELECT 0 WHERE (SELECT count(*) FROM message_bus_delivery) = 0"
    )
    assert rows(run, orphans) == []


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_retention_races_everything(scenario: Scenario, make: str) -> None:
    """Nothing goes that a subscription has not passed, is trying again, or has as a dead letter (G9, S4)."""
    with scenario(f"retention races everything, {make}", SETTINGS) as run:
        race(run, make, rate=25, span=seconds(8), relays=2, drops=2, rewinds=4)


@pytest.mark.slow
@pytest.mark.postgresql
def test_retention_races(scenario: Scenario) -> None:
    """The short form (G9, S4)."""
    with scenario("retention races, short", SETTINGS) as run:
        race(run, "make_bus", rate=60, span=0, relays=1, drops=1, rewinds=1)
