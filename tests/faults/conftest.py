"""What every scenario needs: a nursery for its processes, and a run that cleans up behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from tests.conftest import unavailable
from tests.faults.app import Settings
from tests.faults.nursery import Nursery
from tests.faults.scenario import Run
from tests.servers import PostgreSQL, ServerNotAvailable

Scenario = Callable[..., AbstractContextManager[Run]]

SYNC_AT_LEAST: Final = [
    pytest.param("make_bus", marks=pytest.mark.slow),
    pytest.param("make_async_bus", marks=pytest.mark.faults),
]
"""For what both colours do in `make faults`, and the sync one alone in every run; or the other way round."""
ASYNC_AT_LEAST: Final = [
    pytest.param("make_bus", marks=pytest.mark.faults),
    pytest.param("make_async_bus", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the processes of all scenarios come from."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def scenario_at(nursery: Nursery, tmp_path: Path) -> Scenario:
    """Makes a run: `url` is where its processes connect, `engine_url` where the test itself does (None: the same).

    `fails`: the test says itself what is wrong.
    """

    @contextmanager
    def make(
        name: str,
        settings: Settings | None = None,
        *,
        url: sa.URL,
        engine_url: sa.URL | None = None,
        fails: bool = False,
    ) -> Iterator[Run]:
        run = Run(name, nursery, url, tmp_path, settings=settings or Settings(), engine_url=engine_url or url)
        try:
            yield run
            result = run.result or run.finish()
            assert fails or result.problems == [], result.line
            assert result.written
        finally:
            run.close()

    return make


@pytest.fixture
def scenario(scenario_at: Scenario, database_url: sa.URL) -> Scenario:
    """Makes a run on the test's own database, on each backend."""
    return partial(scenario_at, url=database_url)


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """A server that this test may stop."""
    try:
        started = PostgreSQL.start()
    except ServerNotAvailable as error:
        unavailable(str(error))
        raise
    yield started
    started.remove()
