"""The database is read-only for a while, as after a failover: the relay says so once, waits, and goes on (G8)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.app import SENDER, Settings
from tests.faults.conftest import ASYNC_AT_LEAST, Scenario
from tests.faults.scenario import Run
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql

READ_ONLY = "default_transaction_read_only"


@contextmanager
def read_only(run: Run) -> Iterator[None]:
    """All connections end, and new ones can only read; at the end new ones can write again, those that are there cannot."""
    database = run.url.database
    with run.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"SET {READ_ONLY} = off")
        connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET {READ_ONLY} = on')
        try:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            yield
        finally:
            connection.exec_driver_sql(f'ALTER DATABASE "{database}" RESET {READ_ONLY}')
            connection.invalidate()


@pytest.mark.parametrize("make", ASYNC_AT_LEAST)
def test_a_read_only_server(scenario: Scenario, make: str) -> None:
    """The relay goes on by itself; a batch that could not be recorded is not sent over and over meanwhile (G5, G8)."""
    with scenario(f"read-only for a while, {make}", Settings(messages_per_commit=10, fetch_size=5)) as run:
        relay = run.relay(make)
        run.write(*[""] * 10)
        run.wait_until_delivered()
        with run.interrupted():
            run.write(*["sleep:0.1"] * 5)
            wait_until(lambda: len(run.effects(SENDER)) > 10)  # so there is something in hand
            with read_only(run):
                wait_until(lambda: "out of reach" in relay.errors, timeout=20)
                time.sleep(1.0)  # tries to record, again and again
        run.engine.dispose()
        run.write(*[""] * 10)
        run.wait_until_delivered(timeout=40)
        wait_until(lambda: "the database is back" in relay.errors, timeout=20)
        assert relay.code is None, relay.errors
        said = [line for line in relay.errors.splitlines() if " message_bus.relay: the database" in line]
        # once; or twice, if a connection was made between the two statements of `read_only`, and met it before the others
        assert ["out of reach" in line for line in said] in ([True, False], [True, False] * 2), said
