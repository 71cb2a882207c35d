"""The server is stopped hard and started again while writers write and relays deliver (G2, G5, G8)."""

from __future__ import annotations

import time
from functools import partial

import pytest
import sqlalchemy as sa

from tests.faults.app import Settings
from tests.faults.conftest import Scenario
from tests.faults.scenario import APPS, Run, seconds
from tests.faults.writing import Writers
from tests.servers import PostgreSQL
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql

BUSY = Settings(messages_per_commit=100, partitions=2, concurrency=4, fetch_size=50)


def has_more(writers: Writers, before: int) -> bool:
    """Whether the server has answered another COMMIT."""
    return len(writers.acknowledged) > before


def stop_under_load(
    run: Run, server: PostgreSQL, *, times: int, span: float, threads: int, rate: float
) -> None:
    """Stop it so many times within `span` seconds; all goes on by itself each time."""
    relays = [run.relay(make) for make in APPS]
    with run.writing(threads=threads, rate=rate) as writers:
        run.wait_for_more()
        for _ in range(times):
            time.sleep(run.dice.uniform(0, span / times))
            server_is_back = partial(has_more, writers, len(writers.acknowledged))
            with run.interrupted():
                server.stop()
                time.sleep(run.dice.uniform(0, span / times / 5))
                server.start_again()
                wait_until(server_is_back, timeout=60)
            run.wait_for_more()
    run.wait_until_delivered()
    assert [relay.code for relay in relays] == [None, None], [relay.errors for relay in relays]
    for relay in relays:
        said = [
            line
            for line in relay.errors.splitlines()
            if "out of reach" in line and "message_bus.relay" in line
        ]
        assert len(said) <= 2 * times, said  # once an outage; a server that starts may be met twice


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_stopped_five_times(scenario_at: Scenario, server: PostgreSQL) -> None:
    """Five times in a minute, under eight writers: nothing is lost or doubled, and nobody has to do anything (G2, G5, G8)."""
    with scenario_at("server stopped 5 times", BUSY, url=sa.make_url(server.url)) as run:
        stop_under_load(run, server, times=5, span=seconds(60), threads=8, rate=80)


@pytest.mark.slow
def test_stopped_once(scenario_at: Scenario, server: PostgreSQL) -> None:
    """The short form (G2, G5, G8)."""
    with scenario_at("server stopped once", BUSY, url=sa.make_url(server.url)) as run:
        stop_under_load(run, server, times=1, span=0.5, threads=2, rate=20)
