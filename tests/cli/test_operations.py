"""`message-bus subscriptions`, `schedule`, `status`, `doctor`, `why` and `prune`: what they print, ask, and never print."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables
from message_bus.admin import Finding
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.admin.operators import LONG_AGO
from tests.admin.test_subscriptions import change, columns, taken
from tests.delivery.world import Noted, Placed, World

HOUR = timedelta(hours=1)


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """Three messages: one of key a is dead, two are delivered; a fourth is delayed. Ids 1 to 4."""
    made = World(session_factory, tables)
    made.settings(max_attempts=1)
    made.fail("a:1", ValueError("the first\x1b[2J"))
    for number, event in enumerate([Placed(order="a", n=1), Noted(n=2), Noted(n=3)], 1):
        made.register(event, id=UUID(int=number))
    made.register(Noted(n=4), id=UUID(int=4), delay=HOUR)
    made.process()
    return made


def run(url: sa.URL | str | None, *arguments: str, answer: str | None = None) -> Result:
    """The command in this process, with the database in the environment."""
    given = url.render_as_string(hide_password=False) if isinstance(url, sa.URL) else url
    return CliRunner().invoke(main, arguments, env={DATABASE_URL_VARIABLE: given}, input=answer)


def printed(done: Result, code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout."""
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def said(done: Result) -> str:
    """What was printed on stdout by a command that succeeded."""
    assert done.exit_code == 0, done.output
    return done.stdout


def failed(done: Result, code: int = 1) -> str:
    """The last line that a failed command says on stderr."""
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    return done.stderr.strip().splitlines()[-1]


# --- subscriptions ----------------------------------------------------------------------------------------------------


def test_a_list_of_subscriptions(world: World, database_url: sa.URL) -> None:
    """One line per partition; --json says the same to programs."""
    heading, line = said(run(database_url, "subscriptions", "list")).splitlines()
    assert heading.split() == [
        *("subscription", "log", "state", "position", "lag", "retrying", "held", "dead", "worker", "seen"),
    ]
    assert line.split()[:9] == ["dispatch", "outbox", "active", "3", "0", "0", "0", "1", "none"]
    [listed] = printed(run(database_url, "subscriptions", "list", "dispatch", "--json"))["subscriptions"]
    assert (listed["subscription"], listed["log"]) == ("dispatch", "outbox")
    assert (listed["position"], listed["lease_until"]) == (3, None)
    taken(world)
    change(world, "repartition", "dispatch", 2, force=True)
    lines = said(run(database_url, "subscriptions", "list")).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["dispatch", "1/2"], ["dispatch", "2/2"]]
    assert all("until " in line for line in lines[1:])
    assert failed(run(database_url, "subscriptions", "list", "other")).startswith(
        "Error: no subscription is called"
    )


@pytest.mark.sqlite
def test_no_subscriptions(database_url: sa.URL, tables: MessageBusTables) -> None:
    """That there are none is no error."""
    assert (
        said(run(database_url, "subscriptions", "list")) == "no subscriptions yet: the first run makes them\n"
    )


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["reset", "dispatch", "--to", "1"], "moved dispatch: from position 3 to 1\n"),
        (["reset", "dispatch", "--to", "beginning"], "moved dispatch: from position 3 to 0\n"),
        (["drop", "dispatch"], "dropped dispatch: at position 3\n"),
        (["repartition", "dispatch", "4"], "divided dispatch: 1 -> 4 partitions, at position 3\n"),
    ],
)
def test_what_takes_something_away_asks(
    world: World, database_url: sa.URL, arguments: list[str], shown: str
) -> None:
    """A dry run shows it; nobody there, or a no, changes nothing; a yes, or --yes, does it."""
    before = columns(world, "name", "partition", "position", "epoch")
    dry = said(run(database_url, "subscriptions", *arguments, "--dry-run"))
    assert dry.startswith(f"would {arguments[0]} dispatch")
    assert arguments[0] == "repartition" or "what is recorded about its messages goes: 1 dead" in dry
    for answer in (None, "n\n"):
        done = run(database_url, "subscriptions", *arguments, answer=answer)
        assert "nothing was changed" in failed(done)
        assert f"about to {arguments[0]} dispatch" in done.stderr
    assert columns(world, "name", "partition", "position", "epoch") == before
    assert said(run(database_url, "subscriptions", *arguments, "--yes")).startswith(shown)
    assert columns(world, "name", "partition", "position", "epoch") != before


@pytest.mark.sqlite
def test_the_others_do_not_ask(world: World, database_url: sa.URL) -> None:
    """What can be taken back is done at once; a second time it is so already."""
    assert said(run(database_url, "subscriptions", "pause", "dispatch")) == "paused dispatch: at position 3\n"
    assert "so already" in said(run(database_url, "subscriptions", "pause", "dispatch"))
    assert printed(run(database_url, "subscriptions", "resume", "dispatch", "--json"))["changed"]
    renamed = said(run(database_url, "subscriptions", "rename", "dispatch", "mail"))
    assert renamed.startswith("renamed dispatch: it is mail now\n")
    world.write(sa.update(world.tables.subscription).values(state="idle"))
    at = ("--at", "2000-01-01T00:00:00Z")
    assert (
        said(run(database_url, "subscriptions", "start", "mail", *at)) == "started mail: after position 0\n"
    )


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["reset", "dispatch", "--to", "yesterday"], 2, "'yesterday' is no place in a log"),
        (["reset", "dispatch", "--to", "2026-01-01T00:00:00"], 2, "has no zone"),
        (["reset", "dispatch"], 2, "Missing option '--to'"),
        (["reset", "dispatch", "--to", "99", "--yes"], 1, "position 99 is beyond the settled one, 3"),
        (["repartition", "dispatch", "0"], 2, "0 is not in the range"),
        (["start", "dispatch", "--at", "now"], 1, "is active, not idle (reset moves it)"),
        (["drop", "other", "--yes"], 1, "no subscription is called 'other' (there are: 'dispatch')"),
    ],
)
def test_what_cannot_be_done(
    world: World, database_url: sa.URL, arguments: list[str], code: int, error: str
) -> None:
    """One line, with the remedy; 2 for a wrong command line, 1 for what the database does not allow."""
    assert error in failed(run(database_url, "subscriptions", *arguments), code)


@pytest.mark.sqlite
def test_a_worker_has_the_lease(world: World, database_url: sa.URL) -> None:
    """It is not moved under a worker's hands, unless it is forced."""
    taken(world)
    arguments = ("subscriptions", "reset", "dispatch", "--to", "0", "--yes")
    assert "a worker has the lease of subscription 'dispatch'" in failed(run(database_url, *arguments))
    assert said(run(database_url, *arguments, "--force")).startswith("moved dispatch")


# --- schedule ---------------------------------------------------------------------------------------------------------


def test_the_schedule(world: World, database_url: sa.URL) -> None:
    """Listed for people and for programs; cancelled after a question, once."""
    heading, line, count = said(run(database_url, "schedule", "list")).splitlines()
    assert heading.split()[:3] == ["id", "message", "key"]
    assert (line.split()[:2], count) == ([str(UUID(int=4)), "Noted"], "1 delayed message")
    [listed] = printed(run(database_url, "schedule", "list", "--json"))["messages"]
    assert "payload" not in listed
    assert '{"n": 4}' in said(run(database_url, "schedule", "list", "--payload"))
    cancel = ("schedule", "cancel", str(UUID(int=4)))
    assert "nothing was changed" in failed(run(database_url, *cancel))
    assert said(run(database_url, *cancel, "--dry-run")) == f"would cancel Noted {UUID(int=4)}\n"
    assert said(run(database_url, *cancel, "--yes")) == f"cancelled Noted {UUID(int=4)}\n"
    done = run(database_url, *cancel, "--yes")
    assert (done.exit_code, "is not delayed, or not any more" in done.stdout) == (1, True)
    assert printed(run(database_url, *cancel, "--yes", "--json"), 1)["missing"] == [str(UUID(int=4))]
    assert said(run(database_url, "schedule", "list")) == "0 delayed messages\n"


# --- status, doctor, why ----------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_status_for_people(world: World, database_url: sa.URL) -> None:
    """The subscriptions as a table, then a line each for outbox, schedule, watermark and dead letters."""
    lines = said(run(database_url, "status")).splitlines()
    assert lines[1].split()[0] == "dispatch"
    assert lines[3].startswith("outbox        3 rows, the oldest of ")
    assert lines[4].startswith("schedule      1 delayed, the next due at ")
    assert lines[5:] == ["watermark     settled up to 3", "dead letters  1 Placed of dispatch"]


def test_status_for_programs(world: World, database_url: sa.URL) -> None:
    """One JSON object; spans are seconds, times are ISO 8601."""
    told = printed(run(database_url, "status", "--json"))
    assert (told["outbox_rows"], told["delayed"], told["watermark"]["settled"]) == (3, 1, 3)
    assert told["dead"] == [{"subscription": "dispatch", "message": "Placed", "count": 1}]
    assert 0 <= told["oldest_age"] < 600
    assert datetime.fromisoformat(told["at"]).tzinfo is not None


def test_doctor_finds_nothing(world: World, database_url: sa.URL) -> None:
    """Exit code 0."""
    assert said(run(database_url, "doctor")) == "nothing found: all is well\n"
    assert printed(run(database_url, "doctor", "--json")) == {"ok": True, "findings": []}


@pytest.mark.sqlite
def test_doctor_finds_something(world: World, database_url: sa.URL) -> None:
    """Exit code 3; each finding with its remedy, errors first."""
    world.write(sa.update(world.tables.subscription).values(state="paused", position=9))
    done = run(database_url, "doctor")
    assert done.exit_code == 3
    first, remedy, second, _ = done.stdout.splitlines()
    assert first.startswith("error position-behind: the outbox is at position 3")
    assert remedy.startswith("  remedy: stop the writers and run: ")
    assert second.startswith("warning subscription-paused: ")
    told = printed(run(database_url, "doctor", "--json"), 3)
    assert [Finding(**each).code for each in told["findings"]] == ["position-behind", "subscription-paused"]


@pytest.mark.parametrize("command", ["doctor", "status"])
def test_a_database_that_is_not_there(command: str) -> None:
    """Exit code 1, one line, and no password."""
    done = run("postgresql://ann:s3cret@127.0.0.1:1/shop", command)
    assert failed(done).startswith("Error: database 127.0.0.1:1/shop: ")
    assert "s3cret" not in done.output


def test_an_empty_database(database_url: sa.URL, engine: sa.Engine) -> None:
    """doctor says what is missing; the others cannot run."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE other (id integer)"))
    done = run(database_url, "doctor")
    assert (done.exit_code, "error schema: " in done.stdout) == (3, True), done.output
    failed(run(database_url, "status"))


def test_why(world: World, database_url: sa.URL) -> None:
    """The life of a message, harmless for a terminal; for programs the same with all its fields."""
    title, *lines = said(run(database_url, "why", str(UUID(int=1)))).splitlines()
    assert title == f"Placed {UUID(int=1)}, event, key a: dead"
    assert lines[0].endswith("  registered")
    assert lines[1].endswith("in the outbox at position 1, settled")
    assert lines[2].endswith(
        "dispatch: dead after 1 attempt: ValueError: the first\N{REPLACEMENT CHARACTER}[2J"
    )
    told = printed(run(database_url, "why", str(UUID(int=4)), "--json"))
    assert (told["state"], told["position"], len(told["moments"])) == ("delayed", None, 2)
    assert "there is no message" in failed(run(database_url, "why", str(UUID(int=9))))
    assert "is not a valid UUID" in failed(run(database_url, "why", "9"), 2)


def test_why_with_what_came_of_it(world: World, database_url: sa.URL) -> None:
    """The tree as lines, with the state of each; for programs as nested objects, however deep it is; no payload in either."""
    parents = iter([Placed(order="secret", n=n) for n in range(20, 80)])

    def emit(context: Any) -> None:
        for _ in range(2):
            world.bus.register_outbox_message(context.outbox, next(parents), meta={"note": "secret meta"})

    for n in (7, *range(20, 80, 2)):
        world.before["7" if n == 7 else f"secret:{n}"] = emit
    world.fail("secret:21", ValueError("no stock"))
    world.register(Noted(n=7), id=UUID(int=7))
    world.process()
    done = run(database_url, "why", str(UUID(int=7)))
    lines = said(done).splitlines()
    start = lines.index("emitted:")
    pattern = [line.partition("Placed ")[0] for line in lines[start + 1 : start + 5]]
    assert pattern == ["  ├─ ", "  │  ├─ ", "  │  │  ├─ ", "  │  │  │  ├─ "]
    assert lines[-1].startswith("  └─ Placed ")
    assert lines[-1].endswith(", event, key secret: dead")
    told = printed(run(database_url, "why", str(UUID(int=7)), "--json"))
    depth, level = 0, told["emitted"]
    while level:
        depth, level = depth + 1, level[0]["emitted"]
    assert (depth, told["emitted_more"], told["caused_by"], told["history"]) == (30, False, None, [])
    dead = told["emitted"][1]
    told = printed(run(database_url, "why", dead["id"], "--json"))
    assert told["caused_by"] == str(UUID(int=7))
    assert [(each["what"], each["error"]) for each in told["history"]] == [("dead", "ValueError: no stock")]
    assert "secret meta" not in done.stdout + json.dumps(told)


# --- prune ------------------------------------------------------------------------------------------------------------


def test_pruned(world: World, database_url: sa.URL) -> None:
    """A dry run counts, a question is asked, and what is dead stays."""
    world.write(sa.update(world.tables.outbox).values(created_at=LONG_AGO))
    assert said(run(database_url, "prune", "--dry-run")) == "would remove 2 old messages\n"
    done = run(database_url, "prune", "--older-than", "2w")
    assert ("about to remove 2 old messages" in done.stderr, done.exit_code) == (True, 1)
    assert printed(run(database_url, "prune", "--older-than", "12h", "--yes", "--json")) == {
        "count": 2,
        "dry_run": False,
    }
    assert said(run(database_url, "prune", "--older-than", "0s")) == "removed 0 old messages\n"
    assert world.rows(sa.select(world.tables.outbox.c.position)) == [(1,)]
    assert "'soon' is no span of time" in failed(run(database_url, "prune", "--older-than", "soon"), 2)


@pytest.mark.sqlite
def test_who_did_it_is_logged(world: World, database_url: sa.URL, caplog: pytest.LogCaptureFixture) -> None:
    """--by, or the user's name."""
    for arguments in (
        ("subscriptions", "pause", "dispatch"),
        ("schedule", "cancel", str(UUID(int=4)), "--yes"),
        ("subscriptions", "drop", "dispatch", "--yes"),
    ):
        said(run(database_url, *arguments, "--by", "ann"))
    ours = [record for record in caplog.records if record.name == "message_bus.admin"]
    assert [vars(record)["by"] for record in ours] == ["ann"] * 3
