"""Delayed messages: listed, and taken back by their ids, before they are due."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus import (
    AsyncMessageBus,
    AsyncSchedule,
    CancelReport,
    Schedule,
    ScheduledMessage,
    SettingsError,
    UnsupportedDatabase,
    WiringError,
)
from tests.admin.operators import LONG_AGO, Meanwhile, before
from tests.delivery.world import Noted, Pay, Placed, World

HOUR = timedelta(hours=1)
ID = UUID(int=1)


def listed(world: World, **selection: Any) -> list[ScheduledMessage]:
    """The delayed messages."""
    with world.sessions() as session:
        return Schedule(session, tables=world.tables).list(**selection)


def cancel(world: World, *ids: UUID | str, **options: Any) -> CancelReport:
    """Cancel, and commit."""
    with world.sessions.begin() as session:
        return Schedule(session, tables=world.tables).cancel(ids, **options)


def due(world: World) -> None:
    """Let all delayed messages be due."""
    world.write(sa.update(world.tables.schedule).values(due_at=LONG_AGO))


def test_what_is_delayed(world: World) -> None:
    """The next due first, with what is known about it; payload and meta only on request."""
    world.register(Noted(n=2), delay=2 * HOUR)
    world.register(Placed(order="a", n=1), delay=HOUR, id=ID, meta={"user": "ann"})
    world.register(Pay(n=3), delay=3 * HOUR)
    first, second, third = listed(world)
    assert (first.id, first.type, first.message, first.key) == (ID, "EVENT", "Placed", "a")
    assert timedelta(minutes=59) < first.due_at - datetime.now(UTC) <= HOUR
    assert (first.payload, second.message, third.type) == (None, "Noted", "COMMAND")
    assert listed(world, limit=1) == [first]
    assert listed(world, after=first) == [second, third]
    assert listed(world, message="Noted") == [second]
    assert listed(world, key="a") == [first]
    [shown] = listed(world, limit=1, payload=True)
    assert (shown.payload, shown.meta) == ({"order": "a", "n": 1}, {"user": "ann"})
    assert "ann" not in repr(shown)
    with world.sessions() as session:
        assert Schedule(session).count() == 3


def test_cancelled(world: World) -> None:
    """It is never delivered; the others are, and a second cancel finds nothing."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    world.register(Noted(n=2), delay=HOUR)
    report = cancel(world, str(ID), other := uuid4())
    assert ([each.id for each in report.messages], report.missing, report.count) == ([ID], (other,), 1)
    due(world)
    assert (world.process().delivered, world.effects()) == (1, ["2"])
    assert cancel(world, ID) == CancelReport(messages=(), missing=(ID,))


def test_what_is_in_the_outbox_is_not_taken_back(world: World) -> None:
    """Once it was due and has entered the outbox it is a message like any other."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    due(world)
    world.process()
    assert cancel(world, ID).missing == (ID,)
    assert world.effects() == ["1"]


def test_cancelled_by_the_id_that_registering_returned(world: World) -> None:
    """Also in the same transaction, before its message was written."""
    with world.sessions.begin() as session:
        row = world.bus.register_outbox_message(session, Noted(n=1), delay=HOUR)
        assert Schedule(session).cancel(row.id).count == 1
    assert listed(world) == []


def test_nothing_happens_before_the_commit(world: World) -> None:
    """G10: a rollback takes it back; a dry run only says what would be done."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    with world.sessions() as session:
        assert Schedule(session).cancel([ID]).count == 1
        session.rollback()
    assert cancel(world, ID, dry_run=True).messages == tuple(listed(world))
    assert len(listed(world)) == 1


@pytest.mark.sqlite
def test_what_makes_no_sense(world: World) -> None:
    """Ids that are none, sessions of the other colour, no limit at all."""
    with pytest.raises(
        SettingsError, match=r"cancel: 'x' is no message id \(ids are UUIDs\); 7 is no message id"
    ):
        cancel(world, "x", 7, ID)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="limit must be at least 1"):
        listed(world, limit=0)
    with pytest.raises(WiringError, match="Schedule works on Session or Connection, not on 'AsyncSession'"):
        Schedule(AsyncSession())  # type: ignore[arg-type]


def test_not_in_autocommit(world: World, engine: sa.Engine) -> None:
    """The lock that keeps the mover away would end at once."""
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(UnsupportedDatabase, match="delayed messages are cancelled in a transaction"),
    ):
        Schedule(connection).cancel(ID)


@pytest.mark.sqlite
def test_the_log_says_who(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One line, with fields for programs."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    caplog.set_level(logging.WARNING, "message_bus.admin")
    cancel(world, ID, dry_run=True)
    cancel(world, ID, by="ann")
    [record] = caplog.records
    assert record.getMessage() == "cancel of 1 delayed message, by ann: in force when its transaction commits"
    assert vars(record)["message_ids"] == [str(ID)]


@pytest.mark.postgresql
@pytest.mark.parametrize("at", ["INSERT INTO message_bus_outbox", "DELETE FROM message_bus_schedule"])
def test_cancelled_while_it_becomes_due(world: World, at: str) -> None:
    """S9: who cancels waits for the mover, and finds that it came too late: delivered and cancelled exclude each other."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    due(world)
    operator = Meanwhile(world, lambda: cancel(world, ID))
    with before(world, at, operator.start):
        world.process()
    assert operator.waited
    assert operator.join().missing == (ID,)
    assert world.effects() == ["1"]


@pytest.mark.postgresql
def test_due_while_it_is_being_cancelled(world: World) -> None:
    """S9: the mover does not wait; what is cancelled does not enter the outbox."""
    world.register(Noted(n=1), delay=HOUR, id=ID)
    world.register(Noted(n=2), delay=HOUR)
    world.process()
    due(world)
    with before(world, "DELETE FROM message_bus_schedule", world.process):
        assert cancel(world, ID).count == 1
    world.process()
    assert world.effects() == ["2"]


async def test_the_asynchronous_twin(async_engine: Any, async_tables: Any) -> None:
    """The same source, on an AsyncSession and on an AsyncConnection; what is not yet written is cancelled, too."""
    bus = AsyncMessageBus()
    async with AsyncSession(async_engine) as session, session.begin():
        row = bus.register_outbox_message(session, Noted(n=1), delay=HOUR)
        other = bus.register_outbox_message(session, Noted(n=2), delay=HOUR)
        assert (await AsyncSchedule(session).cancel(row.id)).count == 1
    async with async_engine.begin() as connection:
        schedule = AsyncSchedule(connection)
        assert [each.id for each in await schedule.list(payload=True)] == [other.id]
        third = bus.register_outbox_message(connection, Noted(n=3), delay=HOUR)
        assert (await schedule.cancel([other.id, third.id])).count == 2
        assert await schedule.count() == 0
