"""How long a relay with nothing to do takes from a commit to the start of the handler, against a bare LISTEN.

The clock starts right before COMMIT is sent, in the writer, and stops in the first line of the handler, in another process:
both read the machine's one monotonic clock. The floor's writer sends INSERT, NOTIFY, COMMIT, and its reader waits for the
notification; for information the same reader also fetches the row, which a handler needs. Called by `bench_relay`.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, MessageBus, Relay, Subscription
from tests.relay.bench_ground import ORDERS, TABLES, Line, OrderPlaced, order, raw_connection

_SPAWN = multiprocessing.get_context("spawn")
_NOTE = struct.Struct("qq")  # which message, and when its handler began
_SECONDS = 30.0  # within which a message is handled, or the bench has failed
_INSERT_ORDER = sa.insert(ORDERS)
_RAW_ORDER = f"INSERT INTO {ORDERS.name} (customer) VALUES ('c-17')"
_RAW_OUTBOX = (
    f"INSERT INTO {TABLES.outbox.name} (id, type, message, version, payload) "
    "VALUES (gen_random_uuid(), 'EVENT', 'OrderPlaced', 1, '{\"order_id\": 1}')"
)
_RAW_READ = (
    f"SELECT position, id, type, message, version, key, meta::text, headers::text, created_at, payload::text "
    f"FROM {TABLES.outbox.name} WHERE position > %s ORDER BY position LIMIT 100"
)
Commit = Callable[[int], int]
"""Commits message number n; returns the nanosecond at which COMMIT was sent."""


# --- the other process ----------------------------------------------------------------------------------------------


def make_bus(note: Callable[[int], object]) -> MessageBus:
    """A bus whose handler notes which message came."""
    bus = MessageBus(event_handlers={OrderPlaced: [lambda event: note(event.order_id)]})
    settings = Subscription(name="wake", start="now")
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    return bus


def relay_process(url: sa.URL, pipe: Connection, listen: bool) -> None:
    """A relay until the pipe says that it is enough."""

    def note(number: int) -> None:
        began = time.monotonic_ns()
        pipe.send_bytes(_NOTE.pack(number, began))

    engine = sa.create_engine(url)
    with Relay(make_bus(note), engine, listen=listen) as relay:
        relay.wait_until_idle(_SECONDS)
        pipe.send_bytes(b"ready")
        pipe.recv_bytes()
    engine.dispose()


def listening_process(url: sa.URL, pipe: Connection, reads: bool) -> None:
    """A bare LISTEN until the pipe says that it is enough."""
    engine = sa.create_engine(url)
    with raw_connection(engine, autocommit=True) as connection, connection.cursor(binary=True) as cursor:
        (at,) = cursor.execute(f"SELECT coalesce(max(position), 0) FROM {TABLES.outbox.name}").fetchone() or (
            0,
        )
        connection.execute("LISTEN bench_wake")
        number = 0
        pipe.send_bytes(b"ready")
        while not pipe.poll():
            for _ in list(
                connection.notifies(timeout=0.2, stop_after=1)
            ):  # it holds the connection meanwhile
                if reads:
                    rows = cursor.execute(_RAW_READ, (at,), prepare=True).fetchall()
                    at = rows[-1][0]
                began = time.monotonic_ns()
                pipe.send_bytes(_NOTE.pack(number, began))
                number += 1
    engine.dispose()


@contextmanager
def another_process(
    target: Callable[..., None], url: sa.URL, *arguments: object, enough: bytes = b"enough"
) -> Iterator[Connection]:
    """Run `target(url, pipe, *arguments)` until the block ends; our end of the pipe."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(url, theirs, *arguments), daemon=True)
    process.start()
    try:
        if not ours.poll(_SECONDS):
            raise TimeoutError("the other process does not begin")
        ours.recv_bytes()
        yield ours
        ours.send_bytes(enough)
        process.join(_SECONDS)
    finally:
        process.kill()
        process.join()


# --- the writers ----------------------------------------------------------------------------------------------------


@contextmanager
def our_writer(url: sa.URL) -> Iterator[Commit]:
    """An ORM session with an order and a message."""
    engine = sa.create_engine(url)
    bus = MessageBus()
    sent_at = 0

    def note(connection: sa.Connection) -> None:
        nonlocal sent_at
        sent_at = time.monotonic_ns()

    sa.event.listen(engine, "commit", note)

    def commit(number: int) -> int:
        with Session(engine) as session:
            session.execute(_INSERT_ORDER, {"customer": "c-17"})
            bus.register_outbox_message(session, order(number))
            session.commit()
            return sent_at

    yield commit
    engine.dispose()


@contextmanager
def raw_writer(engine: sa.Engine) -> Iterator[Commit]:
    """The same rows by psycopg, and a NOTIFY."""
    with raw_connection(engine) as connection:

        def commit(number: int) -> int:
            connection.execute(_RAW_ORDER, prepare=True)
            connection.execute(_RAW_OUTBOX, prepare=True)
            connection.execute("NOTIFY bench_wake")
            sent = time.monotonic_ns()
            connection.commit()
            return sent

        yield commit


# --- measuring ------------------------------------------------------------------------------------------------------


def latencies(
    commit: Commit, next_note: Callable[[], tuple[int, int]], samples: int, pause: tuple[float, float]
) -> list[float]:
    """Milliseconds from COMMIT to handler of so many messages, one at a time, after pauses of so many seconds."""
    found: list[float] = []
    for number in range(samples + 3):
        time.sleep(random.uniform(*pause))  # idle is what is measured
        sent = commit(number)
        handled, began = next_note()
        assert handled == number, (handled, number)
        if number >= 3:
            found.append((began - sent) / 1e6)
    return found


def _from(pipe: Connection) -> Callable[[], tuple[int, int]]:
    def next_note() -> tuple[int, int]:
        if not pipe.poll(_SECONDS):
            raise TimeoutError("the message is not handled")
        number, began = _NOTE.unpack(pipe.recv_bytes())
        return number, began

    return next_note


def measure(engine: sa.Engine, samples: int, *, pause: tuple[float, float] = (0.05, 0.15)) -> list[Line]:
    """The lines of row d."""
    url, found = engine.url, dict[str, list[float]]()
    for name, reads in (("bare", False), ("reads", True)):
        with another_process(listening_process, url, reads) as pipe, raw_writer(engine) as commit:
            found[name] = latencies(commit, _from(pipe), samples, pause)
    with another_process(relay_process, url, True) as pipe, our_writer(url) as commit:
        found["LISTEN, relay in another process"] = latencies(commit, _from(pipe), samples, pause)
    with our_writer(url) as commit:
        found["ring, relay in the writer's process"] = _in_this_process(engine, commit, samples, pause)
    with another_process(relay_process, url, False) as pipe, our_writer(url) as commit:
        few, slowly = max(3, samples // 10), (pause[0] * 10, pause[1] * 10)
        found["polling only (fewer, after longer pauses)"] = latencies(commit, _from(pipe), few, slowly)
    bare, reads_too = found.pop("bare"), found.pop("reads")
    lines: list[Line] = []
    for name, taken in found.items():
        goals = (2.0, 3.0) if name.startswith("LISTEN") else (None, None)
        for label, of, goal in zip(("p50", "p99"), (_p50, _p99), goals, strict=True):
            lines.append(
                Line(
                    f"d. commit → handler, {name}: {label}",
                    of(taken),
                    of(bare),
                    of(taken) / of(bare),
                    "ms",
                    goal,
                )
            )
        if name.startswith("LISTEN"):
            for label, of in (("p50", _p50), ("p99", _p99)):
                row = f"d. the same, against LISTEN and the SELECT of the row: {label}"
                lines.append(Line(row, of(taken), of(reads_too), of(taken) / of(reads_too), "ms"))
    return lines


def _in_this_process(
    engine: sa.Engine, commit: Commit, samples: int, pause: tuple[float, float]
) -> list[float]:
    ours, theirs = _SPAWN.Pipe()

    def note(number: int) -> None:
        began = time.monotonic_ns()
        theirs.send_bytes(_NOTE.pack(number, began))

    with ours, theirs, Relay(make_bus(note), engine, listen=False) as relay:
        relay.wait_until_idle(_SECONDS)
        return latencies(commit, _from(ours), samples, pause)


def _p50(taken: list[float]) -> float:
    return statistics.median(taken)


def _p99(taken: list[float]) -> float:
    return sorted(taken)[min(len(taken) - 1, round(len(taken) * 0.99))]
