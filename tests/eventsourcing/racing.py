"""Many processes that append to few streams: each loads, decides, saves with the version it saw, and repeats on a conflict.

    python -m tests.eventsourcing.racing <database url> <writers> <streams> <events>

prints how many events they have saved, each `events` of them, and how many conflicts they met. `unchecked` as a fifth
argument leaves the compare-and-set out, which is what the test shows to be noticed.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from typing import Any

import sqlalchemy as sa

from message_bus.errors import ConcurrencyError
from message_bus.eventsourcing.stores import sql_log
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.messages.message import Event


class Counted(Event, name="racing.counted"):
    """Says which number its writer believed it to be: the number of events before it, plus one."""

    writer: int
    number: int


def without_compare_and_set() -> None:
    """Take the rule out: whatever the version is, append, numbered as the caller believes."""
    checked = sql_log.SQLLog._advance

    def advance(
        self: object, connection: sa.Connection, stream: str, count: int, expected: int | None
    ) -> int:
        return checked(self, connection, stream, count, None)  # type: ignore[arg-type]

    sql_log.SQLLog._advance = advance  # type: ignore[method-assign,assignment]


def race(engine: sa.Engine, writer: int, streams: int, events: int) -> tuple[int, int]:
    """Append until `events` are saved; how many were saved, how many conflicts there were."""
    chance = random.Random(writer)
    saved = conflicts = 0
    while saved < events:
        stream = f"stream-{chance.randrange(streams)}"
        count = chance.choice((1, 1, 1, 3))
        with engine.connect() as connection:
            store = SQLAlchemyEventStore(connection)
            seen = store.current_version(stream)
            if chance.random() < 0.5:
                connection.rollback()  # seen in an earlier transaction, as by a web request
            try:
                store.save(stream, [Counted(writer, seen + n + 1) for n in range(count)], seen)
                connection.commit()
                saved += count
            except ConcurrencyError:
                conflicts += 1
                connection.execute(sa.select(1))  # the transaction is still usable
                connection.commit()
    return saved, conflicts


def write(
    url: str, writer: int, streams: int, events: int, results: multiprocessing.SimpleQueue[Any]
) -> None:
    """One writer, in a process of its own."""
    engine = sa.create_engine(url)
    results.put(race(engine, writer, streams, events))
    engine.dispose()


def main() -> None:
    """Let them race; 1 if one of them fails."""
    url, writers, streams, events, *rest = sys.argv[1:]
    if rest == ["unchecked"]:
        without_compare_and_set()
    context = multiprocessing.get_context("fork")  # what takes time is to import all this, once
    results: multiprocessing.SimpleQueue[Any] = context.SimpleQueue()
    running = [
        context.Process(target=write, args=(url, writer, int(streams), int(events), results), daemon=True)
        for writer in range(int(writers))
    ]
    for each in running:
        each.start()
    for each in running:
        each.join()
    if any(each.exitcode for each in running):
        sys.exit(1)
    counts = [results.get() for _ in running]
    print(sum(saved for saved, _ in counts), sum(conflicts for _, conflicts in counts))


if __name__ == "__main__":
    main()
