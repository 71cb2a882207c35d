"""No room left on the disk, while relays work: an outage like any other, which ends when there is room again.

SQLite really has no room: its connections may not make the file larger. PostgreSQL says so where and when a row of a table
asks for it, with the SQLSTATE that it has for that; a deferred trigger lets COMMIT itself fail.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from tests.faults import app
from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import Scenario
from tests.faults.deploys import FULL_VARIABLE, version
from tests.faults.history import Interruption
from tests.faults.scenario import APPS, Run, seconds
from tests.waiting import wait_until

MIX: Final = {"fail:1": 0.1, "emit": 0.05}
MOST_TRIES: Final = 30
SETTINGS: Final = Settings(messages_per_commit=10, partitions=2, max_attempts=3, fetch_size=20)
ATTEMPTS: Final = {"": {1}, "emit": {1}, "fail:1": {2}}
"""At which attempt each has its effect, if a full disk has cost none."""

_FULL: Final = """
CREATE TABLE fault_full (place text PRIMARY KEY);
CREATE FUNCTION fault_no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM fault_full WHERE place = TG_ARGV[0]) THEN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fault_a BEFORE INSERT ON fault_effect
    FOR EACH ROW EXECUTE FUNCTION fault_no_room('a handler');
CREATE CONSTRAINT TRIGGER fault_b AFTER INSERT ON fault_effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fault_no_room('the commit of a batch');
CREATE TRIGGER fault_c BEFORE INSERT OR UPDATE ON message_bus_delivery
    FOR EACH ROW EXECUTE FUNCTION fault_no_room('a failure');
CREATE CONSTRAINT TRIGGER fault_d AFTER INSERT OR UPDATE ON message_bus_delivery DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fault_no_room('the commit of a failure');
CREATE TRIGGER fault_e BEFORE UPDATE ON message_bus_subscription
    FOR EACH ROW EXECUTE FUNCTION fault_no_room('the checkpoint and the lease');
"""
PLACES: Final = (
    "a handler", "the commit of a batch", "a failure", "the commit of a failure", "the checkpoint and the lease",
)  # fmt: skip


def prepare(run: Run) -> None:
    """Let the disk be full at a place when `fault_full` says so."""
    with run.engine.begin() as connection:
        for statement in _FULL.replace("$$;\n", "$$;;\n").replace(");\n", ");;\n").split(";;\n"):
            if statement.strip():
                connection.execute(sa.text(statement))


@contextmanager
def no_room(run: Run) -> Iterator[None]:
    """Each time that a relay tries again in this block, it may repeat a batch of the concurrent subscription."""
    began = time.time()
    yield
    run.interruptions += [Interruption(began, time.time())] * MOST_TRIES


@contextmanager
def full(run: Run, *places: str) -> Iterator[None]:
    """Until the end of the block nothing can be written there."""
    with no_room(run):
        with run.engine.begin() as connection:
            connection.execute(
                sa.text("INSERT INTO fault_full VALUES (:place)"), [{"place": each} for each in places]
            )
        yield
        with run.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM fault_full"))


def attempts(run: Run) -> dict[str, set[int]]:
    """At which attempts messages that say the same had their effects, repetitions of the concurrent one left out."""
    e, w = app.effects, app.written
    rows = sa.select(w.c.does, sa.func.min(e.c.attempt)).join_from(e, w, e.c.message_id == w.c.message_id)
    found: dict[str, set[int]] = {}
    with run.looking() as connection:
        for does, attempt in connection.execute(rows.group_by(w.c.does, e.c.message_id, e.c.subscription)):
            found.setdefault(does, set()).add(attempt)
    return found


def is_said(run: Run) -> bool:
    """Whether a relay has said that something is out of reach."""
    return any("out of reach" in relay.errors for relay in run.relays)


def check(run: Run) -> None:
    """The relays are alive, all is delivered, and nobody has paid for it with an attempt."""
    run.wait_until_delivered()
    assert is_said(run)
    assert [relay.code for relay in run.relays] == [None] * len(run.relays)
    found = attempts(run)
    assert found == {does: ATTEMPTS[does] for does in found}


def blow(run: Run, *places: str, span: float) -> None:
    """Full for so long. Where it is the handlers' own table nothing is delivered meanwhile."""
    with full(run, *places):
        wait_until(lambda: is_said(run), timeout=30)
        had = [len(run.effects(each)) for each in (ONCE, SENDER)]
        until = time.monotonic() + span
        wait_until(lambda: time.monotonic() >= until, timeout=span + 10)
        if {"a handler", "the commit of a batch"} <= set(places):
            assert [len(run.effects(each)) for each in (ONCE, SENDER)] == had
    had = [len(run.effects(ONCE))]
    wait_until(lambda: len(run.effects(ONCE)) > had[0], timeout=30, message="it does not go on by itself")


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", APPS)
def test_full_at_random_places(scenario: Scenario, make: str) -> None:
    """Whatever cannot be written: the relays back off, burn no attempts, and go on by themselves (G8, S1, S7)."""
    with scenario(f"disk full at random places, {make}", SETTINGS) as run:
        prepare(run)
        run.relay(make)
        run.relay(make)
        until = time.monotonic() + seconds(8)
        with run.writing(rate=40, mix=MIX):
            wait_until(run.effects)
            blow(run, "a handler", "the commit of a batch", span=0.5)
            while time.monotonic() < until:
                blow(run, *run.dice.sample(PLACES, run.dice.randint(1, 3)), span=run.dice.uniform(0.1, 1))
        check(run)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("make", APPS)
def test_full_at_commit(scenario: Scenario, make: str) -> None:
    """COMMIT itself fails for want of room, that of a batch and that of a failure (G8, S1)."""
    with scenario(f"disk full at COMMIT, {make}", SETTINGS) as run:
        prepare(run)
        run.relay(make)
        with full(run, "the commit of a batch", "the commit of a failure"):
            run.write("fail:1", "", "emit", "")
            wait_until(lambda: is_said(run))
            assert run.effects() == []
        check(run)


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.parametrize("make", APPS)
def test_no_room_on_sqlite(
    scenario: Scenario, make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLITE_FULL is an outage, too: no attempt is burned, and all goes on when there is room (G8)."""
    sign = tmp_path / "full"
    settings = Settings(messages_per_commit=10, max_attempts=2, fetch_size=20)
    with scenario(f"no room, {make}", settings) as run:
        run.relay(version("cramped", make), environment={FULL_VARIABLE: str(sign)})
        run.write("", "", key="a")
        wait_until(lambda: len(run.effects()) == len(run.effects(SENDER)) == 2)
        with no_room(run):
            sign.touch()
            run.write(*["", "", "fail:1", "", "", ""] * 10)
            wait_until(lambda: is_said(run), timeout=30)
            had = len(run.effects())
            assert had < 62
            sign.unlink()
        check(run)
