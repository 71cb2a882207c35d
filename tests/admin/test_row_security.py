"""W9: an operator whose role a policy hides rows from is told so, instead of being shown half of what there is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from message_bus import DeadLetters, UnsupportedDatabase
from message_bus.admin import Schedule, Subscriptions, doctor, prune, status, why
from tests.admin.test_overview import as_role, log
from tests.delivery.world import Noted, World

__all__ = ["as_role", "log"]  # fixtures

pytestmark = pytest.mark.postgresql

QUESTIONS: dict[str, Callable[[Any], object]] = {
    "status": status,
    "why": lambda connection: why(connection, uuid4()),
    "letters": lambda connection: DeadLetters(connection).list(),
    "count": lambda connection: DeadLetters(connection).count(),
    "replay": lambda connection: DeadLetters(connection).replay(everything=True),
    "discard": lambda connection: DeadLetters(connection).discard(everything=True, dry_run=True),
    "subscriptions": lambda connection: Subscriptions(connection).list(),
    "pause": lambda connection: Subscriptions(connection).pause("dispatch"),
    "drop": lambda connection: Subscriptions(connection).drop("dispatch", force=True, dry_run=True),
    "schedule": lambda connection: Schedule(connection).list(),
    "delayed": lambda connection: Schedule(connection).count(),
    "cancel": lambda connection: Schedule(connection).cancel(uuid4()),
    "prune": lambda connection: prune(sa.orm.Session(connection), timedelta(0), dry_run=True),
    "prune for good": lambda connection: prune(sa.orm.Session(connection), timedelta(0)),
}


def _hidden(world: World, table: str) -> None:
    world.fail("1", 1)
    world.register(Noted(n=1), Noted(n=2))
    world.register(Noted(n=3), delay=timedelta(hours=1))
    world.process()
    world.write(sa.text(f"ALTER TABLE message_bus_{table} ENABLE ROW LEVEL SECURITY"))


@pytest.mark.parametrize(
    ("table", "question"),
    [
        *(("delivery", question) for question in QUESTIONS),
        ("outbox", "letters"),
        ("schedule", "delayed"),
        ("subscription", "status"),
    ],
)
def test_hidden_rows_are_an_error(
    world: World, as_role: Callable[[], sa.Connection], table: str, question: str
) -> None:
    """W9: whatever is asked; the remedy is named, and the caller's transaction is still good."""
    _hidden(world, table)
    connection = as_role()
    with pytest.raises(UnsupportedDatabase, match=f"row-level security on message_bus_{table} .*BYPASSRLS"):
        QUESTIONS[question](connection)
    assert connection.scalar(sa.select(1)) == 1
    assert (
        connection.scalar(sa.text("SELECT current_setting('row_security')")) == "on"
    )  # the caller's own affair


@pytest.mark.parametrize("table", ["outbox", "delivery", "schedule", "subscription"])
def test_doctor_says_it(world: World, as_role: Callable[[], sa.Connection], table: str) -> None:
    """W9: it is a finding, and nothing is said about subscriptions whose rows cannot be seen."""
    _hidden(world, table)
    connection = as_role()
    role = connection.scalar(sa.text("SELECT current_user"))
    for each in world.tables.all:
        world.write(sa.text(f"GRANT SELECT ON {each.name} TO {role}"))
    world.write(sa.text(f"GRANT USAGE, SELECT ON SEQUENCE message_bus_outbox_position_seq TO {role}"))
    codes = {each.code for each in doctor(connection)}
    refused = {"log", "could-not-check"} if table == "outbox" else set()  # no reader would get far, either
    assert codes == {"row-level-security"} | refused


def test_who_is_not_subject_to_it_sees_everything(world: World) -> None:
    """W9: row-level security is no fault in itself."""
    _hidden(world, "delivery")
    with world.sessions() as session:
        assert len(DeadLetters(session).list()) == 1
        assert status(session).dead[0].count == 1
