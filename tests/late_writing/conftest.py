"""One room for every way the write path is run: two databases, sync drivers and async ones.

The write path has one colour, so a test is written once, for a `Session`; under an async driver it runs inside
SQLAlchemy's greenlet, exactly where AsyncSession would run it. What is special to AsyncSession is in `test_async.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.util import greenlet_spawn

from message_bus.repositories.late_writing import buffer
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.storage.sqlite import configure_sqlite
from tests.conftest import OF_THE_OUTBOX, TABLES

DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "psycopg": "postgresql+psycopg",
    "aiosqlite": "sqlite+aiosqlite",
    "psycopg_async": "postgresql+psycopg_async",
    "asyncpg": "postgresql+asyncpg",
}
SYNC: Final = ("sqlite", "psycopg")


class Base(DeclarativeBase):
    """The application's own."""


class Order(Base):
    """What a business transaction writes."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


def message(name: str, **values: Any) -> OutboxMessage:
    """A row whose type name tells it apart."""
    return OutboxMessage(**{"type": "EVENT", "message": name, "payload": {"name": name}, **values})


class EngineMaker(NamedTuple):
    """Makes engines on one database, and remembers them."""

    make: Callable[..., sa.Engine]
    engines: list[sa.Engine]


class Room:
    """An engine on a database of its own with empty tables, and what the tests say of it."""

    def __init__(self, maker: EngineMaker) -> None:
        self.make_engine = maker.make
        self.engine = maker.make()
        Base.metadata.create_all(self.engine, checkfirst=False)
        self.tables = TABLES

    @property
    def is_postgresql(self) -> bool:
        """Is there a PostgreSQL server behind it?"""
        return self.engine.dialect.name == "postgresql"

    def session(self, **options: Any) -> Session:
        """A session on the room's engine."""
        return Session(options.pop("bind", self.engine), **options)

    def register(self, session: Session, *names: str) -> None:
        """Register one message per name."""
        for name in names:
            buffer(session, self.tables, message(name))

    def stored(self) -> list[str]:
        """The messages that are committed, in the order of their positions."""
        outbox = self.tables.outbox
        with self.engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            return list(connection.execute(sa.select(outbox.c.message).order_by(outbox.c.position)).scalars())

    def seen_by(self, target: Session | sa.Connection) -> list[str]:
        """The messages that have become rows, for this transaction."""
        outbox = self.tables.outbox
        return list(target.execute(sa.select(outbox.c.message).order_by(outbox.c.position)).scalars())

    def orders(self) -> int:
        """How many orders are committed."""
        with self.engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(Order)).scalar_one()

    def statements(self, engine: sa.Engine | None = None) -> list[str]:
        """A list that every statement from now on is added to."""
        seen: list[str] = []

        def note(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
            seen.append(statement)

        event.listen(engine or self.engine, "before_cursor_execute", note)
        return seen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `driver`, directly or not, under each that its marks and parameters allow."""
    given = [str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")]
    if "driver" not in metafunc.fixturenames or "driver" in given:
        return
    only = [kind for kind in ("sqlite", "postgresql") if metafunc.definition.get_closest_marker(kind)]
    chosen = [name for name in DRIVERS if not only or kind_of(name) in only]
    marked = [pytest.param(name, marks=getattr(pytest.mark, kind_of(name))) for name in chosen]
    metafunc.parametrize("driver", marked, indirect=True)


def kind_of(driver: str) -> str:
    """The database behind a driver."""
    return "sqlite" if driver.endswith("sqlite") else "postgresql"


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """One of DRIVERS; the marks sqlite and postgresql narrow it."""
    return str(request.param)


@pytest.fixture
def make_engine(request: pytest.FixtureRequest, driver: str) -> EngineMaker:
    """Makes engines on the test's own database, which has the message_bus tables; `play` disposes of them."""
    request.getfixturevalue(f"_tables_on_{kind_of(driver)}")
    made: list[sa.Engine] = []
    if kind_of(driver) == "sqlite":
        url = sa.URL.create(DRIVERS[driver], database=str(request.getfixturevalue("sqlite_path")))
        options: dict[str, Any] = {}
    else:
        url = request.getfixturevalue("postgresql_url").set(drivername=DRIVERS[driver])
        path = request.getfixturevalue("schema")
        settings = {"server_settings": {"search_path": path}}
        options = {"connect_args": settings if driver == "asyncpg" else {"options": f"-csearch_path={path}"}}

    def make(*, configure: bool = True, **more: Any) -> sa.Engine:
        given = {**options, **more}
        engine = (
            sa.create_engine(url, **given)
            if driver in SYNC
            else create_async_engine(url, **given).sync_engine
        )
        if configure and kind_of(driver) == "sqlite":
            configure_sqlite(engine)
        made.append(engine)
        return engine

    return EngineMaker(make, made)


@pytest.fixture
def play(driver: str, make_engine: EngineMaker) -> Callable[[Callable[[Room], None]], None]:
    """Plays a scenario in a room of this driver, in a greenlet if that driver is async."""

    def perform(scenario: Callable[[Room], None]) -> None:
        try:
            room = Room(make_engine)
            scenario(room)
            left = [
                engine.pool.checkedout()
                for engine in make_engine.engines
                if isinstance(engine.pool, sa.QueuePool)
            ]
            assert not any(left), f"connections not given back: {left}"
        finally:
            for engine in make_engine.engines:
                engine.dispose()

    def run(scenario: Callable[[Room], None]) -> None:
        if driver in SYNC:
            perform(scenario)
        else:
            asyncio.run(greenlet_spawn(perform, scenario))  # type: ignore[arg-type]

    return run


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    """`event.listen`, undone after the test: for listeners on classes."""
    made: list[tuple[Any, str, Any]] = []

    def add(target: Any, name: str, function: Any, **options: Any) -> None:
        event.listen(target, name, function, **options)
        made.append((target, name, function))

    yield add
    for target, name, function in made:
        event.remove(target, name, function)


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """No test here knows of events."""
    return OF_THE_OUTBOX
