"""`message-bus db`: what it prints, when it fails, and that it never prints a password."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from message_bus import __version__
from message_bus.cli.main import main
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.storage.migrations import head
from message_bus.storage.schema import check_schema
from message_bus.storage.tables import MessageBusTables
from message_bus.testing.contract_messages import OrderPlaced
from tests.storage.rows import put

Command = Callable[..., Result]
NOT_GIVEN = "Error: no database given (set MESSAGE_BUS_DATABASE_URL, or use --database-url)"


@pytest.fixture
def command(database_url: sa.URL) -> Command:
    """Run `message-bus` with the test's database in the environment."""
    environment = {"MESSAGE_BUS_DATABASE_URL": database_url.render_as_string(hide_password=False)}
    return lambda *arguments: CliRunner().invoke(main, arguments, prog_name="message-bus", env=environment)


def failed(result: Result, code: int) -> str:
    """The one line that a failed command says."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def without_database(*arguments: str) -> Result:
    """Run `message-bus` without a database in the environment."""
    return CliRunner().invoke(main, arguments, prog_name="message-bus", env={"MESSAGE_BUS_DATABASE_URL": ""})


@pytest.fixture
def place(database_url: sa.URL) -> str:
    """How the commands name the test's database."""
    if database_url.get_backend_name() == "sqlite":
        return str(database_url.database)
    host = database_url.host or database_url.query["host"]
    return f"{host}{f':{database_url.port}' if database_url.port else ''}/{database_url.database}"


def test_there_and_back(command: Command, engine: sa.Engine, place: str) -> None:
    """Upgrade, look, downgrade: each says in one line what it did, and to which database."""
    newest = head()
    engine.connect().close()  # on SQLite it makes the file
    said = [
        command("db", "current"),
        command("db", "upgrade"),
        command("db", "upgrade"),
        command("db", "current"),
        command("db", "downgrade", "-1"),
        command("db", "downgrade"),
        command("db", "downgrade"),
        command("db", "downgrade"),
        command("db", "upgrade", "head"),
        command("db", "downgrade", "base"),
    ]
    assert [(result.exit_code, result.output.strip()) for result in said] == [
        (0, f"{place}: none (newest: {newest}; run `message-bus db upgrade`)"),
        (0, f"{place}: none -> {newest}"),
        (0, f"{place}: already at {newest}: nothing to do"),
        (0, f"{place}: {newest} (newest)"),
        (0, f"{place}: {newest} -> 0002"),
        (0, f"{place}: 0002 -> 0001"),
        (0, f"{place}: 0001 -> none"),
        (0, f"{place}: already at none: nothing to do"),
        (0, f"{place}: none -> {newest}"),
        (0, f"{place}: {newest} -> none"),
    ]


def test_prefix(command: Command, engine: sa.Engine) -> None:
    """The tables get the prefix that is asked for."""
    assert command("db", "upgrade", "--prefix", "shop_").exit_code == 0
    with engine.connect() as connection:
        check_schema(connection, MessageBusTables(prefix="shop_"))


@pytest.mark.postgresql
def test_a_missing_schema_is_made_and_told(
    command: Command, engine: sa.Engine, schema: str, place: str
) -> None:
    """Creating a schema is worth a line of its own, once."""
    name = f"{schema}_new"
    try:
        assert (
            command("db", "upgrade", "--schema", name).output
            == f"{place}: created schema '{name}'\n{place}: none -> {head()}\n"
        )
        assert command("db", "upgrade", "--schema", name).output == (
            f"{place}: already at {head()}: nothing to do\n"
        )
        with engine.connect() as connection:
            check_schema(connection, MessageBusTables(schema=name))
    finally:
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True, if_exists=True))


def test_tables_made_by_create_all(command: Command, tables: MessageBusTables, place: str) -> None:
    """They are taken over, and the line says so."""
    assert (
        command("db", "upgrade").output
        == f"{place}: found the tables complete; put them on record as revision {head()}\n"
    )


def test_a_downgrade_that_may_lose_rows_asks_for_yes(command: Command, engine: sa.Engine, place: str) -> None:
    """Undelivered messages are not dropped by a slip of the hand."""
    command("db", "upgrade")
    with engine.begin() as connection:
        put(connection, MessageBusTables())
    assert "add --yes" in failed(command("db", "downgrade", "base"), 1)
    assert command("db", "downgrade", "base", "--yes").output == f"{place}: {head()} -> none\n"


def test_a_downgrade_that_drops_events_asks_for_yes(command: Command, engine: sa.Engine, place: str) -> None:
    """Events are all that is known of their aggregates: they are not dropped by a slip of the hand either."""
    command("db", "upgrade")
    with engine.begin() as connection:
        SQLAlchemyEventStore(connection).save("order-7", [OrderPlaced(7)])
    assert "add --yes" in failed(command("db", "downgrade", "0001"), 1)
    assert command("db", "downgrade", "0001", "--yes").output == f"{place}: {head()} -> 0001\n"


def test_an_unknown_revision(command: Command) -> None:
    """One line, with the newest revision."""
    assert f"the newest is '{head()}'" in failed(command("db", "upgrade", "9999"), 1)


def test_differences_are_all_listed(
    command: Command, engine: sa.Engine, tables: MessageBusTables, place: str
) -> None:
    """Tables that cannot be taken over are a failure that lists why."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX message_bus_schedule_due_at_idx")
    result = command("db", "upgrade")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: database {place}: the database schema differs")
    assert "message_bus_schedule_due_at_idx on (due_at, id) is missing" in result.stderr


def test_a_url_on_the_command_line_wins(command: Command, database_url: sa.URL, engine: sa.Engine) -> None:
    """The option is for a single use; the environment is the rule."""
    url = database_url.render_as_string(hide_password=False)
    result = CliRunner().invoke(
        main,
        ["db", "upgrade", "--database-url", url],
        env={"MESSAGE_BUS_DATABASE_URL": "sqlite:////nowhere/x.db"},
    )
    assert result.exit_code == 0
    with engine.connect() as connection:
        check_schema(connection, MessageBusTables())


@pytest.mark.parametrize("command", ["upgrade", "current", "downgrade"])
def test_no_database(command: str) -> None:
    """Without a URL it could not run, and the variable is named: the same in all commands."""
    assert failed(without_database("db", command), 1) == NOT_GIVEN


@pytest.mark.parametrize("command", ["current", "downgrade"])
def test_a_mistyped_file_is_not_made(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an upgrade makes a file."""
    monkeypatch.chdir(tmp_path)
    line = failed(without_database("db", command, "--database-url", "sqlite:///typo.db"), 1)
    assert f"no database file 'typo.db' ({tmp_path}/typo.db; is the URL right?" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--prefix", "--schema"])
def test_hostile_names(command: Command, option: str) -> None:
    """A schema or prefix that is no identifier is a wrong command line."""
    assert "is not a lower-case SQL identifier" in failed(
        command("db", "upgrade", option, "x; DROP TABLE y"), 2
    )


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("postgresql://user:hush%40hush@127.0.0.1:1/shop", 1, "database 127.0.0.1:1/shop: connection"),
        ("postgresql://user:hush@hush@127.0.0.1:1/shop", 1, "percent-encoded"),
        ("postgresql://user:hush@127.0.0.1:1x/shop", 1, "percent-encoded"),
        ("postgresql://user@127.0.0.1:1/shop?password=hush", 1, "database 127.0.0.1:1/shop: connection"),
        ("postgresql://user:hush@127.0.0.1:1/shop?hush=1", 1, "***"),
        ("mysql://user:hush@127.0.0.1/shop", 1, "use PostgreSQL or SQLite"),
        ("sqlite:////nowhere/at/all.db", 1, "database /nowhere/at/all.db: unable to open"),
        ("sqlite+nothing:///x.db", 1, "sqlite.nothing"),
        ("hush", 1, "percent-encoded"),
    ],
)
def test_what_cannot_be_reached_is_said_without_the_password(url: str, code: int, said: str) -> None:
    """One line with the place and the cause; no part of the password, in whatever way it was written."""
    line = failed(without_database("db", "upgrade", "--database-url", url), code)
    assert said in line
    assert "hush" not in line


def test_a_missing_driver_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the line says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    line = failed(without_database("db", "upgrade", "--database-url", "postgresql://127.0.0.1:1/shop"), 1)
    assert line.startswith("Error: the driver for postgresql+psycopg is missing: ")
    assert line.endswith(" (pip install 'sqlalchemy-message-bus[postgres]')")


def test_version() -> None:
    """--version prints ours."""
    assert without_database("--version").output == f"message-bus {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["db", "--help"], ["db", "upgrade", "--help"]])
def test_help(arguments: list[str]) -> None:
    """Every command explains itself, and none shows a default URL."""
    result = without_database(*arguments)
    assert result.exit_code == 0
    assert "://user:password@host" in result.output or "database-url" not in result.output


def test_commands_are_loaded_when_they_are_run() -> None:
    """The group itself imports neither SQLAlchemy nor Alembic, and lists its commands without them."""
    program = (
        "import sys\nfrom message_bus.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'sqlalchemy', 'alembic', 'psycopg'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"
    assert "Create and upgrade the tables." in run.stdout
