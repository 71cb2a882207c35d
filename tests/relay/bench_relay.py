"""How fast a relay is, as ratios to floors measured in the same run: rows a to f of the table in docs/performance.md.

    python -m tests.relay.bench_relay [--rows 100000] [--only abcdef] [--quick] [--database-url postgresql+psycopg://…]

Prints machine, date and versions, and each row beside its goal, as lines of a Markdown table. On PostgreSQL it makes databases
of its own on that server (durability as the server is set up) and drops them; on SQLite a file in a temporary directory.
`--quick` proves only that everything runs. Exit code 1 if a goal is missed. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from tests.relay import bench_rate, bench_wake, bench_writers
from tests.relay.bench_ground import HEADING, Line, fill, machine, own_database, server_of
from tests.servers import PostgreSQL


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int
    rounds: int = 7
    samples: int = 300
    pause: tuple[float, float] = (0.05, 0.15)
    seconds: float = 5.0


QUICK = Size(rows=2_000, rounds=1, samples=4, pause=(0.0, 0.01), seconds=0.3)


@contextmanager
def _filled(url: sa.URL, rows: int) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    """A database with a full outbox: an engine for ours, and one for the floors."""
    with own_database(url) as engine:
        fill(engine, rows + 1_000)
        plain = sa.create_engine(engine.url)
        try:
            yield engine, plain
        finally:
            plain.dispose()


def _row_a(url: sa.URL, size: Size) -> list[Line]:
    with _filled(url, size.rows) as (engine, plain):
        return bench_rate.measure_nothing(engine, plain, size.rows, size.rounds)


def _row_b(url: sa.URL, size: Size) -> list[Line]:
    with _filled(url, size.rows) as (engine, plain):
        return bench_rate.measure_inserts(engine, plain, size.rows // 5, size.rounds)


def _row_c(url: sa.URL, size: Size) -> list[Line]:
    return bench_rate.measure_large(url, size.rows, max(1, size.rounds // 2))


def _row_d(url: sa.URL, size: Size) -> list[Line]:
    with own_database(url) as engine:
        return bench_wake.measure(engine, size.samples, pause=size.pause)


def _row_e(url: sa.URL, size: Size) -> list[Line]:
    with own_database(url) as engine:
        return bench_writers.measure(engine, size.rounds, size.seconds)


def _row_f(url: sa.URL, size: Size) -> list[Line]:
    return bench_rate.measure_sqlite(size.rows, size.rounds)


ROWS: dict[str, Callable[[sa.URL, Size], list[Line]]] = {
    "a": _row_a, "b": _row_b, "c": _row_c, "d": _row_d, "e": _row_e, "f": _row_f,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 if every goal is met."""
    parser = argparse.ArgumentParser(description="How fast a relay is.")
    parser.add_argument(
        "--rows", type=int, default=100_000, help="messages in the outbox (row c: ten times as many)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="".join(ROWS), help="which rows to measure, such as 'ab'")
    parser.add_argument("--quick", action="store_true", help="tiny numbers, which say nothing")
    parser.add_argument("--database-url", help="default: a throw-away server")
    given = parser.parse_args(arguments)
    size = QUICK if given.quick else Size(rows=given.rows, rounds=given.rounds)
    with ExitStack() as stack:
        if given.database_url is None:
            server = PostgreSQL.start()
            stack.callback(server.remove)
            given.database_url = server.url
        return _measure(sa.make_url(given.database_url), size, given.only)


def _measure(url: sa.URL, size: Size, only: str) -> int:
    administration = sa.create_engine(url, poolclass=sa.NullPool)
    print(machine(server_of(administration), f"SQLite {sqlite3.sqlite_version}"))
    print(HEADING, flush=True)
    met = True
    for letter, row in ROWS.items():
        if letter in only:
            for line in row(url, size):
                print(line, flush=True)
                met = met and line.met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
