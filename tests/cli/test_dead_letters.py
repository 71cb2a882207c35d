"""`message-bus dead-letters`: what it finds, asks, changes and prints, and what it never prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    ChosenLetter,
    DeadLetter,
    DeadLetterReport,
    FixedDelay,
    MessageBusTables,
    SettingsError,
)
from message_bus.cli.letter_lines import lines_of_letter, lines_of_letters, lines_of_report
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.admin.operators import discard, letters, states
from tests.delivery.world import Noted, Placed, World

ROOT = Path(__file__).parents[2]
ID = "00000000-0000-0000-0000-000000000001"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """Two dead letters: an event of key a, and one without a key."""
    made = World(session_factory, tables)
    made.settings(max_attempts=1)
    made.fail("a:1", ValueError("the first\nof two lines"))
    made.fail("2", LookupError("the second"))
    made.register(Placed(order="a", n=1), Noted(n=2))
    made.process()
    return made


def run(url: sa.URL | str | None, *arguments: str, answer: str | None = None) -> Result:
    """The command in this process, with the database in the environment."""
    given = url.render_as_string(hide_password=False) if isinstance(url, sa.URL) else url
    return CliRunner().invoke(
        main, ["dead-letters", *arguments], env={DATABASE_URL_VARIABLE: given}, input=answer
    )


def printed(done: Result) -> dict[str, Any]:
    """The one JSON object on stdout."""
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def failed(done: Result, code: int = 1) -> str:
    """The last line that a failed command says on stderr; with exit code 1 it is the only one."""
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    lines = done.stderr.strip().splitlines()
    assert code == 2 or len(lines) == 1, done.stderr
    return lines[-1]


# --- list and show ----------------------------------------------------------------------------------------------------


def test_a_list_for_people(world: World, database_url: sa.URL) -> None:
    """One line per letter: id, whose, type, key, attempts, when and the first line of why; no payload."""
    done = run(database_url, "list")
    assert done.exit_code == 0
    first, second = letters(world)
    heading, *rows, last = done.stdout.splitlines()
    assert heading.split() == ["id", "subscription", "message", "key", "attempts", "died", "at", "error"]
    died_at = first.failed_at.strftime("%Y-%m-%d %H:%M:%SZ")
    assert rows[0] == f"{first.id}  dispatch      Placed   a    1         {died_at}  ValueError: the first…"
    assert rows[1].startswith(f"{second.id}  dispatch      Noted         1 ")
    assert last == "2 dead letters"
    assert "order" not in done.stdout


def test_an_empty_list(database_url: sa.URL, tables: MessageBusTables) -> None:
    """That nothing is dead is said, and is no error."""
    done = run(database_url, "list")
    assert (done.exit_code, done.stdout) == (0, "0 dead letters\n")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [1, 2]),
        (["--message", "Noted"], [2]),
        (["--error", "SECOND"], [2]),
        (["--subscription", "other"], []),
        (["--since", "2000-01-01T00:00:00Z", "--until", "2100-01-01T00:00:00+02:00"], [1, 2]),
        (["--until", "2000-01-01T00:00:00Z"], []),
        (["--limit", "1"], [1]),
        (["--id", ID], []),
    ],
)
def test_a_list_for_programs(
    world: World, database_url: sa.URL, options: list[str], found: list[int]
) -> None:
    """--json prints one object with all that is known; payload and meta only if they are asked for."""
    listed = printed(run(database_url, "list", "--json", *options))
    assert [letter["position"] for letter in listed["letters"]] == found
    assert listed["count"] == (2 if options[:1] == ["--limit"] else len(found))
    for letter in listed["letters"]:
        assert "payload" not in letter
        assert datetime.fromisoformat(letter["failed_at"]).tzinfo is not None


def test_ids_may_be_repeated(world: World, database_url: sa.URL) -> None:
    """--id names one message, two of them two."""
    ids = [str(letter.id) for letter in letters(world)]
    options = [word for each in ids for word in ("--id", each)]
    assert printed(run(database_url, "list", "--json", *options[:2]))["count"] == 1
    assert printed(run(database_url, "list", "--json", *options))["count"] == 2


def test_payloads_are_shown_on_request(world: World, database_url: sa.URL) -> None:
    """--payload adds them, for people and for programs."""
    [first, _] = letters(world)
    assert '{"order": "a", "n": 1}' in run(database_url, "list", "--payload").stdout
    assert '{"order": "a", "n": 1}' in run(database_url, "show", str(first.id), "--payload").stdout
    shown = printed(run(database_url, "show", str(first.id), "--payload", "--json"))
    assert (shown["payload"], shown["meta"]) == ({"order": "a", "n": 1}, None)
    assert "payload" not in printed(run(database_url, "show", str(first.id), "--json"))


def test_a_letter_is_shown(world: World, database_url: sa.URL) -> None:
    """All about it, the traceback last."""
    [first, _] = letters(world)
    done = run(database_url, "show", str(first.id))
    assert done.exit_code == 0
    assert f"id             {first.id}\n" in done.stdout
    assert "message        Placed (EVENT)\n" in done.stdout
    assert "payload" not in done.stdout
    assert "traceback\n  Traceback (most recent call last):\n" in done.stdout


def test_what_is_not_dead_cannot_be_shown(world: World, database_url: sa.URL) -> None:
    """Exit code 1, and where to look."""
    error = failed(run(database_url, "show", ID))
    assert (
        error
        == f"Error: message {ID} is no dead letter (`message-bus dead-letters list` shows what there is)"
    )
    [first, _] = letters(world)
    assert "of subscription 'other'" in failed(
        run(database_url, "show", str(first.id), "--subscription", "other")
    )


# --- replay and discard -----------------------------------------------------------------------------------------------


def test_one_letter_is_replayed_without_a_question(world: World, database_url: sa.URL) -> None:
    """It is committed, and the next run delivers it."""
    done = run(database_url, "replay", "--message", "Noted")
    assert (done.exit_code, done.stdout) == (
        0,
        "replayed 1 dead letter of dispatch: tried by the next run\n",
    )
    assert (world.process().delivered, world.effects()) == (1, ["2"])


@pytest.mark.parametrize("action", ["replay", "discard"])
@pytest.mark.parametrize("answer", ["n\n", "", None])
def test_without_a_yes_nothing_is_changed(
    world: World, database_url: sa.URL, action: str, answer: str | None
) -> None:
    """More than one replay, and any discard, is shown and asked for; nobody there to answer means no."""
    done = run(database_url, action, "--all", answer=answer)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"about to {action} 2 dead letters:" in done.stderr
    assert f"{letters(world)[0].id}  dispatch" in done.stderr
    assert "nothing was changed" in done.stderr.splitlines()[-1]
    assert states(world) == {1: "dead", 2: "dead"}


@pytest.mark.parametrize("said", [{"answer": "y\n"}, {}])
def test_with_a_yes_all_is_done(world: World, database_url: sa.URL, said: dict[str, str]) -> None:
    """The answer and the option do the same."""
    yes = [] if said else ["--yes"]
    done = run(database_url, "discard", "--error", "second", *yes, **said)
    assert (done.exit_code, done.stdout) == (0, "discarded 1 dead letter of dispatch\n")
    done = run(database_url, "replay", "--all", *yes, **said)
    assert done.exit_code == 0
    assert (world.process().ok, world.effects()) == (True, ["a:1"])


def test_only_what_was_shown_is_discarded(
    world: World, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter that dies while somebody thinks about the question is not in what is answered; nothing is locked meanwhile."""
    import click

    def think(*_: Any, **__: Any) -> bool:
        world.fail("3", 1)
        world.register(Noted(n=3))
        assert world.process().dead == 3
        return True

    monkeypatch.setattr(click, "confirm", think)
    done = run(database_url, "discard", "--all")
    assert done.stdout == "discarded 2 dead letters of dispatch\n"
    assert states(world) == {3: "dead"}


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_a_dry_run(world: World, database_url: sa.URL, action: str) -> None:
    """It shows what would happen, asks nothing and changes nothing."""
    done = run(database_url, action, "--all", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"would {action} 2 dead letters:\n")
    report = printed(run(database_url, action, "--all", "--dry-run", "--json"))
    assert (report["action"], report["dry_run"], report["count"], report["left"]) == (action, True, 2, 0)
    assert states(world) == {1: "dead", 2: "dead"}


def test_a_report_for_programs(world: World, database_url: sa.URL) -> None:
    """--json says which letters, in one object on stdout."""
    [first, _] = letters(world)
    report = printed(run(database_url, "replay", "--all", "--limit", "1", "--json"))
    assert report == {
        "action": "replay",
        "count": 1,
        "dry_run": False,
        "left": 0,
        "letters": [
            {
                "id": str(first.id),
                "key": "a",
                "message": "Placed",
                "position": 1,
                "subscription": "dispatch",
                "failed_at": first.failed_at.isoformat(),
            }
        ],
    }


def test_nothing_fits(world: World, database_url: sa.URL) -> None:
    """That is no error: somebody may have been faster."""
    done = run(database_url, "discard", "--id", str(uuid4()))
    assert (done.exit_code, done.stdout) == (0, "no dead letter fits: nothing to do\n")


def test_a_rate(world: World, database_url: sa.URL) -> None:
    """--rate spreads the first attempts."""
    done = run(database_url, "replay", "--all", "--rate", "0.01", "--yes")
    assert done.stdout == "replayed 2 dead letters of dispatch: tried by the next runs, within 100 s\n"
    d = world.tables.delivery
    [(first,), (second,)] = world.rows(sa.select(d.c.next_attempt_at).order_by(d.c.position))
    assert (second - first).total_seconds() == pytest.approx(100, abs=5)


def test_who_did_it_is_logged(world: World, database_url: sa.URL) -> None:
    """A real process writes one line to stderr, with the name that was given, or the user's."""
    command = [sys.executable, "-m", "message_bus.cli.main", "dead-letters"]
    environment = {**os.environ, DATABASE_URL_VARIABLE: database_url.render_as_string(hide_password=False)}
    for action, options, name in (
        ("replay", ["--message", "Noted", "--by", "ann"], "ann"),
        ("discard", ["--message", "Placed", "--yes"], "joe"),
    ):
        done = subprocess.run(
            [*command, action, *options],
            cwd=ROOT, capture_output=True, text=True, timeout=60, env={**environment, "LOGNAME": "joe"},
        )  # fmt: skip
        assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
        assert done.stderr == (
            f"WARNING message_bus.admin: {action} of 1 dead letter of 'dispatch', by {name}: "
            "in force when its transaction commits\n"
        )


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "nothing is selected (give --id, --subscription"),
        (["discard", "--yes"], "nothing is selected"),
        (["discard", "--all", "--message", "x"], "--all contradicts a selection"),
        (["list", "--since", "2026-01-31"], "has no zone (add Z for UTC, or an offset like +01:00)"),
        (["list", "--until", "2026-01-31T18:30"], "has no zone"),
        (["list", "--since", "yesterday"], "is no time (write it like 2026-01-31T18:30:00+01:00)"),
        (["list", "--id", "x"], "'x' is not a valid UUID"),
        (["show", "x"], "'x' is not a valid UUID"),
        (["show"], "Missing argument"),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["replay", "--all", "--rate", "0"], "0.0 is not in the range"),
        (["list", "--prefix", "a b"], "is not a lower-case SQL identifier"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], said: str) -> None:
    """What cannot be meant is answered with the usage, before a database is opened."""
    assert said in failed(run("sqlite:////no/such/directory/x.db", *arguments), 2)


def test_an_empty_text_is_refused(world: World, database_url: sa.URL) -> None:
    """--error '' would select everything: it is an error, in one line."""
    error = failed(run(database_url, "discard", "--error", "", "--yes"))
    assert error == "Error: dead letters: error is empty (leave it out to select whatever it is)"


def test_the_tables_are_missing(database_url: sa.URL, engine: sa.Engine) -> None:
    """Exit code 1, one line, with the database, what is missing and the remedy."""
    engine.connect().close()  # on SQLite it makes the file
    error = failed(run(database_url, "list"))
    assert f"{database_url.database}: the database schema differs (run `message-bus db upgrade`" in error
    assert "all tables are missing (message_bus_outbox and " in error


def test_a_mistyped_file_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where it was looked for."""
    monkeypatch.chdir(tmp_path)
    error = failed(run("sqlite:///typo.db", "list"))
    assert f"no database file 'typo.db' ({tmp_path}/typo.db; is the URL right?" in error
    assert not list(tmp_path.iterdir())


def test_no_database(tables: MessageBusTables) -> None:
    """Without a URL it says which option and which variable are missing."""
    assert failed(run(None, "list")) == (
        f"Error: no database given (set {DATABASE_URL_VARIABLE}, or use --database-url)"
    )


def test_a_password_is_never_printed() -> None:
    """The error of a refused connection shows where, not the password."""
    done = run("postgresql://joe:s3cr%40t@127.0.0.1:1/shop?connect_timeout=2", "list")
    assert "127.0.0.1:1/shop" in failed(done)
    assert "s3cr" not in done.output


@pytest.mark.postgresql
def test_tables_may_live_in_a_schema_under_a_prefix(postgresql_url: sa.URL, schema: str) -> None:
    """--schema and --prefix say which tables are meant."""
    tables = MessageBusTables(schema=schema, prefix="mb_")
    tables.create_all(sa.create_engine(postgresql_url, poolclass=sa.NullPool))
    done = run(postgresql_url, "list", "--schema", schema, "--prefix", "mb_")
    assert (done.exit_code, done.stdout) == (0, "0 dead letters\n")


# --- lines ------------------------------------------------------------------------------------------------------------


def _letter(**values: Any) -> DeadLetter:
    given = {
        "subscription": "shop", "position": 1, "id": UUID(ID), "type": "EVENT", "message": "placed", "key": None,
        "attempts": 20, "error": "E: x", "traceback": "T", "failed_at": AT, "created_at": AT,
    }  # fmt: skip
    return DeadLetter(**{**given, **values})


def test_what_could_harm_a_terminal_is_replaced() -> None:
    """Errors, keys and payloads are other people's text: no control character of theirs reaches the terminal."""
    letter = _letter(
        key="\x1b[2J", error="E: \x1b]0;x\x07", traceback="T \x1b[A\nU \u202e", payload={"a": "\u202e\x9b"}
    )
    text = "\n".join(
        [
            *lines_of_letters([letter], count=1, payload=True),
            *lines_of_letter(letter, payload=True),
            *lines_of_report(
                DeadLetterReport(
                    action="discard",
                    dry_run=True,
                    letters=(
                        ChosenLetter(
                            subscription="s", position=1, id=None, message=None, key="\x1b[2J", failed_at=AT
                        ),
                    ),
                )
            ),
        ]
    )
    assert all(each.isprintable() or each == "\n" for each in text)


def test_long_lists_say_so() -> None:
    """The first so many of how many; of a report at most twenty lines."""
    assert lines_of_letters([_letter()], count=1_234)[-1] == (
        "the first 1 of 1,234 dead letters (--limit shows more)"
    )
    many = tuple(
        ChosenLetter(subscription="s", position=n, id=UUID(int=n), message="m", key=None, failed_at=AT)
        for n in range(25)
    )
    lines = lines_of_report(DeadLetterReport(action="replay", letters=many, dry_run=True))
    assert (len(lines), lines[-1]) == (23, "  ... and 5 more")


def test_a_letter_whose_message_is_gone() -> None:
    """It is listed and shown all the same; replay says how many it had to leave."""
    letter = _letter(id=None, type=None, message=None, created_at=None, traceback=None)
    assert lines_of_letters([letter], count=1)[1].startswith("(gone)  shop          (gone) ")
    assert "message        (gone)" in lines_of_letter(letter)
    report = DeadLetterReport(action="replay", letters=(), left=2)
    assert lines_of_report(report) == [
        "2 dead letters left alone: the message or the subscription is gone (discard)"
    ]


def test_it_is_one_of_the_commands() -> None:
    """`message-bus --help` names it; its own help names the four."""
    assert (
        "dead-letters    Find, replay and discard what was given up."
        in CliRunner().invoke(main, ["--help"]).output
    )
    text = CliRunner().invoke(main, ["dead-letters", "--help"]).output
    assert all(f"\n  {name} " in text for name in ("list", "show", "replay", "discard"))


# --- what is not given up ----------------------------------------------------------------------------------------------


def _fail_once(world: World) -> None:
    world.settings(max_attempts=9, backoff=FixedDelay(3_600))
    world.fail("b:1", KeyError("soon"))
    world.register(Placed(order="b", n=1), Placed(order="b", n=2))
    world.process()


def test_what_is_tried_again_is_listed(world: World, database_url: sa.URL) -> None:
    """With its state and its next attempt; the default shows dead letters only."""
    _fail_once(world)
    done = run(database_url, "list", "--state", "retrying")
    heading, row, last = done.stdout.splitlines()
    assert heading.split()[3:] == ["key", "state", "attempts", "since", "next", "attempt", "error"]
    [letter] = letters(world, state="retrying")
    assert letter.next_attempt_at is not None
    assert letter.next_attempt_at.strftime("%Y-%m-%d %H:%M:%SZ") in row
    assert ("retrying" in row, "KeyError" in row, last) == (True, True, "1 message retrying")
    assert run(database_url, "list").stdout.splitlines()[-1] == "2 dead letters"


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("dead", ["dead", "dead"]),
        ("held", ["held"]),
        ("trying", []),
        ("all", ["dead", "dead", "retrying", "held"]),
    ],
)
def test_states_as_json(world: World, database_url: sa.URL, state: str, found: list[str]) -> None:
    """Each with its state; held ones were never tried."""
    _fail_once(world)
    said = printed(run(database_url, "list", "--state", state, "--json"))
    assert (said["count"], [each["state"] for each in said["letters"]]) == (len(found), found)
    assert [each["attempts"] for each in said["letters"] if each["state"] == "held"] == [0] * found.count(
        "held"
    )


def test_nobody_decides_about_what_is_tried_again(world: World) -> None:
    """A retrying message that was listed is no dead letter: replay and discard leave it."""
    _fail_once(world)
    listed = letters(world, state="all")
    assert len(listed) == 4
    assert discard(world, letters=listed).count == 2
    assert sorted(states(world).values()) == ["held", "retrying"]


def test_a_state_that_there_is_not(world: World) -> None:
    """It names those that there are."""
    with pytest.raises(
        SettingsError, match=r"state 'lost' is unknown \(use dead, retrying, held, trying or all\)"
    ):
        letters(world, state="lost")
