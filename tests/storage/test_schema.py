"""check_schema: it says exactly what differs, all at once, and lets pass what does no harm."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from message_bus.errors import SchemaError, UnsupportedDatabase
from message_bus.storage.schema import check_schema, differences
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.views import CreateView

OUTBOX = "table message_bus_outbox: "
VIEW_MISSING = (
    "view message_bus_outbox_delivery is missing "
    "(message_bus.storage.views.create_view(op.get_bind(), tables) in a migration makes it)"
)


def refused(connection: sa.Connection, tables: MessageBusTables) -> list[str]:
    """The differences that check_schema names."""
    with pytest.raises(SchemaError) as caught:
        check_schema(connection, tables)
    return list(caught.value.differences)


def rewrite(connection: sa.Connection, table: str, pattern: str, replacement: str) -> None:
    """SQLite cannot alter constraints: make the table anew from its own SQL, changed."""
    sql = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table})
    changed = re.sub(pattern, replacement, sql)
    assert changed != sql
    connection.exec_driver_sql(f"DROP VIEW IF EXISTS {table}_delivery")
    connection.exec_driver_sql("DROP VIEW IF EXISTS message_bus_outbox_delivery")
    connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql(changed)


def test_our_own_tables_pass(engine: sa.Engine, tables: MessageBusTables) -> None:
    """What create_all makes is what check_schema wants, and checking it changes nothing."""
    with engine.connect() as connection:
        check_schema(connection, tables)
        check_schema(connection, tables)


async def test_through_an_async_engine(async_engine: AsyncEngine, async_tables: MessageBusTables) -> None:
    """Every asynchronous driver can check through run_sync."""
    async with async_engine.connect() as connection:
        await connection.run_sync(check_schema, async_tables)


def test_an_empty_database_lacks_every_table(engine: sa.Engine) -> None:
    """That is one difference, and the remedy is named."""
    tables = MessageBusTables()
    with engine.connect() as connection:
        assert refused(connection, tables) == [
            f"all tables are missing (message_bus_outbox and {len(tables.all) - 1} others)"
        ]
        with pytest.raises(SchemaError, match="message-bus db upgrade"):
            check_schema(connection, tables)


def test_a_missing_schema_is_one_difference(engine: sa.Engine) -> None:
    """Without its schema nothing else is worth naming."""
    with engine.connect() as connection:
        assert refused(connection, MessageBusTables(schema="nowhere")) == ["schema 'nowhere' is missing"]


def test_another_prefix_is_other_tables(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Tables of another prefix do not count."""
    with engine.connect() as connection:
        [missing] = refused(connection, MessageBusTables(prefix="other_"))
        assert missing.startswith("all tables are missing (other_outbox and ")


def test_everything_is_named_at_once(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Differences of several tables come in one error."""
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE message_bus_inbox")
        connection.exec_driver_sql("DROP INDEX message_bus_schedule_due_at_idx")
        connection.exec_driver_sql("DROP VIEW message_bus_outbox_delivery")
        assert refused(connection, tables) == [
            "table message_bus_schedule: index message_bus_schedule_due_at_idx on (due_at, id) is missing",
            "table message_bus_inbox is missing",
            VIEW_MISSING,
        ]


def test_more_than_ours_is_fine(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Users may add columns that may stay empty or fill themselves, indexes, and names of their own."""
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE message_bus_outbox ADD COLUMN tenant text")
        connection.exec_driver_sql(
            "ALTER TABLE message_bus_outbox ADD COLUMN region text NOT NULL DEFAULT 'eu'"
        )
        connection.exec_driver_sql("CREATE INDEX mine ON message_bus_outbox (message)")
        connection.exec_driver_sql("DROP INDEX message_bus_schedule_due_at_idx")
        connection.exec_driver_sql("CREATE INDEX by_due ON message_bus_schedule (due_at, id)")
        check_schema(connection, tables)


def test_a_partial_index_is_not_ours(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An index over some of the rows does not replace the one over all."""
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP INDEX message_bus_schedule_due_at_idx")
        connection.exec_driver_sql("CREATE INDEX part ON message_bus_schedule (due_at, id) WHERE key IS NULL")
        assert refused(connection, tables) == [
            "table message_bus_schedule: index message_bus_schedule_due_at_idx on (due_at, id) is missing"
        ]


def test_a_view_with_other_columns(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An older view is named with what it has and what it should have."""
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP VIEW message_bus_outbox_delivery")
        connection.exec_driver_sql(
            "CREATE VIEW message_bus_outbox_delivery AS SELECT position, id FROM message_bus_outbox"
        )
        (difference,) = refused(connection, tables)
    assert "has the columns (position, id), not (position, id, message, subscription, state)" in difference


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        ("DROP COLUMN headers", "column headers is missing"),
        (
            "ADD COLUMN tenant int NOT NULL",
            "column tenant is not ours and must be given (make it nullable, or give it a default)",
        ),
        ("ALTER COLUMN payload TYPE jsonb", "column payload has type JSONB, not JSON"),
        ("ALTER COLUMN key TYPE varchar(40)", "column key has type VARCHAR(40), not TEXT"),
        (
            "ALTER COLUMN created_at TYPE timestamp",
            "column created_at has type TIMESTAMP WITHOUT TIME ZONE, not TIMESTAMP WITH TIME ZONE",
        ),
        (
            "ALTER COLUMN created_at TYPE timestamptz(0)",
            "column created_at has type TIMESTAMP(0) WITH TIME ZONE, not TIMESTAMP WITH TIME ZONE",
        ),
        ("ALTER COLUMN message DROP NOT NULL", "column message may be null (it must be NOT NULL)"),
        ("ALTER COLUMN key SET NOT NULL", "column key is NOT NULL (it must be nullable)"),
        ("ALTER COLUMN version DROP DEFAULT", "column version has no default (it must be 1)"),
        ("ALTER COLUMN version SET DEFAULT 2", "column version has the default 2, not 1"),
        (
            "ALTER COLUMN created_at SET DEFAULT now()",
            "column created_at has the default now(), not clock_timestamp()",
        ),
        (
            "ALTER COLUMN position DROP IDENTITY",
            "column position is not an identity column (it must be GENERATED ALWAYS AS IDENTITY)",
        ),
        (
            "ALTER COLUMN position SET GENERATED BY DEFAULT",
            "column position is GENERATED BY DEFAULT (it must be GENERATED ALWAYS)",
        ),
        ("ALTER COLUMN position SET CACHE 10", "column position has CACHE 10 (it must be 1)"),
        ("ALTER COLUMN position SET INCREMENT 2", "column position has INCREMENT 2 (it must be 1)"),
        ("ALTER COLUMN position SET CYCLE", "column position has CYCLE (it must be NO CYCLE)"),
        ("DROP CONSTRAINT message_bus_outbox_pkey", "the primary key is (), not (position)"),
        (
            "DROP CONSTRAINT message_bus_outbox_id_key",
            "unique constraint message_bus_outbox_id_key on (id) is missing",
        ),
        (
            "DROP CONSTRAINT message_bus_outbox_type_check",
            "check constraint message_bus_outbox_type_check (type IN ('COMMAND', 'EVENT')) is missing",
        ),
    ],
)
def test_each_difference_of_the_outbox_on_postgresql(
    engine: sa.Engine, tables: MessageBusTables, statement: str, difference: str
) -> None:
    """One change of the outbox is one difference, in these words."""
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP VIEW message_bus_outbox_delivery")
        connection.exec_driver_sql(f"ALTER TABLE message_bus_outbox {statement}")
        connection.execute(CreateView(tables))
        assert refused(connection, tables) == [OUTBOX + difference]


@pytest.mark.postgresql
def test_an_older_check_is_a_difference_on_postgresql(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A CHECK of the same name that does not know a newer state is not ours."""
    name = "message_bus_delivery_state_check"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER TABLE message_bus_delivery DROP CONSTRAINT {name}")
        connection.exec_driver_sql(
            f"ALTER TABLE message_bus_delivery ADD CONSTRAINT {name} CHECK (state IN ('dead'))"
        )
        (difference,) = refused(connection, tables)
    assert difference.startswith(f"table message_bus_delivery: check constraint {name} is (")
    assert difference.endswith(", not (state IN ('retrying', 'trying', 'held', 'dead'))")


@pytest.mark.postgresql
def test_a_unique_index_is_as_good_as_a_constraint(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Ids are unique either way."""
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE message_bus_outbox DROP CONSTRAINT message_bus_outbox_id_key")
        connection.exec_driver_sql("CREATE UNIQUE INDEX ids ON message_bus_outbox (id)")
        check_schema(connection, tables)


@pytest.mark.postgresql
def test_a_log_that_cannot_be_read_safely_is_refused(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An outbox with the right columns that is unlogged is refused by the watermark's own check (W7)."""
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE message_bus_outbox SET UNLOGGED")
        with pytest.raises(UnsupportedDatabase, match="unlogged"):
            check_schema(connection, tables)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("pattern", "replacement", "difference"),
    [
        (r"\n\theaders JSON,", "", "column headers is missing"),
        (
            r"\n\theaders JSON,",
            "headers JSON, tenant INTEGER NOT NULL,",
            "column tenant is not ours and must be given (make it nullable, or give it a default)",
        ),
        (r"payload JSON", "payload TEXT", "column payload has type TEXT, not JSON"),
        (r"message TEXT NOT NULL", "message TEXT", "column message may be null (it must be NOT NULL)"),
        (r'"key" TEXT', '"key" TEXT NOT NULL', "column key is NOT NULL (it must be nullable)"),
        (r"INTEGER DEFAULT 1 NOT NULL", "INTEGER NOT NULL", "column version has no default (it must be 1)"),
        (
            r"INTEGER DEFAULT 1 NOT NULL",
            "INTEGER DEFAULT 2 NOT NULL",
            "column version has the default 2, not 1",
        ),
        (
            r" AUTOINCREMENT",
            "",
            "AUTOINCREMENT is missing (without it SQLite uses positions of deleted rows again)",
        ),
        (
            r", \n\tCONSTRAINT message_bus_outbox_id_key UNIQUE \(id\)",
            "",
            "unique constraint message_bus_outbox_id_key on (id) is missing",
        ),
        (
            r"CONSTRAINT message_bus_outbox_key_hash_check CHECK \(key_hash >= 0\), ",
            "",
            "check constraint message_bus_outbox_key_hash_check (key_hash >= 0) is missing",
        ),
        (
            r"\('COMMAND', 'EVENT'\)",
            "('EVENT')",
            "check constraint message_bus_outbox_type_check is (type IN ('EVENT')), not (type IN ('COMMAND', 'EVENT'))",
        ),
    ],
)
def test_each_difference_of_the_outbox_on_sqlite(
    engine: sa.Engine, tables: MessageBusTables, pattern: str, replacement: str, difference: str
) -> None:
    """One change of the outbox is one difference, in these words."""
    with engine.connect() as connection:
        rewrite(connection, "message_bus_outbox", pattern, replacement)
        connection.execute(CreateView(tables))
        assert refused(connection, tables) == [OUTBOX + difference]


@pytest.mark.sqlite
def test_a_primary_key_of_other_columns_on_sqlite(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The primary key is compared with the order of its columns."""
    with engine.connect() as connection:
        rewrite(connection, "message_bus_delivery", r"\(subscription, position\)", "(position, subscription)")
        connection.execute(CreateView(tables))
        found = differences(connection, tables)
    assert (
        "table message_bus_delivery: the primary key is (position, subscription), not (subscription, position)"
        in found
    )


def test_with_schema_translate_map(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The schema looked at is the one that the connection's statements reach."""
    with engine.connect() as plain:
        connection = plain.execution_options(schema_translate_map={None: "nowhere"})
        assert refused(connection, tables) == ["schema 'nowhere' is missing"]
