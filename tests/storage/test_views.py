"""The view outbox_delivery: what it says, and that it comes and goes with its tables."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from message_bus.storage.tables import DELIVERY_STATES, MessageBusTables
from message_bus.storage.views import VIEW, VIEW_COLUMNS, CreateView, create_view, drop_view
from tests.storage.rows import put, record, subscribe


def view_of(tables: MessageBusTables) -> sa.TableClause:
    """The view, to select from."""
    columns = [sa.column(name) for name in VIEW_COLUMNS]
    return sa.table(f"{tables.prefix}{VIEW}", *columns, schema=tables.schema)


def states(connection: sa.Connection, tables: MessageBusTables) -> dict[tuple[str, int], str]:
    """What the view says, by subscription and position; every pair only once."""
    view = view_of(tables)
    rows = connection.execute(sa.select(view.c.subscription, view.c.position, view.c.state)).all()
    found = {(row.subscription, row.position): row.state for row in rows}
    assert len(found) == len(rows)
    return found


def views(connection: sa.Connection, schema: str | None = None) -> list[str]:
    """The names of the views that are there."""
    return sa.inspect(connection).get_view_names(schema)


def test_a_checkpoint_divides_delivered_from_waiting(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Up to the checkpoint a message is delivered, after it waiting, for each subscription by itself."""
    with engine.begin() as connection:
        first, second = put(connection, tables), put(connection, tables)
        subscribe(connection, tables, "mails", first)
        subscribe(connection, tables, "broker", 0)
        assert states(connection, tables) == {
            ("mails", first): "delivered",
            ("mails", second): "waiting",
            ("broker", first): "waiting",
            ("broker", second): "waiting",
        }


@pytest.mark.parametrize("state", DELIVERY_STATES)
def test_a_delivery_row_has_the_last_word(engine: sa.Engine, tables: MessageBusTables, state: str) -> None:
    """A failure is shown before and behind the checkpoint, and only for its own subscription."""
    with engine.begin() as connection:
        first, second = put(connection, tables), put(connection, tables)
        subscribe(connection, tables, "s", first)
        subscribe(connection, tables, "t", second)
        record(connection, tables, "s", first, state)
        record(connection, tables, "s", second, state)
        assert states(connection, tables) == {
            ("s", first): state,
            ("s", second): state,
            ("t", first): "delivered",
            ("t", second): "delivered",
        }


def test_each_row_follows_the_checkpoint_of_its_own_partition(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """Keyed rows belong to the partition of their key's hash, unkeyed ones to that of their position; one row each."""
    hashes = [zlib.crc32(f"key {n}".encode()) for n in range(8)]
    with engine.begin() as connection:
        keyed = {
            put(connection, tables, key=f"key {n}", key_hash=hash_): hash_ for n, hash_ in enumerate(hashes)
        }
        unkeyed = [put(connection, tables) for _ in range(6)]
        last = max(unkeyed)
        subscribe(connection, tables, "s", last, 0, last)
        expected = {
            ("s", position): "waiting" if hash_ % 3 == 1 else "delivered" for position, hash_ in keyed.items()
        }
        expected |= {("s", position): "waiting" if position % 3 == 1 else "delivered" for position in unkeyed}
        assert states(connection, tables) == expected


def test_readers_of_other_logs_do_not_appear(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A subscription of the event store's log says nothing about the outbox."""
    with engine.begin() as connection:
        put(connection, tables)
        subscribe(connection, tables, "projection", 99, log="events")
        assert states(connection, tables) == {}


def test_columns_are_the_documented_ones(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The view's columns and their order are public."""
    with engine.connect() as connection:
        columns = sa.inspect(connection).get_columns(f"{tables.prefix}{VIEW}")
    assert tuple(column["name"] for column in columns) == VIEW_COLUMNS


def test_create_all_and_drop_all_of_the_metadata_know_the_view(engine: sa.Engine) -> None:
    """The user's own metadata.create_all makes the view with the tables, drop_all drops both; repeating is harmless."""
    metadata = sa.MetaData()
    MessageBusTables(metadata), MessageBusTables(metadata)
    orders = sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        metadata.create_all(connection, tables=[orders])
        assert views(connection) == []
        metadata.create_all(connection)
        metadata.create_all(connection)
        assert views(connection) == ["message_bus_outbox_delivery"]
        metadata.drop_all(connection)
        metadata.drop_all(connection)
        assert views(connection) == []
        assert sa.inspect(connection).get_table_names() == []


def test_it_is_attached_once(engine: sa.Engine) -> None:
    """Two sets over one metadata make one view, without asking or creating twice."""
    metadata = sa.MetaData()
    MessageBusTables(metadata), MessageBusTables(metadata)
    said: list[str] = []
    sa.event.listen(
        engine, "before_cursor_execute", lambda c, cursor, statement, *rest: said.append(statement)
    )
    with engine.begin() as connection:
        metadata.create_all(connection)
        metadata.drop_all(connection)
    assert len([each for each in said if "CREATE" in each and "VIEW" in each]) == 1


def test_a_missing_view_is_made_again(engine: sa.Engine, tables: MessageBusTables) -> None:
    """create_all creates what is missing, also if that is only the view."""
    with engine.begin() as connection:
        drop_view(connection, tables)
        tables.create_all(connection)
        assert views(connection) == ["message_bus_outbox_delivery"]


def test_create_view_replaces_the_one_that_is_there(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A migration may call it whether or not the view exists."""
    with engine.begin() as connection:
        create_view(connection, tables)
        put(connection, tables)
        subscribe(connection, tables, "s", 0)
        assert list(states(connection, tables).values()) == ["waiting"]


@pytest.mark.parametrize("name", ["outbox", "subscription", "delivery"])
def test_dropping_one_of_its_tables_drops_it(engine: sa.Engine, tables: MessageBusTables, name: str) -> None:
    """`Table.drop` of a table that it reads is not refused because of the view."""
    with engine.begin() as connection:
        getattr(tables, name).drop(connection)
        assert views(connection) == []


def test_prefix_and_other_set(engine: sa.Engine) -> None:
    """Two sets of tables in one metadata have a view each."""
    metadata = sa.MetaData()
    first, second = MessageBusTables(metadata), MessageBusTables(metadata, prefix="b_")
    with engine.begin() as connection:
        metadata.create_all(connection)
        position = put(connection, second)
        subscribe(connection, second, "s", 0)
        assert (states(connection, first), states(connection, second)) == ({}, {("s", position): "waiting"})
        first.drop_all(connection)
        assert views(connection) == ["b_outbox_delivery"]


@pytest.fixture
def second_schema(engine: sa.Engine, request: pytest.FixtureRequest) -> Any:
    """The name of one more schema; on SQLite a database to attach as that."""
    if engine.dialect.name == "sqlite":
        path = request.getfixturevalue("tmp_path") / "second.db"
        sa.event.listen(engine, "connect", lambda dbapi, record: dbapi.execute(f"ATTACH '{path}' AS second"))
        yield "second"
    else:
        name = f"{request.getfixturevalue('schema')}_second"
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(name))
        yield name
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True))


def test_in_a_schema(engine: sa.Engine, second_schema: str) -> None:
    """With a schema, tables and view are made, read and dropped there."""
    tables = MessageBusTables(schema=second_schema)
    with engine.begin() as connection:
        tables.create_all(connection)
        tables.create_all(connection)
        position = put(connection, tables)
        subscribe(connection, tables, "s", position)
        assert states(connection, tables) == {("s", position): "delivered"}
        assert (views(connection), views(connection, second_schema)) == ([], ["message_bus_outbox_delivery"])
        tables.drop_all(connection)
        assert views(connection, second_schema) == []


@pytest.mark.parametrize("named", [None, "tenant"])
def test_with_schema_translate_map(engine: sa.Engine, second_schema: str, named: str | None) -> None:
    """The view follows its tables into the schema that a connection translates theirs to."""
    tables = MessageBusTables(schema=named)
    with engine.connect() as plain:
        connection = plain.execution_options(schema_translate_map={named: second_schema})
        tables.create_all(connection)
        tables.create_all(connection)
        create_view(connection, tables)
        position = put(connection, tables)
        subscribe(connection, tables, "s", 0)
        there = MessageBusTables(schema=second_schema)
        assert states(connection, there) == {("s", position): "waiting"}
        tables.drop_all(connection)
        assert views(connection, second_schema) == []


def test_ddl_for_a_script() -> None:
    """A mock engine, which prints DDL instead of running it, prints the view after its tables."""
    said: list[str] = []
    mock = sa.create_mock_engine(
        "postgresql+psycopg://", lambda ddl, *rest: said.append(str(ddl.compile(mock)))
    )
    MessageBusTables().metadata.create_all(mock, checkfirst=False)
    assert "CREATE OR REPLACE VIEW message_bus_outbox_delivery" in said[-1]


async def test_through_an_async_engine(async_engine: AsyncEngine) -> None:
    """Every asynchronous driver can make the view, percent sign included."""
    tables = MessageBusTables()
    async with async_engine.begin() as connection:
        await connection.run_sync(tables.create_all)
        await connection.run_sync(create_view, tables)
        await connection.run_sync(put, tables)
        await connection.run_sync(lambda c: subscribe(c, tables, "s", 0))
        assert list((await connection.run_sync(states, tables)).values()) == ["waiting"]


def test_the_ddl_is_a_value(engine: sa.Engine, tables: MessageBusTables) -> None:
    """`op.execute(CreateView(tables))` works as well, and so in Alembic's offline mode."""
    with engine.begin() as connection:
        drop_view(connection, tables)
        connection.execute(CreateView(tables))
        assert views(connection) == ["message_bus_outbox_delivery"]


@pytest.mark.postgresql
def test_grants_survive_a_replacement(engine: sa.Engine, tables: MessageBusTables) -> None:
    """On PostgreSQL a report's role keeps its SELECT when a migration makes the view anew."""
    granted = sa.text(
        "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'PUBLIC' AND table_name = :v"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("GRANT SELECT ON message_bus_outbox_delivery TO PUBLIC")
        create_view(connection, tables)
        assert connection.scalar(granted, {"v": "message_bus_outbox_delivery"}) == 1
