"""What wake-ups cost those who write: 16 writers beside a relay, against the same without wake-ups.

Each transaction inserts an order and registers a message by the package's own write path. The writers are threads of several
processes; a NOTIFY in every commit is there for comparison. Called by `bench_relay`.
"""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, MessageBus, Relay, Subscription
from tests.relay.bench_ground import ORDERS, Line, OrderPlaced, order, ratio
from tests.relay.bench_wake import another_process

WRITERS, PROCESSES = 16, 2
_INSERT_ORDER = sa.insert(ORDERS)
_NOTIFY = sa.text("NOTIFY bench_wake")
_GO, _NOTIFYING, _STOP, _END = b"go", b"go, and notify", b"stop", b"end"


def relay_beside(url: sa.URL, pipe: Connection, listen: bool) -> None:
    """A relay with a no-op, until the pipe says that it is enough."""
    bus = MessageBus(event_handlers={OrderPlaced: [lambda event: None]})
    settings = Subscription(name="beside", start="now", messages_per_commit=100)
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    engine = sa.create_engine(url)
    with Relay(bus, engine, listen=listen) as relay:
        relay.wait_until_idle(30)
        pipe.send_bytes(b"ready")
        pipe.recv_bytes()
    engine.dispose()


def writing_process(url: sa.URL, pipe: Connection, threads: int) -> None:
    """Write from each `_GO` or `_NOTIFYING` to the next `_STOP`, then say how many transactions there were."""
    engine = sa.create_engine(url, pool_size=threads)
    bus = MessageBus()
    pipe.send_bytes(b"ready")
    while (told := pipe.recv_bytes()) != _END:
        stop = threading.Event()
        with ThreadPoolExecutor(threads) as pool:
            counts = [pool.submit(_write, engine, bus, stop, told == _NOTIFYING) for _ in range(threads)]
            pipe.recv_bytes()
            stop.set()
        pipe.send_bytes(str(sum(each.result() for each in counts)).encode())
    engine.dispose()


def _write(engine: sa.Engine, bus: MessageBus, stop: threading.Event, notify: bool) -> int:
    count = 0
    while not stop.is_set():
        with Session(engine) as session:
            session.execute(_INSERT_ORDER, {"customer": "c-17"})
            bus.register_outbox_message(session, order(count))
            if notify:
                session.execute(_NOTIFY)
            session.commit()
        count += 1
    return count


def _rate(writers: list[Connection], seconds: float, go: bytes) -> float:
    """Transactions a second of all writers together."""
    begun = time.perf_counter()
    for pipe in writers:
        pipe.send_bytes(go)
    time.sleep(seconds)
    for pipe in writers:
        pipe.send_bytes(_STOP)
    total = sum(int(pipe.recv_bytes()) for pipe in writers)
    return total / (time.perf_counter() - begun)


def measure(engine: sa.Engine, rounds: int, seconds: float) -> list[Line]:
    """The lines of row e; in each round all ways take their turn."""
    url = engine.url
    ways = {"off": (False, _GO), "on": (True, _GO), "NOTIFY": (False, _NOTIFYING)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(another_process(writing_process, url, WRITERS // PROCESSES, enough=_END))
            for _ in range(PROCESSES)
        ]
        _rate(writers, seconds, _GO)  # connections, prepared statements
        for _ in range(rounds):
            for name, (listen, go) in ways.items():
                with another_process(relay_beside, url, listen):
                    taken[name].append(1 / _rate(writers, seconds, go))
    rates = {name: 1 / statistics.median(each) for name, each in taken.items()}
    return [
        Line(
            f"e. {WRITERS} writers beside a relay, wake-ups on", rates["on"], rates["off"],
            ratio(taken["on"], taken["off"]), "tx/s", 0.95,
        ),
        Line(
            "e. the same with NOTIFY in every commit", rates["NOTIFY"], rates["off"],
            ratio(taken["NOTIFY"], taken["off"]), "tx/s",
        ),
    ]  # fmt: skip
