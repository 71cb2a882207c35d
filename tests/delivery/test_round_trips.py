"""How often a batch goes to the database, and that reading ahead in the statement that moves the checkpoint loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import FixedDelay
from tests.conftest import OF_THE_OUTBOX
from tests.delivery.world import Noted, Pay, Placed, World

pytestmark = pytest.mark.postgresql


@contextmanager
def counted(engine: sa.Engine) -> Iterator[list[str]]:
    """What goes to the database, one entry a round trip: psycopg sends BEGIN, each statement and COMMIT on their own."""
    trips: list[str] = []

    def statement(conn: Any, cursor: Any, text: str, *rest: Any) -> None:
        trips.append(text)

    def begin(conn: Any) -> None:
        trips.append("BEGIN")

    def commit(conn: Any) -> None:
        trips.append("COMMIT")

    listeners = {"before_cursor_execute": statement, "begin": begin, "commit": commit}
    for name, listener in listeners.items():
        sa.event.listen(engine, name, listener)
    try:
        yield trips
    finally:
        for name, listener in listeners.items():
            sa.event.remove(engine, name, listener)


def trips_for(world: World, engine: sa.Engine, messages: int, handler: Any) -> int:
    """The round trips of a run over so many messages."""
    world.bus.set_event_handlers(Noted, [handler])
    world.register(*(Noted(n) for n in range(messages)))
    with counted(engine) as trips:
        assert world.process().delivered == messages
    return len(trips)


def test_a_steady_batch_costs_three_round_trips(world: World, engine: sa.Engine) -> None:
    """BEGIN, the statement that moves the checkpoint and reads the next rows, COMMIT; the rest is per run."""
    world.settings(messages_per_commit=10, fetch_size=10)
    trips_for(world, engine, 10, lambda event: None)
    few = trips_for(world, engine, 50, lambda event: None)
    many = trips_for(world, engine, 150, lambda event: None)
    assert many - few == 3 * (150 - 50) / 10


def test_single_commits_cost_three_round_trips_and_a_share_of_the_read(
    world: World, engine: sa.Engine
) -> None:
    """With one message a commit the rows are read `fetch_size` at a time, in the commit of the last of them."""
    world.settings(messages_per_commit=1, fetch_size=10)
    trips_for(world, engine, 10, lambda event: None)
    few = trips_for(world, engine, 20, lambda event: None)
    many = trips_for(world, engine, 60, lambda event: None)
    assert many - few == 3 * (60 - 20)


def test_a_failure_makes_the_next_read_look_for_blocked_keys(world: World) -> None:
    """G3: rows read ahead are not used once a key is blocked; what follows of that key is held, others go on."""
    world.settings(messages_per_commit=2, fetch_size=2, backoff=FixedDelay(3600))
    world.fail("a:1", 1)
    world.register(
        Placed("b", 0), Placed("c", 0), Placed("a", 1), Placed("b", 1), Placed("a", 2), Placed("b", 2)
    )
    report = world.process()
    assert world.effects() == ["b:0", "c:0", "b:1", "b:2"]
    assert (report.retrying, report.held) == (1, 1)


def test_rows_that_the_handlers_role_may_not_see_are_not_lost(world: World, engine: sa.Engine) -> None:
    """W9: a handler that changes the role of its transaction would make row-level security hide the next rows."""
    role = f"tenant_{world.tables.outbox.name[:5]}_{id(world)}"
    outbox = world.tables.outbox.name
    tables = ", ".join(table.name for table in OF_THE_OUTBOX)

    def becomes_somebody_else(event: Noted, context: Any) -> None:
        context.db_session.execute(sa.text(f"SET LOCAL ROLE {role}"))

    with engine.connect() as connection:
        schema = connection.execute(sa.text("SELECT current_schema()")).scalar_one()
        connection.execute(sa.text(f"CREATE ROLE {role}"))
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
        connection.execute(sa.text(f"GRANT ALL ON {tables} TO {role}"))
        connection.execute(sa.text(f"ALTER TABLE {outbox} ENABLE ROW LEVEL SECURITY"))
        connection.execute(sa.text(f"CREATE POLICY third ON {outbox} USING (position % 3 = 0)"))
        connection.commit()
    try:
        world.settings(messages_per_commit=2, fetch_size=2)
        world.bus.set_event_handlers(Noted, [becomes_somebody_else])
        world.register(*(Noted(n) for n in range(7)))
        assert world.process().delivered == 7
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP POLICY third ON {outbox}"))
            connection.execute(sa.text(f"ALTER TABLE {outbox} DISABLE ROW LEVEL SECURITY"))
            connection.execute(sa.text(f"DROP OWNED BY {role}"))
            connection.execute(sa.text(f"DROP ROLE {role}"))
            connection.commit()


def test_only_some_types_are_read_ahead(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A subscription with `types=`: each of its messages once, in order; no batch has to be repeated (G2, G3)."""
    caplog.set_level(logging.INFO, logger="message_bus.delivery")
    world.settings(messages_per_commit=2, fetch_size=2, types=[Noted, Pay])
    world.register(*(each for n in range(9) for each in (Noted(n), Placed("a", n), Pay(n))))
    assert world.process().delivered == 18
    assert world.effects() == [each for n in range(9) for each in (str(n), f"pay {n}")]
    assert "repeated" not in caplog.text
