"""The INSERT: order, bulk, errors, and that those who watch statements see it (L6)."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus.errors import InvalidOutboxMessage, SchemaError, UnsupportedDatabase
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.record import Record, encode
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.writer import insert, write
from tests.late_writing.conftest import Order, Room, message
from tests.late_writing.scenario import under_every_driver


def rows_of(room: Room) -> list[sa.Row[Any]]:
    """Every row of the outbox, in the order of positions."""
    with room.engine.connect() as connection:
        return list(connection.execute(sa.select(room.tables.outbox).order_by(room.tables.outbox.c.position)))


@under_every_driver
@pytest.mark.parametrize("count", [1, 2, 1_000])
def test_every_field_of_every_row(room: Room, count: int) -> None:
    """L6: one row, several, many: each field of each row is stored as given, in the order given, in one statement."""
    texts = ["plain", "", "ü 😀 \\ ' \" {NULL,}", "NULL", " "]
    rows = [
        message(
            f"M{number}",
            type=("COMMAND", "EVENT")[number % 2],
            version=number + 1,
            key=(None, *texts)[number % 6],
            payload={"text": texts[number % 5], "list": [1, None, 1.5]},
            meta=(None, {"m": texts[number % 5]})[number % 2],
            headers={"h": texts[number % 5]},
        )
        for number in range(count)
    ]
    seen = room.statements()
    with room.engine.begin() as connection:
        write(connection, room.tables, rows)
    assert len([statement for statement in seen if "INSERT" in statement]) == 1
    stored = rows_of(room)
    assert [row.position for row in stored] == list(range(1, count + 1))
    for row, there in zip(rows, stored, strict=True):
        for name in ("id", "type", "message", "version", "key", "key_hash", "payload"):
            assert getattr(there, name) == getattr(row, name), name
        assert (there.meta or {}) == row.meta
        assert there.headers == row.headers
        assert there.created_at.tzinfo is not None


@under_every_driver
def test_columns_that_are_null_in_every_row(room: Room) -> None:
    """L6: a column without any value says nothing of its type; the bulk INSERT works all the same."""
    with room.engine.begin() as connection:
        write(connection, room.tables, [message("A"), message("B"), message("C", key="k")])
        write(connection, room.tables, [message("D"), message("E")])
    assert room.stored() == ["A", "B", "C", "D", "E"]


@under_every_driver
def test_large_batches_keep_their_order(room: Room) -> None:
    """L6: position follows registration also where a sort or several fetches might intervene."""
    names = [f"{number:05}" for number in range(5_000)]
    with room.engine.begin() as connection:
        write(connection, room.tables, [message(name) for name in names])
    assert room.stored() == names


@under_every_driver
def test_the_statements_are_cached(room: Room) -> None:
    """L6: the SQL of one set of tables is built once; prepared statements and the driver's caches can work."""
    seen = room.statements()
    with room.engine.begin() as connection:
        for _ in range(3):
            write(connection, room.tables, [message("A")])
    inserts = [statement for statement in seen if "INSERT" in statement]
    assert len(inserts) == 3
    assert len({id(statement) for statement in inserts}) == 1


@under_every_driver
@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("delay", [None, timedelta(hours=1)])
def test_a_message_id_used_twice(room: Room, observed: bool, delay: timedelta | None) -> None:
    """L6: the unique constraint becomes an error that names the id, alone, within a batch and against stored rows."""
    if observed:
        room.statements()
    first, second = message("A", delay=delay), message("B", delay=delay)
    with room.engine.begin() as connection:
        write(connection, room.tables, [first])
    for batch in ([first], [second, first], [second, message("C", delay=delay), second]):
        with room.engine.connect() as connection:
            with pytest.raises(InvalidOutboxMessage, match="used twice") as caught:
                write(connection, room.tables, batch)
            assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
            assert str(batch[-1].id) in str(caught.value)


@under_every_driver
def test_other_violations_keep_their_names(room: Room) -> None:
    """L6: only the constraint on the id means that an id is used twice."""
    record = encode(message("A"))._replace(type="OTHER")
    with room.engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        insert(connection, room.tables, [record])


@under_every_driver
def test_a_missing_table(room: Room) -> None:
    """L6: without the tables the error says how to make them, not only which relation does not exist."""
    elsewhere = MessageBusTables(prefix="elsewhere_")
    with room.engine.connect() as connection, pytest.raises(SchemaError, match="db upgrade") as caught:
        write(connection, elsewhere, [message("A")])
    assert "elsewhere_outbox" in str(caught.value)
    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)


@under_every_driver
def test_statements_are_logged_and_traced(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """L6: event listeners may see and change the statement; SQLAlchemy's log shows it."""

    def comment(*args: Any) -> Any:
        return f"{args[2]} /* traced */", args[3]

    engine = room.make_engine()
    with caplog.at_level(logging.INFO, logger="sqlalchemy.engine.Engine"):
        engine = room.make_engine()
        with engine.begin() as connection:
            write(connection, room.tables, [message("A")])
    assert "INSERT INTO message_bus_outbox" in caplog.text
    sa.event.listen(engine, "before_cursor_execute", comment, retval=True)
    seen = room.statements(engine)
    with engine.begin() as connection:
        write(connection, room.tables, [message("B")])
    assert seen[-1].endswith("/* traced */")
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_a_transaction_that_is_over_is_refused(room: Room) -> None:
    """L6: on a connection whose transaction has failed, SQLAlchemy's own refusal comes, and nothing is written."""
    with room.engine.connect() as connection:
        transaction = connection.begin()
        nested = connection.begin_nested()
        sa.event.listen(connection, "release_savepoint", _fail)
        with pytest.raises(ZeroDivisionError):
            nested.commit()
        with pytest.raises(sa.exc.PendingRollbackError):
            write(connection, room.tables, [message("A")])
        transaction.rollback()
    assert room.stored() == []


def _fail(*args: Any) -> None:
    raise ZeroDivisionError


@under_every_driver
@pytest.mark.postgresql
@pytest.mark.parametrize("observed", [True, False])
def test_a_lost_connection_is_invalidated(room: Room, observed: bool) -> None:
    """L6: a connection that died before the INSERT is an error that says so, and does not stay in the pool."""
    engine = room.make_engine(pool_size=1, max_overflow=0)
    if observed:
        room.statements(engine)
    with engine.connect() as connection, room.engine.connect() as killer:
        connection.execute(sa.insert(Order).values(customer="c"))
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            write(connection, room.tables, [message("A")])
        assert caught.value.connection_invalidated
        assert connection.invalidated
        connection.rollback()
        write(connection, room.tables, [message("B")])
        connection.commit()
    assert room.stored() == ["B"]


def test_only_postgresql_and_sqlite() -> None:
    """W7: another database is refused before anything is sent to it."""

    class Other:
        name = "mysql"

    with pytest.raises(UnsupportedDatabase, match="mysql"):
        database_of(Other())  # type: ignore[arg-type]


def test_a_record_is_what_is_stored() -> None:
    """L6: the encoded row is immutable and holds no reference to what it was made from."""
    row = message("A", meta={"a": 1}, delay=timedelta(minutes=1))
    record = encode(row)
    assert isinstance(record, Record)
    assert (record.payload, record.meta, record.headers, record.delay) == (
        '{"name":"A"}',
        '{"a":1}',
        None,
        60.0,
    )
    assert encode(message("A", delay=timedelta(0))).delay is None
    assert isinstance(record.id, uuid.UUID)
