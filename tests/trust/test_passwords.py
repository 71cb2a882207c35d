"""The password of a database URL is never printed: by no command, in no error, in no traceback, in no log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from message_bus import MessageBusTables
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE, without_secrets
from message_bus.storage.urls import parse_url, place_of

PASSWORD = "hunter2/the:s3cret"
ENCODED = quote(PASSWORD, safe="")
NOBODY_LISTENS = f"postgresql://ann:{ENCODED}@127.0.0.1:1/shop"
PROJECTION = "tests.eventsourcing.projecting:Totals"


def commands(group: click.Group = main, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that lead to it."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def words_for(path: tuple[str, ...], command: click.Command) -> list[str]:
    """A command line that a command accepts, as far as it is read before a database is."""
    words = list(path)
    for parameter in command.params:
        if not parameter.required:
            continue
        if parameter.name == "app":
            words += ["--app", PROJECTION if path[0] == "projections" else "tests.cli.app:bus"]
        elif isinstance(parameter, click.Option):
            words += [parameter.opts[0], "now"]
        elif isinstance(parameter.type, click.types.UUIDParameterType):
            words += ["0190a4a4-0000-7000-8000-000000000000"]
        else:
            words += ["2"] if isinstance(parameter.type, click.IntRange) else ["totals"]
    if path[0] == "dead-letters" and path[1] in ("replay", "discard"):
        words.append("--all")
    return words


WITH_DATABASE = {
    path: command
    for path, command in commands()
    if any(parameter.name == "database_url" for parameter in command.params)
}


@pytest.mark.parametrize("options", [[], ["--debug"]], ids=["", "debug"])
@pytest.mark.parametrize("path", WITH_DATABASE, ids=" ".join)
def test_no_command_prints_it(
    path: tuple[str, ...], options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A server out of reach: one line that names host and database; with `--debug` the traceback; no password."""
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(
            main,
            [*words_for(path, WITH_DATABASE[path]), *options],
            env={DATABASE_URL_VARIABLE: NOBODY_LISTENS},
        )
    assert done.exit_code == 1, done.output
    for secret in (PASSWORD, ENCODED, "hunter2"):
        assert secret not in done.output + caplog.text
    assert "127.0.0.1:1/shop" in done.output
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert ("Traceback" in done.output) == bool(options)


@pytest.mark.parametrize(
    "words",
    [
        ["status", NOBODY_LISTENS],
        ["why", NOBODY_LISTENS],
        ["status", "--databaseurl", NOBODY_LISTENS],
        ["status", "--schema", NOBODY_LISTENS],
        [NOBODY_LISTENS],
        ["prune", "--older-than", NOBODY_LISTENS],
        ["dead-letters", "list", "--state", NOBODY_LISTENS],
        ["subscriptions", "start", "x", "--at", NOBODY_LISTENS],
        ["status", "--database-url", NOBODY_LISTENS.replace("postgresql", "mysql")],
        ["status", "--database-url", NOBODY_LISTENS.replace("postgresql:", "postgresql")],
        ["status", "--database-url", NOBODY_LISTENS.replace(":1/", ":one/")],
    ],
    ids=lambda words: " ".join(words[:-1]) or "nothing",
)
def test_a_url_in_the_wrong_place(words: list[str]) -> None:
    """A wrong command line quotes what is wrong with it, but no password."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code in (1, 2)
    assert ENCODED not in done.output
    assert "hunter2" not in done.output
    assert done.stderr.count("\n") == 1


@pytest.mark.sqlite
def test_the_wrong_password_of_a_file(tmp_path: Path) -> None:
    """SQLite has none, but somebody may have written one."""
    done = CliRunner().invoke(
        main, ["status", "--database-url", f"sqlite://ann:{ENCODED}@/{tmp_path}/shop.db"]
    )
    assert done.exit_code == 1
    assert "hunter2" not in done.output


@pytest.mark.parametrize("parameter", ["password", "sslpassword"])
def test_passwords_among_the_parameters_of_a_url(parameter: str) -> None:
    """libpq takes them there, too."""
    url = parse_url(f"postgresql://ann@127.0.0.1/shop?{parameter}={ENCODED}")
    assert "hunter2" not in without_secrets(f"{place_of(url)} {PASSWORD} {ENCODED}", url)


def test_sqlalchemy_does_not_print_it_either() -> None:
    """What we hand on (engines, URLs) is printed with three stars."""
    url = parse_url(NOBODY_LISTENS)
    assert "hunter2" not in f"{url} {url!r} {sa.create_engine(url)!r}"


@pytest.mark.parametrize("path", WITH_DATABASE, ids=" ".join)
def test_the_environment_variable_is_preferred(path: tuple[str, ...]) -> None:
    """Every command takes it, and its help says why."""
    help_text = " ".join(CliRunner().invoke(main, [*path, "--help"], terminal_width=500).output.split())
    assert f"[env var: {DATABASE_URL_VARIABLE}]" in help_text
    assert "other users of the machine can read a command line" in help_text


@pytest.mark.postgresql
def test_a_wrong_password(database_url: sa.URL, tables: MessageBusTables) -> None:
    """The server refuses the user: one line with what it says, and what to check."""
    wrong = database_url.set(username="nobody_of_that_name", password=PASSWORD)
    done = CliRunner().invoke(
        main, ["status"], env={DATABASE_URL_VARIABLE: wrong.render_as_string(hide_password=False)}
    )
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.output
    assert "nobody_of_that_name" in done.stderr
    assert f"(check {DATABASE_URL_VARIABLE}" in done.stderr
