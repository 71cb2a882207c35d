"""On SQLite there is one writer at a time: whatever is committed is settled."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from message_bus.errors import PositionBehind, UnsupportedDatabase
from message_bus.storage.holders import holders
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.settled import Look, check_checkpoint
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from message_bus.storage.watermark_async import AsyncWatermark

pytestmark = pytest.mark.sqlite

INSERT = sa.text(
    "INSERT INTO message_bus_outbox (id, type, message, payload) VALUES (hex(randomblob(16)), 'EVENT', 'm', '{}')"
)


@pytest.fixture
def backend() -> str:
    """Not PostgreSQL, for once."""
    return "sqlite"


def look(engine: sa.Engine, tables: MessageBusTables) -> Look:
    """Look from a connection of its own."""
    with engine.connect() as connection:
        return Watermark(tables).look(connection)


def test_all_that_is_committed_is_settled(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Nothing at first, then what was written; a position that was rolled back is drawn again, by the next in
    order.
    """
    assert (look(engine, tables).settled, look(engine, tables).high) == (0, 0)
    with engine.begin() as connection:
        connection.execute(INSERT)
    with engine.connect() as connection:
        connection.execute(INSERT)
        connection.rollback()
    with engine.begin() as connection:
        connection.execute(INSERT)
    assert (look(engine, tables).settled, look(engine, tables).high) == (2, 2)


def test_a_writer_in_progress_is_not_settled_for_others(engine: sa.Engine, tables: MessageBusTables) -> None:
    """A reader's snapshot has what was committed before; the writer itself sees its own rows, as anywhere."""
    with engine.connect() as writing:
        writing.execute(INSERT)
        assert look(engine.execution_options(sqlite_begin="DEFERRED"), tables).settled == 0
        assert Watermark(tables).look(writing).settled == 1
        writing.rollback()


def test_pruned_rows_do_not_take_the_position_back(engine: sa.Engine, tables: MessageBusTables) -> None:
    """W8: the sequence outlives the rows, so an emptied log is not taken for one that began anew."""
    with engine.begin() as connection:
        connection.execute(INSERT)
        connection.execute(INSERT)
        connection.execute(sa.text("DELETE FROM message_bus_outbox"))
    assert (look(engine, tables).settled, look(engine, tables).high) == (2, 2)
    check_checkpoint(look(engine, tables), 2)


def test_a_sequence_behind_the_checkpoint_names_a_repair_that_works(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """W8: after a restore of an older file."""
    with engine.begin() as connection:
        connection.execute(INSERT)
    with pytest.raises(PositionBehind, match="UPDATE sqlite_sequence") as caught:
        check_checkpoint(look(engine, tables), 30)
    with engine.begin() as connection:
        connection.execute(sa.text(str(caught.value).split("run: ")[1].split(";")[0]))
    check_checkpoint(look(engine, tables), 30)


def test_an_attached_schema_has_a_sequence_of_its_own(engine: sa.Engine) -> None:
    """A schema is an attached file, with its own sqlite_sequence; schema_translate_map is honoured."""
    tables = MessageBusTables(schema="app")
    with engine.connect() as connection:
        connection.exec_driver_sql("ATTACH DATABASE ':memory:' AS tenant")
        translated = connection.execution_options(schema_translate_map={"app": "tenant"})
        tables.metadata.create_all(translated, tables=[tables.outbox])
        connection.exec_driver_sql(str(INSERT).replace("INTO ", "INTO tenant."))
        check_log(translated, tables)
        assert Watermark(tables).look(translated).settled == 1
        connection.rollback()
        connection.invalidate()  # the file is attached to this connection


def test_a_log_that_uses_positions_again_is_refused(engine: sa.Engine) -> None:
    """W7: without AUTOINCREMENT the position of a deleted last row is given to the next."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE message_bus_outbox (position INTEGER PRIMARY KEY)")
        with pytest.raises(UnsupportedDatabase, match="INTEGER PRIMARY KEY AUTOINCREMENT"):
            check_log(connection, MessageBusTables())


def test_what_create_all_makes_is_accepted(engine: sa.Engine, tables: MessageBusTables) -> None:
    """W7, W10: nothing to refuse, nobody in the way."""
    with engine.connect() as connection:
        check_log(connection, tables)
        check_reader(connection)
        assert holders(connection, tables) == []


async def test_the_async_watermark_does_the_same(
    async_engine: AsyncEngine, async_tables: MessageBusTables
) -> None:
    """On aiosqlite."""
    async with async_engine.begin() as connection:
        await connection.execute(INSERT)
    async with async_engine.connect() as connection:
        found = await AsyncWatermark(async_tables).look(connection)
    assert (found.settled, found.high) == (1, 1)
