"""What the benches of the relay stand on: a message, databases of their own with a full outbox, and the table they print.

A *way* does a piece of work and says how long it took. Ways that are compared take turns in one run, so that a slow
moment of the machine meets all of them, and the ratio is the median of the ratios of the turns. Not collected by pytest.
"""

from __future__ import annotations

import gc
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa

from message_bus import Event, MessageBusTables, configure_sqlite
from message_bus.messages.definition import definition_of

TABLES = MessageBusTables()
BENCH = sa.MetaData()
EFFECT = sa.Table(
    "bench_effect",
    BENCH,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("order_id", sa.BigInteger, nullable=False),
    sa.Column("note", sa.Text),
)
CHECKPOINT = sa.Table(
    "bench_checkpoint",
    BENCH,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger),
)
ORDERS = sa.Table(
    "bench_orders",
    BENCH,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("customer", sa.Text, nullable=False),
)


class OrderPlaced(Event, key="customer"):
    """Seven fields."""

    order_id: int
    customer: UUID
    placed_at: datetime
    total: Decimal
    lines: list[str]
    paid: bool
    note: str | None = None


def order(number: int) -> OrderPlaced:
    """One of them."""
    return OrderPlaced(
        order_id=number,
        customer=UUID(int=number % 1_000),
        placed_at=datetime(2025, 11, 1, 12, 30, tzinfo=UTC),
        total=Decimal("129.90"),
        lines=["apple", "pear", "plum"],
        paid=True,
        note="leave it at the door",
    )


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, against which floor. Without a goal it is for information."""

    row: str
    figure: float
    floor: float
    ratio: float
    unit: str = "msg/s"
    goal: float | None = None

    @property
    def met(self) -> bool:
        """Rates are to be at least the goal times the floor, durations at most."""
        if self.goal is None:
            return True
        return self.ratio <= self.goal if self.unit == "ms" else self.ratio >= self.goal

    def __str__(self) -> str:
        sign = "≤" if self.unit == "ms" else "≥"
        goal = "–" if self.goal is None else f"{sign} {self.goal:g} ×"
        met = "–" if self.goal is None else "yes" if self.met else "**no**"
        floor = f"{_number(self.floor)} {self.unit}"
        return f"| {self.row} | {_number(self.figure)} {self.unit} | {floor} | {self.ratio:.2f} × | {goal} | {met} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


HEADING = "| row | figure | floor | ratio | goal | met |\n| --- | --- | --- | --- | --- | --- |"


def machine(*more: str) -> str:
    """Where and when this was measured, and with what."""
    return ", ".join(
        (
            platform.platform(),
            f"Python {platform.python_version()}",
            f"SQLAlchemy {sa.__version__}",
            f"psycopg {psycopg.__version__}",
            *more,
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        )
    )


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; one round before them fills caches and prepared statements."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            gc.collect()
            seconds = way()
            if number:
                taken[name].append(seconds)
    return taken


def rates(taken: dict[str, list[float]], messages: int) -> dict[str, float]:
    """Messages per second of each way."""
    return {name: messages / statistics.median(seconds) for name, seconds in taken.items()}


def ratio(ours: list[float], floor: list[float]) -> float:
    """How many times the rate of the floor ours has: the median over the rounds."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours, floor, strict=True))


# --- databases ------------------------------------------------------------------------------------------------------


@contextmanager
def own_database(url: sa.URL) -> Iterator[sa.Engine]:
    """A database for this run alone, with our tables and those of the benches."""
    name = f"bench_{uuid4().hex[:12]}"
    administration = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine = sa.create_engine(url.set(database=name), pool_size=20)
    try:
        _make_tables(engine)
        yield engine
    finally:
        engine.dispose()
        with administration.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def own_file() -> Iterator[sa.Engine]:
    """The same on SQLite: a file in WAL."""
    with tempfile.TemporaryDirectory() as directory:
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(Path(directory) / "bench.db")))
        configure_sqlite(engine)
        try:
            _make_tables(engine)
            yield engine
        finally:
            engine.dispose()


def _make_tables(engine: sa.Engine) -> None:
    TABLES.create_all(engine)
    BENCH.create_all(engine)


def server_of(engine: sa.Engine) -> str:
    """Which server it is, and how durable."""
    with engine.connect() as connection:
        version, fsync, commit = (
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("server_version", "fsync", "synchronous_commit")
        )
    return f"PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}"


def raw_connection(engine: sa.Engine, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection of psycopg's own to the same database."""
    arguments, keywords = engine.dialect.create_connect_args(engine.url)
    connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(*arguments, **{**keywords, **options})
    return connection


def fill(engine: sa.Engine, rows: int) -> None:
    """Put so many orders into the outbox, as `register_outbox_message` stores them."""
    payload = definition_of(OrderPlaced).encode(order(4711)).decode()
    outbox = TABLES.outbox.name
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql(
                f"INSERT INTO {outbox} (id, type, message, version, key, key_hash, payload, headers) "
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
                "SELECT lower(hex(randomblob(16))), 'EVENT', 'OrderPlaced', 1, 'c-' || (n % 1000), n % 1000, ?, "
                "'{\"correlation_id\":\"' || lower(hex(randomblob(16))) || '\"}' FROM n",
                (rows, payload),
            )
            return
        connection.exec_driver_sql(
            f"INSERT INTO {outbox} (id, type, message, version, key, key_hash, payload, headers) "
            "SELECT gen_random_uuid(), 'EVENT', 'OrderPlaced', 1, 'c-' || n %% 1000, n %% 1000, %s, "
            "json_build_object('correlation_id', gen_random_uuid()) FROM generate_series(1, %s) AS n",
            (payload, rows),
        )
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE {outbox}")
        connection.exec_driver_sql("CHECKPOINT")
