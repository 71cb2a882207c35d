"""What the history costs a message that fails, and one that is held, as ratios to the same without it, interleaved.

    python -m tests.delivery.bench_history [--rounds 30] [--database-url postgresql+psycopg://...]

Each round has messages of which every one fails at its first attempt, in a commit of its own; or of which one fails and the
others of its key are held, in one commit. "Without" is the same code with nothing to tell. Prints machine, date, medians in
microseconds a message and the ratio. On PostgreSQL it makes a database of its own (durability as the server is set up).
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from message_bus import MessageBusTables, RetryLater
from message_bus.delivery.remembering import Remembered
from message_bus.storage.sqlite import configure_sqlite
from tests.delivery.world import Noted, Placed, World
from tests.late_writing.bench_writing import own_database, prepare
from tests.servers import PostgreSQL

SIZE = 50
LATER = timedelta(days=1)


@contextmanager
def nothing_to_tell() -> Iterator[None]:
    """The engine as it is without a history."""
    real = Remembered.rows
    Remembered.rows = property(lambda self: [])  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Remembered.rows = real  # type: ignore[method-assign]


def one_round(world: World, *, held: bool, number: int) -> tuple[float, float]:
    """Microseconds a message, for as many as are in a round: by the clock, and of this process's work."""
    if held:
        world.register(*(Placed(order=f"o{number}", n=n) for n in range(SIZE)))
        world.fail(f"o{number}:0", RetryLater(LATER))
    else:
        for n in range(SIZE):
            world.failing[str(number * SIZE + n)] = [RetryLater(LATER)]
        world.register(*(Noted(n=number * SIZE + n) for n in range(SIZE)))
    begun = time.perf_counter_ns(), time.process_time_ns()
    report = world.process()
    ended = time.perf_counter_ns(), time.process_time_ns()
    assert report.delivered == 0
    d = world.tables.delivery
    world.write(sa.delete(d))
    by_clock, of_work = ((end - start) / 1_000 / SIZE for start, end in zip(begun, ended, strict=True))
    return by_clock, of_work


def measure(engine: sa.Engine, rounds: int) -> None:
    """Print both comparisons."""
    print(f"\n{prepare(engine)}")
    world = World(sessionmaker(engine), MessageBusTables())
    world.settings()
    for held, title in (
        (False, "each fails, in a commit of its own"),
        (True, "one fails, the others are held behind it"),
    ):
        taken: dict[str, list[tuple[float, float]]] = {"without history": [], "with it": []}
        for number in range(rounds + 3):
            base = 2 * number + (0 if not held else 1_000_000)
            with nothing_to_tell():
                without = one_round(world, held=held, number=base)
            told = one_round(world, held=held, number=base + 1)
            if number >= 3:
                taken["without history"].append(without)
                taken["with it"].append(told)
        print(f"{title}, {SIZE} messages a run: by the clock, and of this process's work")
        floor = _medians(taken["without history"])
        for name, values in taken.items():
            medians = _medians(values)
            ratios = (
                f"{value:9.1f} us {value / least:5.2f} x" for value, least in zip(medians, floor, strict=True)
            )
            print(f"  {name:20} {'  '.join(ratios)}")


def _medians(values: list[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(statistics.median(each) for each in zip(*values, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the history costs a message that fails.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--database-url", help="default: a throw-away server")
    given = parser.parse_args(arguments)
    logging.getLogger("message_bus").setLevel(logging.CRITICAL)
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"SQLAlchemy {sa.__version__}, {datetime.now(UTC):%Y-%m-%d}")  # fmt: skip
    server = None if given.database_url else PostgreSQL.start()
    try:
        with own_database(sa.make_url(server.url if server else given.database_url)) as engine:
            measure(engine, given.rounds)
            # without waiting for the disk: what remains is round trips and computing, so the ratio is the worst there is
            impatient = sa.create_engine(
                engine.url.update_query_dict({"options": "-csynchronous_commit=off"})
            )
            measure(impatient, given.rounds)
            impatient.dispose()
    finally:
        if server:
            server.remove()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.db"
        engine = configure_sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))))
        measure(engine, given.rounds)
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
