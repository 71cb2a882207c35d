"""`message-bus process-outbox`: exit codes, what it prints, and what it never prints."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusTables
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from message_bus.cli.process_outbox import lines_of
from message_bus.delivery.report import SubscriptionReport, summed
from tests.cli.app import Asked

ROOT = Path(__file__).parents[2]


def run(app: str, url: sa.URL | str | None, *options: str) -> Result:
    """The command in this process, with the database in the environment."""
    given = url.render_as_string(hide_password=False) if isinstance(url, sa.URL) else url
    return CliRunner().invoke(
        main,
        ["process-outbox", "--app", f"tests.cli.app:{app}", *options],
        env={DATABASE_URL_VARIABLE: given},
    )


def run_process(app: str, url: sa.URL, *options: str) -> subprocess.CompletedProcess[str]:
    """The command as cron runs it."""
    return subprocess.run(
        [sys.executable, "-m", "message_bus.cli.main", "process-outbox", "--app", f"tests.cli.app:{app}", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, DATABASE_URL_VARIABLE: url.render_as_string(hide_password=False)},
    )  # fmt: skip


def ask(sessions: sessionmaker[Session], *wishes: str) -> None:
    """Commit one message per wish, all of one key."""
    with sessions.begin() as session:
        for wish in wishes:
            MessageBus.register_outbox_message(session, Asked(topic="t", wish=wish))


def report_of(done: Result | subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("app", ["bus", "make_bus", "async_bus"])
def test_exit_code_0_when_all_is_delivered(
    app: str, database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """A sync bus, a factory and an async bus deliver from the database that the environment names (G2)."""
    ask(session_factory, "succeed", "succeed")
    done = run(app, database_url, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert report_of(done)["ok"] is True
    assert report_of(done)["delivered"] == 2


def test_exit_code_3_as_long_as_something_is_not_done(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """A real process answers 3 while a message retries and its follower is held, and when it is dead (G7)."""
    ask(session_factory, "fail", "succeed")
    first = run_process("make_bus", database_url, "--json")
    assert first.returncode == 3, first.stderr
    assert {name: report_of(first)[name] for name in ("ok", "delivered", "retrying", "held", "dead")} == {
        "ok": False, "delivered": 0, "retrying": 1, "held": 1, "dead": 0,
    }  # fmt: skip
    second = run_process("make_bus", database_url, "--json")
    assert second.returncode == 3, second.stderr
    assert {name: report_of(second)[name] for name in ("delivered", "retrying", "held", "dead")} == {
        "delivered": 1, "retrying": 0, "held": 0, "dead": 1,
    }  # fmt: skip


@pytest.mark.sqlite
def test_exit_code_3_when_something_is_out_of_reach(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """An outage of what a handler needs is no failure of the message, but cron should know (G8)."""
    ask(session_factory, "be unreachable")
    done = run("bus", database_url)
    assert done.exit_code == 3
    assert "stopped: something is out of reach" in done.stdout


def test_exit_code_0_when_another_process_is_at_work(
    database_url: sa.URL, engine: sa.Engine, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """A subscription whose lease is taken is reported busy, and that is fine."""
    assert run("make_bus", database_url).exit_code == 0
    ask(session_factory, "succeed")
    with engine.begin() as connection:
        connection.execute(
            sa.update(tables.subscription).values(
                owner="somebody", lease_until=sa.text("'2999-01-01 00:00:00.000000'")
            )
        )
    done = run_process("make_bus", database_url)
    assert done.returncode == 0, done.stderr
    assert "busy: another process is at work" in done.stdout


@contextmanager
def at_work(app: str, url: sa.URL, *, before: str = "", after: str = "") -> Iterator[subprocess.Popen[str]]:
    """A shell in a process group of its own that runs the command; its handler is at work, and will be for a minute."""
    command = f"{before}{shlex.quote(sys.executable)} -m message_bus.cli.main process-outbox --app tests.cli.app:{app}"
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # jobs of a shell ignore it
        "os.execvp('bash', ['bash', '-c', sys.argv[1]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, command + after],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, DATABASE_URL_VARIABLE: url.render_as_string(hide_password=False)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("app", ["bus", "async_bus"])
def test_ctrl_c_ends_the_command_by_its_signal(
    app: str,
    database_url: sa.URL,
    engine: sa.Engine,
    tables: MessageBusTables,
    session_factory: sessionmaker[Session],
) -> None:
    """A shell sees 130, not the exit code of a run that failed; the lease is left to expire (S6)."""
    ask(session_factory, "never end")
    with at_work(app, database_url, before="exec ") as process:
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGINT, "")
    with engine.connect() as connection:
        assert connection.scalars(sa.select(tables.subscription.c.owner)).one() is not None
        assert not connection.scalars(sa.select(tables.delivery.c.state)).all()


def test_ctrl_c_ends_the_loop_around_the_command(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """The loop of the pages, in a terminal: the shell ends with the command instead of beginning anew."""
    ask(session_factory, "never end")
    with at_work("bus", database_url, before="while true; do ", after="; sleep 1; done") as process:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("app", ["bus", "async_bus"])
def test_exit_code_1_when_the_tables_are_missing(app: str, database_url: sa.URL, engine: sa.Engine) -> None:
    """One line on stderr, with the database, what is missing and the remedy."""
    engine.connect().close()  # on SQLite it makes the file
    done = run(app, database_url)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert (
        f"{database_url.database}: the database schema differs (run `message-bus db upgrade`" in done.stderr
    )
    assert "all tables are missing (message_bus_outbox and " in done.stderr


@pytest.mark.parametrize("app", ["bus", "async_bus"])
def test_a_mistyped_file_is_not_made(app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where it was looked for, and a second run says the same."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = run(app, "sqlite:///typo.db")
        assert done.exit_code == 1
        assert done.stderr == (
            f"Error: no database file 'typo.db' ({tmp_path}/typo.db; is the URL right? `message-bus db upgrade` makes one)\n"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.sqlite
def test_after_db_upgrade_it_runs(database_url: sa.URL) -> None:
    """The remedy that a missing table suggests is the right one."""
    url = database_url.render_as_string(hide_password=False)
    assert run("bus", database_url).exit_code == 1
    assert CliRunner().invoke(main, ["db", "upgrade", "--database-url", url]).exit_code == 0
    assert run("bus", database_url).exit_code == 0


@pytest.mark.parametrize(
    ("app", "url", "said"),
    [
        ("missing", "sqlite://", "module 'tests.cli.app' has no attribute 'missing'"),
        ("raises", "sqlite://", "calling it raised KeyError: 'SHOP_SETTINGS'"),
        ("bus", None, f"no database given (set {DATABASE_URL_VARIABLE}, or use --database-url)"),
        ("bus", "", f"no database given (set {DATABASE_URL_VARIABLE}, or use --database-url)"),
        ("bus", "nonsense", "cannot be read (write postgresql://user:password@host:5432/name"),
        (
            "bus",
            "sqlite:////no/such/directory/x.db",
            "no database file '/no/such/directory/x.db' (is the URL",
        ),
        ("bus", "mysql://user@127.0.0.1/shop", "'mysql' is not supported (use PostgreSQL or SQLite)"),
        ("make_async", "sqlite://", "make_async is async (write a plain function that returns the bus)"),
    ],
)
def test_exit_code_1_when_it_could_not_run(app: str, url: str | None, said: str) -> None:
    """A bad application or database is said in one line on stderr."""
    done = run(app, url)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("app", ["bus", "async_bus"])
@pytest.mark.parametrize(
    ("url", "module", "remedy"),
    [
        ("postgresql://127.0.0.1:1/shop", "psycopg", "pip install 'sqlalchemy-message-bus[postgres]'"),
        (
            "postgresql+psycopg2://127.0.0.1:1/shop",
            "psycopg2",
            "write postgresql+psycopg, and pip install 'sqlalchemy-message-bus[postgres]'",
        ),
    ],
)
def test_a_missing_driver_has_a_remedy(
    app: str, url: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what to install, or to write."""
    monkeypatch.setitem(sys.modules, module, None)
    done = run(app, url)
    assert done.exit_code == 1
    assert done.stderr.endswith(f"({remedy})\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("app", ["bus", "async_bus"])
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_password_is_never_printed(app: str, debug: list[str]) -> None:
    """Neither the error nor the traceback of a refused connection shows the password of the URL."""
    done = run(app, "postgresql://joe:s3cr%40t@127.0.0.1:1/shop?connect_timeout=2", *debug)
    assert done.exit_code == 1
    assert "127.0.0.1:1/shop" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
    assert "s3cr" not in done.output


@pytest.mark.sqlite
@pytest.mark.usefixtures("tables")
def test_debug_shows_where_the_application_failed(database_url: sa.URL) -> None:
    """--debug prints the application's own traceback before the line."""
    done = run("raises", database_url, "--debug")
    assert "in raises" in done.stderr
    assert done.stderr.endswith("calling it raised KeyError: 'SHOP_SETTINGS' (--debug shows where)\n")


@pytest.mark.sqlite
def test_limit_and_only(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """--only runs the named subscriptions, --limit stops each after so many messages."""
    ask(session_factory, "succeed", "succeed", "succeed")
    done = run("make_two", database_url, "--only", "second", "--limit", "2", "--json")
    assert {name: each["delivered"] for name, each in report_of(done)["subscriptions"].items()} == {
        "second": 2
    }
    done = run("make_two", database_url, "--json")
    assert {name: each["delivered"] for name, each in report_of(done)["subscriptions"].items()} == {
        "first": 3, "second": 1,
    }  # fmt: skip
    done = run("make_two", database_url, "--only", "third")
    assert done.exit_code == 1
    assert "only= names 'third', but the subscriptions are 'first', 'second'" in done.stderr


@pytest.mark.parametrize(
    "options", [["--limit", "0"], ["--lease", "0"], ["--lease", "soon"], ["--schema", "a b"]]
)
def test_a_wrong_command_line_is_exit_code_2(options: list[str]) -> None:
    """What cannot be parsed is answered in one line, which says what to do."""
    done = run("bus", "sqlite://", *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: Invalid value") or "--schema" in options
    assert done.stderr.endswith(")\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.postgresql
def test_tables_may_live_in_a_schema_under_a_prefix(postgresql_url: sa.URL, schema: str) -> None:
    """--schema and --prefix say which tables are meant."""
    tables = MessageBusTables(schema=schema, prefix="mb_")
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    tables.create_all(engine)
    done = run("bus", postgresql_url, "--schema", schema, "--prefix", "mb_")
    assert done.exit_code == 0, done.output


def test_the_report_for_people_is_a_small_table() -> None:
    """One line per subscription under a heading, then what else is worth knowing."""
    reports = {
        "shop": SubscriptionReport(name="shop", delivered=1_234, retrying=1, held=2),
        "mail": SubscriptionReport(name="mail", passed_over=7, dead=1, idle=True),
    }
    idle = "idle: paused, or no place to start from (give Subscription(start=...))"
    lines = lines_of(summed(reports, unsettled=3, promoted=2, pruned=1_000))
    assert [click.unstyle(line) for line in lines] == [
        "subscription  delivered  passed over  retrying  held  dead",
        "shop              1,234            0         1     2     0",
        "mail                  0            7         0     0     1  " + idle,
        "2 delayed messages became due",
        "3 messages wait for a transaction that is still open; the next run delivers them",
        "1,000 old messages pruned",
    ]


def test_it_is_one_of_the_commands() -> None:
    """`message-bus --help` names it."""
    assert (
        "process-outbox  Deliver what is in the outbox, once. For cron."
        in CliRunner().invoke(main, ["--help"]).output
    )
