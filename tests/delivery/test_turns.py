"""On SQLite, who writes while a worker has much to do gets a turn, however little time there is between two commits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus.delivery import turns
from message_bus.delivery.turns import REST, Turns
from tests.delivery.world import EFFECT, Noted, World

LONG = 0.4  # seconds that the messages of one commit take: longer than it takes a writer to ask every 0.1 seconds only


@pytest.mark.sqlite
@pytest.mark.slow
def test_a_writer_gets_a_turn_while_there_is_a_backlog(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its busy_timeout ends before the backlog does, and the application cannot write."""
    monkeypatch.setattr(turns, "WORK", LONG / 2)
    world.settings(messages_per_commit=10)
    world.register(*[Noted(n=n) for n in range(60)])
    handled: list[int] = []
    written_after: list[int] = []

    def write() -> None:
        with world.sessions.begin() as session:
            session.execute(sa.insert(EFFECT).values(note="another"))
        written_after.append(len(handled))

    writer = threading.Thread(target=write)

    def work(message: Any, context: Any) -> None:
        context.db_session.execute(
            sa.insert(EFFECT).values(note=str(message.n))
        )  # from here on nobody else can
        if not handled:
            writer.start()
        time.sleep(LONG / 10)
        handled.append(message.n)

    world.bus.set_event_handlers(Noted, [work])
    world.process()
    writer.join()
    assert len(handled) == 60
    assert written_after[0] < 60


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rests that were taken; time passes only where the test says so."""
    taken: list[float] = []
    monkeypatch.setattr(turns, "pause", taken.append)
    return taken


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[the time that monotonic() tells], which may lie below zero."""
    now = [-1_000.0]
    monkeypatch.setattr(turns, "monotonic", lambda: now[0])
    return now


@pytest.mark.sqlite
def test_a_rest_follows_a_second_of_work(world: World, rests: list[float], clock: list[float]) -> None:
    """Also of work in many short runs; not of a run that comes after a while."""
    mine, table = Turns(), world.tables.subscription
    with world.sessions() as session:
        for _ in range(5):
            mine.begin()
            clock[0] += 0.25
            mine.give_way(session, table)
            mine.end()
        assert rests == [REST]
        clock[0] += 60
        mine.begin()
        mine.give_way(session, table)
        clock[0] += 0.75
        mine.give_way(session, table)
        assert rests == [REST]


def test_nobody_waits_for_it_in_a_transaction_or_on_another_database(
    world: World, backend: str, rests: list[float], clock: list[float]
) -> None:
    """In the caller's transaction a rest would only make others wait longer; PostgreSQL has many writers."""
    mine, table = Turns(), world.tables.subscription
    with world.sessions() as session:
        mine.begin()
        clock[0] += 2
        session.execute(sa.select(1))
        mine.give_way(session, table)
        assert rests == []
        session.rollback()
        clock[0] += 2
        mine.give_way(session, table)
        assert rests == ([REST] if backend == "sqlite" else [])
