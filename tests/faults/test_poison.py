"""Messages that end the process, cannot be read, or are not known yet: what becomes of them, and of their neighbours."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import OutboxMessage, SQLAlchemyOutBoxRepo
from message_bus.storage.tables import DEAD, RETRYING
from tests.faults import app
from tests.faults.app import ONCE, SENDER, Moved, Settings
from tests.faults.conftest import Scenario
from tests.faults.deploys import version
from tests.faults.nursery import Child
from tests.faults.scenario import APPS, Run, seconds
from tests.waiting import wait_until

KILLED: Final = -signal.SIGKILL
EXITED: Final = 7
MOST: Final = 2  # max_attempts
BESIDE: Final = Settings(partitions=2, concurrency=4, messages_per_commit=10, max_attempts=MOST)


def deliveries(run: Run) -> list[Any]:
    """What is recorded about messages that were not simply handled, with the number of each."""
    d, e = app.tables.delivery, app.tables.outbox
    rows = sa.select(d, e.c.payload).join_from(d, e, d.c.position == e.c.position).order_by(d.c.position)
    with run.looking() as connection:
        return list(connection.execute(rows))


def blamed(run: Run) -> set[int]:
    """Which messages are said to have killed a worker, or to be in the hand of one that is dead."""
    return {row.payload["n"] for row in deliveries(run) if row.crashes or row.state == "trying"}


def dead(run: Run) -> dict[tuple[str, int], Any]:
    """The dead letters, by subscription and number."""
    return {(row.subscription, row.payload["n"]): row for row in deliveries(run) if row.state == DEAD}


def keep_alive(
    run: Run,
    make: str,
    killers: set[int],
    code: int,
    *,
    relays: Sequence[Child] = (),
    until: float = 0.0,
) -> int:
    """Start a relay for each that has died, until all is delivered; how many have died. `relays`: all that are there.

    Whenever all are dead, what is recorded may put the blame on nobody but `killers`. (One that lives may be trying
    an innocent one.)
    """
    alive = list(relays) or [run.relay(make, lease=1)]
    deaths = 0
    ends_at = time.monotonic() + 120
    while not (run.is_delivered() and time.monotonic() >= until):
        assert time.monotonic() < ends_at, run.position()
        ended = [relay for relay in alive if relay.code is not None]
        for relay in ended:
            assert relay.code == code, relay.errors
            alive.remove(relay)
            deaths += 1
        if not alive:
            assert blamed(run) <= killers
            run.expire_leases()
        alive += [run.relay(make, lease=1) for _ in ended]
        time.sleep(0.01)
    assert blamed(run) <= killers
    return deaths


def numbers(messages: list[Moved]) -> set[int]:
    """How they are called in the tables."""
    return {each.n for each in messages}


# --- a message that ends the process, beside innocent ones --------------------------------------------------------------


def end_the_process(scenario: Scenario, make: str, does: str, code: int) -> None:
    """A message that does that, with innocent ones before, behind and beside it."""
    with scenario(f"a {does} beside a slow one, {make}", BESIDE) as run:
        run.codes_allowed.add(code)
        innocent = run.write("sleep:0.1", "", "", key="slow")
        killers = run.write(does, key="poison")
        after = run.write("", "emit", key="poison")
        more = run.write("", "sleep:0.1", "", key="also slow")
        with run.interrupted():
            deaths = keep_alive(run, make, numbers(killers), code)
        letters = dead(run)
        assert set(letters) == {(name, n) for name in (ONCE, SENDER) for n in numbers(killers)}
        assert {(row.crashes, row.attempts) for row in letters.values()} == {(MOST, 0)}
        assert (
            2 * MOST <= deaths <= 2 * MOST + 4
        )  # the first ones are nobody's: they do not know of each other
        delivered = sorted(run.effects(ONCE))
        assert {n: delivered.count(n) for n in numbers([*innocent, *more, *after])} == {
            **dict.fromkeys(numbers([*innocent, *more, *after]), 1),
            after[1].n: 2,  # itself, and what it has emitted
        }


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("make", "does", "code"),
    [("make_bus", "kill", KILLED), ("make_async_bus", "kill", KILLED), ("make_bus", "exit", EXITED)],
)
def test_one_that_ends_the_process(scenario: Scenario, make: str, does: str, code: int) -> None:
    """It is a dead letter after max_attempts crashes; a slow innocent one is never blamed, and handled once (G7, S6)."""
    end_the_process(scenario, make, does, code)


@pytest.mark.faults
@pytest.mark.parametrize("make", APPS)
@pytest.mark.parametrize(("does", "code"), [("kill", KILLED), ("exit", EXITED)])
def test_whatever_ends_the_process(scenario: Scenario, make: str, does: str, code: int) -> None:
    """All of these (G7, S6)."""
    end_the_process(scenario, make, does, code)


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_poison_among_many(scenario: Scenario, make: str) -> None:
    """Killers again and again, two relays, writers beside: only killers die (G2, G3, G5, G7, S6)."""
    settings = replace(BESIDE, partitions=3, fetch_size=20)
    with scenario(f"killers under load, {make}", settings) as run:
        until = time.monotonic() + seconds(8)
        mix = {"emit": 0.05, "fail:1": 0.03, "sleep:0.05": 0.05, "kill": 0.005}
        with run.interrupted(), run.writing(rate=30, mix=mix) as writers:
            relays = [run.relay(make, lease=1), run.relay(make, lease=1)]
            while time.monotonic() < until:
                relays = [run.relay(make, lease=1) if relay.code is not None else relay for relay in relays]
                time.sleep(0.02)
            writers.stop()
            killers = {each.n for each in writers.acknowledged if each.does == "kill"}
            keep_alive(run, make, killers, KILLED, relays=relays)
        assert {n for _, n in dead(run)} <= killers
        assert len(dead(run)) == 2 * len(killers)


@pytest.mark.slow
@pytest.mark.parametrize("make", APPS)
def test_system_exit_is_no_failure_of_the_message(scenario: Scenario, make: str) -> None:
    """The relay ends with the code that was asked for, nothing is recorded; the next one delivers it (S6, G2)."""
    with scenario(f"SystemExit in a handler, {make}", Settings(subscriptions=(ONCE,))) as run:
        run.codes_allowed.add(EXITED)
        run.write("", "exit", "", key="a")
        relay = run.relay(make)
        assert relay.end() == EXITED
        assert "the relay stops" in relay.errors
        assert deliveries(run) == []
        with run.looking() as connection:
            assert connection.scalar(sa.select(app.tables.subscription.c.owner)) is not None  # left to expire
        run.expire_leases()
        run.relay(version("mended", make))
        run.wait_until_delivered()
        assert deliveries(run) == []


# --- what cannot be read -----------------------------------------------------------------------------------------------


def write_unreadable(run: Run, n: int, **payload: Any) -> None:
    """Commit a row of the outbox that no Moved can be made of."""
    with Session(run.engine) as session, session.begin():
        row = OutboxMessage(type="EVENT", message="Moved", payload={"n": n, **payload}, key="bad")
        SQLAlchemyOutBoxRepo(session).add(row)
        session.execute(app.written.insert().values(message_id=row.id, key="bad", n=n, does=""))


@pytest.mark.slow
@pytest.mark.parametrize("make", APPS)
def test_one_that_cannot_be_decoded(scenario: Scenario, make: str) -> None:
    """It is a dead letter at once, with its error and traceback; its key goes on (G7)."""
    with scenario(f"unreadable, {make}", Settings(subscriptions=(ONCE,), messages_per_commit=10)) as run:
        run.write("", "", key="bad")
        write_unreadable(run, -1, key="bad", does=17)
        write_unreadable(run, -2)
        run.write("", "fail:1", "", key="bad")
        run.relay(make)
        run.wait_until_delivered()
        letters = dead(run)
        assert set(letters) == {(ONCE, -1), (ONCE, -2)}
        assert all("cannot be decoded" in row.error or "Decode" in row.error for row in letters.values())
        assert all(row.traceback and row.attempts == 1 for row in letters.values())


# --- an old worker meets a new type ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", APPS)
def test_a_new_type_in_a_rolling_deploy(scenario: Scenario, make: str) -> None:
    """The old worker tries it again until a new one takes its place, which delivers it in order (G7, G3)."""
    with scenario(f"a rolling deploy, {make}", Settings(subscriptions=(ONCE,), partitions=2)) as run:
        old = run.relay(version("old", make))
        run.write("", "", "emit", key="a")
        run.write("", key="b")
        wait_until(lambda: {row.state for row in deliveries(run)} >= {RETRYING})
        run.relay(make)
        run.write("", "fail:1", "", key="a")
        wait_until(lambda: sum(row.attempts for row in deliveries(run)) > 4)
        assert run.effects() == []
        old.send(signal.SIGTERM)
        run.wait_until_delivered()
        assert dead(run) == {}


@pytest.mark.slow
@pytest.mark.parametrize("make", APPS)
def test_a_dead_unknown_is_revived(scenario: Scenario, make: str) -> None:
    """What died because its type was unknown is tried again by itself when a worker knows it (G7)."""
    settings = Settings(subscriptions=(ONCE,), max_attempts=2)
    with scenario(f"dead because it was unknown, {make}", settings) as run:
        old = run.relay(version("old", make))
        run.write("", "emit", "", key="a")
        run.write("", key="b")
        wait_until(lambda: len(dead(run)) == 4)
        assert old.stop() == 0
        run.relay(make)
        run.write("", key="a")
        wait_until(lambda: dead(run) == {})


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_deploys_back_and_forth(scenario: Scenario, make: str) -> None:
    """Old and new workers take turns under load: nothing is lost, every key stays in order (G2, G3, G5, G7)."""
    settings = Settings(subscriptions=(ONCE,), partitions=2, messages_per_commit=10, max_attempts=1_000)
    with scenario(f"deploys back and forth, {make}", settings) as run:
        until = time.monotonic() + seconds(10)
        with run.writing(rate=40):
            relay = run.relay(make)
            while time.monotonic() < until:
                following = run.relay(run.dice.choice([make, version("old", make)]))
                count, wait = len(run.effects()), time.monotonic() + run.dice.uniform(0.3, 1.5)
                wait_until(lambda: len(run.effects()) > count + 20 or time.monotonic() > wait)  # noqa: B023
                assert relay.stop() == 0
                relay = following
            relay.send(signal.SIGTERM)
        run.relay(make)
