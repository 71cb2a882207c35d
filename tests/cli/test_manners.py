"""How every command behaves at a terminal: colour, progress, errors in one line, `--debug`, Ctrl-C, closed pipes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusTables
from message_bus.admin.retention import prune
from message_bus.cli.lines import table
from message_bus.cli.main import main
from message_bus.cli.manners import Coloured, colour_wanted, coloured
from message_bus.cli.options import DATABASE_URL_VARIABLE, unforeseen
from tests.cli.app import Asked, make_bus
from tests.trust.test_passwords import WITH_DATABASE, commands, words_for

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b"
STRANGE = "\N{REPLACEMENT CHARACTER}"
AT_ITS_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs of a shell ignore it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C means this process
os.execv(sys.executable, [sys.executable, "-m", "message_bus.cli.main", *sys.argv[1:]])
"""


def run(url: sa.URL | str, *words: str, **env: str) -> Result:
    """A command in this process, where nothing is a terminal."""
    return CliRunner().invoke(main, words, env=environment(url, **env), color=True)


def environment(url: sa.URL | str, **env: str) -> dict[str, str | None]:
    """The database, and nothing about colour but what is given."""
    given = url.render_as_string(hide_password=False) if isinstance(url, sa.URL) else url
    nothing: dict[str, str | None] = {"NO_COLOR": None, "FORCE_COLOR": None}
    return {**nothing, DATABASE_URL_VARIABLE: given, **env}


def ask(sessions: sessionmaker[Session], *wishes: str) -> None:
    """Commit one message per wish, each of a key of its own, and try them until those that fail are dead."""
    bus = make_bus()
    with sessions() as session:
        for number, wish in enumerate(wishes):
            bus.register_outbox_message(session, Asked(topic=str(number), wish=wish))
        session.commit()
        bus.process_outbox(session)
        bus.process_outbox(session)


def at_terminal(url: sa.URL, *words: str, keys: bytes = b"", **env: str) -> tuple[str, int]:
    """What a command shows at a terminal where somebody types these keys at its first question, and its exit code."""
    ours, theirs = pty.openpty()
    given = {
        name: value for name, value in environment(url, TERM="xterm", **env).items() if value is not None
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    typed = b""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ITS_TERMINAL, *words],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, **given}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, silences = b"", 0
    try:
        while True:
            readable, _, _ = select.select([ours], [], [], 1)
            if not readable:
                silences += 1
                assert silences < 60, f"it says nothing more: {shown!r}"
                if typed:  # Python may have been about to read: then a signal waits for the next key
                    os.write(ours, typed)
                continue
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # Linux says so when the last process has closed its end
                break
            if not piece:
                break
            shown += piece
            if keys and b"[y/N]" in shown:
                os.write(ours, keys)
                keys, typed = b"", keys
    finally:
        os.close(ours)
        code = process.wait(30)
    return shown.decode(), code


# --- every command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_debug(path: tuple[str, ...]) -> None:
    """One shared option, so that none can forget it."""
    assert "--debug" in CliRunner().invoke(main, [*path, "--help"]).output


@pytest.mark.parametrize("path", WITH_DATABASE, ids=" ".join)
def test_errors_are_one_line_with_the_remedy(path: tuple[str, ...], tmp_path: Path) -> None:
    """No database named, a URL that cannot be read, one of another kind, a wrong option: said in one line each."""
    words = words_for(path, WITH_DATABASE[path])
    none = f"sqlite:///{tmp_path}/none/none.db"
    for url, options, code in (
        ("", [], 1),
        ("postgresql//x", [], 1),
        ("mysql://ann@127.0.0.1/shop", [], 1),
        (none, [], 1),
        (none, ["--schema"], 2),
        (none, ["--schema", "a b"], 2),
    ):
        done = run(url, *words, *options)
        assert (done.exit_code, done.stdout) == (code, ""), (url, done.output)
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        assert done.stderr.rstrip().endswith(")"), done.stderr


@pytest.mark.parametrize(
    "path", [path for path in WITH_DATABASE if path[0] not in ("db", "doctor")], ids=" ".join
)
def test_missing_tables_are_an_error_in_one_line(
    path: tuple[str, ...], database_url: sa.URL, engine: sa.Engine
) -> None:
    """A database without our tables: what to run is said."""
    with engine.connect():
        pass  # SQLite: the file is there
    done = run(database_url, *words_for(path, WITH_DATABASE[path]))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.output
    assert "message-bus db upgrade" in done.stderr


def test_a_wrong_command_is_one_line(database_url: sa.URL) -> None:
    """An unknown command, and an unknown option of the group."""
    for words in (["nonsense"], ["--nonsense", "status"], ["db", "nonsense"]):
        done = run(database_url, *words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.rstrip().endswith(")")


@pytest.mark.sqlite
def test_what_nobody_has_foreseen(
    database_url: sa.URL, tables: MessageBusTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line without `--debug`, with the word that shows more; the traceback with it."""

    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line \x1b[2J")

    monkeypatch.setattr("message_bus.cli.status.lines_of_status", explode)
    done = run(database_url, "status")
    assert (done.exit_code, done.stderr) == (
        1, "Error: RuntimeError: first line second line \N{REPLACEMENT CHARACTER}[2J (--debug shows the traceback)\n",
    )  # fmt: skip
    debugged = run(database_url, "status", "--debug")
    assert "Traceback (most recent call last)" in debugged.stderr
    assert ESCAPE not in debugged.stderr
    assert debugged.stderr.splitlines()[-1] == done.stderr.rstrip()


def test_an_error_that_says_nothing() -> None:
    """Its type is said."""
    assert unforeseen(ValueError()).message == "ValueError (--debug shows the traceback)"
    assert unforeseen(click.ClickException("")).message == "it could not run (--debug shows why)"


# --- colour ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"NO_COLOR": ""}, None),
        ({"NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_whether_there_is_colour(environ: dict[str, str], wanted: bool | None) -> None:
    """NO_COLOR is stronger than FORCE_COLOR; None means: on a terminal."""
    assert colour_wanted(environ) is wanted


def test_a_coloured_cell_is_as_wide_as_it_looks() -> None:
    """It is padded and made harmless before it gets its colour."""
    lines = table(("name", "state"), [("a", Coloured("d\x1bd", "red")), ("b", "alive")])
    assert lines[1] == f"a     {coloured(f'd{STRANGE}d  ', 'red')}"
    assert [click.unstyle(line).rstrip() for line in lines] == [
        "name  state",
        f"a     d{STRANGE}d",
        "b     alive",
    ]


@pytest.mark.sqlite
def test_colour_is_for_terminals(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """Dead is red, and only that stands out; not in a file, not with NO_COLOR, not in JSON; with FORCE_COLOR everywhere."""
    ask(session_factory, "fail", "succeed")
    forced = run(database_url, "status", FORCE_COLOR="1").output
    assert coloured("1 Asked of asked", "red") in forced
    assert ESCAPE not in run(database_url, "status", NO_COLOR="1", FORCE_COLOR="1").output
    for command in ("status", "doctor"):
        assert ESCAPE not in run(database_url, command, "--json", FORCE_COLOR="1").output
    piped = subprocess.run(
        [sys.executable, "-m", "message_bus.cli.main", "status"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, DATABASE_URL_VARIABLE: str(database_url)},
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert ESCAPE not in piped.stdout
    shown, code = at_terminal(database_url, "status")
    assert code == 0
    assert coloured("1 Asked of asked", "red") in shown
    assert ESCAPE not in at_terminal(database_url, "status", NO_COLOR="1")[0]


@pytest.mark.sqlite
def test_the_report_of_a_run(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """What is retrying is yellow, what is dead red, zeros are plain."""
    with session_factory.begin() as session:
        MessageBus.register_outbox_message(session, Asked(topic="a", wish="fail"))
    options = ["process-outbox", "--app", "tests.cli.app:make_bus"]
    first = run(database_url, *options, FORCE_COLOR="1").stdout.splitlines()[1]
    second = run(database_url, *options, FORCE_COLOR="1").stdout.splitlines()[1]
    assert (coloured(f"{1:>8}", "yellow") in first, coloured(f"{1:>4}", "red") in first) == (True, False)
    assert (coloured(f"{1:>8}", "yellow") in second, coloured(f"{1:>4}", "red") in second) == (False, True)


# --- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["dead-letters", "replay", "--all"], "replaying"),
        (["dead-letters", "discard", "--all"], "discarding"),
        (["prune", "--older-than", "0s"], "removing"),
    ],
)
def test_long_work_shows_its_progress_at_a_terminal(
    database_url: sa.URL,
    tables: MessageBusTables,
    session_factory: sessionmaker[Session],
    words: list[str],
    label: str,
) -> None:
    """A bar that ends at 100 %; none in a pipe, and none beside JSON."""
    ask(session_factory, "fail", "succeed", "succeed")
    shown, code = at_terminal(database_url, *words, "--yes", "--json")
    assert code == 0, shown
    assert label not in shown
    ask(session_factory, "fail", "succeed", "succeed")
    shown, code = at_terminal(database_url, *words, "--yes")
    assert code == 0, shown
    assert label in shown
    assert "100%" in shown
    ask(session_factory, "fail", "succeed", "succeed")
    done = run(database_url, *words, "--yes")
    assert done.exit_code == 0
    assert label not in done.output


def test_prune_says_how_far_it_is(
    tables: MessageBusTables, session_factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each batch, what has been removed so far."""
    monkeypatch.setattr("message_bus.delivery.housekeeping.BATCH", 2)
    ask(session_factory, *["succeed"] * 5)
    told: list[int] = []
    with session_factory() as session:
        assert prune(session, timedelta(0), tables=tables, progress=told.append) == 5
    assert told == [2, 4, 5]


# --- interruptions --------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_ctrl_c_at_a_question(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """The process dies of the signal, which a shell calls 130; no traceback, and nothing is changed."""
    ask(session_factory, "fail", "fail")
    shown, code = at_terminal(database_url, "dead-letters", "discard", "--all", keys=b"\x03")
    assert code == -signal.SIGINT
    assert "Traceback" not in shown
    with session_factory() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(tables.delivery)) == 2


@pytest.mark.sqlite
def test_nobody_answers(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """The end of the input is no yes: one line, with what to do in a script."""
    ask(session_factory, "fail", "fail")
    done = run(database_url, "dead-letters", "discard", "--all")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "Error: nobody has answered: nothing was changed (add --yes)"


@pytest.mark.sqlite
@pytest.mark.parametrize("words", [["status"], ["dead-letters", "list"], ["--help"], ["doctor", "--json"]])
def test_a_closed_pipe(
    database_url: sa.URL, tables: MessageBusTables, session_factory: sessionmaker[Session], words: list[str]
) -> None:
    """`message-bus status | head -0`: it ends without a word."""
    ask(session_factory, *["fail"] * 3)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "message_bus.cli.main", *words],
            cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
            env={**os.environ, DATABASE_URL_VARIABLE: str(database_url)},
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1
