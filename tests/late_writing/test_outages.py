"""What counts as an outage, told from real errors of real servers (G8, S7)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus.storage.outages import is_outage
from message_bus.storage.sqlite import configure_sqlite
from tests.late_writing.conftest import Order, Room
from tests.late_writing.scenario import under_every_driver

COUNT = sa.select(sa.func.count()).select_from(Order)
INSERT = sa.insert(Order).values(customer="c")


@under_every_driver
@pytest.mark.postgresql
def test_a_terminated_backend(room: Room) -> None:
    """S7: the connection was killed: the next statement meets an outage."""
    with room.engine.connect() as connection, room.make_engine().connect() as killer:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(COUNT)
    assert is_outage(caught.value)
    # SQLAlchemy saw that the connection is closed; the driver's own error may speak of that, or of a state that the
    # news of its end interrupted (asyncpg)
    assert caught.value.connection_invalidated


@under_every_driver
@pytest.mark.postgresql
def test_one_lost_connection_tells_of_all(room: Room) -> None:
    """After a restart one commit of messages fails, not one for each connection that the pool still holds (S7)."""
    with room.engine.connect() as first, room.engine.connect() as second:
        pids = [each.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() for each in (first, second)]
    with room.make_engine().connect() as killer:
        for pid in pids:
            killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    with room.session() as session:
        room.register(session, "A")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            session.commit()
    assert is_outage(caught.value)
    with room.session() as session:
        room.register(session, "B")
        session.commit()
    assert room.stored() == ["B"]


@under_every_driver
@pytest.mark.postgresql
def test_a_serialization_failure(room: Room) -> None:
    """S7: 40001 is nobody's fault: the same work will do in another order."""
    engine = room.engine.execution_options(isolation_level="SERIALIZABLE")
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.execute(COUNT)
            connection.execute(INSERT)
        first.commit()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            second.commit()
    assert is_outage(caught.value)


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg"], indirect=True)
def test_a_deadlock(play: Any) -> None:
    """S7: 40P01, met by the transaction that the server chose as the victim."""
    import threading

    def scenario(room: Room) -> None:
        with room.engine.begin() as connection:
            connection.execute(sa.insert(Order), [{"id": 1, "customer": "a"}, {"id": 2, "customer": "b"}])
        met = threading.Barrier(2)
        errors: list[BaseException] = []

        def update(first: int, second: int) -> None:
            try:
                with room.engine.begin() as connection:
                    connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
                    connection.execute(sa.update(Order).where(Order.id == first).values(customer="x"))
                    met.wait()
                    connection.execute(sa.update(Order).where(Order.id == second).values(customer="y"))
            except sa.exc.DBAPIError as error:
                errors.append(error)

        threads = [threading.Thread(target=update, args=ids) for ids in ((1, 2), (2, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        assert is_outage(errors[0])

    play(scenario)


@under_every_driver
@pytest.mark.postgresql
def test_a_read_only_server(room: Room) -> None:
    """G8: writing where only reading is possible, as on the old primary after a failover."""
    with room.engine.connect() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(INSERT)
    assert is_outage(caught.value)


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"], indirect=True)
def test_nobody_listens(play: Any, driver: str) -> None:
    """G8: a server that cannot be reached at all."""

    def scenario(room: Room) -> None:
        unreachable = room.engine.url.set(host="127.0.0.1", port=1, query={})
        engine = sa.create_engine(unreachable)
        with pytest.raises(Exception, match=r"(?i)connect") as caught:
            engine.connect()
        assert is_outage(caught.value)

    play(scenario)


@under_every_driver
def test_an_exhausted_pool(room: Room) -> None:
    """G8: no connection to be had is an outage of the database, too."""
    engine = room.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect(), pytest.raises(sa.exc.TimeoutError) as caught:
        engine.connect()
    assert is_outage(caught.value)


@under_every_driver
@pytest.mark.sqlite
def test_a_locked_file(room: Room) -> None:
    """A busy SQLite database is an outage, not a failure."""
    impatient = room.make_engine(configure=False)
    configure_sqlite(impatient, busy_timeout=timedelta(0))
    with room.engine.connect() as writer:
        writer.execute(INSERT)
        with pytest.raises(sa.exc.OperationalError) as caught, impatient.connect() as connection:
            connection.execute(COUNT)
    assert is_outage(caught.value)


@under_every_driver
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM no_such_table",
        "INSERT INTO orders (id, customer) VALUES (1, 'c'), (1, 'c')",
        "INSERT INTO orders (id) VALUES (1)",
        "SELEC",
    ],
)
def test_faults_of_the_work_are_no_outages(room: Room, statement: str) -> None:
    """G7: what will fail again must burn its attempts."""
    with room.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.exec_driver_sql(statement)
    assert not is_outage(caught.value)


@under_every_driver
@pytest.mark.postgresql
def test_wrong_arguments_are_no_outage(room: Room) -> None:
    """G7: drivers say InterfaceError of a lost connection and of wrong arguments alike; only the first is an outage."""
    placeholder = "$1" if room.engine.driver == "asyncpg" else "%s"
    with room.engine.connect() as connection, pytest.raises(Exception) as caught:  # noqa: PT011
        connection.exec_driver_sql(f"SELECT {placeholder}::int", ("one", "two"))
    assert not is_outage(caught.value)


def test_through_what_wraps_it() -> None:
    """An outage stays one behind `raise … from …`; a circle of causes ends; what is only context does not count."""
    outer, inner = ValueError("outer"), ConnectionResetError()
    outer.__cause__ = inner
    inner.__cause__ = outer
    assert is_outage(outer)
    lonely = ValueError("raised while handling")
    lonely.__context__ = ConnectionResetError()
    assert not is_outage(lonely)
    assert not is_outage(TimeoutError("the handler's own"))


@pytest.mark.parametrize(
    "code", ["40001", "40P01", "57P01", "57P02", "57P03", "25006", "08006", "08003", "53300", "53100"]
)
def test_codes(code: str) -> None:
    """S7: the SQLSTATEs that are outages, under either name that drivers give the attribute."""
    for attribute in ("sqlstate", "pgcode"):
        error = Exception()
        setattr(error, attribute, code)
        assert is_outage(error)
        setattr(error, attribute, "23505")
        assert not is_outage(error)
