"""A log on the test's own PostgreSQL schema, and readers of it in three colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from message_bus.storage.tables import MessageBusTables
from tests.conftest import OF_THE_OUTBOX
from tests.watermark.readers import AsyncReader, Log, Reader


@pytest.fixture
def backend() -> str:
    """The watermark's tests are about PostgreSQL, unless they say otherwise."""
    return "postgresql"


@pytest.fixture
def log(engine: sa.Engine, tables: MessageBusTables) -> Iterator[Log]:
    """The outbox, with connections for writers that are closed when the test ends."""
    with Log(engine, tables) as made:
        yield made


@pytest.fixture(params=["sync", "async-psycopg", "async-asyncpg"])
def make_reader(
    request: pytest.FixtureRequest, log: Log, postgresql_url: sa.URL, schema: str
) -> Iterator[Callable[[], Reader]]:
    """Makes readers of one kind: the sync twin on psycopg, the async one on psycopg and on asyncpg."""
    with ExitStack() as stack:

        def make() -> Reader:
            if request.param == "sync":
                return stack.enter_context(Reader(log.engine, log.tables))
            return stack.enter_context(
                AsyncReader.on(
                    postgresql_url, schema, log.tables, driver=request.param.removeprefix("async-")
                )
            )

        yield make


@pytest.fixture
def reader(make_reader: Callable[[], Reader]) -> Reader:
    """One reader that has read nothing yet."""
    return make_reader()


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """No test here knows of events."""
    return OF_THE_OUTBOX
