"""The tables: where they live, how they are named, and what the database itself refuses."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus.errors import SettingsError
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import UtcDateTime, utc_after, utc_now
from tests.storage.rows import outbox_row, put, record, subscribe

CONVENTION = {
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(column_0_label)s",
}


def test_two_sets_over_one_metadata_share_their_tables() -> None:
    """The same metadata, schema and prefix name the same Table objects."""
    metadata = sa.MetaData()
    first, second = MessageBusTables(metadata), MessageBusTables(metadata)
    assert all(one is other for one, other in zip(first.all, second.all, strict=True))


def test_sets_with_different_prefixes_live_side_by_side() -> None:
    """Two prefixes give two sets of tables in one metadata."""
    metadata = sa.MetaData()
    MessageBusTables(metadata), MessageBusTables(metadata, prefix="other_")
    assert {"message_bus_outbox", "other_outbox"} <= set(metadata.tables)


def test_the_metadata_gives_its_schema() -> None:
    """Tables that name no schema go where SQLAlchemy puts every table of that metadata, also the second time."""
    metadata = sa.MetaData(schema="shop")
    MessageBusTables(metadata)
    again = MessageBusTables(metadata)
    assert (again.schema, again.outbox.fullname) == ("shop", "shop.message_bus_outbox")


def test_names_of_constraints_are_final_whatever_the_naming_convention() -> None:
    """Errors are mapped by constraint name, so a user's naming convention must not change them."""
    plain, convention = MessageBusTables(), MessageBusTables(sa.MetaData(naming_convention=CONVENTION))
    for one, other in zip(plain.all, convention.all, strict=True):
        dialect = sa.create_engine("sqlite://").dialect
        assert str(sa.schema.CreateTable(one).compile(dialect=dialect)) == str(
            sa.schema.CreateTable(other).compile(dialect=dialect)
        )


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "x; DROP TABLE orders; --"},
        {"prefix": 'x"'},
        {"prefix": "X_"},
        {"prefix": "1x"},
        {"prefix": "é_"},
        {"prefix": "x" * 40},
        {"prefix": "ok_\n"},
        {"schema": "a.b"},
        {"schema": "x" * 64},
        {"schema": "a' OR 1=1"},
    ],
)
def test_hostile_names_are_refused(options: dict[str, str]) -> None:
    """Schema and prefix are checked identifiers before they come near any SQL."""
    with pytest.raises(SettingsError):
        MessageBusTables(**options)


def test_all_bad_names_are_reported_at_once() -> None:
    """A schema and a prefix that are both wrong are both named."""
    with pytest.raises(SettingsError) as caught:
        MessageBusTables(schema="A", prefix="B")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("outbox", outbox_row(type="QUERY")),
        ("outbox", outbox_row(key="a", key_hash=-1)),
        ("outbox", outbox_row(message=None)),
        ("schedule", outbox_row(type="event", due_at=datetime.now(UTC))),
        ("schedule", outbox_row(key="a", key_hash=-1, due_at=datetime.now(UTC))),
        (
            "subscription",
            {"name": "s", "partition": 1, "partitions": 1, "log": "outbox", "position": 0, "epoch": 0},
        ),
        (
            "subscription",
            {"name": "s", "partition": -1, "partitions": 1, "log": "outbox", "position": 0, "epoch": 0},
        ),
        (
            "subscription",
            {"name": "s", "partition": 0, "log": "outbox", "position": 0, "epoch": 0, "state": "stopped"},
        ),
        ("delivery", {"subscription": "s", "position": 1, "state": "delivered"}),
        ("delivery", {"subscription": "s", "position": 1, "state": "held", "key": "a", "key_hash": -1}),
        ("history", {"subscription": "s", "log": "outbox", "position": 1, "what": "lost"}),
        ("history", {"subscription": "s", "log": "outbox", "what": "held"}),
    ],
)
def test_the_database_refuses_what_must_not_be(
    engine: sa.Engine, tables: MessageBusTables, table: str, values: dict[str, Any]
) -> None:
    """Invariants live in the database too: a raw INSERT cannot break them."""
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(sa.insert(getattr(tables, table)).values(values))


@pytest.mark.parametrize("table", ["outbox", "schedule"])
def test_a_message_id_is_unique(engine: sa.Engine, tables: MessageBusTables, table: str) -> None:
    """The same id cannot be registered twice."""
    row = outbox_row() if table == "outbox" else outbox_row(due_at=datetime.now(UTC))
    with engine.connect() as connection:
        connection.execute(sa.insert(getattr(tables, table)).values(row))
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(sa.insert(getattr(tables, table)).values(row))


def test_a_message_is_received_once_per_consumer(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The inbox's key is the pair of consumer and message."""
    insert = sa.insert(tables.inbox)
    with engine.connect() as connection:
        connection.execute(
            insert, [{"consumer": "a", "message_id": "1"}, {"consumer": "b", "message_id": "1"}]
        )
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(insert, {"consumer": "a", "message_id": "1"})


def test_a_subscription_has_one_delivery_row_per_message(engine: sa.Engine, tables: MessageBusTables) -> None:
    """What became of a message is said once per subscription."""
    with engine.connect() as connection:
        record(connection, tables, "s", 1, "held")
        record(connection, tables, "t", 1, "held")
        with pytest.raises(sa.exc.IntegrityError):
            record(connection, tables, "s", 1, "dead")


def test_a_partition_has_one_checkpoint(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Two rows for one partition would be two owners."""
    with engine.connect() as connection:
        subscribe(connection, tables, "s", 0)
        with pytest.raises(sa.exc.IntegrityError):
            subscribe(connection, tables, "s", 0)


@pytest.mark.postgresql
def test_nobody_chooses_a_position(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The identity is GENERATED ALWAYS, so every position comes from the sequence (W7)."""
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match="GENERATED ALWAYS"):
        put(connection, tables, position=7)


def test_a_position_is_never_used_again(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Pruning the newest row does not make its position free: a checkpoint may have passed it."""
    with engine.begin() as connection:
        first = put(connection, tables)
        connection.execute(sa.delete(tables.outbox))
        assert put(connection, tables) == first + 1


def test_instants_are_aware_and_utc(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An instant keeps its moment through the database, whatever zone it was given in."""
    given = datetime(2024, 5, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=5)))
    with engine.connect() as connection:
        connection.execute(sa.insert(tables.schedule).values(outbox_row(due_at=given)))
        found = connection.scalar(sa.select(tables.schedule.c.due_at))
    assert found is not None
    assert (found, found.tzinfo) == (given, UTC)


def test_a_naive_instant_is_refused(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A naive datetime is refused where it is bound, not read as some zone's."""
    naive = datetime(2024, 5, 1)
    with engine.connect() as connection, pytest.raises(sa.exc.StatementError, match="naive datetime"):
        connection.execute(sa.insert(tables.schedule).values(outbox_row(due_at=naive)))


def test_instants_of_the_database_and_of_programs_compare(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """A stored instant, a bound one and the database's clock are in one order, on SQLite's text too."""
    with engine.connect() as connection:
        put(connection, tables)
        row = connection.execute(
            sa.select(
                (tables.outbox.c.created_at <= utc_now()).label("not_after_now"),
                (tables.outbox.c.created_at < utc_after(5)).label("before_later"),
                (tables.outbox.c.created_at > utc_after(-3600)).label("after_an_hour_ago"),
                (tables.outbox.c.created_at > datetime(2020, 1, 1, tzinfo=UTC)).label("after_a_bound_one"),
            )
        ).one()
    assert all(row)


def test_the_clock_moves_within_a_transaction(engine: sa.Engine) -> None:
    """Leases are judged by this moment, not by the start of the transaction (S2)."""
    with engine.connect() as connection:
        first = connection.scalar(sa.select(utc_now()))
        assert first is not None
        for _ in range(10_000):  # SQLite's clock has milliseconds
            later = connection.scalar(sa.select(utc_now()))
            if later > first:
                break
        assert later > first


def test_the_type_of_instants_survives_pickling() -> None:
    """Metadata can be pickled, as SQLAlchemy's users do with reflected ones."""
    copied = pickle.loads(pickle.dumps(MessageBusTables().metadata))  # noqa: S301
    assert isinstance(copied.tables["message_bus_outbox"].c.created_at.type, UtcDateTime)
