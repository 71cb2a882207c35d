"""Writers who race for streams, as processes of their own: no update is lost (G12), and who reads meanwhile misses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.messages.recorded import RecordedEvent
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from tests.eventsourcing.racing import Counted

ROOT = Path(__file__).parents[2]
STREAMS = 50


@contextmanager
def writers(url: sa.URL, count: int, events: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose children race; none of them is left at the end."""
    given = (url.render_as_string(hide_password=False), str(count), str(STREAMS), str(events), *options)
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.eventsourcing.racing", *given],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def read_on(engine: sa.Engine, seen: list[RecordedEvent], watermark: Watermark) -> None:
    """Read what is settled after what was seen."""
    after = seen[-1].position if seen else 0
    with engine.connect() as connection:
        seen += SQLAlchemyEventStore(connection, watermark=watermark).read_all(after, limit=500)


def race(
    engine: sa.Engine,
    url: sa.URL,
    tables: MessageBusTables,
    *,
    count: int,
    events: int,
    options: tuple[str, ...] = (),
) -> list[RecordedEvent]:
    """Let writers race while one reads; what the reader has seen, after comparing it with what there is."""
    seen: list[RecordedEvent] = []
    watermark = Watermark(tables.of_log(EVENT_LOG))
    with writers(url, count, events, *options) as running:
        while running.poll() is None:
            read_on(engine, seen, watermark)
        stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    saved, conflicts = map(int, stdout.split())
    while len(seen) < saved:
        before = len(seen)
        read_on(engine, seen, watermark)
        assert len(seen) > before, f"the reader has seen {before} of {saved} events, and no more come"
    assert options or conflicts, "nobody met anybody: this was no race"
    return seen


def faults_of(engine: sa.Engine, tables: MessageBusTables, seen: list[RecordedEvent]) -> list[str]:
    """What is wrong with the log, or with what was read of it while it was written."""
    event, stream = tables.event, tables.stream
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(event.c.position, event.c.stream, event.c.version, event.c.payload).order_by(
                event.c.position
            )
        ).all()
        versions = {
            row.stream: row.version
            for row in connection.execute(sa.select(stream.c.stream, stream.c.version))
        }
    faults: list[str] = []
    if [each.position for each in seen] != [row.position for row in rows]:
        faults.append("the reader has not seen each event once, in position order")
    by_stream: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        by_stream[row.stream].append((row.version, row.payload["number"]))
    for name, events in by_stream.items():
        dense = list(range(1, len(events) + 1))
        if [version for version, _ in events] != dense:
            faults.append(f"{name}: versions are not dense, or not in the order of positions")
        if [number for _, number in events] != dense:
            faults.append(f"{name}: an update was lost: somebody appended to a version that he had not seen")
        if versions[name] != len(events):
            faults.append(f"{name}: the stream's version is not the number of its events")
    return faults


@pytest.mark.postgresql
@pytest.mark.slow
def test_eight_processes_race_for_fifty_streams(
    engine: sa.Engine, database_url: sa.URL, tables: MessageBusTables
) -> None:
    """Versions are dense, no update is lost (G12), and a reader beside them sees one order without a gap (G2, G4)."""
    seen = race(engine, database_url, tables, count=8, events=60)
    assert {type(each.message) for each in seen} == {Counted}
    assert faults_of(engine, tables, seen) == []


@pytest.mark.postgresql
@pytest.mark.faults
def test_eight_processes_race_for_a_long_time(
    engine: sa.Engine, database_url: sa.URL, tables: MessageBusTables
) -> None:
    """The same with 16,000 events."""
    seen = race(engine, database_url, tables, count=8, events=2_000)
    assert faults_of(engine, tables, seen) == []


@pytest.mark.postgresql
@pytest.mark.slow
def test_without_compare_and_set_updates_are_lost(
    engine: sa.Engine, database_url: sa.URL, tables: MessageBusTables
) -> None:
    """The rule taken out is noticed: the race is one."""
    seen = race(engine, database_url, tables, count=8, events=60, options=("unchecked",))
    faults = faults_of(engine, tables, seen)
    assert any("an update was lost" in each for each in faults), faults
