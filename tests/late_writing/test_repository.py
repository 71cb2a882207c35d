"""The repository over SQLAlchemy: what it accepts, what it finds, what `processed` means."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from message_bus.errors import InvalidOutboxMessage, WiringError
from message_bus.repositories.late_writing import pending
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.tables import ACTIVE, DEAD, HELD, IDLE, PAUSED, RETRYING, MessageBusTables
from tests.late_writing.conftest import message


@pytest.fixture
def session(session_factory: sessionmaker[Session], tables: MessageBusTables):
    """A session on fresh tables."""
    with session_factory() as session:
        yield session


def names(rows: list[OutboxMessage]) -> list[str]:
    """What tells the rows apart."""
    return [row.message for row in rows]


def test_what_was_saved_is_found(session: Session) -> None:
    """Every field comes back as it was registered, position and time beside them."""
    repo = SQLAlchemyOutBoxRepo(session)
    row = message(
        "A", key="k", version=3, meta={"m": [1, None]}, headers={"correlation_id": "x"}, payload={"ü": "😀"}
    )
    repo.add(row)
    repo.save()
    found = repo.get(row.id)
    assert found is not None
    for name in ("id", "type", "message", "version", "key", "meta", "headers", "payload"):
        assert getattr(found, name) == getattr(row, name)
    assert found.position == 1
    assert found.created_at is not None
    assert found.created_at.tzinfo is not None
    assert found.processed is False
    assert repo.get(str(row.id)) is not None
    assert repo.get(uuid4()) is None


def test_the_row_is_the_one_of_registration(session: Session) -> None:
    """L6: a row is encoded when it is registered; what is changed in it later does not reach the database."""
    repo = SQLAlchemyOutBoxRepo(session)
    row = message("A", meta={"before": 1})
    repo.add(row)
    row.meta["after"] = 2
    row.message = "B"
    repo.save()
    found = repo.get(row.id)
    assert found is not None
    assert (found.message, found.meta) == ("A", {"before": 1})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"type": "QUERY"}, "type"),
        ({"message": ""}, "message"),
        ({"message": "A\0B"}, "NUL"),
        ({"message": "\ud800"}, "surrogate"),
        ({"key": "\ud800"}, "surrogate|encode"),
        ({"key": "a\0b"}, "NUL"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": 2**31}, "version"),
        ({"payload": b"[1, 2]"}, "payload"),
        ({"payload": b'{"a": '}, "payload"),
        ({"payload": b'{"a": "\xff"}'}, "payload"),
        ({"payload": {"a": object()}}, "payload"),
        ({"payload": {"a": "\ud800"}}, "payload"),
        ({"meta": {"a": object()}}, "meta"),
        ({"headers": {"a": "\ud800"}}, "headers"),
        ({"delay": timedelta(seconds=-1)}, "delay"),
        ({"delay": 5}, "delay"),
    ],
)
def test_bad_rows_fail_at_registration(session: Session, values: dict[str, object], text: str) -> None:
    """L6: a row that the database would refuse at the commit is refused at registration, and buffers nothing."""
    repo = SQLAlchemyOutBoxRepo(session)
    with pytest.raises(InvalidOutboxMessage, match=text):
        repo.add(message(**{"name": "A", **values}) if "message" not in values else _named(values))
    assert pending(session) == 0
    assert not session.in_transaction()


def _named(values: dict[str, object]) -> OutboxMessage:
    return OutboxMessage(**{"type": "EVENT", "payload": {}, **values})  # type: ignore[arg-type]


def test_what_is_no_row_is_refused(session: Session) -> None:
    """L6: the model of this repository is OutboxMessage; anything else is refused."""
    with pytest.raises(InvalidOutboxMessage, match="OutboxMessage"):
        SQLAlchemyOutBoxRepo(session).add({"id": uuid4()})
    assert pending(session) == 0


def test_own_messages_are_read_before_they_are_written(session: Session) -> None:
    """A session finds what it has registered, and reading does not write it early."""
    repo = SQLAlchemyOutBoxRepo(session)
    repo.add(message("A"))
    session.commit()
    row, delayed = message("B"), message("C", delay=timedelta(hours=1))
    repo.add(row)
    repo.add(delayed)
    assert repo.get(row.id) is row
    assert names(repo.list_unprocessed()) == ["A", "B"]
    assert names(repo.list_unprocessed(limit=1)) == ["A"]
    assert pending(session) == 2
    session.rollback()
    assert repo.get(row.id) is None


def test_delayed_messages_wait_in_the_schedule(session: Session, tables: MessageBusTables) -> None:
    """A delay is counted by the database's clock; until then the message has no position and is not unprocessed."""
    repo = SQLAlchemyOutBoxRepo(session)
    rows = [message(name, delay=timedelta(seconds=90, milliseconds=500)) for name in ("A", "B")]
    alone = message("C", delay=timedelta(days=2))
    for row in rows:
        repo.add(row)
    repo.add(message("now"))
    session.commit()
    repo.add(alone)
    session.commit()
    schedule = tables.schedule.c
    found = session.execute(
        sa.select(schedule.message, schedule.due_at, schedule.created_at).order_by(schedule.id)
    )
    waits = [(row.message, (row.due_at - row.created_at).total_seconds()) for row in found]
    assert [name for name, _ in waits] == ["A", "B", "C"]
    assert [seconds for _, seconds in waits] == pytest.approx([90.5, 90.5, 172_800], abs=1)
    assert names(repo.list_unprocessed()) == ["now"]
    waiting = repo.get(alone.id)
    assert waiting is not None
    assert (waiting.position, waiting.processed, waiting.payload) == (None, False, {"name": "C"})


def _subscribe(
    session: Session, tables: MessageBusTables, name: str, position: int, **values: object
) -> None:
    row = {"name": name, "partition": 0, "log": OUTBOX_LOG, "state": ACTIVE, "position": position, "epoch": 1}
    session.execute(sa.insert(tables.subscription).values({**row, **values}))


def _record(session: Session, tables: MessageBusTables, subscription: str, position: int, state: str) -> None:
    row = {"subscription": subscription, "position": position, "state": state}
    session.execute(sa.insert(tables.delivery).values(row))


def test_processed_is_what_every_subscription_has_dealt_with(
    session: Session, tables: MessageBusTables
) -> None:
    """A row is processed once every subscription has handled it; without any, nothing is; idle ones have no say."""
    repo = SQLAlchemyOutBoxRepo(session)
    rows = [message(name) for name in ("A", "B", "C", "D")]
    for row in rows:
        repo.add(row)
    session.commit()

    def processed() -> list[bool]:
        found = [repo.get(row.id) for row in rows]
        unprocessed = names(repo.list_unprocessed())
        answers = [row is not None and row.processed for row in found]
        assert unprocessed == [row.message for row, done in zip(rows, answers, strict=True) if not done]
        return answers

    assert processed() == [False] * 4
    _subscribe(session, tables, "idle", 0, state=IDLE)
    assert processed() == [False] * 4
    _subscribe(session, tables, "first", 3)
    assert processed() == [True, True, True, False]
    _subscribe(session, tables, "second", 1, state=PAUSED)
    assert processed() == [True, False, False, False]
    session.execute(sa.update(tables.subscription).values(position=4))
    assert processed() == [True] * 4


@pytest.mark.parametrize("state", [RETRYING, HELD, DEAD])
def test_what_is_retrying_held_or_dead_is_not_processed(
    session: Session, tables: MessageBusTables, state: str
) -> None:
    """A dead letter was never handled: it stays in list_unprocessed, however far the checkpoint has gone."""
    repo = SQLAlchemyOutBoxRepo(session)
    for name in ("A", "B", "C"):
        repo.add(message(name))
    session.commit()
    _subscribe(session, tables, "first", 3)
    _record(session, tables, "first", 2, state)
    assert names(repo.list_unprocessed()) == ["B"]
    session.execute(sa.delete(tables.delivery))
    assert repo.list_unprocessed() == []


def test_each_partition_speaks_for_its_own_keys(session: Session, tables: MessageBusTables) -> None:
    """With several partitions, the checkpoint that counts is the one of the message's key."""
    repo = SQLAlchemyOutBoxRepo(session)
    rows = [message(f"{key}", key=f"{key}") for key in range(6)]
    for row in rows:
        repo.add(row)
    session.commit()
    _subscribe(session, tables, "first", 6, partition=0, partitions=2)
    _subscribe(session, tables, "first", 0, partition=1, partitions=2)
    expected = [row.message for row in rows if (row.key_hash or 0) % 2 == 1]
    assert 0 < len(expected) < 6
    assert names(repo.list_unprocessed()) == expected


def test_wrong_colours_are_refused(session: Session) -> None:
    """A repository of one colour on a session of the other says which one to take."""
    async_engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(WiringError, match="AsyncSQLAlchemyOutBoxRepo"):
        SQLAlchemyOutBoxRepo(AsyncSession(async_engine))  # type: ignore[arg-type]
    with pytest.raises(WiringError, match="SQLAlchemyOutBoxRepo"):
        AsyncSQLAlchemyOutBoxRepo(session)  # type: ignore[arg-type]
    with pytest.raises(WiringError, match="Engine"):
        SQLAlchemyOutBoxRepo(session.get_bind())  # type: ignore[arg-type]


def test_a_scoped_session_is_looked_up_at_every_use(
    session_factory: sessionmaker[Session], session: Session
) -> None:
    """L4: one repository over a scoped_session serves one session after another."""
    scoped = scoped_session(session_factory)
    repo = SQLAlchemyOutBoxRepo(scoped)
    for name in ("A", "B"):
        repo.add(message(name))
        assert repo.session is scoped()
        repo.save()
        scoped.remove()
    assert names(SQLAlchemyOutBoxRepo(session).list_unprocessed()) == ["A", "B"]


def test_repositories_share_the_session(session: Session) -> None:
    """L4: two repositories on one session have one buffer and one order."""
    first, second = SQLAlchemyOutBoxRepo(session), SQLAlchemyOutBoxRepo(session, tables=MessageBusTables())
    first.add(message("A"))
    second.add(message("B"))
    first.add(message("C"))
    second.save()
    assert names(first.list_unprocessed()) == ["A", "B", "C"]


def test_on_a_connection(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A repository on a Connection writes at once; save and rollback end the connection's transaction."""
    with engine.connect() as connection:
        repo = SQLAlchemyOutBoxRepo(connection)
        repo.add(message("A"))
        repo.save()
        repo.add(message("B"))
        repo.flush()
        assert names(repo.list_unprocessed()) == ["A", "B"]
        repo.rollback()
        assert names(repo.list_unprocessed()) == ["A"]
