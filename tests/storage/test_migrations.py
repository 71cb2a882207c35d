"""Migrations: the revisions add up to the tables, in both directions, with data in them, for several at once."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import message_bus
from message_bus.errors import SchemaError, SettingsError, UnsupportedDatabase, WiringError
from message_bus.storage.migrations import (
    Migrated,
    current,
    downgrade,
    head,
    holds_rows,
    migrations_directory,
    upgrade,
)
from message_bus.storage.schema import check_schema
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.urls import place_of
from tests.storage.catalogue import catalogue
from tests.storage.rows import put
from tests.waiting import wait_until

ROOT = Path(message_bus.__file__).parent.parent
INSTANT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)

# Rows as they could be written at the revision that introduced them; every later revision must keep them.
DATA: dict[str, dict[str, dict[str, Any]]] = {
    "0001": {
        "outbox": {
            "id": UUID(int=1),
            "type": "EVENT",
            "message": "OrderPlaced",
            "version": 2,
            "key": "order 7",
            "key_hash": 7,
            "payload": {"order_id": 7, "note": "ünïcode"},
            "meta": {"tenant": "a"},
            "headers": {"correlation_id": "c"},
        },
        "schedule": {
            "id": UUID(int=2),
            "due_at": INSTANT,
            "type": "COMMAND",
            "message": "RemindCustomer",
            "payload": {"order_id": 7},
        },
        "log": {"log": "outbox", "pruned_to": 41, "last_epoch": 3},
        "subscription": {
            "name": "dispatch",
            "partition": 1,
            "log": "outbox",
            "partitions": 2,
            "state": "paused",
            "position": 42,
            "epoch": 5,
            "owner": "token",
            "lease_until": INSTANT,
        },
        "delivery": {
            "subscription": "dispatch",
            "position": 1,
            "key": "order 7",
            "key_hash": 7,
            "state": "dead",
            "attempts": 20,
            "crashes": 1,
            "error": "ValueError",
            "traceback": "Traceback ...",
        },
        "inbox": {"consumer": "orders", "message_id": "m-1"},
    },
    "0002": {
        "event": {
            "id": UUID(int=3),
            "stream": "order 7",
            "version": 1,
            "message": "OrderPlaced",
            "schema_version": 2,
            "key_hash": 7,
            "payload": {"order_id": 7, "note": "ünïcode"},
            "meta": {"tenant": "a"},
            "headers": {"correlation_id": "c"},
            "correlation_id": "c",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "recorded_at": INSTANT,
        },
        "stream": {"stream": "order 7", "version": 1},
        "snapshot": {
            "stream": "order 7",
            "aggregate_type": "Order",
            "version": 1,
            "schema_version": 3,
            "state": {"total": "12.50"},
            "taken_at": INSTANT,
        },
        "process": {"name": "shipping", "key": "order 7", "state": "completed", "data": {"paid": True}},
        "saga": {
            "name": "booking",
            "id": "b-1",
            "state": "compensating",
            "revision": 3,
            "data": {},
            "error": "full",
        },
        "projection": {
            "name": "totals",
            "generation": 1,
            "version": 2,
            "state": "building",
            "subscription": "totals@1",
            "tables": {"totals": "totals__1"},
            "swapped_at": INSTANT,
        },
    },
    "0003": {
        "history": {
            "subscription": "dispatch",
            "log": "outbox",
            "position": 1,
            "message_id": UUID(int=1),
            "what": "passed over",
            "attempt": 2,
            "behind": 3,
            "error": "ValueError: ünïcode",
            "decided_by": "ann",
            "happened_at": INSTANT,
        },
    },
}


def revisions() -> list[str]:
    """Every revision, oldest first."""
    scripts = ScriptDirectory(str(migrations_directory())).walk_revisions()
    return [script.revision for script in scripts][::-1]


def reflected(connection: sa.Connection, name: str) -> sa.Table:
    """A table as the database has it at this moment."""
    return sa.Table(f"message_bus_{name}", sa.MetaData(), autoload_with=connection)


def plain(value: Any) -> Any:
    """A value as reflected types take and give it on both: SQLite has neither zones nor UUIDs."""
    match value:
        case datetime(tzinfo=zone) if zone is not None:
            return value.astimezone(UTC).replace(tzinfo=None)
        case UUID():
            return value.hex
        case _:
            return value


def seen_by_alembic(connection: sa.Connection, tables: MessageBusTables) -> list[Any]:
    """What autogenerate would change."""
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "version_table": f"{tables.prefix}schema_version",
    }
    found = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    if connection.dialect.name == "sqlite":  # Alembic misses every Identity there, although SQLite has none
        found = [
            each
            for each in found
            if not (each[0][0] == "modify_default" and isinstance(each[0][6], sa.Identity))
        ]
    return found


@pytest.fixture
def place(engine: sa.Engine, request: pytest.FixtureRequest) -> Any:
    """A schema that does not exist yet; on SQLite None, because there a schema is another file."""
    if engine.dialect.name == "sqlite":
        yield None
        return
    name = f"{request.getfixturevalue('schema')}_new"
    yield name
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema(name, cascade=True, if_exists=True))


@pytest.mark.parametrize("prefix", ["message_bus_", "shop_", ""])
def test_the_revisions_add_up_to_the_metadata(engine: sa.Engine, prefix: str) -> None:
    """Upgraded from nothing, a database has what the tables say: for Alembic, check_schema, in its catalogue."""
    tables = MessageBusTables(prefix=prefix)
    upgrade(engine, tables=tables)
    with engine.connect() as connection:
        assert seen_by_alembic(connection, tables) == []
        check_schema(connection, tables)
        by_revisions = catalogue(connection)
    downgrade(engine, tables=tables, revision="base")
    with engine.begin() as connection:
        tables.create_all(connection)
        assert catalogue(connection) == by_revisions


def test_in_a_schema_of_its_own(engine: sa.Engine, place: str | None) -> None:
    """The schema is made if it is missing, and everything, the version table too, is in it."""
    tables = MessageBusTables(schema=place, prefix="shop_")
    done = upgrade(engine, tables=tables)
    assert done == Migrated(None, head(), created_schema=place is not None)
    with engine.connect() as connection:
        check_schema(connection, tables)
        assert set(sa.inspect(connection).get_table_names(place)) == {
            "shop_schema_version",
            *(table.name for table in tables.all),
        }
        if place is not None:
            assert sa.inspect(connection).get_table_names() == []
    assert upgrade(engine, tables=tables) == Migrated(head(), head())


@pytest.mark.postgresql
def test_a_schema_named_like_a_keyword(engine: sa.Engine, schema: str) -> None:
    """Identifiers are quoted, in the frozen SQL of revisions too."""
    tables = MessageBusTables(schema="order")
    try:
        upgrade(engine, tables=tables)
        with engine.connect() as connection:
            check_schema(connection, tables)
        downgrade(engine, tables=tables, revision="base")
    finally:
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema("order", cascade=True, if_exists=True))


@pytest.mark.postgresql
def test_with_schema_translate_map(engine: sa.Engine, place: str) -> None:
    """A connection that translates schemas is migrated where its statements go."""
    tables = MessageBusTables(schema="tenant")
    with engine.begin() as plain:
        connection = plain.execution_options(schema_translate_map={"tenant": place})
        upgrade(connection, tables=tables)
        check_schema(connection, tables)
        assert current(connection, tables=tables) == head()
    with engine.connect() as connection:
        check_schema(connection, MessageBusTables(schema=place))


def test_up_down_up(engine: sa.Engine) -> None:
    """Every revision can be taken back and applied again; nothing is left at the base."""
    upgrade(engine)
    with engine.connect() as connection:
        first = catalogue(connection)
    for _ in revisions():
        downgrade(engine)
    assert current(engine) is None
    with engine.connect() as connection:
        assert catalogue(connection, without="sqlite_") == []
    assert upgrade(engine) == Migrated(None, head())
    with engine.connect() as connection:
        assert catalogue(connection) == first


@pytest.mark.parametrize("revision", revisions())
def test_an_older_schema_is_upgraded_with_data_in_it(engine: sa.Engine, revision: str) -> None:
    """Rows written at each revision are there, unchanged, at the newest; and new ones go in."""
    assert revision in DATA, (
        f"add to DATA what rows of revision {revision} look like ({{}} if nothing is new)"
    )
    upgrade(engine, revision=revision)
    rows = {
        name: row
        for known in revisions()[: revisions().index(revision) + 1]
        for name, row in DATA[known].items()
    }
    with engine.begin() as connection:
        for name, row in rows.items():
            given = (
                {key: plain(value) for key, value in row.items()}
                if connection.dialect.name == "sqlite"
                else row
            )
            connection.execute(sa.insert(reflected(connection, name)).values(given))
    upgrade(engine)
    with engine.begin() as connection:
        check_schema(connection, MessageBusTables())
        for name, row in rows.items():
            found = connection.execute(sa.select(reflected(connection, name))).mappings().one()
            assert {column: plain(found[column]) for column in row} == {
                column: plain(value) for column, value in row.items()
            }
        assert put(connection, MessageBusTables()) > 1


def test_a_schema_that_is_one_revision_behind(engine: sa.Engine) -> None:
    """New code says at its start what is missing and what helps, before it has delivered anything."""
    upgrade(engine, revision="0002")
    bus = message_bus.MessageBus()
    bus.set_outbox_handlers([message_bus.DispatchOutboxHandler()])
    with (
        Session(engine) as session,
        pytest.raises(
            SchemaError, match=r"run `message-bus db upgrade`(.|\n)*message_bus_history is missing"
        ),
    ):
        bus.process_outbox(session)


def test_the_history_only_adds(engine: sa.Engine) -> None:
    """Expand only: older code finds everything as it was."""
    upgrade(engine, revision="0002")
    with engine.connect() as connection:
        before = catalogue(connection)
    upgrade(engine, revision="0003")
    with engine.connect() as connection:
        after = catalogue(connection)
    assert [each for each in before if each not in after] == []
    assert {"history" in str(each) for each in after if each not in before} == {True}


def test_upgrading_again_does_nothing(engine: sa.Engine) -> None:
    """Every start of an application may upgrade."""
    assert upgrade(engine) == Migrated(None, head())
    assert upgrade(engine) == Migrated(head(), head())
    assert current(engine) == head()


def test_a_url_will_do(database_url: sa.URL) -> None:
    """A URL as people write it, without a driver, is enough for everything."""
    url = database_url.set(drivername=database_url.get_backend_name()).render_as_string(hide_password=False)
    assert current(url) is None
    assert upgrade(url).after == head()
    assert current(url) == head()
    assert downgrade(url) == Migrated(head(), revisions()[-2])
    assert downgrade(url, revision="base") == Migrated(revisions()[-2], None)
    assert downgrade(url) == Migrated(None, None)


def test_a_given_connection_is_not_committed(engine: sa.Engine) -> None:
    """On a Connection it is the caller's transaction: rolled back, nothing has happened (G10)."""
    with engine.connect() as connection:
        upgrade(connection)
        check_schema(connection, MessageBusTables())
        assert connection.in_transaction()
        connection.rollback()
        assert catalogue(connection) == []


async def test_asynchronously(async_engine: AsyncEngine) -> None:
    """`await connection.run_sync(upgrade)` works with every asynchronous driver."""
    async with async_engine.begin() as connection:
        assert await connection.run_sync(upgrade) == Migrated(None, head())
    async with async_engine.connect() as connection:
        await connection.run_sync(check_schema, MessageBusTables())


def test_a_failed_upgrade_changes_nothing(engine: sa.Engine) -> None:
    """DDL is transactional on both: a revision that fails half-way leaves neither tables nor a version."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE message_bus_inbox (mine integer)")
    with pytest.raises(sa.exc.DBAPIError):
        upgrade(engine)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["message_bus_inbox"]


@pytest.mark.sqlite
def test_a_failed_upgrade_changes_nothing_on_a_plain_sqlite_engine(database_url: sa.URL) -> None:
    """Transactional DDL does not hang on the engine's events: a plain engine and a URL have it too."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE message_bus_inbox (mine integer)")
    for target in (engine, database_url):
        with pytest.raises(sa.exc.OperationalError):
            upgrade(target)
        with engine.connect() as connection:
            assert sa.inspect(connection).get_table_names() == ["message_bus_inbox"]


@pytest.mark.postgresql
def test_who_upgrades_second_waits_and_finds_nothing_to_do(engine: sa.Engine, database_url: sa.URL) -> None:
    """Two deployments at once: the second waits for the first's commit, then has nothing to do."""
    done: list[Migrated] = []
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with engine.connect() as first, engine.connect() as observer:
        upgrade(first)
        second = threading.Thread(target=lambda: done.append(upgrade(database_url)))
        second.start()
        wait_until(lambda: observer.scalar(waiting) == 1)
        observer.rollback()
        assert done == []
        first.commit()
        second.join(timeout=30)
    assert done == [Migrated(head(), head())]


@pytest.mark.postgresql
def test_who_upgrades_second_does_the_work_if_the_first_fails(
    engine: sa.Engine, database_url: sa.URL
) -> None:
    """The lock ends with the transaction: a deployment that dies does not stop the next."""
    done: list[Migrated] = []
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with engine.connect() as first, engine.connect() as observer:
        upgrade(first)
        second = threading.Thread(target=lambda: done.append(upgrade(database_url)))
        second.start()
        wait_until(lambda: observer.scalar(waiting) == 1)
        observer.rollback()
        first.rollback()
        second.join(timeout=30)
    assert done == [Migrated(None, head())]


@pytest.mark.slow
def test_processes_that_upgrade_at_once(database_url: sa.URL, engine: sa.Engine) -> None:
    """Three hosts deploy together: all succeed, one did the work."""
    environment = {
        **os.environ,
        "MESSAGE_BUS_DATABASE_URL": database_url.render_as_string(hide_password=False),
    }
    command = [sys.executable, "-m", "message_bus.cli.main", "db", "upgrade"]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert sorted(out for out, _ in said) == sorted(
        f"{place_of(database_url)}: {each}\n"
        for each in [f"none -> {head()}", *[f"already at {head()}: nothing to do"] * 2]
    )
    with engine.connect() as connection:
        check_schema(connection, MessageBusTables())


def test_threads_that_upgrade_different_tables_at_once(database_url: sa.URL) -> None:
    """Alembic has one environment per process: sets of tables migrated from several threads do not meet in it."""
    sets = [MessageBusTables(prefix=f"tenant{n}_") for n in range(4)]
    done: list[Migrated] = []
    threads = [
        threading.Thread(target=lambda s=s: done.append(upgrade(database_url, tables=s))) for s in sets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert done == [Migrated(None, head())] * 4


@pytest.mark.postgresql
def test_a_connection_in_autocommit_is_refused(engine: sa.Engine) -> None:
    """Without a transaction there is neither a lock nor a way back."""
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
            upgrade(connection)
        assert catalogue(connection) == []


@pytest.mark.postgresql
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_an_engine_of_any_isolation_will_do(engine: sa.Engine, level: str) -> None:
    """On an Engine the transaction is ours, and READ COMMITTED: it must see what the one before committed."""
    assert upgrade(engine.execution_options(isolation_level=level)) == Migrated(None, head())


def test_tables_made_by_create_all_are_put_on_record(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Who began with create_all goes on with upgrade; rows stay."""
    with engine.begin() as connection:
        put(connection, tables)
    assert upgrade(engine) == Migrated(None, head(), adopted=True)
    assert upgrade(engine) == Migrated(head(), head())
    assert holds_rows(engine)


def test_tables_that_differ_are_not_put_on_record(engine: sa.Engine, tables: MessageBusTables) -> None:
    """Tables of unknown origin that are not like ours are refused, with every difference."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX message_bus_schedule_due_at_idx")
    with pytest.raises(SchemaError, match="message_bus_schedule_due_at_idx"):
        upgrade(engine)
    assert current(engine) is None


def test_a_database_newer_than_the_package_is_refused(engine: sa.Engine) -> None:
    """An old release started against a new schema says so, in both directions."""
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE message_bus_schema_version SET version_num = '9999'")
    for migrate in (upgrade, downgrade):
        with pytest.raises(WiringError, match="'9999', which this version of message_bus does not know"):
            migrate(engine)
    assert current(engine) == "9999"


def test_an_unknown_revision_is_refused(engine: sa.Engine) -> None:
    """The error names the newest there is, and nothing was changed."""
    with pytest.raises(SettingsError, match=f"newest is '{head()}'"):
        upgrade(engine, revision="9999")
    with engine.connect() as connection:
        assert catalogue(connection) == []


def test_what_cannot_be_migrated() -> None:
    """An AsyncEngine or another database gets the remedy."""
    with pytest.raises(TypeError, match="run_sync"):
        upgrade(object())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedDatabase, match="PostgreSQL or SQLite"):
        upgrade("mysql://localhost/x")


def test_no_rows_no_loss(engine: sa.Engine) -> None:
    """holds_rows sees rows of any of the tables, and none in a database without them."""
    tables = MessageBusTables()
    assert not holds_rows(engine)
    upgrade(engine)
    assert not holds_rows(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.inbox).values(consumer="a", message_id="1"))
    assert holds_rows(engine)


def test_logging_is_left_alone(engine: sa.Engine, capfd: pytest.CaptureFixture[str]) -> None:
    """A migration configures no logging and prints nothing."""
    before = (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level)
    upgrade(engine)
    assert (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level) == before
    assert capfd.readouterr() == ("", "")


def test_migrations_beside_a_checkout() -> None:
    """In a checkout, and so in an editable install, the directory is the repository's, and no package."""
    assert migrations_directory() == ROOT / "alembic"
    assert list((ROOT / "alembic").rglob("__init__.py")) == []


def test_migrations_inside_an_installed_package(tmp_path: Path) -> None:
    """Installed from a wheel, the package finds and runs the migrations inside itself."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "message_bus", tmp_path / "message_bus", ignore=ignore)
    shutil.copytree(ROOT / "alembic", tmp_path / "message_bus" / "migrations", ignore=ignore)
    program = (
        "from message_bus.storage.migrations import migrations_directory, upgrade\n"
        "print(migrations_directory())\nprint(upgrade('sqlite:///installed.db').after)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == [str(tmp_path / "message_bus" / "migrations"), head()], run.stderr


def test_an_incomplete_installation(tmp_path: Path) -> None:
    """A package without its migrations says so."""
    shutil.copytree(
        ROOT / "message_bus", tmp_path / "message_bus", ignore=shutil.ignore_patterns("__pycache__")
    )
    run = subprocess.run(
        [sys.executable, "-c", "from message_bus.storage.migrations import head; head()"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "the installation is incomplete" in run.stderr.splitlines()[-1]


def test_revisions_name_no_live_table() -> None:
    """A revision that imported the package would change with it; env.py and revisions import nothing of it."""
    for path in migrations_directory().rglob("*.py"):
        lines = path.read_text().splitlines()
        assert [
            line for line in lines if line.startswith(("import message_bus", "from message_bus"))
        ] == [], path
