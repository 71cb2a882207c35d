"""What the commands of operators print, and do, where the outbox and the event log are read."""

from __future__ import annotations

from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables, SQLAlchemyOutBoxRepo
from tests.admin.two_logs import append, one_letter_each, reading_both
from tests.cli.test_operations import printed, run, said
from tests.delivery.world import Noted, World


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """A fresh application: one failure kills a message."""
    made = World(session_factory, tables)
    made.settings(max_attempts=1)
    return made


@pytest.fixture
def dead(world: World) -> UUID:
    """At position 1 of each log a dead message, four events in all; the id of the dead event."""
    return one_letter_each(world)


def lines(done: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in done.splitlines()]


def test_the_log_of_each_subscription(world: World, dead: UUID, database_url: sa.URL) -> None:
    """A column of the table, and a field for programs; lag and dead letters are those of that log."""
    append(world, "c", 1)
    told = lines(said(run(database_url, "subscriptions", "list")))
    assert told[0][1] == "log"
    assert [each[:8] for each in told[1:]] == [
        ["dispatch", "outbox", "active", "1", "0", "0", "0", "1"],
        ["orders", "events", "active", "4", "1", "0", "0", "1"],
    ]
    listed = printed(run(database_url, "subscriptions", "list", "--json"))["subscriptions"]
    assert [each["log"] for each in listed] == ["outbox", "events"]


def test_status_has_a_line_for_events(world: World, dead: UUID, database_url: sa.URL) -> None:
    """As soon as a subscription reads them."""
    told = said(run(database_url, "status")).splitlines()
    assert told[-3].startswith("watermark     settled up to 1")
    assert told[-2].startswith("events        the newest of ")
    assert told[-2].endswith(" ago, settled up to 4")
    assert told[-1] == "dead letters  1 Noted of dispatch, 1 Placed of orders"
    found = printed(run(database_url, "status", "--json"))
    assert (found["watermark"]["high"], found["events"]["watermark"]["high"]) == (1, 4)


def test_status_before_the_first_event(world: World, database_url: sa.URL) -> None:
    """No event, no age; and no line for who has no reader of events."""
    world.process()
    assert "events" not in said(run(database_url, "status"))
    assert printed(run(database_url, "status", "--json"))["events"] is None
    reading_both(world)
    world.process()
    assert "events        none, settled up to 0" in said(run(database_url, "status"))


def test_a_dead_event_is_listed_and_shown(world: World, dead: UUID, database_url: sa.URL) -> None:
    """With its own id, type, stream and payload."""
    told = lines(said(run(database_url, "dead-letters", "list")))
    assert [each[:4] for each in told[1:3]] == [
        [str(UUID(int=1)), "dispatch", "Noted", "1"],
        [str(dead), "orders", "Placed", "a"],
    ]
    shown = said(run(database_url, "dead-letters", "show", str(dead), "--payload"))
    values = dict(line.split(maxsplit=1) for line in shown.splitlines()[:6])
    assert values == {
        "id": str(dead),
        "message": "Placed (EVENT)",
        "subscription": "orders",
        "log": "events",
        "position": "1",
        "key": "a",
    }
    assert '{"order": "a", "n": 1}' in shown
    found = printed(run(database_url, "dead-letters", "list", "--message", "Placed", "--json"))
    assert [(each["log"], each["id"]) for each in found["letters"]] == [("events", str(dead))]


def test_a_dead_event_is_replayed(world: World, dead: UUID, database_url: sa.URL) -> None:
    """The next run tries it; the other log's letter stays."""
    reading_both(world)
    told = said(run(database_url, "dead-letters", "replay", "--id", str(dead), "--yes"))
    assert told == "replayed 1 dead letter of orders: tried by the next run\n"
    world.process()
    assert world.effects()[-1] == "a:1"
    assert "1 dead letter" in said(run(database_url, "dead-letters", "list"))


def test_a_dead_event_is_discarded(world: World, dead: UUID, database_url: sa.URL) -> None:
    """It is gone from the delivery table, and stays in the event log."""
    told = said(run(database_url, "dead-letters", "discard", "--message", "Placed", "--yes"))
    assert told == "discarded 1 dead letter of orders\n"
    assert f"Placed {dead}, event, key a: delivered" in said(run(database_url, "why", str(dead)))
    assert "dead" in said(run(database_url, "why", str(UUID(int=1))))


def test_why_tells_of_an_event(world: World, dead: UUID, database_url: sa.URL) -> None:
    """Stream, version and position, then each delivery."""
    first, recorded, died = said(run(database_url, "why", str(dead))).splitlines()
    assert first == f"Placed {dead}, event, key a: dead"
    assert recorded.endswith("Z  recorded as event 1 of stream 'a', at position 1 of the event log")
    assert died.endswith("Z  orders: dead after 1 attempt: ValueError: no order a:1")
    told = printed(run(database_url, "why", str(dead), "--json"))
    assert (told["position"], told["recorded"]["stream"], told["recorded"]["version"]) == (None, "a", 1)


def test_a_place_is_one_of_its_log(world: World, dead: UUID, database_url: sa.URL) -> None:
    """`now` of a reader of events is the end of the events."""
    said(run(database_url, "subscriptions", "reset", "orders", "--to", "1", "--yes"))
    told = said(run(database_url, "subscriptions", "reset", "orders", "--to", "now", "--yes"))
    assert told == "moved orders: from position 1 to 4\n"


@pytest.mark.postgresql
def test_a_start_while_somebody_writes(world: World, dead: UUID, database_url: sa.URL) -> None:
    """It is said that it begins later; nothing is refused."""
    world.write(sa.update(world.tables.subscription).values(state="idle"))
    with world.sessions() as writer:
        world.bus.register_outbox_message(
            repo := SQLAlchemyOutBoxRepo(writer, tables=world.tables), Noted(n=2)
        )
        repo.flush()
        told = said(run(database_url, "subscriptions", "start", "dispatch", "--at", "now"))
    assert told.splitlines() == [
        "started dispatch: after position 2",
        "  somebody is still writing: it begins with the first run after they have ended",
    ]
    assert "waits for transactions" in run(database_url, "doctor").stdout
    world.process()
    assert "dispatch      outbox  active" in said(run(database_url, "subscriptions", "list"))


def test_doctor_is_content_with_both(world: World, dead: UUID, database_url: sa.URL) -> None:
    """And says which log it means when it is not."""
    assert said(run(database_url, "doctor")) == "nothing found: all is well\n"
    s = world.tables.subscription
    world.write(sa.update(s).where(s.c.name == "orders").values(position=9))
    assert "the event log is at position 4, behind" in run(database_url, "doctor").stdout
