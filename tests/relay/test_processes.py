"""`message-bus relay` in processes of its own: signals, exit codes, SIGKILL and takeover."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusTables
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.delivery.world import EFFECT
from tests.relay.app import Done
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
FAST = ("--poll", "0.1", "--lease", "1")


class Process:
    """A relay in a process of its own."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen

    def wait_until_entered(self) -> None:
        """Wait until a handler of "linger" is at it."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line == "entered\n", (line, self.popen.poll())

    def let_go(self) -> None:
        """Let that handler go on."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def wait_until_stopping(self) -> None:
        """Wait until it has heard the first signal: only from then on it begins nothing else."""
        assert self.popen.stderr is not None
        while "then the relay ends" not in (line := self.popen.stderr.readline()):
            assert line, self.popen.poll()

    def end(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr, when it has ended."""
        assert self.popen.stderr is not None
        try:
            code = self.popen.wait(timeout=20)  # communicate() would close stdin, and let handlers go
        except subprocess.TimeoutExpired:
            self.send(signal.SIGABRT)  # what its threads are doing
            raise AssertionError(f"it did not end: {self.popen.stderr.read()}") from None
        return code, self.popen.stderr.read()


@contextmanager
def running(app: str, url: sa.URL, *options: str) -> Iterator[Process]:
    """A relay on this database; killed at the end if it has not ended."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "message_bus.cli.main", "relay", "--app", f"tests.relay.app:{app}", *options],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, DATABASE_URL_VARIABLE: url.render_as_string(hide_password=False), "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    try:
        yield Process(popen)
    finally:
        popen.kill()
        with popen:
            pass


class Shop:
    """The database that the processes share."""

    def __init__(self, sessions: sessionmaker[Session], tables: MessageBusTables) -> None:
        self.sessions = sessions
        self.tables = tables
        with sessions.begin() as session:
            EFFECT.metadata.create_all(session.connection())

    def register(self, *events: Done) -> None:
        """Commit messages."""
        with self.sessions.begin() as session:
            for event in events:
                MessageBus.register_outbox_message(session, event)

    def effects(self) -> list[str]:
        """What handlers have committed, in order; looking does not keep writers out."""
        engine = self.sessions.kw["bind"].execution_options(sqlite_begin="DEFERRED")
        with engine.connect() as connection:
            return list(connection.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)))

    def others_in_transactions(self) -> int:
        """How many other connections to the database have a transaction open (PostgreSQL)."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        with self.sessions() as session:
            return int(session.scalar(sa.text(query)) or 0)

    def owner(self) -> object:
        """Who has the lease."""
        engine = self.sessions.kw["bind"].execution_options(sqlite_begin="DEFERRED")
        with engine.connect() as connection:
            return connection.scalar(sa.select(self.tables.subscription.c.owner))


@pytest.fixture
def shop(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Iterator[Shop]:
    """A fresh database with its tables; the server has noticed at the end that killed processes are gone."""
    made = Shop(session_factory, tables)
    yield made
    if made.sessions.kw["bind"].dialect.name == "postgresql":
        wait_until(lambda: not made.others_in_transactions())


@pytest.mark.parametrize("app", ["make_bus", "make_async_bus"])
def test_sigterm_finishes_what_is_in_hand(app: str, shop: Shop, database_url: sa.URL) -> None:
    """The first signal: the message in hand is committed, the next is not begun, the lease is given back (G11)."""
    shop.register(Done(key="linger", n=1), Done(key="linger", n=2))
    with running(app, database_url, *FAST) as relay:
        relay.wait_until_entered()
        relay.send(signal.SIGTERM)
        relay.wait_until_stopping()
        relay.let_go()
        code, errors = relay.end()
    assert code == 0, errors
    assert shop.effects() == ["linger:1"]
    assert shop.owner() is None


@pytest.mark.parametrize("app", ["make_relay", "make_async_relay"])
def test_a_second_signal_ends_it_at_once(app: str, shop: Shop, database_url: sa.URL) -> None:
    """The process ends with 128 + the signal's number; its transaction is rolled back, its lease left to expire (G11)."""
    shop.register(Done(key="linger", n=1))
    with running(app, database_url) as relay:
        relay.wait_until_entered()
        relay.send(signal.SIGINT)
        wait_until(lambda: relay.popen.poll() is not None or relay.send(signal.SIGINT))
        code, errors = relay.end()
    assert code == 128 + signal.SIGINT, errors
    assert shop.effects() == []
    assert shop.owner() is not None


def test_a_handler_that_hangs_past_the_drain_timeout(shop: Shop, database_url: sa.URL) -> None:
    """The relay gives it up and ends with exit code 1; another one delivers the message (G2, G11)."""
    shop.register(Done(key="linger", n=1))
    with running("make_bus", database_url, *FAST, "--drain-timeout", "0.2") as relay:
        relay.wait_until_entered()
        relay.send(signal.SIGTERM)
        code, errors = relay.end()
    assert code == 1, errors
    assert "given up: message_bus relay dispatch[0]" in errors
    with running("make_bus", database_url, *FAST) as relay:
        relay.wait_until_entered()
        relay.let_go()
        wait_until(lambda: shop.effects() == ["linger:1"])


def test_another_takes_over_from_one_that_is_killed(shop: Shop, database_url: sa.URL) -> None:
    """SIGKILL in a handler: once the lease is over, the standby does the same message and the rest, each once (G2, G5, G6)."""
    shop.register(Done(key="a", n=1), Done(key="linger", n=1), Done(key="a", n=2))
    with running("make_bus", database_url, *FAST) as first:
        first.wait_until_entered()
        with running("make_async_bus", database_url, *FAST) as second:
            first.send(signal.SIGKILL)
            second.wait_until_entered()
            second.let_go()
            wait_until(lambda: len(shop.effects()) == 3)
            shop.register(Done(key="a", n=3))
            wait_until(lambda: len(shop.effects()) == 4)
            second.send(signal.SIGTERM)
            code, errors = second.end()
    assert code == 0, errors
    assert shop.effects() == ["a:1", "linger:1", "a:2", "a:3"]


def invoke(app: str, *options: str, url: str | None = None) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["relay", "--app", app, *options], env={DATABASE_URL_VARIABLE: url})


@pytest.mark.parametrize(
    ("app", "options", "code", "said"),
    [
        ("tests.relay.app:make_bus", [], 1, "--app names a bus, but no database is given"),
        ("tests.relay.app:Done", [], 1, "calling it raised"),
        ("tests.relay.app:EFFECT", [], 1, "name a Relay or a bus, or a function that returns one"),
        ("tests.relay.app:make_bus", ["--lease", "0"], 2, "--lease"),
        ("tests.relay.app:make_bus", ["--retention", "soon"], 2, "neither a number of days nor 'forever'"),
        ("tests.cli.app:no_such", [], 1, "has no attribute 'no_such'"),
    ],
)
def test_what_it_cannot_run_is_said_in_words(app: str, options: list[str], code: int, said: str) -> None:
    """Exit code 1 if it could not run, 2 for a wrong command line, with the remedy."""
    done = invoke(app, *options)
    assert (done.exit_code, said in done.stderr) == (code, True), done.output


@pytest.mark.sqlite
def test_a_relay_has_its_own_settings(
    database_url: sa.URL, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that would be ignored are refused."""
    engine.connect().close()  # SQLite makes its file
    monkeypatch.setenv(DATABASE_URL_VARIABLE, str(database_url))
    done = invoke("tests.relay.app:make_relay", "--lease", "5", "--no-listen", url=str(database_url))
    assert done.exit_code == 2, done.output
    assert "lease, listen cannot be given here" in done.stderr


@pytest.mark.parametrize("app", ["make_bus", "make_async_bus"])
def test_missing_tables_are_exit_code_1(app: str, database_url: sa.URL, engine: sa.Engine) -> None:
    """One line with the remedy."""
    engine.connect().close()  # SQLite makes its file
    done = invoke(f"tests.relay.app:{app}", url=database_url.render_as_string(hide_password=False))
    assert done.exit_code == 1
    assert "run `message-bus db upgrade`" in done.stderr
    assert done.stderr.count("\n") == 1
