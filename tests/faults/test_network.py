"""A network that hangs without closing anything, closes everything, or swallows the answer of a COMMIT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import pytest
import sqlalchemy as sa

from tests.faults.app import ONCE, SENDER, Settings
from tests.faults.conftest import ASYNC_AT_LEAST, Scenario
from tests.faults.proxy import proxy_before
from tests.faults.scenario import APPS, seconds
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql

EFFECT: Final = b"INSERT INTO fault_effect"
FOUND_OUT: Final = "succeeded, although it raised"
LEASE: Final = 1.0
BOTH: Final = Settings(messages_per_commit=10, concurrency=2)
DRIVERS: Final = [("make_bus", "psycopg"), ("make_async_bus", "psycopg"), ("make_async_bus", "asyncpg")]


@contextmanager
def with_driver(url: sa.URL, proxied: sa.URL, driver: str) -> Iterator[sa.URL]:
    """The proxied URL for this driver. asyncpg knows no `options`, so the database has to say where the tables are."""
    if driver == "psycopg":
        yield proxied
        return
    path = str(url.query["options"]).partition("search_path=")[2]
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{url.database}" SET search_path = {path}')
        try:
            yield proxied.set(drivername="postgresql+asyncpg").difference_update_query(["options"])
        finally:
            connection.exec_driver_sql(f'ALTER DATABASE "{url.database}" RESET search_path')


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        pytest.param("make_bus", "resume", marks=pytest.mark.slow),
        pytest.param("make_bus", "drop", marks=pytest.mark.faults),
        pytest.param("make_async_bus", "resume", marks=pytest.mark.faults),
        pytest.param("make_async_bus", "drop", marks=pytest.mark.slow),
    ],
)
def test_a_network_that_hangs(scenario: Scenario, database_url: sa.URL, make: str, ending: str) -> None:
    """Another relay takes over when the lease ends; the one that was cut off is of use again afterwards (G2, G5, G6, G8)."""
    with proxy_before(database_url) as proxy, scenario(f"network hangs, {ending}, {make}", BOTH) as run:
        cut_off = run.relay(make, url=proxy.proxied, lease=LEASE)
        with run.writing(rate=20):
            run.wait_for_more(5)
            with run.interrupted():
                proxy.hang()
                other = run.relay(make, lease=LEASE)
                run.wait_for_more(10)
                if ending == "drop":
                    proxy.drop()
                proxy.resume()
                run.wait_for_more(5)
                run.wait_for_more(5, SENDER)  # what was in hand at both is done with
        run.wait_until_delivered()
        with run.interrupted():
            other.kill()
        run.write("", "", "")
        run.wait_until_delivered()  # by the one that was cut off
        assert cut_off.code is None, cut_off.errors


@pytest.mark.parametrize("make", ASYNC_AT_LEAST)
def test_a_network_that_hangs_at_a_commit(scenario: Scenario, database_url: sa.URL, make: str) -> None:
    """The server waits for a COMMIT with the checkpoint locked: nobody is kept out much longer than a lease (G6, S7)."""
    settings = replace(BOTH, subscriptions=(ONCE,))
    with proxy_before(database_url) as proxy, scenario(f"network hangs at COMMIT, {make}", settings) as run:
        run.write(*[""] * 10)
        with run.interrupted():
            proxy.hang_at_commit(after=EFFECT)
            run.relay(make, url=proxy.proxied, lease=LEASE)
            wait_until(lambda: proxy.hangs, timeout=20)
            run.relay(make, lease=LEASE)
            run.wait_until_delivered(timeout=20)
            proxy.resume()


def lose_answers(
    scenario: Scenario, url: sa.URL, make: str, driver: str, *, span: float, rate: float
) -> None:
    """For so long every tenth COMMIT of a relay gets no answer."""
    with (
        proxy_before(url) as proxy,
        with_driver(url, proxy.proxied, driver) as proxied,
        scenario(f"answers of COMMIT lost, {make} on {driver}", BOTH) as run,
    ):
        relay = run.relay(make, url=proxied, settings=replace(run.settings, handler_timeout=None))
        with run.writing(rate=rate), run.interrupted():
            run.wait_for_more()
            proxy.lose_answers(lambda: run.dice.random() < 0.1)
            time.sleep(span)
            proxy.lose_answers(lambda: False)
        run.wait_until_delivered()
        assert proxy.lost > span
        assert relay.code is None, relay.errors
        assert FOUND_OUT in relay.errors


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "driver"), DRIVERS)
def test_lost_answers(scenario: Scenario, database_url: sa.URL, make: str, driver: str) -> None:
    """Whether the commit has happened is read before anything is repeated: effects once (G5, S1)."""
    lose_answers(scenario, database_url, make, driver, span=seconds(15), rate=60)


@pytest.mark.slow
@pytest.mark.parametrize("make", APPS)
def test_three_lost_answers(scenario: Scenario, database_url: sa.URL, make: str) -> None:
    """The short form: three that have moved the checkpoint, one after the other (G5, S1)."""
    settings = Settings(subscriptions=(ONCE,))
    with proxy_before(database_url) as proxy, scenario(f"answers lost, {make}", settings) as run:
        proxy.lose_answers(lambda: proxy.lost < 3, after=EFFECT)
        relay = run.relay(make, url=proxy.proxied)
        run.write(*[""] * 6)
        wait_until(lambda: proxy.lost == 3, timeout=30)
        run.wait_until_delivered()
        assert FOUND_OUT in relay.errors
