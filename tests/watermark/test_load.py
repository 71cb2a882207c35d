"""The load test in its short form, part of every run; `make load` runs the long one, and prints what it
found.
"""

from __future__ import annotations

import os
import random

import pytest
import sqlalchemy as sa

from message_bus.storage.tables import MessageBusTables
from tests.watermark.load import Report, run

pytestmark = pytest.mark.postgresql


@pytest.fixture
def backend() -> str:
    """The load is PostgreSQL's."""
    return "postgresql"


def load(database_url: sa.URL, seconds: float) -> Report:
    """Run it with the seed of MESSAGE_BUS_TEST_SEED, or a new one, and print the report."""
    seed = int(os.environ.get("MESSAGE_BUS_TEST_SEED") or random.SystemRandom().randrange(2**31))
    engine = sa.create_engine(database_url)
    tables = MessageBusTables()
    tables.create_all(engine)
    dsn = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    report = run(engine, tables, dsn, seconds=seconds, seed=seed)
    engine.dispose()
    print(report)
    return report


def check(report: Report) -> None:
    """All is well, and the naive cursor shows that it was not easy."""
    assert report.committed > 100, report
    assert report.is_good, report
    assert report.naive.lost > 0, report


@pytest.mark.slow
def test_under_load_nothing_is_lost_and_the_naive_cursor_loses(database_url: sa.URL) -> None:
    """G2, G4: eight writers with delays, rollbacks, savepoints, COPY and 2PC: none lost, none twice, order
    per writer kept.
    """
    check(load(database_url, 3.0))


@pytest.mark.load
def test_for_half_a_minute(database_url: sa.URL) -> None:
    """G2, G4: the same for 30 seconds (`make load`), or for as many as MESSAGE_BUS_TEST_LOAD_SECONDS says."""
    check(load(database_url, float(os.environ.get("MESSAGE_BUS_TEST_LOAD_SECONDS") or 30)))
