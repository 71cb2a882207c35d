"""The SQLAlchemy event stores beyond their contract: the caller's transaction, statements, plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from message_bus import AsyncMessageBus, MessageBus
from message_bus.errors import (
    ConcurrencyError,
    SchemaError,
    SettingsError,
    UnsupportedDatabase,
    WiringError,
)
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.envelope import new_envelope
from message_bus.storage import event_statements
from message_bus.storage.tables import MessageBusTables
from message_bus.testing.event_store_messages import AccountOpened, Deposited, OpenAccount, contract_registry


def store_on(connection: sa.Connection | Session, **options: Any) -> SQLAlchemyEventStore:
    """A store that knows the contract's events."""
    return SQLAlchemyEventStore(connection, registry=contract_registry(), **options)


def saved(engine: sa.Engine, stream: str, *cents: int) -> None:
    """Save some deposits, and commit."""
    with engine.begin() as connection:
        store_on(connection).save(stream, [Deposited(each) for each in cents])


@contextmanager
def statements_of(engine: sa.Engine) -> Iterator[list[str]]:
    """What is sent to the database."""
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


# --- the caller's transaction


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_the_caller_owns_the_transaction(
    engine: sa.Engine, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Saving neither commits nor flushes: events and the application's rows live and die together (G1, G10)."""
    Base.metadata.create_all(engine)
    for is_committed in (False, True):
        with session_factory() as session:
            session.add(Note(id=1))
            store_on(session).save("a", [Deposited(1)], 0)
            assert len(session.new) == 1
            if is_committed:
                session.commit()
            else:
                session.rollback()
        with session_factory() as session:
            assert (session.get(Note, 1) is not None) == is_committed
            assert store_on(session).current_version("a") == int(is_committed)


def test_a_savepoint_takes_its_events_with_it(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Rolled back, version included; what was saved around it stays."""
    with session_factory.begin() as session:
        store = store_on(session)
        store.save("a", [Deposited(1)], 0)
        savepoint = session.begin_nested()
        store.save("a", [Deposited(2)], 1)
        savepoint.rollback()
        store.save("a", [Deposited(3)], 1)
    with session_factory() as session:
        assert store_on(session).load("a") == [Deposited(1), Deposited(3)]


def test_a_scoped_session_is_the_one_of_the_moment(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A store that is kept at module level works on the session of each request."""
    scoped = scoped_session(session_factory)
    store = SQLAlchemyEventStore(scoped, registry=contract_registry())
    for number in range(2):
        store.save("a", [Deposited(number)], number)
        scoped.commit()
        scoped.remove()
    assert store.load("a") == [Deposited(0), Deposited(1)]
    scoped.remove()


def test_autocommit_is_refused(engine: sa.Engine, tables: MessageBusTables) -> None:
    """An event that is visible before the commit could not be taken back."""
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
        store_on(connection).save("a", [Deposited(1)])
    with engine.connect() as connection:
        assert store_on(connection).current_version("a") == 0


def test_missing_tables_are_named(engine: sa.Engine) -> None:
    """With the command that makes them."""
    with engine.connect() as connection, pytest.raises(SchemaError, match="message-bus db upgrade"):
        store_on(connection).save("a", [Deposited(1)])


def test_a_session_of_the_other_colour_is_refused(engine: sa.Engine) -> None:
    """At construction, and it says which store takes it."""
    given: Any = AsyncSession()
    with pytest.raises(WiringError, match="AsyncSQLAlchemyEventStore"):
        SQLAlchemyEventStore(given)
    given = Session(engine)
    with pytest.raises(WiringError, match="SQLAlchemyEventStore"):
        AsyncSQLAlchemyEventStore(given)


@pytest.mark.postgresql
def test_other_schemas_and_prefixes(engine: sa.Engine, schema: str) -> None:
    """Tables of another name, and a schema that is chosen for each connection."""
    tables = MessageBusTables(schema="tenant", prefix="shop_")
    translated = engine.execution_options(schema_translate_map={"tenant": schema})
    tables.create_all(translated)
    with translated.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")
        store = store_on(connection, tables=tables)
        store.save("a", [Deposited(1)])
        store.save("a", [Deposited(2), new_envelope(Deposited(3))], 1)
        store.save_snapshot(Snapshot("a", "Account", 3, {}))
    with translated.begin() as connection:
        store = store_on(connection, tables=tables)
        assert len(store.load("a")) == len(store.read_all()) == 3
        assert store.load_snapshot("a") is not None


# --- statements


def test_how_many_statements(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Two to save, however many events; one to load; snapshot and tail are two; events in envelopes cost a savepoint."""
    snapshot = Snapshot("a", "Account", 1, {"cents": 1})
    with engine.connect() as connection, statements_of(engine) as seen:
        connection.begin()
        store = store_on(connection)

        def count() -> int:
            sent = [each for each in seen if not each.startswith("BEGIN")]
            seen.clear()
            return len(sent)

        count()
        store.save("a", [Deposited(1)], 0)
        assert count() == 2
        store.save("a", [Deposited(cents) for cents in range(100)], 1)
        assert count() == 2
        store.save("a", [Deposited(1)])
        assert count() == 2
        store.load("a")
        assert count() == 1
        store.save_snapshot(snapshot)
        assert count() == 1
        assert store.load_snapshot("a") == snapshot
        store.load("a", snapshot.version)
        assert count() == 2
        store.save("a", [new_envelope(Deposited(1))])
        assert count() == (4 if engine.dialect.name == "postgresql" else 2)
        with pytest.raises(ConcurrencyError):
            store.save("a", [Deposited(1)], 1)
        assert count() == 2
        connection.rollback()


def test_ten_thousand_events_in_one_call(engine: sa.Engine, tables: MessageBusTables) -> None:
    """One INSERT, whatever the limit of parameters is, and in order."""
    with engine.begin() as connection, statements_of(engine) as seen:
        recorded = store_on(connection).save("a", [Deposited(cents) for cents in range(10_000)], 0)
        assert len([each for each in seen if "INSERT" in each and tables.event.name in each]) == 1
    assert [each.version for each in recorded] == list(range(1, 10_001))
    positions = [each.position for each in recorded]
    assert positions == sorted(positions)
    with engine.connect() as connection:
        assert [event.cents for event in store_on(connection).load("a")] == list(range(10_000))  # type: ignore[attr-defined]


def plan_of(connection: sa.Connection, statement: sa.Executable, **values: Any) -> str:
    """How the database would run it."""
    bound: Any = statement
    compiled = bound.params(**values).compile(
        dialect=connection.dialect, compile_kwargs={"literal_binds": True}
    )
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    rows = connection.exec_driver_sql(f"{explain} {compiled}").all()
    return "\n".join(str(row[-1]) for row in rows)


def test_plans(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Reading uses an index, sorts no table and scans none, on both databases."""
    with engine.begin() as connection:
        store = store_on(connection)
        for number in range(40):
            store.save(f"stream-{number}", [Deposited(cents) for cents in range(500)])
            store.save_snapshot(Snapshot(f"stream-{number}", "Account", 500, {}))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")
        build = event_statements
        plans = {
            "load": plan_of(
                connection, build.events_of(tables, engine.dialect.name), of_stream="stream-7", after=490
            ),
            "read_all": plan_of(
                connection,
                build.events_after(tables, engine.dialect.name),
                after=10_000,
                settled=20_000,
                limit=1_000,
            ),
            "snapshot": plan_of(connection, build.snapshot_of(tables), of_stream="stream-7"),
            "version": plan_of(connection, build.version_of(tables), of_stream="stream-7"),
            "trace": plan_of(connection, build.events_of_trace(tables, engine.dialect.name), trace="unknown"),
        }
    for name, plan in plans.items():
        assert "Seq Scan on message_bus_event" not in plan, f"{name}: {plan}"
        assert "SCAN message_bus_event" not in plan, f"{name}: {plan}"
        if name != "trace":
            assert "TEMP B-TREE" not in plan, f"{name}: {plan}"
    assert "Sort" not in plans["read_all"]
    if (
        engine.dialect.name == "postgresql"
    ):  # at most the rows that are returned are sorted, never a stream's others
        assert "Index Cond: ((stream = 'stream-7'::text) AND (version > 490))" in plans["load"]
    else:
        assert "(stream=? AND version>?)" in plans["load"]
    assert "correlation_id_idx" in plans["trace"]
    assert "trace_id_idx" in plans["trace"]


# --- the message in hand


def test_events_inherit_from_the_message_in_hand(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Saved in a handler they have its correlation, its trace and, as causation, its id."""
    bus = MessageBus()
    seen: list[Any] = []

    @bus.command_handler(OpenAccount)
    def open_account(command: OpenAccount, context: Any) -> None:
        seen.append(context.envelope)
        with engine.begin() as connection:
            store_on(connection).save("a", [AccountOpened(command.owner), Deposited(1)])

    bus.handle(OpenAccount("Ada"))
    (envelope,) = seen
    with engine.connect() as connection:
        for each in store_on(connection).read_all():
            assert each.causation_id == str(envelope.id)
            assert each.correlation_id == envelope.correlation_id
        assert len(store_on(connection).load_by_trace(envelope.correlation_id)) == 2


async def test_events_inherit_on_an_async_bus(async_engine: Any, async_tables: MessageBusTables) -> None:
    """Also under asyncio, where the write runs in a greenlet."""
    bus = AsyncMessageBus()
    seen: list[Any] = []

    @bus.command_handler(OpenAccount)
    async def open_account(command: OpenAccount, context: Any) -> None:
        seen.append(context.envelope)
        async with async_engine.begin() as connection:
            await AsyncSQLAlchemyEventStore(connection).save("a", [AccountOpened(command.owner)])

    await bus.handle(OpenAccount("Ada"))
    async with async_engine.connect() as connection:
        store = AsyncSQLAlchemyEventStore(connection, registry=contract_registry())
        (read,) = await store.read_all()
    assert read.causation_id == str(seen[0].id)


@pytest.mark.parametrize("name", ["from_version", "after_position", "limit"])
def test_numbers_are_checked(engine: sa.Engine, tables: MessageBusTables, name: str) -> None:
    """A negative number, or none at all, would silently mean something else."""
    with engine.connect() as connection:
        store = store_on(connection)
        read: Any = store.load if name == "from_version" else store.read_all
        arguments = ("a",) if name == "from_version" else ()
        with pytest.raises(SettingsError, match=name):
            read(*arguments, **{name: -1})
