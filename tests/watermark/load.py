"""Eight writers that do everything wrong, and two readers beside them: ours, which must lose nothing, and a
naive one.

    python -m tests.watermark.load --seconds 30 [--seed N] [--writers 8] [--url postgresql://...]

Writers draw positions in transactions of random length, with pauses inside, rollbacks, savepoints (released
and rolled back), COPY, several rows at once, prepared transactions, and work before the first message. Each
row says who wrote it and as which one, so that the order per writer can be checked. Without --url a
throw-away server is started.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg
import sqlalchemy as sa

from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from tests.servers import DEFAULT_VERSION, PostgreSQL

COLUMNS = "(id, type, message, payload, key)"
INSERT = f"INSERT INTO {{name}} {COLUMNS} VALUES (gen_random_uuid(), 'EVENT', 'm', %s, %s)"
BATCH = 500
Row = tuple[int, int, int]  # position, writer, number


@dataclass(slots=True)
class Writer:
    """One writer with a connection and random numbers of its own; `written` is what it knows to be committed."""

    number: int
    seed: int
    dsn: str
    name: str
    may_prepare: bool
    written: int = 0
    transactions: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    error: BaseException | None = None

    def run(self, until: float) -> None:
        """Write transactions until the monotonic clock says `until`."""
        choose = random.Random(f"{self.seed} {self.number}")
        try:
            with psycopg.connect(self.dsn) as connection:
                connection.execute("SET synchronous_commit = off")  # more commits, closer together
                connection.commit()
                while time.monotonic() < until:
                    self._transaction(connection, choose)
        except BaseException as error:  # told to whoever ran it
            self.error = error

    def _transaction(self, connection: psycopg.Connection[tuple[object, ...]], choose: random.Random) -> None:
        self.transactions += 1
        kept = 0
        if choose.random() < 0.2:
            connection.execute("SELECT pg_current_xact_id()")  # as if it had written elsewhere before
            self._dawdle(choose)
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            way = choose.choices(
                ("row", "rows", "copy", "released", "rolled back to"), weights=(5, 2, 1, 1, 1)
            )[0]
            count = choose.randint(2, 6) if way in ("rows", "copy") else 1
            self.ways[way] += 1
            if way in ("released", "rolled back to"):
                connection.execute("SAVEPOINT s")
            if way == "copy":
                self._copy(connection, kept, count)
            else:
                self._insert(connection, kept, count)
            self._dawdle(choose)
            if way == "released":
                connection.execute("RELEASE s")
            if way == "rolled back to":
                connection.execute("ROLLBACK TO s")
            else:
                kept += count
        self._end(connection, choose, kept)

    def _insert(self, connection: psycopg.Connection[tuple[object, ...]], kept: int, count: int) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(INSERT.format(name=self.name).encode(), self._rows(kept, count))

    def _copy(self, connection: psycopg.Connection[tuple[object, ...]], kept: int, count: int) -> None:
        statement = f"COPY {self.name} {COLUMNS} FROM STDIN"
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for payload, key in self._rows(kept, count):
                copy.write_row((str(uuid4()), "EVENT", "m", payload, key))

    def _rows(self, kept: int, count: int) -> list[tuple[str, str]]:
        """The next rows of this writer; numbers of rows that were rolled back are used again."""
        first = self.written + kept + 1
        return [(str(number), str(self.number)) for number in range(first, first + count)]

    def _end(
        self, connection: psycopg.Connection[tuple[object, ...]], choose: random.Random, kept: int
    ) -> None:
        ending = choose.random()
        if ending < 0.15:
            connection.rollback()
            self.ways["rollback"] += 1
            return
        if ending < 0.2 and self.may_prepare:
            gid = f"load {self.seed} {self.number} {self.transactions}"
            connection.execute(f"PREPARE TRANSACTION '{gid}'".encode())
            connection.rollback()
            self._dawdle(choose)
            connection.autocommit = True
            connection.execute(f"COMMIT PREPARED '{gid}'".encode())
            connection.autocommit = False
            self.ways["prepared"] += 1
        else:
            connection.commit()
            self.ways["commit"] += 1
        self.written += kept

    def _dawdle(self, choose: random.Random) -> None:
        chance = choose.random()
        if chance < 0.01:
            time.sleep(choose.uniform(0.05, 0.25))
        elif chance < 0.3:
            time.sleep(choose.uniform(0, 0.004))


class Following:
    """A reader that follows the log by some rule; `rows` is all that it was given."""

    def __init__(self, engine: sa.Engine, tables: MessageBusTables) -> None:
        self.rows: list[Row] = []
        self.checkpoint = 0
        self.error: BaseException | None = None
        self.polls = 0
        self._engine = engine
        self._outbox = tables.outbox

    def run(self, writers_done: threading.Event) -> None:
        """Read until the writers are done and there is nothing left."""
        try:
            with self._engine.connect() as connection:
                while True:
                    is_last = writers_done.is_set()
                    if not self.poll(connection) and is_last:
                        return
        except BaseException as error:  # told to whoever ran it
            self.error = error

    def poll(self, connection: sa.Connection) -> bool:
        """Read once; False when there was nothing."""
        self.polls += 1
        bound = self._bound(connection)
        outbox = self._outbox.c
        query = (
            sa.select(outbox.position, outbox.key, outbox.payload)
            .where(outbox.position > self.checkpoint)
            .order_by(outbox.position)
            .limit(BATCH)
        )
        if bound is not None:
            query = query.where(outbox.position <= bound)
        found = [(row.position, int(row.key), int(row.payload)) for row in connection.execute(query)]
        connection.commit()
        self.rows += found
        if found:
            self.checkpoint = found[-1][0]
        return bool(found)

    def _bound(self, connection: sa.Connection) -> int | None:
        """How far this reader dares to read: as far as it sees."""
        return None


class Careful(Following):
    """Ours: no further than the watermark."""

    def __init__(self, engine: sa.Engine, tables: MessageBusTables) -> None:
        super().__init__(engine, tables)
        self.watermark = Watermark(tables)
        self.looked = 0.0
        self.longest_age = 0.0

    def _bound(self, connection: sa.Connection) -> int | None:
        began = time.perf_counter()
        look = self.watermark.look(connection)
        self.looked += time.perf_counter() - began
        self.longest_age = max(self.longest_age, look.age.total_seconds())
        return look.settled


@dataclass(frozen=True, slots=True)
class Result:
    """What one reader made of the log."""

    read: int
    lost: int
    twice: int
    disorders: int

    def __str__(self) -> str:
        return f"read {self.read}, lost {self.lost}, twice {self.twice}, order violations {self.disorders}"

    @classmethod
    def of(cls, rows: Sequence[Row], committed: Sequence[Row]) -> Result:
        """Compare what was read with what is in the table."""
        seen = Counter(position for position, _, _ in rows)
        return cls(
            read=len(rows),
            lost=sum(1 for position, _, _ in committed if position not in seen),
            twice=sum(times - 1 for times in seen.values()),
            disorders=_disorders(rows),
        )


def _disorders(rows: Sequence[Row]) -> int:
    """How often a row came before an earlier one of the same writer."""
    last: dict[int, int] = {}
    found = 0
    for _, writer, number in rows:
        found += number <= last.get(writer, 0)
        last[writer] = max(number, last.get(writer, 0))
    return found


@dataclass(frozen=True, slots=True)
class Report:
    seed: int
    seconds: float
    server: str
    transactions: int
    ways: Counter[str]
    known: int  # what the writers know to have committed
    committed: int  # what the table holds
    ours: Result
    naive: Result
    looks: int
    microseconds_per_look: float
    longest_age: float

    @property
    def is_good(self) -> bool:
        """Has our reader read all that the writers committed, each once, in each writer's order?"""
        return self.known == self.committed == self.ours.read and not (
            self.ours.lost or self.ours.twice or self.ours.disorders
        )

    def __str__(self) -> str:
        ways = ", ".join(f"{way} {count}" for way, count in sorted(self.ways.items()))
        lines = [
            f"PostgreSQL {self.server}, {self.seconds:.0f} s, seed {self.seed}",
            f"transactions {self.transactions}: {ways}",
            f"written    {self.committed}",
            f"watermark  {self.ours}",
            f"naive      {self.naive}",
            f"{self.looks} looks of {self.microseconds_per_look:.0f} µs, longest wait {self.longest_age:.2f} s",
            "OK" if self.is_good else "FAILED",
        ]
        return "\n".join(lines)


def run(
    engine: sa.Engine, tables: MessageBusTables, dsn: str, *, seconds: float, seed: int, writers: int = 8
) -> Report:
    """Let writers and readers loose for `seconds`, then let the readers finish, and compare with the table."""
    name = f"{tables.schema}.{tables.outbox.name}" if tables.schema else tables.outbox.name
    with engine.connect() as connection:
        may_prepare = int(connection.execute(sa.text("SHOW max_prepared_transactions")).scalar_one()) > 0
        server = str(connection.execute(sa.text("SHOW server_version")).scalar_one())
    crew = [Writer(number, seed, dsn, name, may_prepare) for number in range(1, writers + 1)]
    ours, naive = Careful(engine, tables), Following(engine, tables)
    until = time.monotonic() + seconds
    done = threading.Event()
    writing = [
        threading.Thread(target=writer.run, args=(until,), name=f"writer {writer.number}") for writer in crew
    ]
    reading = [threading.Thread(target=reader.run, args=(done,)) for reader in (ours, naive)]
    for thread in (*reading, *writing):
        thread.start()
    for thread in writing:
        thread.join()
    done.set()
    for thread in reading:
        thread.join()
    for error in (*(writer.error for writer in crew), ours.error, naive.error):
        if error is not None:
            raise error
    committed = _committed(engine, tables)
    return Report(
        seed=seed,
        seconds=seconds,
        server=server,
        transactions=sum(writer.transactions for writer in crew),
        ways=sum((writer.ways for writer in crew), Counter[str]()),
        known=sum(writer.written for writer in crew),
        committed=len(committed),
        ours=Result.of(ours.rows, committed),
        naive=Result.of(naive.rows, committed),
        looks=ours.polls,
        microseconds_per_look=1e6 * ours.looked / max(ours.polls, 1),
        longest_age=ours.longest_age,
    )


def _committed(engine: sa.Engine, tables: MessageBusTables) -> list[Row]:
    outbox = tables.outbox.c
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(outbox.position, outbox.key, outbox.payload).order_by(outbox.position)
        )
        return [(row.position, int(row.key), int(row.payload)) for row in rows]


@contextmanager
def _server(url: str | None, version: int) -> Iterator[sa.URL]:
    """A database of our own on the given server, or on one that is thrown away."""
    started = None if url else PostgreSQL.start(version)
    try:
        administration = sa.make_url(url or (started.url if started else "")).set(
            drivername="postgresql+psycopg"
        )
        name = f"message_bus_load_{uuid4().hex[:12]}"
        engine = sa.create_engine(administration, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield administration.set(database=name)
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        if started is not None:
            started.remove()


def main() -> int:
    """The command line; 1 if anything was lost, came twice or out of order."""
    parser = argparse.ArgumentParser(
        description="Writers and readers at full speed: nothing lost, nothing twice."
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="of all random choices (printed)")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--url", default=os.environ.get("MESSAGE_BUS_TEST_POSTGRESQL_URL"))
    parser.add_argument("--version", type=int, default=DEFAULT_VERSION, help="of the throw-away server")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    with _server(arguments.url, arguments.version) as url:
        engine = sa.create_engine(url)
        tables = MessageBusTables()
        tables.create_all(engine)
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        report = run(engine, tables, dsn, seconds=arguments.seconds, seed=seed, writers=arguments.writers)
        engine.dispose()
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
