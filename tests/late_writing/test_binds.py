"""Sessions bound to the user's own connection, to several engines, in two phases, in translated schemas (L5, L6)."""

from __future__ import annotations

import gc
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus.errors import UnsupportedDatabase, UnwrittenMessages
from message_bus.repositories.connection_writing import write_now
from message_bus.repositories.late_writing import flush, pending
from message_bus.storage.tables import MessageBusTables
from tests.late_writing.conftest import Base, Order, Room, buffer, message
from tests.late_writing.scenario import under_every_driver

MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
TWO_PHASE = pytest.mark.parametrize(
    "driver", ["psycopg", "psycopg_async"], indirect=True
)  # asyncpg has no tpc_begin
INSERT_ORDER = sa.insert(Order).values(customer="c")

# --- L5: a session on a connection of the user's ------------------------------------------------------------------


@under_every_driver
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_savepoint", [False, True])
def test_session_commit_inside_an_outer_transaction(room: Room, mode: str, in_savepoint: bool) -> None:
    """L5: session.commit() puts the row into the outer transaction, whose commit decides, in every join mode."""
    for outer in ("commit", "rollback"):
        with room.engine.connect() as connection:
            transaction = connection.begin()
            if in_savepoint:
                connection.begin_nested()
            with Session(connection, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
                session.execute(INSERT_ORDER)
                room.register(session, outer)
                session.commit()
            if transaction.is_active:
                getattr(transaction, outer)()
    expected = ["commit", "rollback"] if mode == "control_fully" and not in_savepoint else ["commit"]
    assert room.stored() == expected
    assert room.orders() == len(expected)


@under_every_driver
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize("with_sql", [True, False])
def test_the_user_ends_the_connection_alone(room: Room, mode: str, outer: str, with_sql: bool) -> None:
    """L5: without session.commit() the outer commit takes the messages along, the outer rollback drops them."""
    with room.engine.connect() as connection:
        transaction = connection.begin()
        session = Session(connection, join_transaction_mode=mode)  # type: ignore[arg-type]
        if with_sql:
            session.execute(INSERT_ORDER)
        else:
            connection.execute(INSERT_ORDER)
        room.register(session, "A")
        getattr(transaction, outer)()
        assert pending(session) == 0
        session.close()
    assert room.stored() == (["A"] if outer == "commit" else [])
    assert room.orders() == (1 if outer == "commit" else 0)


@under_every_driver
@pytest.mark.parametrize("mode", MODES)
def test_session_rollback_inside_an_outer_transaction(room: Room, mode: str) -> None:
    """L5: session.rollback() drops its messages; what the outer transaction commits later is without them."""
    with room.engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            session.execute(INSERT_ORDER)
            room.register(session, "dropped")
            session.rollback()
        if transaction.is_active:
            transaction.commit()
    assert room.stored() == []


@under_every_driver
def test_the_usual_test_suite(room: Room) -> None:
    """L5: the recipe of SQLAlchemy's docs: everything a test does, commits and all, is rolled back at its end."""
    with room.engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            for name in ("A", "B"):
                session.add(Order(customer="c"))
                room.register(session, name)
                session.commit()
            room.register(session, "rolled back")
            session.rollback()
            assert room.seen_by(session) == ["A", "B"]
        transaction.rollback()
    assert room.stored() == []


@under_every_driver
def test_a_session_that_was_dropped_without_closing(room: Room) -> None:
    """L5: a session given up after it wrote through the user's connection still has its messages committed there."""

    def place(connection: sa.Connection) -> None:
        session = Session(connection)
        session.execute(INSERT_ORDER)
        room.register(session, "A")

    with room.engine.connect() as connection, connection.begin():
        place(connection)
        gc.collect()
    assert room.stored() == ["A"]


@under_every_driver
def test_several_sessions_on_one_connection(room: Room) -> None:
    """L5: each session's messages go with the connection's commit, and nothing listens any more afterwards."""
    with room.engine.connect() as connection:
        sessions = [Session(connection) for _ in range(2)]
        for _ in range(3):
            with connection.begin():
                for number, session in enumerate(sessions):
                    room.register(session, f"{number}")
            for session in sessions:
                session.close()
        assert not list(connection.dispatch.commit)
    assert sorted(room.stored()) == ["0", "0", "0", "1", "1", "1"]


@under_every_driver
def test_savepoints_of_the_session_on_an_outer_connection(room: Room) -> None:
    """L3, L5: the session's savepoints decide as ever when the outer connection is committed."""
    with room.engine.connect() as connection, connection.begin():
        session = Session(connection, join_transaction_mode="create_savepoint")
        room.register(session, "A")
        nested = session.begin_nested()
        room.register(session, "rolled back")
        nested.rollback()
        session.begin_nested()
        room.register(session, "left open")
    session.close()
    assert room.stored() == ["A", "left open"]


@under_every_driver
def test_what_the_outer_commit_has_written_is_done(room: Room) -> None:
    """L5: the session's savepoint, open at the outer commit and rolled back later, does not bring a message back."""
    with room.engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="rollback_only") as session:
            room.register(session, "A")
            nested = session.begin_nested()
            transaction.commit()
            nested.rollback()
            assert pending(session) == 0
            session.commit()
    assert room.stored() == ["A"]


@under_every_driver
def test_a_core_connection_writes_at_registration(room: Room) -> None:
    """L5: without a session there is nothing to wait for; savepoints and rollbacks of the connection just work."""
    with room.engine.connect() as connection:
        write_now(connection, room.tables, [message("A")])
        assert room.seen_by(connection) == ["A"]
        nested = connection.begin_nested()
        write_now(connection, room.tables, [message("B"), message("C")])
        nested.rollback()
        connection.commit()
        write_now(connection, room.tables, [message("D")])
        connection.rollback()
    assert room.stored() == ["A"]


# --- L6: several engines, two phases, translated schemas ------------------------------------------------------------


@under_every_driver
def test_the_outbox_has_a_bind_of_its_own(room: Room) -> None:
    """L6: `Session(binds=…)` sends the rows where the outbox's table is bound, the orders where they are."""
    engine = room.make_engine()
    seen = room.statements(engine)
    with Session(binds={Order: room.make_engine(), room.tables.outbox: engine}) as session:
        with pytest.raises(sa.exc.UnboundExecutionError):
            session.connection()
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A"]
    assert [statement for statement in seen if "INSERT" in statement]


@under_every_driver
def test_a_routing_session_sees_a_write(room: Room) -> None:
    """L6: `get_bind` is asked with an INSERT, so that a session that sends reads to a replica sends this to the primary."""
    replica = room.make_engine()

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **kw: Any) -> Any:
            writes = self._flushing or isinstance(clause, sa.Insert | sa.Update | sa.Delete)
            return room.engine if writes else replica

    with Routing() as session:
        room.register(session, "A")
        seen = room.statements(replica)
        session.commit()
    assert room.stored() == ["A"]
    assert seen == []


@under_every_driver
def test_no_bind_fails_at_registration(room: Room) -> None:
    """L6: a session that does not know where the outbox is says so at registration, not at the commit."""
    with Session(binds={Order: room.engine}) as session:
        with pytest.raises(sa.exc.UnboundExecutionError):
            room.register(session, "A")
        assert pending(session) == 0


@under_every_driver
@TWO_PHASE
def test_two_phase_sessions(room: Room) -> None:
    """L6: with twophase=True the row is prepared and committed with the rest; after prepare() registering is an error."""
    with Session(room.engine, twophase=True) as session:
        session.add(Order(customer="c"))
        room.register(session, "A")
        session.commit()
        room.register(session, "B")
        session.prepare()
        with pytest.raises(UnwrittenMessages, match="prepared"):
            room.register(session, "too late")
        session.commit()
        room.register(session, "dropped")
        session.prepare()
        session.rollback()
    assert room.stored() == ["A", "B"]


@under_every_driver
@TWO_PHASE
def test_an_outer_two_phase_transaction(room: Room) -> None:
    """L5, L6: preparing the user's two-phase transaction takes along what a session on it has registered."""
    for ending in ("commit", "rollback"):
        with room.engine.connect() as connection:
            transaction = connection.begin_twophase(f"test_{uuid4().hex}")
            session = Session(connection)
            room.register(session, ending)
            transaction.prepare()
            assert pending(session) == 0
            getattr(transaction, ending)()
            session.close()
    assert room.stored() == ["commit"]


@under_every_driver
@TWO_PHASE
def test_the_gate_stops_a_prepare(room: Room) -> None:
    """L2, L6: preparing a session's connection behind its back is stopped like a commit."""
    with Session(room.engine, twophase=True) as session:
        transaction: Any = session.connection().get_transaction()
        room.register(session, "A")
        with pytest.raises(UnwrittenMessages):
            transaction.prepare()
        session.rollback()
    assert room.stored() == []


@under_every_driver
@pytest.mark.postgresql
def test_a_translated_schema(room: Room) -> None:
    """L6: schema_translate_map decides where rows go; one tenant's message must never land in another's schema."""
    tenants = [f"tenant_{uuid4().hex[:8]}" for _ in range(2)]
    try:
        for tenant in tenants:
            engine = room.engine.execution_options(schema_translate_map={None: tenant})
            with engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(tenant))
                room.tables.create_all(connection)
            for _ in range(2):  # the second time from the cache of statements
                with Session(engine) as session:
                    room.register(session, tenant)
                    session.commit()
            with Session(room.engine) as session:
                session.connection(execution_options={"schema_translate_map": {None: tenant}})
                room.register(session, tenant, tenant)
                session.commit()
            with engine.connect() as connection:
                assert room.seen_by(connection) == [tenant] * 4
        assert room.stored() == []
    finally:
        with room.engine.begin() as connection:
            for tenant in tenants:
                connection.execute(sa.schema.DropSchema(tenant, cascade=True, if_exists=True))


@under_every_driver
@pytest.mark.sqlite
def test_a_translated_schema_on_sqlite(room: Room, tmp_path: Any) -> None:
    """L6: the same where a schema is an attached file."""
    engine = room.engine.execution_options(schema_translate_map={None: "tenant"})
    sa.event.listen(
        engine,
        "engine_connect",
        lambda connection: connection.connection.cursor().execute(
            "ATTACH ? AS tenant", (str(tmp_path / "tenant.db"),)
        ),
    )
    room.engine.dispose()
    with engine.begin() as connection:
        room.tables.create_all(connection)
        with Session(connection) as session:
            room.register(session, "A")
            session.commit()
            assert room.seen_by(session) == ["A"]
        connection.exec_driver_sql("SELECT 1")
        assert connection.exec_driver_sql("SELECT count(*) FROM main.message_bus_outbox").scalar() == 0


@under_every_driver
def test_autocommit_is_refused(room: Room) -> None:
    """W7: on an AUTOCOMMIT connection the row would be visible before the commit: it is refused and nothing is written."""
    engine = room.make_engine(isolation_level="AUTOCOMMIT", configure=False)
    with Session(engine) as session:
        room.register(session, "A")
        with pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
            session.commit()
        session.rollback()
    with Session(room.engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        room.register(session, "B")
        with pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
            flush(session)
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
        write_now(connection, room.tables, [message("C")])
    assert room.stored() == []


@under_every_driver
def test_tables_with_a_prefix_beside_the_default(room: Room) -> None:
    """L4: messages of two sets of tables on one session each go to their own."""
    other = MessageBusTables(prefix="billing_")
    with room.engine.begin() as connection:
        other.create_all(connection)
    with sessionmaker(room.engine).begin() as session:
        buffer(session, room.tables, message("A"))
        buffer(session, other, message("B"))
        buffer(session, room.tables, message("C"))
    assert room.stored() == ["A", "C"]
    with room.engine.connect() as connection:
        assert connection.execute(sa.select(other.outbox.c.message)).scalars().all() == ["B"]
    assert Base.metadata is not other.metadata
