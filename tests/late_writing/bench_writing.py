"""What a message costs the writer, as ratios to floors measured in the same process, interleaved.

    python tests/late_writing/bench_writing.py [--rounds 400] [--database-url postgresql+psycopg://…]

Prints machine, date, medians in microseconds and the ratio to each floor beside its goal. On PostgreSQL it makes a
database of its own on that server (durability as the server is set up) and drops it; on SQLite a file in a temporary
directory, in WAL.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from message_bus.messages.ids import uuid7
from message_bus.messages.keys import key_hash
from message_bus.repositories.late_writing import buffer
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.storage import writer
from message_bus.storage.insert_dialects import Target, _PostgreSQL, _SQLite, database_of
from message_bus.storage.record import encode
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from tests.servers import PostgreSQL

TABLES = MessageBusTables()
PAYLOAD = b'{"order_id":4711,"customer":"c-17","lines":[1,2,3],"total":"19.90","currency":"EUR","note":null,"gift":false}'
Way = Callable[[], object]


class Base(DeclarativeBase):
    """The application's own."""


class Order(Base):
    """What a business transaction writes."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


def message(number: int) -> OutboxMessage:
    """A row as it is usually registered."""
    return OutboxMessage(type="EVENT", message="OrderPlaced", payload=PAYLOAD, key=f"order-{number}")


def medians(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median microseconds of each way; they take turns, so that a slow moment of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for number in range(rounds + 20):
        for name, way in ways.items():
            begun = time.perf_counter_ns()
            way()
            if number >= 20:  # the first rounds fill caches and prepared statements
                times[name].append((time.perf_counter_ns() - begun) / 1_000)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(title: str, ways: dict[str, Way], goals: dict[str, float], rounds: int) -> bool:
    """Print one comparison; the first way is the floor. True if every goal is met."""
    taken = medians(ways, rounds)
    floor = next(iter(taken.values()))
    print(f"\n{title}")
    met = True
    for name, value in taken.items():
        goal = goals.get(name)
        met = met and (goal is None or value / floor <= goal)
        verdict = (
            "" if goal is None else f"  (goal {goal:.2f}: {'ok' if value / floor <= goal else 'MISSED'})"
        )
        print(f"  {name:58} {value:9.1f} us  {value / floor:5.2f} x{verdict}")
    return met


# --- one row beside an ORM transaction ----------------------------------------------------------------------------


def business(engine: sa.Engine, after: Callable[[Session], object] | None = None) -> Way:
    """The application's transaction; `after` is called in it."""

    def transaction() -> None:
        with Session(engine) as session:
            session.add(Order(customer="c-17"))
            if after is not None:
                after(session)
            session.commit()

    return transaction


def register(session: Session) -> None:
    """What this package does."""
    buffer(session, TABLES, message(1))


def through_core(session: Session) -> None:
    """The same row by SQLAlchemy Core."""
    session.flush()
    record = encode(message(1))
    values = {name: getattr(record, name) for name in ("id", "type", "message", "version", "key", "key_hash")}
    session.connection().execute(sa.insert(TABLES.outbox), {**values, "payload": {"order_id": 4711}})


def through_cursor(session: Session) -> None:
    """The same row by the driver's own cursor."""
    session.flush()
    connection = session.connection()
    statement = writer._statement(
        database_of(connection.dialect), connection.dialect, None, TABLES.prefix, many=False, delayed=False
    )
    cursor = connection.connection.cursor()
    cursor.execute(statement, tuple(encode(message(1))[:-1]))
    cursor.close()


def through_driver_sql(session: Session) -> None:
    """The same row by `exec_driver_sql`."""
    session.flush()
    writer.insert(session.connection(), TABLES, [encode(message(1))])


# --- many rows ------------------------------------------------------------------------------------------------------


def raw_unnest(engine: sa.Engine, count: int) -> Way:
    """What one would write by hand: psycopg, binary arrays, one statement."""
    pool = engine.raw_connection()
    driver = pool.driver_connection
    statement = _PostgreSQL("psycopg")._insert(TABLES.outbox.name, None, many=True)
    payload = PAYLOAD.decode()

    def transaction() -> None:
        keys = [f"order-{number}" for number in range(count)]
        columns = (
            [uuid7() for _ in keys], ["EVENT"] * count, ["OrderPlaced"] * count, [1] * count, keys,
            [key_hash(key) for key in keys], [payload] * count, [None] * count, [None] * count,
        )  # fmt: skip
        with driver.cursor() as cursor:
            cursor.execute(statement, columns)
        driver.commit()

    return transaction


def many(engine: sa.Engine, count: int) -> Way:
    """`count` messages registered in one transaction."""

    def transaction() -> None:
        with Session(engine) as session:
            for number in range(count):
                buffer(session, TABLES, message(number))
            session.commit()

    return transaction


# --- SQLite -----------------------------------------------------------------------------------------------------------


def raw_sqlite(path: Path) -> Way:
    """What one would write by hand: one row, one transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    statement = _SQLite().statement(Target(*[TABLES.outbox.name] * 3), None, many=False)
    payload = PAYLOAD.decode()

    def transaction() -> None:
        connection.execute("BEGIN IMMEDIATE")
        key = "order-1"
        connection.execute(
            statement, (uuid7().hex, "EVENT", "OrderPlaced", 1, key, key_hash(key), payload, None, None)
        )
        connection.execute("COMMIT")

    return transaction


def on_connection(engine: sa.Engine) -> Way:
    """The writer without a session."""
    connection = engine.connect()

    def transaction() -> None:
        writer.write(connection, TABLES, [message(1)])
        connection.commit()

    return transaction


@contextmanager
def own_database(url: sa.URL) -> Iterator[sa.Engine]:
    """A database for this run alone."""
    name = f"bench_{uuid4().hex[:12]}"
    administration = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine = sa.create_engine(url.set(database=name))
    try:
        yield engine
    finally:
        engine.dispose()
        with administration.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def prepare(engine: sa.Engine) -> str:
    """Make the tables; what server is it?"""
    with engine.begin() as connection:
        TABLES.create_all(connection)
        Base.metadata.create_all(connection)
        if engine.dialect.name == "sqlite":
            return f"SQLite {sqlite3.sqlite_version}"
        version, fsync, commit = (
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("server_version", "fsync", "synchronous_commit")
        )
        return f"PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 if every goal is met."""
    parser = argparse.ArgumentParser(description="What a message costs the writer.")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--database-url", help="default: a throw-away server")
    given = parser.parse_args(arguments)
    server = None if given.database_url else PostgreSQL.start()
    try:
        return _measure(server.url if server else given.database_url, given.rounds)
    finally:
        if server:
            server.remove()


def _measure(database_url: str, rounds: int) -> int:
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"SQLAlchemy {sa.__version__}, {datetime.now(UTC):%Y-%m-%d}")  # fmt: skip
    met = True
    with own_database(sa.make_url(database_url)) as engine:
        print(prepare(engine))
        # an engine for each way: its own connection and server process, and the floor without our listeners
        engines = [sa.create_engine(engine.url) for _ in range(6)]
        plain = engines[5]
        met &= report(
            "one outbox row in an ORM transaction (one INSERT)",
            {
                "the transaction without it": business(engines[0]),
                "registered, written before commit": business(engines[1], register),
                "the same row: exec_driver_sql by hand": business(engines[2], through_driver_sql),
                "the same row: DBAPI cursor by hand": business(engines[3], through_cursor),
                "the same row: Core insert() by hand": business(engines[4], through_core),
            },
            {"registered, written before commit": 1.25},
            rounds,
        )
        met &= report(
            "100 messages in one transaction",
            {
                "raw binary UNNEST": raw_unnest(plain, 100),
                "100 x registered, written before commit": many(engine, 100),
            },
            {"100 x registered, written before commit": 2.0},
            rounds // 2,
        )
        for each in engines:
            each.dispose()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.db"
        engine = configure_sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))))
        plain = configure_sqlite(sa.create_engine(engine.url))
        print(f"\n{prepare(engine)}")
        met &= report(
            "SQLite (WAL): one row, one transaction",
            {
                "raw sqlite3": raw_sqlite(path),
                "writer on a connection": on_connection(engine),
                "registered on a session": many(engine, 1),
            },
            {"writer on a connection": 1.4},
            rounds * 4,
        )
        met &= report(
            "SQLite (WAL): one row beside an ORM transaction",
            {"the transaction without it": business(plain), "registered": business(engine, register)},
            {},
            rounds * 4,
        )
        plain.dispose()
        engine.dispose()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
