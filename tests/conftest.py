"""Databases for every test: real ones, fresh ones, and looked after.

One throw-away PostgreSQL server serves a whole run (its controller owns it); each worker of a parallel run has a
database of its own, each test a schema of its own, found through `search_path`. SQLite is a file in `tmp_path`.
`engine` and `async_engine` of one test reach the same database. A test that leaves a connection checked out, a
transaction, a prepared one, a task or a thread behind fails.

What happens around a test (its schema, the message_bus tables, the looking after) goes through one connection that a
worker keeps. Schemas with our tables are swept and used again (kept_schemas.py): thousands of tests need one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import hypothesis
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from message_bus.storage.sqlite import configure_sqlite
from message_bus.storage.tables import MessageBusTables
from tests.compiled_once import compile_once
from tests.kept_schemas import KeptSchema
from tests.servers import PostgreSQL, ServerNotAvailable
from tests.waiting import wait_until

IN_CI: Final = os.environ.get("CI", "") not in ("", "0", "false")
GIVEN_URL: Final = os.environ.get("MESSAGE_BUS_TEST_POSTGRESQL_URL")
ASYNC_BACKENDS: Final = {"sqlite": ("aiosqlite",), "postgresql": ("psycopg", "asyncpg")}
_SERVER = pytest.StashKey[PostgreSQL]()

compile_once()

# tests start hundreds of processes: compiling everything anew would be a third of the work of each
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if IN_CI else "local")


def unavailable(reason: str) -> None:
    """Skip the test because a backend is missing on this machine; in CI that fails it."""
    if IN_CI:
        pytest.fail(f"{reason} (CI is set: a backend that is not there fails the run)", pytrace=False)
    pytest.skip(reason)


# --- the run: one server, owned by the controller -----------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of a parallel run where the server is."""
    node.workerinput["postgresql"] = _server_url(node.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the server, also after Ctrl-C."""
    server = config.stash.get(_SERVER, None)
    if server is not None:
        server.remove()


def _server_url(config: pytest.Config) -> str:
    """The URL of a superuser's database on the server of this run, started at the first call; or why there is none."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        return str(workerinput["postgresql"])
    if GIVEN_URL:
        return GIVEN_URL
    if _SERVER not in config.stash:
        try:
            config.stash[_SERVER] = PostgreSQL.start()
        except ServerNotAvailable as error:
            return f"unavailable: {error}"
    return config.stash[_SERVER].url


@pytest.fixture(scope="session")
def postgresql_url(request: pytest.FixtureRequest, worker_id: str) -> Iterator[sa.URL]:
    """URL (driver psycopg) of a database that belongs to this worker alone; its user is a superuser."""
    found = _server_url(request.config)
    if found.startswith("unavailable: "):
        unavailable(found.removeprefix("unavailable: "))
    administration = sa.make_url(found).set(drivername="postgresql+psycopg")
    name = f"message_bus_{worker_id}_{uuid4().hex[:12]}"
    _administer(administration, f'CREATE DATABASE "{name}"')
    try:
        yield administration.set(database=name)
    finally:
        _administer(administration, f'DROP DATABASE "{name}" WITH (FORCE)')


def _administer(url: sa.URL, statement: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


# --- which backends a test runs on --------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `backend` or `async_backend`, directly or not, on each that its marks allow."""
    names: list[str] = [name for name in ("backend", "async_backend") if name in metafunc.fixturenames]
    if not names or _is_parametrised(metafunc, names):
        return
    only = [kind for kind in ASYNC_BACKENDS if metafunc.definition.get_closest_marker(kind)]
    cases: list[tuple[str, str]] = []
    for kind, drivers in ASYNC_BACKENDS.items():
        if not only or kind in only:
            cases += [(kind, driver) for driver in (drivers if "async_backend" in names else drivers[:1])]
    metafunc.parametrize(
        names,
        [
            pytest.param(
                *([kind] if "backend" in names else []),
                *([driver] if "async_backend" in names else []),
                id=driver if "async_backend" in names else kind,
                marks=getattr(pytest.mark, kind),
            )
            for kind, driver in cases
        ],
        indirect=True,
    )


def _is_parametrised(metafunc: pytest.Metafunc, names: list[str]) -> bool:
    for marker in metafunc.definition.iter_markers("parametrize"):
        given = marker.args[0] if marker.args else marker.kwargs["argnames"]
        listed = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
        if set(names) & set(listed):
            return True
    return False


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """ "sqlite" or "postgresql"; the marks of these names narrow it."""
    return str(request.param)


@pytest.fixture
def async_backend(request: pytest.FixtureRequest) -> str:
    """ "aiosqlite", "psycopg" or "asyncpg"; the marks sqlite and postgresql narrow it."""
    return str(request.param)


# --- a fresh database for each test -------------------------------------------------------------------------------


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """The file that a test's SQLite engines open."""
    return tmp_path / "test.db"


@pytest.fixture(scope="session")
def administration(postgresql_url: sa.URL) -> Iterator[sa.Engine]:
    """What happens around the tests in this worker's database: one connection, made anew if a test has ended it."""
    settings = "-csynchronous_commit=off -cclient_min_messages=warning"
    engine = sa.create_engine(
        _with_options(postgresql_url, settings), pool_size=1, max_overflow=0, pool_pre_ping=True,
        isolation_level="AUTOCOMMIT", execution_options={"no_parameters": True},
    )  # fmt: skip
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def _kept_schemas() -> dict[str, KeptSchema]:
    """What the last test of each kind has left: by the script that makes the tables."""
    return {}


@pytest.fixture
def schema(
    request: pytest.FixtureRequest, administration: sa.Engine, _kept_schemas: dict[str, KeptSchema]
) -> Iterator[str]:
    """The name of a PostgreSQL schema of the test's own: fresh, or as good as fresh with the tables that it wants."""
    kept: KeptSchema | None = None
    with administration.connect() as connection:
        if _asks_for_tables(request):
            script = script_for(TABLES.metadata, request.getfixturevalue("made_tables"))
            kept = _kept_schemas.pop(script, None) or KeptSchema.make(connection, script)
            name = kept.name
        else:
            name = f"test_{uuid4().hex[:12]}"
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield name
    with administration.connect() as connection:
        left = clean_up(connection)
        if kept is not None and not left and kept.sweep(connection):
            _kept_schemas[kept.script] = kept
        else:
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {name} CASCADE")
    assert not left, f"the test left behind: {left}"


def clean_up(connection: sa.Connection, *, patience: float = 2.0) -> list[str]:
    """End whatever transaction is still open in this worker's database, and say what there was.

    A client that is gone may have left its transaction to a server process that has not noticed yet: it is waited for.
    """
    with suppress(AssertionError):
        wait_until(lambda: not _open_transactions(connection), timeout=patience)
    left: list[str] = []
    for gid, pid, what in _open_transactions(connection):
        if gid is not None:
            connection.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")
        else:
            connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        left.append(what)
    return left


def _open_transactions(connection: sa.Connection) -> list[Any]:
    return list(
        connection.exec_driver_sql(
            "SELECT gid, NULL AS pid, format('prepared transaction %L', gid) AS what"
            " FROM pg_prepared_xacts WHERE database = current_database() UNION ALL"
            " SELECT NULL, pid, format('session %s, %s, last query %L', pid, state, query) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            " AND backend_type = 'client backend'"
        )
    )


@pytest.fixture
def database_url(request: pytest.FixtureRequest, backend: str) -> sa.URL:
    """A sync URL of the test's own database; on PostgreSQL it carries the search_path, so subprocesses may use it."""
    if backend == "sqlite":
        return sa.URL.create("sqlite", database=str(request.getfixturevalue("sqlite_path")))
    url: sa.URL = request.getfixturevalue("postgresql_url")
    return _with_options(url, f"-csearch_path={request.getfixturevalue('schema')}")


def _with_options(url: sa.URL, options: str) -> sa.URL:
    return url.update_query_dict({"options": f"{url.query.get('options', '')} {options}".strip()})


@pytest.fixture
def engine(database_url: sa.URL) -> Iterator[sa.Engine]:
    """A sync engine on the test's own database, with a pool; a connection still checked out at the end is an error."""
    made = sa.create_engine(database_url)
    if made.dialect.name == "sqlite":
        configure_sqlite(made)
    yield made
    left = _checked_out(made.pool)
    made.dispose()
    assert left == 0, f"{left} connection(s) not given back to the pool"


@pytest.fixture
async def async_engine(request: pytest.FixtureRequest, async_backend: str) -> AsyncIterator[AsyncEngine]:
    """The same for asyncio; in one test it reaches the same database as `engine`. A task left running is an error."""
    if async_backend == "aiosqlite":
        path = request.getfixturevalue("sqlite_path")
        made = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)))
        configure_sqlite(made)
    else:
        url: sa.URL = request.getfixturevalue("postgresql_url")
        schema: str = request.getfixturevalue("schema")
        if async_backend == "psycopg":
            made = create_async_engine(_with_options(url, f"-csearch_path={schema}"))
        else:
            made = create_async_engine(
                url.set(drivername="postgresql+asyncpg"),
                connect_args={"server_settings": {"search_path": schema}},
            )
    yield made
    left = _checked_out(made.sync_engine.pool)
    await made.dispose()
    assert left == 0, f"{left} connection(s) not given back to the pool"


def _checked_out(pool: sa.Pool) -> int:
    return pool.checkedout() if isinstance(pool, sa.QueuePool) else 0


TABLES: Final = MessageBusTables()
"""One object for all tests, as in applications: what is made of it once (its statements, say) is made once."""


@pytest.fixture
def tables(request: pytest.FixtureRequest, engine: sa.Engine) -> MessageBusTables:
    """The message_bus tables under their default names, made in the test's own database."""
    request.getfixturevalue(f"_tables_on_{engine.dialect.name}")
    return TABLES


@pytest.fixture
async def async_tables(request: pytest.FixtureRequest, async_engine: AsyncEngine) -> MessageBusTables:
    """The same for a test with `async_engine`."""
    request.getfixturevalue(f"_tables_on_{async_engine.dialect.name}")
    return TABLES


OF_THE_OUTBOX: Final = (
    TABLES.outbox, TABLES.schedule, TABLES.log, TABLES.subscription, TABLES.delivery, TABLES.inbox, TABLES.history,
)  # fmt: skip
"""Half of the tables, for half of the time: directories whose tests know no events override `made_tables` with them."""


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """The tables that a test's own PostgreSQL database gets."""
    return TABLES.all


def _asks_for_tables(request: pytest.FixtureRequest) -> bool:
    return not {"tables", "async_tables"}.isdisjoint(request.fixturenames)


@pytest.fixture
def _tables_on_postgresql(
    request: pytest.FixtureRequest, administration: sa.Engine, schema: str, made_tables: tuple[sa.Table, ...]
) -> None:
    if not _asks_for_tables(request):  # it does so at run time
        script = script_for(TABLES.metadata, made_tables)
        with administration.connect() as connection:
            connection.exec_driver_sql(f"BEGIN; SET LOCAL search_path = {schema}; {script}; COMMIT")


@cache
def script_for(metadata: sa.MetaData, tables: tuple[sa.Table, ...] | None = None) -> str:
    """What `create_all` does in an empty PostgreSQL database, as a script; None: all tables."""
    statements: list[str] = []

    def note(statement: Any, *args: object, **options: object) -> None:
        statements.append(str(statement.compile(dialect=mock.dialect)))

    # the driver's own style of parameters would double each %
    mock = sa.create_mock_engine("postgresql+psycopg://", note, paramstyle="named")
    metadata.create_all(mock, checkfirst=False, tables=tables)
    return "; ".join(statements)


@pytest.fixture
def _tables_on_sqlite(sqlite_path: Path, _sqlite_with_tables: Path) -> None:
    if sqlite_path.exists():
        _create_in(sqlite_path)
    else:
        shutil.copyfile(_sqlite_with_tables, sqlite_path)


@pytest.fixture(scope="session")
def _sqlite_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "test.db"
    _create_in(path)
    return path


def _create_in(path: Path) -> None:
    engine = configure_sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))))
    TABLES.create_all(engine)
    engine.dispose()


@pytest.fixture
def session_factory(engine: sa.Engine) -> sessionmaker[Session]:
    """`sessionmaker` on `engine`."""
    return sessionmaker(engine)


@pytest.fixture
def async_session_factory(async_engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """`async_sessionmaker` on `async_engine` (expire_on_commit off, as SQLAlchemy advises for asyncio)."""
    return async_sessionmaker(async_engine, expire_on_commit=False)


# --- nothing is left running --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before and torn down after all other fixtures of the test."""
    before = set(threading.enumerate())
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_no_task_left")
    yield

    def left() -> list[str]:
        # the event loop's own pool of threads ends with the loop
        return [
            thread.name
            for thread in set(threading.enumerate()) - before
            if not thread.name.startswith("asyncio_")
        ]

    try:
        wait_until(lambda: not left(), timeout=5)
    except AssertionError:
        pytest.fail(f"the test left threads running: {left()}", pytrace=False)


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"the test left tasks running: {left}"
