"""A rebuild and a swap while writers write and relays deliver; and one that is killed with SIGKILL in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusTables, Relay
from message_bus.eventsourcing.projections.projection_changes import RebuildRefused
from tests.eventsourcing.projecting import (
    TOTALS,
    EventTotals,
    OrderCancelled,
    OrderPlaced,
    Shop,
    append_events,
    fill,
    projection_of,
)
from tests.eventsourcing.test_projection import recorded
from tests.waiting import wait_until

PACE = 0.02  # seconds between two transactions: the database is shared with those who are to keep up
ROOT = Path(__file__).parents[2]


@contextmanager
def writing(shop: Shop, *, writers: int = 3, pace: float = PACE) -> Iterator[list[int]]:
    """So many threads write, one small transaction after another, until the end; how many each has written."""
    ended = threading.Event()
    counts = [0] * writers
    errors: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            while not ended.is_set():
                number = counts[writer]
                kind = OrderCancelled if number % 5 == 4 else OrderPlaced
                shop.write(*(kind(customer=f"c{(writer + i) % 5}", cents=number) for i in range(2)))
                counts[writer] += 1
                ended.wait(pace)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def assert_right(shop: Shop) -> None:
    """The live tables hold each event of the log once."""
    assert shop.totals() == shop.expected()
    source = shop.tables.of_log(shop.log).source
    read = sa.select(sa.func.count()).select_from(source)
    assert (
        shop.scalar(read)
        == shop.scalar("SELECT count(*) FROM seen")
        == shop.scalar("SELECT count(DISTINCT position) FROM seen")
    )


def swap_beside_writers(
    shop: Shop,
    engine: sa.Engine,
    *,
    history: int,
    relays: int,
    swaps: int,
    patience: float = 60,
    pace: float = PACE,
) -> None:
    """Rebuild and swap, so many times, while everything goes on."""
    projection, bus = projection_of(shop.log), MessageBus()
    bus.register_messages(OrderPlaced, OrderCancelled)
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                Relay(
                    bus,
                    engine,
                    projections=[projection_of(shop.log)],
                    poll=timedelta(milliseconds=50),
                )
            )
            for _ in range(relays)
        ]
        for _ in range(history // 1_000 or 1):
            fill(shop, min(history, 1_000))
        with shop.sessions() as session:
            projection.wait_for(session, shop.high(), patience)
        with writing(shop, pace=pace) as counts:
            for _ in range(swaps):
                before = sum(counts)

                def writers_go_on(*_: int, before: int = before) -> None:
                    wait_until(lambda: sum(counts) > before, timeout=60)

                done = shop.admin.rebuild(projection, progress=writers_go_on)
                assert done.ok, done
                assert done.verification.why_not is None
                shop.admin.swap(projection)
                shop.admin.drop("totals")
        with shop.sessions() as session:
            projection.wait_for(session, shop.high(), patience)
        for relay in running:
            relay.wait_until_idle(patience)
    assert_right(shop)


@pytest.mark.slow
@pytest.mark.parametrize("log", ["events", pytest.param("outbox", marks=pytest.mark.load)])
def test_a_swap_beside_writers_and_relays_loses_and_doubles_nothing(
    log: str, session_factory: sessionmaker[Session], tables: MessageBusTables, engine: sa.Engine
) -> None:
    """Live and rebuilt tables are equal at one position, and right after the swap (G2, G5, G6): the short form."""
    swap_beside_writers(Shop(session_factory, tables, log), engine, history=200, relays=2, swaps=1)


@pytest.mark.load
@pytest.mark.timeout(1_800)
def test_a_hundred_thousand_events_are_rebuilt_beside_writers(
    session_factory: sessionmaker[Session], tables: MessageBusTables, engine: sa.Engine
) -> None:
    """The long form: the rebuild comes up with writers that have written all the while, in the same process."""
    shop = Shop(session_factory, tables, "events")
    swap_beside_writers(shop, engine, history=100_000, relays=2, swaps=1, patience=1_500, pace=5 * PACE)


@pytest.mark.slow
@pytest.mark.postgresql
def test_an_inline_projection_is_swapped_beside_its_writers(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A writer that holds the table is waited for; one that comes later writes into the new one."""
    shop = Shop(session_factory, tables)
    inline = EventTotals(inline=True)

    class Writing(Shop):
        def append(self, session: Session, *events: Any) -> None:
            pairs = zip(append_events(session, self.tables, *events), events, strict=True)
            # two writers that change rows in different orders would wait for each other
            for position, event in sorted(pairs, key=lambda pair: str(pair[1].customer)):
                inline.apply(session, recorded(event, first=position))

    writers = Writing(session_factory, tables)
    writers.write(
        *(OrderPlaced(customer=f"c{n}", cents=1) for n in range(5))
    )  # two would insert the same row
    with writing(writers, writers=3) as counts:
        for _ in range(3):
            wanted = sum(counts) + 20
            wait_until(lambda wanted=wanted: sum(counts) > wanted, timeout=60)
            shop.admin.rebuild(inline)
            shop.admin.swap(inline)
            shop.admin.drop("totals")
    assert shop.totals() == shop.expected()
    assert shop.scalar(sa.select(sa.func.sum(TOTALS.c.orders))) is not None


@pytest.mark.slow
@pytest.mark.parametrize("log", ["events", pytest.param("outbox", marks=pytest.mark.load)])
def test_a_rebuild_killed_with_sigkill_goes_on_where_it_was(
    log: str, session_factory: sessionmaker[Session], tables: MessageBusTables, database_url: sa.URL
) -> None:
    """Killed in the middle of its second batch: the first is not handled again, and nothing twice (G5)."""
    shop = Shop(session_factory, tables, log)
    shop.run_as(projection_of(log))
    fill(shop, 260)
    shop.process()
    url = database_url.render_as_string(hide_password=False)

    def rebuild(after: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.eventsourcing.rebuilding_alone", url, log, str(after)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)

    died = rebuild(150)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert shop.checkpoint("totals@1") == 100
    assert shop.scalar("SELECT count(*) FROM seen__1") == 100
    with pytest.raises(RebuildRefused, match="another process is building it"):
        shop.admin.drop("totals", building=True)
    fill(shop, 10)
    shop.expire_leases()
    again = rebuild(0)
    assert again.returncode == 0, again.stderr
    shop.admin.swap(shop.projection)
    assert_right(shop)
