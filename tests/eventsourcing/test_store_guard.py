"""The event log is append-only, and `delete_stream` is the one way through that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from message_bus.errors import ConcurrencyError, SchemaError, SettingsError, UnsupportedDatabase
from message_bus.eventsourcing.stores.deleting import delete_stream
from message_bus.eventsourcing.stores.deleting_async import delete_stream_async
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.storage.event_guard import create_guard, trigger_names
from message_bus.storage.migrations import upgrade
from message_bus.storage.schema import check_schema, differences
from message_bus.storage.tables import MessageBusTables
from message_bus.testing.event_store_messages import Deposited, contract_registry
from tests.storage.rows import subscribe
from tests.waiting import wait_until


def save(engine: sa.Engine, stream: str, *cents: int, expected: int | None = None) -> None:
    """Save some deposits, and commit."""
    with engine.begin() as connection:
        SQLAlchemyEventStore(connection).save(stream, [Deposited(each) for each in cents], expected)


def events(engine: sa.Engine, stream: str = "a") -> list[Any]:
    """The events of a stream."""
    with engine.connect() as connection:
        return list(SQLAlchemyEventStore(connection, registry=contract_registry()).load(stream))


CHANGES: dict[str, Callable[[sa.Table], Any]] = {
    "UPDATE": lambda event: sa.update(event).values(message="Other"),
    "UPDATE of nothing": lambda event: sa.update(event).where(event.c.version == 99).values(message="Other"),
    "DELETE": sa.delete,
    "DELETE of one": lambda event: sa.delete(event).where(event.c.version == 1),
    "TRUNCATE": lambda event: sa.text(f"TRUNCATE {event.name}"),
}


@pytest.mark.parametrize("made_by", ["create_all", "migration"])
@pytest.mark.parametrize("change", CHANGES)
def test_events_are_not_changed(engine: sa.Engine, made_by: str, change: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused by the database, and it says why; the tables may come from either."""
    if engine.dialect.name == "sqlite" and change in ("TRUNCATE", "UPDATE of nothing"):
        pytest.skip("SQLite has no TRUNCATE and no triggers for statements")
    tables = MessageBusTables()
    if made_by == "create_all":
        tables.create_all(engine)
    else:
        upgrade(engine)
    save(engine, "a", 1, 2)
    refusal = f"append-only: no {change.partition(' ')[0]} of an event"
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match=refusal):
        connection.execute(CHANGES[change](tables.event))
    assert events(engine) == [Deposited(1), Deposited(2)]


def test_without_the_triggers_events_are_changed(engine: sa.Engine, tables: MessageBusTables) -> None:
    """It is they that refuse."""
    save(engine, "a", 1, 2)
    drop_triggers(engine, tables)
    with engine.begin() as connection:
        connection.execute(sa.delete(tables.event).where(tables.event.c.version == 1))
    assert events(engine) == [Deposited(2)]


def drop_triggers(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Take the guard away."""
    with engine.begin() as connection:
        for name in trigger_names(tables):
            where = f" ON {tables.event.name}" if engine.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TRIGGER {name}{where}")


def test_a_missing_trigger_is_a_difference(engine: sa.Engine, tables: MessageBusTables) -> None:
    """check_schema names each, and how to make it; `create_guard` makes them, also over those that are there."""
    drop_triggers(engine, tables)
    with engine.begin() as connection:
        with pytest.raises(SchemaError) as caught:
            check_schema(connection, tables)
        assert [name for name in trigger_names(tables) if name in str(caught.value)] == list(
            trigger_names(tables)
        )
        assert "create_guard(op.get_bind(), tables)" in str(caught.value)
        for _ in range(2):
            create_guard(connection, tables)
            assert differences(connection, tables) == []


@pytest.mark.postgresql
def test_a_disabled_trigger_is_a_difference(engine: sa.Engine, tables: MessageBusTables) -> None:
    """One that is there but switched off guards nothing."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {tables.event.name} DISABLE TRIGGER USER")
        assert len(differences(connection, tables)) == 2


@pytest.mark.postgresql
def test_the_guard_of_another_schema_and_prefix(engine: sa.Engine, schema: str) -> None:
    """The triggers are made where the table is, and dropped with it."""
    tables = MessageBusTables(schema=schema, prefix="shop_")
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")
        tables.create_all(connection)
        assert differences(connection, tables) == []
        tables.drop_all(connection)
        left = connection.scalar(sa.text("SELECT count(*) FROM pg_proc WHERE proname = 'shop_event_guard'"))
        assert left == 0


@pytest.mark.sqlite
def test_the_guard_of_an_attached_database(engine: sa.Engine, tmp_path: Path) -> None:
    """Its trigger looks at the streams beside it, not at those of the main database."""
    path = tmp_path / "elsewhere.db"
    sa.event.listen(engine, "connect", lambda dbapi, _: dbapi.execute(f"ATTACH '{path}' AS elsewhere"))
    tables = MessageBusTables(schema="elsewhere")
    MessageBusTables().create_all(engine)
    tables.create_all(engine)
    with engine.begin() as connection:
        store = SQLAlchemyEventStore(connection, tables=tables, registry=contract_registry())
        store.save("a", [Deposited(1)])
        assert differences(connection, tables) == []
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
        connection.execute(sa.delete(tables.event))
    with engine.begin() as connection:
        assert delete_stream(connection, "a", by="me", tables=tables) == 1


def test_delete_stream(
    engine: sa.Engine, tables: MessageBusTables, session_factory: sessionmaker[Session], caplog: Any
) -> None:
    """Events, version and snapshot go; other streams and the order of positions stay; the log line says who did it."""
    save(engine, "a", 1, 2)
    save(engine, "b", 3)
    with session_factory.begin() as session:
        SQLAlchemyEventStore(session).save_snapshot(Snapshot("a", "Account", 2, {"cents": 3}))
    with session_factory.begin() as session, caplog.at_level(logging.WARNING, "message_bus.eventsourcing"):
        assert delete_stream(session, "a", by="dpo@example.com") == 2
    (record,) = caplog.records
    assert (record.by, record.stream, record.events) == ("dpo@example.com", "a", 2)
    with session_factory.begin() as session:
        store = SQLAlchemyEventStore(session, registry=contract_registry())
        assert store.load("a") == []
        assert store.current_version("a") == 0
        assert store.load_snapshot("a") is None
        assert [each.stream for each in store.read_all()] == ["b"]
        (new,) = store.save("a", [Deposited(4)], 0)
        assert (new.position, new.version) == (4, 1)


def test_failures_of_a_deleted_stream_are_forgotten(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Nobody could try its events again, and errors may quote them; those of other streams and of the outbox stay."""
    failures = [("totals", "a", "retrying"), ("totals", "b", "dead"), ("dispatch", "a", "dead")]
    save(engine, "a", 1)
    with engine.begin() as connection:
        subscribe(connection, tables, "totals", 2, log="events")
        subscribe(connection, tables, "idle", 2, log="events")
        subscribe(connection, tables, "dispatch", 2)
        for position, (name, key, state) in enumerate(failures, 1):
            values = {"subscription": name, "key": key, "state": state, "position": position, "attempts": 1}
            connection.execute(sa.insert(tables.delivery).values(values))
        delete_stream(connection, "a", by="me")
        left = connection.execute(sa.select(tables.delivery.c.subscription, tables.delivery.c.key)).all()
        assert sorted(map(tuple, left)) == [("dispatch", "a"), ("totals", "b")]
        revisions = connection.execute(
            sa.select(tables.subscription.c.name, tables.subscription.c.revision)
        ).all()
        assert dict(map(tuple, revisions)) == {
            "totals": 2,
            "idle": 0,
            "dispatch": 0,
        }  # the worker reads again


async def test_delete_stream_asynchronously(
    async_engine: AsyncEngine, async_tables: MessageBusTables
) -> None:
    """The twin does the same, on a session and on a connection."""
    async with AsyncSession(async_engine) as session, session.begin():
        store = AsyncSQLAlchemyEventStore(session, registry=contract_registry())
        await store.save("a", [Deposited(1)])
        await store.save("b", [Deposited(2)])
        assert await delete_stream_async(session, "a", by="me") == 1
        assert await store.load("a") == []
    async with async_engine.begin() as connection:
        assert await delete_stream_async(connection, "b", by="me") == 1
        assert await delete_stream_async(connection, "c", by="me") == 0


def test_what_was_deleted_comes_back_with_a_rollback(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The caller's transaction decides (G10)."""
    save(engine, "a", 1)
    with engine.connect() as connection:
        delete_stream(connection, "a", by="me")
        connection.rollback()
    assert events(engine) == [Deposited(1)]


def test_after_delete_stream_the_guard_stands_again(engine: sa.Engine, tables: MessageBusTables) -> None:
    """In the same transaction, and for other streams all the time."""
    save(engine, "a", 1)
    save(engine, "b", 2)
    with engine.connect() as connection:
        delete_stream(connection, "a", by="me")
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            connection.execute(sa.delete(tables.event))
        connection.rollback()
    with engine.connect() as connection:
        delete_stream(connection, "a", by="me")
        SQLAlchemyEventStore(connection).save("a", [Deposited(3)])
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            connection.execute(sa.delete(tables.event).where(tables.event.c.stream == "a"))
        connection.rollback()


def test_who_had_loaded_a_deleted_stream_gets_a_conflict(engine: sa.Engine, tables: MessageBusTables) -> None:
    """The old version is not accepted: nobody writes on as if nothing had happened (G12)."""
    save(engine, "a", 1, 2)
    with engine.begin() as connection:
        delete_stream(connection, "a", by="me")
    with pytest.raises(ConcurrencyError) as caught:
        save(engine, "a", 3, expected=2)
    assert caught.value.actual_version == 0
    assert events(engine) == []


@pytest.mark.postgresql
def test_who_appends_while_a_stream_is_deleted(engine: sa.Engine, tables: MessageBusTables) -> None:
    """He waits for the deletion, and then gets a conflict."""
    save(engine, "a", 1)
    raised: list[BaseException] = []

    def append() -> None:
        try:
            save(engine, "a", 2, expected=1)
        except ConcurrencyError as error:
            raised.append(error)

    with engine.connect() as connection, engine.connect() as observer:
        delete_stream(connection, "a", by="me")
        thread = threading.Thread(target=append)
        thread.start()
        wait_until(lambda: waiting(observer) == 1)
        connection.commit()
        thread.join(timeout=30)
    assert len(raised) == 1
    assert events(engine) == []


@pytest.mark.postgresql
def test_deletion_waits_for_who_is_appending(engine: sa.Engine, tables: MessageBusTables) -> None:
    """What is being appended is deleted, too: nothing of the stream is left over."""
    save(engine, "a", 1)
    deleted: list[int] = []

    def delete() -> None:
        with engine.begin() as connection:
            deleted.append(delete_stream(connection, "a", by="me"))

    with engine.connect() as connection, engine.connect() as observer:
        SQLAlchemyEventStore(connection).save("a", [Deposited(2)])
        thread = threading.Thread(target=delete)
        thread.start()
        wait_until(lambda: waiting(observer) == 1)
        connection.commit()
        thread.join(timeout=30)
    assert deleted == [2]
    assert events(engine) == []


def waiting(observer: sa.Connection) -> int:
    """How many transactions of this database wait for another one."""
    observer.rollback()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(observer.scalar(sa.text(query)) or 0)


def test_who_deletes_must_say_who_he_is(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An empty `by` is refused, and so is a connection that could not take it back."""
    with engine.connect() as connection, pytest.raises(SettingsError, match="by is empty"):
        delete_stream(connection, "a", by=" ")
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
        delete_stream(connection, "a", by="me")
