"""What the event store costs, as ratios to hand-written loops doing the same durable work, measured in the same process.

    python -m tests.eventsourcing.bench_store [--rounds 300] [--database-url postgresql+psycopg://…]

Prints machine, date, times and rates, and the ratio to each floor beside its goal (throughput: at least; time: at most). On
PostgreSQL it makes a database of its own on that server (durability as the server is set up) and drops it; on SQLite a
file in a temporary directory, in WAL. The floors keep no stream row, check no version and give nobody an envelope.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.definition import definition_of
from message_bus.messages.ids import uuid7
from message_bus.messages.keys import key_hash
from message_bus.messages.message import Event
from message_bus.messages.registry import Registry
from message_bus.storage.event_statements import Names, _PostgreSQL, _SQLite
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from tests.servers import PostgreSQL

TABLES = MessageBusTables()
Way = Callable[[], object]


class ItemAdded(Event, name="bench.item_added"):
    """Seven fields, as in the bench of the codec."""

    order_id: int
    customer: str
    lines: list[int]
    total: str
    currency: str
    note: str | None
    gift: bool


class Order:
    """What is replayed."""

    def __init__(self) -> None:
        self.items = 0
        self.lines = 0

    def apply(self, event: ItemAdded) -> None:
        """Count."""
        self.items += 1
        self.lines += len(event.lines)


REGISTRY = Registry()
REGISTRY.register(ItemAdded)
ENCODE = msgspec.json.Encoder().encode
DECODE = msgspec.json.Decoder(ItemAdded).decode


def item(number: int) -> ItemAdded:
    """An event."""
    return ItemAdded(number, "c-17", [1, 2, 3], "19.90", "EUR", None, False)


definition_of(ItemAdded)


def store_on(connection: sa.Connection, watermark: Watermark | None = None) -> SQLAlchemyEventStore:
    """A store as a request makes it."""
    return SQLAlchemyEventStore(connection, tables=TABLES, registry=REGISTRY, watermark=watermark)


def report(title: str, taken: dict[str, float], goals: dict[str, float], unit: str) -> bool:
    """Print one comparison; the first way is the floor. True if every goal is met."""
    floor = next(iter(taken.values()))
    print(f"\n{title}")
    met = True
    for name, value in taken.items():
        goal = goals.get(name)
        ratio = value / floor
        ok = goal is None or (ratio <= goal if unit == "us" else ratio >= goal)
        met = met and ok
        verdict = "" if goal is None else f"  (goal {goal:.2f}: {'ok' if ok else 'MISSED'})"
        print(f"  {name:46} {value:11.1f} {unit}  {ratio:5.2f} x{verdict}")
    return met


def times(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Microseconds of each way at its best: whatever else the machine does only adds. They take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):
        for name, way in ways.items():
            begun = time.perf_counter_ns()
            way()
            if number >= 3:
                taken[name].append((time.perf_counter_ns() - begun) / 1_000)
    return {name: min(each) for name, each in taken.items()}


def rates(
    ways: dict[str, Callable[[int], Way]], *, threads: int, rounds: int, events: int
) -> dict[str, float]:
    """Events per second of each way, made once for each thread: the median of five turns."""
    made = {name: [make(number) for number in range(threads)] for name, make in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6):
        for name, workers in made.items():
            running = [threading.Thread(target=repeat, args=(way, rounds)) for way in workers]
            begun = time.perf_counter()
            for each in running:
                each.start()
            for each in running:
                each.join()
            if turn:
                taken[name].append(threads * rounds * events / (time.perf_counter() - begun))
    return {name: statistics.median(each) for name, each in taken.items()}


def repeat(way: Way, rounds: int) -> None:
    """Do it again and again."""
    for _ in range(rounds):
        way()


# --- appending ----------------------------------------------------------------------------------------------------


def append(engine: sa.Engine, events: int, _: int) -> Way:
    """What this package does, on a stream of its own."""
    stream, version = f"stream-{uuid4()}", 0

    def transaction() -> None:
        nonlocal version
        with engine.begin() as connection:
            store_on(connection).save(stream, [item(n) for n in range(events)], version)
        version += events

    return transaction


def rows(stream: str, version: int, events: int) -> list[tuple[Any, ...]]:
    """The same rows, made by hand."""
    hashed = key_hash(stream)
    made: list[tuple[Any, ...]] = []
    for n in range(1, events + 1):
        event_id = uuid7()
        payload = ENCODE(item(n)).decode()
        headers = f'{{"correlation_id":"{event_id}"}}'
        made.append(
            (
                event_id,
                stream,
                version + n,
                "bench.item_added",
                1,
                hashed,
                payload,
                None,
                headers,
                str(event_id),
                None,
            )
        )
    return made


def append_raw_postgresql(url: sa.URL, events: int, _: int) -> Way:
    """One INSERT and a commit through psycopg."""
    import psycopg

    connection = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    dialect = _PostgreSQL("psycopg")
    names = Names(event='"message_bus_event"', log='"message_bus_log"')
    statement = dialect._insert(names.event, many=events > 1) + " RETURNING position, recorded_at"
    stream, version = f"stream-{uuid4()}", 0

    def transaction() -> None:
        nonlocal version
        connection.execute(statement, dialect.parameters(rows(stream, version, events))).fetchall()
        connection.commit()
        version += events

    return transaction


def append_raw_sqlite(path: Path, events: int, _: int) -> Way:
    """BEGIN IMMEDIATE, INSERT, COMMIT through sqlite3."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    statement = _SQLite().statement(Names(event="message_bus_event", log=""), 1).partition(" RETURNING")[0]
    stream, version = f"stream-{uuid4()}", 0

    def transaction() -> None:
        nonlocal version
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, [(row[0].hex, *row[1:]) for row in rows(stream, version, events)])
        connection.execute("COMMIT")
        version += events

    return transaction


# --- reading ------------------------------------------------------------------------------------------------------


def raw(engine: sa.Engine, statement: str, parameters: Any) -> list[Any]:
    """Rows through the driver's cursor, in the form it gives fastest."""
    connection: Any = engine.raw_connection()
    try:
        options = {"binary": True} if engine.dialect.name == "postgresql" else {}
        cursor = connection.cursor(**options)
        cursor.execute(statement, parameters)
        found: list[Any] = cursor.fetchall()
        cursor.close()
        return found
    finally:
        connection.rollback()
        connection.close()


def reading(engine: sa.Engine, rounds: int) -> bool:
    """Load and replay, snapshots, the whole log."""
    mark = "%s" if engine.dialect.name == "postgresql" else "?"
    text = "payload::text" if engine.dialect.name == "postgresql" else "payload"
    with engine.begin() as connection:
        for count in (1_000, 10_000):
            store_on(connection).save(f"replay-{count}", [item(n) for n in range(count)])
        state = {"items": list(range(50)), "total": "19.90"}
        store_on(connection).save_snapshot(Snapshot("replay-1000", "Order", 1_000, state))
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    met = True
    of_stream = (
        f"SELECT {text} FROM message_bus_event WHERE stream = {mark} AND version > {mark} ORDER BY version"
    )

    def replay(count: int) -> None:
        order = Order()
        with engine.connect() as connection:
            for event in store_on(connection).load(f"replay-{count}"):
                order.apply(event)  # type: ignore[arg-type]

    def replay_raw(count: int) -> None:
        order = Order()
        for (payload,) in raw(engine, of_stream, (f"replay-{count}", 0)):
            order.apply(DECODE(payload))

    for count in (1_000, 10_000):
        ways = {"raw select + msgspec": partial(replay_raw, count), "load": partial(replay, count)}
        met &= report(
            f"load and replay {count} events", times(ways, rounds * 100 // count), {"load": 2.0}, "us"
        )

    of_snapshot = f"SELECT version, state{'::text' if mark == '%s' else ''} FROM message_bus_snapshot WHERE stream = {mark}"

    def snapshot() -> None:
        with engine.connect() as connection:
            store_on(connection).load_snapshot("replay-1000")

    def snapshot_raw() -> None:
        ((_, kept),) = raw(engine, of_snapshot, ("replay-1000",))
        msgspec.json.decode(kept)

    ways = {"raw select + msgspec": snapshot_raw, "load_snapshot": snapshot}
    met &= report("snapshot", times(ways, rounds), {"load_snapshot": 1.3}, "us")

    of_log = (
        f"SELECT position, {text} FROM message_bus_event WHERE position > {mark} ORDER BY position LIMIT 1000"
    )
    watermark = Watermark(TABLES.of_log(EVENT_LOG))
    counts: dict[str, int] = {}

    def whole_log() -> None:
        position = counts["log"] = 0
        with engine.connect() as connection:
            store = store_on(connection, watermark)
            while read := store.read_all(position):
                position = read[-1].position
                counts["log"] += len(read)

    def whole_log_raw() -> None:
        position = counts["raw"] = 0
        while read := raw(engine, of_log, (position,)):
            for _, payload in read:
                DECODE(payload)
            position = read[-1][0]
            counts["raw"] += len(read)

    taken = times({"raw select + msgspec": whole_log_raw, "read_all": whole_log}, 5)
    assert counts["raw"] == counts["log"], counts
    per_second = {name: counts["raw"] / value * 1e6 for name, value in taken.items()}
    return report("the whole log, in batches of 1,000", per_second, {"read_all": 0.5}, "/s") and met


@contextmanager
def database(url: str | None) -> Iterator[sa.URL]:
    """A PostgreSQL database of our own, dropped at the end."""
    server = PostgreSQL.start() if url is None else None
    base = sa.make_url(server.url if server is not None else url)
    name = f"bench_store_{uuid4().hex[:8]}"
    administration = sa.create_engine(base, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield base.set(database=name)
    finally:
        with administration.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        if server is not None:
            server.remove()


def main() -> int:
    """1 if a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--database-url")
    arguments = parser.parse_args()
    rounds: int = arguments.rounds
    print(f"{platform.platform()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}")
    met = True
    with database(arguments.database_url) as url:
        engine = sa.create_engine(url)
        TABLES.create_all(engine)
        with engine.connect() as connection:
            fsync = connection.exec_driver_sql("SHOW fsync").scalar()
        print(f"PostgreSQL, fsync {fsync}")
        met &= reading(engine, rounds)
        for threads in (1, 4):
            for events in (1, 10):
                floor = partial(append_raw_postgresql, url, events)
                taken = rates(
                    {"raw insert": floor, "save": partial(append, engine, events)},
                    threads=threads, rounds=rounds, events=events,
                )  # fmt: skip
                met &= report(f"append {events} a transaction, {threads} threads", taken, {"save": 0.6}, "/s")
        engine.dispose()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.db"
        engine = configure_sqlite(sa.create_engine(f"sqlite:///{path}"))
        TABLES.create_all(engine)
        print("\nSQLite, WAL")
        for events in (1, 10):
            taken = rates(
                {"raw insert": partial(append_raw_sqlite, path, events), "save": partial(append, engine, events)},
                threads=1, rounds=rounds, events=events,
            )  # fmt: skip
            met &= report(f"append {events} a transaction", taken, {"save": 0.6}, "/s")
        engine.dispose()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
