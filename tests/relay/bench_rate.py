"""How many messages a second one partition delivers, against loops written by hand for the same durable work.

The floor: one statement moves a checkpoint by compare-and-set and reads the next batch, on psycopg 3 in binary; each payload
is decoded by msgspec, and its handler found in a dict and called; COMMIT. It reads the columns that an `OutboxMessage` and
its envelope consist of. Ours is what a relay's station does: one run of a `Worker`. Called by `bench_relay`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import Any

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import DispatchOutboxHandler, MessageBus, Subscription
from message_bus.delivery.jobs import Stop
from message_bus.delivery.worker import Worker
from message_bus.storage.watermark import Watermark
from tests.relay.bench_ground import (
    CHECKPOINT,
    EFFECT,
    TABLES,
    Line,
    OrderPlaced,
    fill,
    in_turns,
    own_database,
    own_file,
    rates,
    ratio,
    raw_connection,
)

COLUMNS = "o.position, o.id, o.type, o.message, o.version, o.key, {meta}, {headers}, o.created_at, {payload}"
PG_COLUMNS = COLUMNS.format(meta="o.meta::text", headers="o.headers::text", payload="o.payload::text")
OUTBOX = TABLES.outbox.name
MOVE = f"UPDATE {CHECKPOINT.name} SET position = %s WHERE name = 'floor' AND position = %s"
MOVE_AND_READ = (
    f"WITH moved AS ({MOVE} RETURNING position) SELECT {PG_COLUMNS} FROM moved, "
    f"LATERAL (SELECT * FROM {OUTBOX} AS log WHERE log.position > moved.position ORDER BY log.position LIMIT %s) AS o"
)
READ = f"SELECT {PG_COLUMNS} FROM {OUTBOX} AS o WHERE o.position > %s ORDER BY o.position LIMIT %s"
INSERT_EFFECT = f"INSERT INTO {EFFECT.name} (order_id, note) VALUES (%s, %s)"
ORM_EFFECT = sa.insert(EFFECT)
Handler = Callable[[Any, Any], None]


def nothing(message: Any, context: Any) -> None:
    """The no-op."""


def insert(event: OrderPlaced, context: Any) -> None:
    """One INSERT in the given session, as an application writes it."""
    context.db_session.execute(ORM_EFFECT, {"order_id": event.order_id, "note": event.note})


# --- ours -----------------------------------------------------------------------------------------------------------


class Ours:
    """One subscription over a full outbox; each run starts where it is told to."""

    def __init__(self, engine: sa.Engine, handler: Handler, *, per_commit: int, fetch: int = 100) -> None:
        self.engine = engine
        self.sessions = sessionmaker(engine)
        name = f"{handler.__name__}-{per_commit}"
        self.settings = Subscription(
            name=name,
            start="beginning",
            messages_per_commit=per_commit,
            fetch_size=max(fetch, per_commit),
            commit_within=timedelta(seconds=10),
        )
        self.bus = MessageBus(event_handlers={OrderPlaced: [handler]})
        self.handler = DispatchOutboxHandler(subscription=self.settings)
        self.bus.set_outbox_handlers([self.handler])
        self.watermark = Watermark(TABLES)
        with self.sessions() as session:
            self.bus.process_outbox(session, limit=1)

    def run(self, messages: int, *, after: int = 0) -> float:
        """Seconds for so many messages, beginning with the one behind position `after`."""
        self.rewind(after)
        return self.go_on(messages)

    def rewind(self, after: int) -> None:
        """Let the next run begin behind this position."""
        t = TABLES.subscription
        with self.engine.begin() as connection:
            connection.execute(sa.update(t).where(t.c.name == self.settings.name).values(position=after))

    def go_on(self, messages: int) -> float:
        """Seconds for the next so many messages."""
        worker = Worker(
            self.bus,
            self.handler,
            self.settings,
            0,
            tables=TABLES,
            watermark=self.watermark,
            lease=timedelta(seconds=30),
            stop=Stop(),
        )
        with self.sessions() as session:
            assert worker.claim(session)
            with worker.beating(session):
                begun = perf_counter()
                tally = worker.run(session, limit=messages)
                seconds = perf_counter() - begun
            worker.release(session)
        assert tally.delivered == messages, tally
        return seconds


# --- the floors -----------------------------------------------------------------------------------------------------


def _calls(handler: Callable[[Any], object]) -> tuple[dict[str, Any], dict[type, Any]]:
    return {"OrderPlaced": msgspec.json.Decoder(OrderPlaced).decode}, {OrderPlaced: handler}


def _begin_floor(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(CHECKPOINT))
        connection.execute(sa.insert(CHECKPOINT).values(name="floor", position=0))


def raw_loop(engine: sa.Engine, messages: int, *, per_commit: int, decode: bool = True) -> float:
    """The cursor loop with a no-op."""
    _begin_floor(engine)
    decoders, handlers = _calls(lambda message: None)
    with raw_connection(engine) as connection, connection.cursor(binary=True) as cursor:
        begun = perf_counter()
        rows = cursor.execute(READ, (0, per_commit), prepare=True).fetchall()
        connection.commit()
        at = done = 0
        while done < messages:
            if decode:
                for row in rows:
                    message = decoders[row[3]](row[9])
                    handlers[message.__class__](message)
            done += len(rows)
            to = rows[-1][0]
            rows = cursor.execute(MOVE_AND_READ, (to, at, per_commit), prepare=True).fetchall()
            connection.commit()
            at = to
        return perf_counter() - begun


def raw_pipeline(engine: sa.Engine, messages: int, *, per_commit: int) -> float:
    """The same with BEGIN, the statement and COMMIT in one round trip: only where handlers write nothing."""
    _begin_floor(engine)
    decoders, handlers = _calls(lambda message: None)
    with raw_connection(engine) as connection, connection.cursor(binary=True) as cursor:
        begun = perf_counter()
        rows = cursor.execute(READ, (0, per_commit), prepare=True).fetchall()
        connection.commit()
        at = done = 0
        while done < messages:
            for row in rows:
                message = decoders[row[3]](row[9])
                handlers[message.__class__](message)
            done += len(rows)
            to = rows[-1][0]
            with connection.pipeline():
                cursor.execute(MOVE_AND_READ, (to, at, per_commit), prepare=True)
                connection.commit()
                rows = cursor.fetchall()
            at = to
        return perf_counter() - begun


def raw_inserts(engine: sa.Engine, messages: int, *, per_commit: int, fetch: int = 100) -> float:
    """Each handler one INSERT through psycopg; `per_commit` messages share a commit."""
    _begin_floor(engine)
    with raw_connection(engine) as connection, connection.cursor(binary=True) as cursor:
        inserts = connection.cursor()

        def handle(message: OrderPlaced) -> None:
            inserts.execute(INSERT_EFFECT, (message.order_id, message.note), prepare=True)

        def move(to: int, at: int) -> None:
            cursor.execute(MOVE, (to, at), prepare=True)
            assert cursor.rowcount == 1

        def move_and_read(to: int, at: int) -> list[Any]:
            return cursor.execute(MOVE_AND_READ, (to, at, fetch), prepare=True).fetchall()

        begun = perf_counter()
        rows = cursor.execute(READ, (0, fetch), prepare=True).fetchall()
        connection.commit()
        _insert_all(rows, messages, per_commit, handle, move, move_and_read, connection.commit)
        return perf_counter() - begun


def session_inserts(engine: sa.Engine, messages: int, *, per_commit: int, fetch: int = 100) -> float:
    """The same, but handlers are given a Session, as ours are; checkpoint and rows go past it to the driver."""
    _begin_floor(engine)
    with Session(engine) as session:

        def handle(message: OrderPlaced) -> None:
            session.execute(ORM_EFFECT, {"order_id": message.order_id, "note": message.note})

        def cursor() -> psycopg.Cursor[tuple[Any, ...]]:
            driver: Any = session.connection().connection.driver_connection
            made: psycopg.Cursor[tuple[Any, ...]] = driver.cursor(binary=True)
            return made

        def move(to: int, at: int) -> None:
            with cursor() as each:
                each.execute(MOVE, (to, at), prepare=True)
                assert each.rowcount == 1

        def move_and_read(to: int, at: int) -> list[Any]:
            with cursor() as each:
                return each.execute(MOVE_AND_READ, (to, at, fetch), prepare=True).fetchall()

        begun = perf_counter()
        with cursor() as first:
            rows = first.execute(READ, (0, fetch), prepare=True).fetchall()
        session.commit()
        _insert_all(rows, messages, per_commit, handle, move, move_and_read, session.commit)
        return perf_counter() - begun


def _insert_all(
    rows: list[Any],
    messages: int,
    per_commit: int,
    handle: Callable[[OrderPlaced], None],
    move: Callable[[int, int], None],
    move_and_read: Callable[[int, int], list[Any]],
    commit: Callable[[], None],
) -> None:
    decoders, handlers = _calls(handle)
    at = done = 0
    while done < messages:
        for begin in range(0, len(rows), per_commit):
            group = rows[begin : begin + per_commit]
            for row in group:
                message = decoders[row[3]](row[9])
                handlers[message.__class__](message)
            to = group[-1][0]
            done += len(group)
            last = begin + len(group) == len(rows)
            if last:
                rows_ahead = move_and_read(to, at)
            else:
                move(to, at)
            commit()
            at = to
        rows = rows_ahead


def sqlite_loop(engine: sa.Engine, messages: int, *, per_commit: int, decode: bool = True) -> float:
    """The cursor loop on sqlite3, as durable as `configure_sqlite` makes it."""
    _begin_floor(engine)
    decoders, handlers = _calls(lambda message: None)
    columns = COLUMNS.format(meta="o.meta", headers="o.headers", payload="o.payload")
    read = f"SELECT {columns} FROM {OUTBOX} AS o WHERE o.position > ? ORDER BY o.position LIMIT ?"
    move = MOVE.replace("%s", "?")
    assert engine.url.database is not None
    with closing(sqlite3.connect(engine.url.database, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA synchronous = {_synchronous(engine)}")
        cursor = connection.cursor()
        begun = perf_counter()
        at = done = 0
        while done < messages:
            cursor.execute("BEGIN IMMEDIATE")
            rows = cursor.execute(read, (at, per_commit)).fetchall()
            if decode:
                for row in rows:
                    message = decoders[row[3]](row[9])
                    handlers[message.__class__](message)
            done += len(rows)
            to = rows[-1][0]
            assert cursor.execute(move, (to, at)).rowcount == 1
            cursor.execute("COMMIT")
            at = to
        return perf_counter() - begun


def _synchronous(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        found: int = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        return found


# --- the lines of the table -----------------------------------------------------------------------------------------


def measure_nothing(engine: sa.Engine, plain: sa.Engine, messages: int, rounds: int) -> list[Line]:
    """Row a: decode and dispatch to a no-op. The outbox holds at least so many rows; `plain` never meets our listeners."""
    lines: list[Line] = []
    for per_commit in (100, 1_000):
        ours = Ours(engine, nothing, per_commit=per_commit)
        taken = in_turns(
            {
                "floor": partial(raw_loop, plain, messages, per_commit=per_commit),
                "without decoding": partial(raw_loop, plain, messages, per_commit=per_commit, decode=False),
                "one round trip": partial(raw_pipeline, plain, messages, per_commit=per_commit),
                "ours": partial(ours.run, messages),
            },
            rounds,
        )
        found = rates(taken, messages)
        label = f"a. no-op, {per_commit:,} messages a commit"
        lines.append(
            Line(label, found["ours"], found["floor"], ratio(taken["ours"], taken["floor"]), goal=0.6)
        )
        for name in ("without decoding", "one round trip"):
            row = f"a. the same, against the floor {name}"
            lines.append(Line(row, found["ours"], found[name], ratio(taken["ours"], taken[name])))
    return lines


def measure_inserts(engine: sa.Engine, plain: sa.Engine, messages: int, rounds: int) -> list[Line]:
    """Row b: the handler does one INSERT in the given session."""
    lines: list[Line] = []
    for per_commit, goal in ((100, 0.8), (1, 0.6)):
        count = max(100, messages // (2 if per_commit > 1 else 10))
        ours = Ours(engine, insert, per_commit=per_commit)
        taken = in_turns(
            {
                "raw": partial(raw_inserts, plain, count, per_commit=per_commit),
                "session": partial(session_inserts, plain, count, per_commit=per_commit),
                "ours": partial(ours.run, count),
            },
            rounds,
        )
        found = rates(taken, count)
        label = f"b. one INSERT each, {per_commit} a commit"
        lines.append(Line(label, found["ours"], found["raw"], ratio(taken["ours"], taken["raw"]), goal=goal))
        row = f"{label}, against a loop whose handler has a Session, too"
        lines.append(Line(row, found["ours"], found["session"], ratio(taken["ours"], taken["session"])))
    return lines


def measure_large(url: sa.URL, rows: int, rounds: int) -> list[Line]:
    """Row c: with ten times the rows pending, or kept; and while a snapshot is held. The floor is itself at `rows`."""
    with own_database(url) as small, own_database(url) as large:
        few = Ours(
            small, nothing, per_commit=100
        )  # before there are rows: its subscription begins at the first one
        many = Ours(large, nothing, per_commit=100)
        fill(small, rows)
        fill(large, rows * 10)
        taken = in_turns(
            {
                "itself": partial(few.run, rows),
                "pending": partial(many.run, rows),
                "kept": partial(many.run, rows, after=rows * 9),
            },
            rounds,
        )
        found = rates(taken, rows)
        lines = [
            Line(
                f"c. with {rows * 10:,} rows {name}",
                found[name],
                found["itself"],
                ratio(taken[name], taken["itself"]),
                goal=0.9,
            )
            for name in ("pending", "kept")
        ]
        many.rewind(0)
        held: dict[str, list[float]] = {"itself": [], "held": []}
        with large.connect().execution_options(isolation_level="REPEATABLE READ") as snapshot:
            snapshot.exec_driver_sql(f"SELECT count(*) FROM {EFFECT.name}")
            for _ in range(10):  # in another database, which the snapshot does not concern
                held["itself"].append(few.run(rows))
                held["held"].append(many.go_on(rows))
        last = Line(
            f"c. the last {rows:,} of them",
            rows / held["held"][-1],
            rows / held["itself"][-1],
            held["itself"][-1] / held["held"][-1],
        )
        whole = {name: sum(each) for name, each in held.items()}
        lines.append(
            Line(
                f"c. while a snapshot is held, {rows * 10:,} rows", rows * 10 / whole["held"], rows * 10 / whole["itself"],
                whole["itself"] / whole["held"], goal=0.9,
            )
        )  # fmt: skip
        return [*lines, last]


def measure_sqlite(messages: int, rounds: int) -> list[Line]:
    """Row f."""
    with own_file() as engine:
        ours = Ours(engine, nothing, per_commit=100)
        fill(engine, messages)
        taken = in_turns(
            {
                "floor": partial(sqlite_loop, engine, messages, per_commit=100),
                "ours": partial(ours.run, messages),
            },
            rounds,
        )
        found = rates(taken, messages)
        row = "f. SQLite (WAL): no-op, 100 messages a commit"
        return [Line(row, found["ours"], found["floor"], ratio(taken["ours"], taken["floor"]), goal=0.5)]
