"""`message-bus projections`: what it prints and asks, and its exit codes."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import AsyncMessageBus, MessageBus, MessageBusTables, Relay
from message_bus.cli import projections as command
from message_bus.cli.projections import projections
from tests.cli.test_operations import failed, printed, run, said
from tests.eventsourcing import projecting
from tests.eventsourcing.projecting import TOTALS, EventTotals, Shop, fill
from tests.eventsourcing.test_projection import AsyncTotals

APP = ("--app", "tests.eventsourcing.projecting:make_bus")


@pytest.fixture
def shop(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Shop:
    """A shop whose projection has handled 20 events."""
    made = Shop(session_factory, tables)
    fill(made, 20)
    made.process()
    return made


def test_rebuild_swap_list_and_drop(shop: Shop, database_url: sa.URL) -> None:
    """The whole way, as a person goes it."""
    built = said(run(database_url, "projections", "rebuild", "totals", *APP)).splitlines()
    assert built == [
        "rebuilt totals: generation 1 holds the log up to position 20",
        "  compared at 20",
        "  totals: 7 rows, equal in customer, cents, orders, last_position",
        "  seen: 20 rows, equal in position, what",
        "`message-bus projections swap totals` lets it take the place of the live one",
    ]
    refused = run(database_url, "projections", "swap", "totals", *APP, answer="n\n")
    assert failed(refused) == "Error: nothing was changed"
    swapped = said(
        run(database_url, "projections", "swap", "totals", *APP, "--yes", "--by", "me")
    ).splitlines()
    assert swapped == [
        "swapped totals: generation 1 is live, at position 20",
        "  `message-bus projections drop totals` removes totals__0, seen__0",
    ]
    heading, *lines = said(run(database_url, "projections", "list")).splitlines()
    assert heading.split() == [
        *("projection", "generation", "version", "state", "position", "lag", "tables", "since"),
    ]
    assert [line.split()[:6] for line in lines] == [
        ["totals", "0", "1", "retired", "-", "-"],
        ["totals", "1", "1", "live", "20", "0"],
    ]
    asked = run(database_url, "projections", "drop", "totals", answer="n\n")
    assert failed(asked) == "Error: nothing was changed"
    assert "about to drop totals__0 (retired), seen__0 (retired)" in asked.stderr
    assert said(run(database_url, "projections", "drop", "totals", "--yes")) == "dropped totals__0, seen__0\n"
    assert said(run(database_url, "projections", "drop", "totals")) == "totals has nothing to drop\n"


def test_differences_are_shown_and_refused(shop: Shop, database_url: sa.URL) -> None:
    """Exit code 3 of the rebuild, 1 of the swap, unless it is forced."""
    with shop.sessions.begin() as session:
        session.execute(sa.delete(TOTALS))
    done = run(database_url, "projections", "rebuild", "totals", *APP, "--swap")
    assert done.exit_code == 3
    assert "7 rows, live 0; 0 are only in the live one, 7 only in the rebuilt one" in done.stdout
    assert done.stdout.splitlines()[-1] == "not swapped: look at it first (--force: swap all the same)"
    refused = run(database_url, "projections", "swap", "totals", *APP, "--yes")
    assert "rebuilt and live tables differ (--force: swap all the same)" in failed(refused)
    forced = said(run(database_url, "projections", "rebuild", "totals", *APP, "--swap", "--force"))
    assert forced.splitlines()[-1] == "swapped: it is live, at position 20"
    assert shop.totals() == shop.expected()


def test_failures_are_counted(shop: Shop, database_url: sa.URL) -> None:
    """What is not in the rebuilt tables is said, with its positions."""
    failing = ("--app", "tests.eventsourcing.projecting:make_failing")
    done = run(database_url, "projections", "rebuild", "totals", *failing)
    assert done.exit_code == 3
    assert "3 events failed, at 1, 8, 15: they are not in it" in done.stdout
    given_up = said(run(database_url, "projections", "drop", "totals", "--building", "--yes"))
    assert given_up == "dropped totals__1, seen__1\n"


def test_json_says_the_same(shop: Shop, database_url: sa.URL) -> None:
    """One object for each command."""
    built = printed(run(database_url, "projections", "rebuild", "totals", *APP, "--json"))
    assert (built["ok"], built["position"], built["swapped"]) == (True, 20, None)
    assert built["verification"]["tables"][0]["only_live"] == 0
    swapped = printed(run(database_url, "projections", "swap", "totals", *APP, "--yes", "--json"))
    assert (swapped["generation"], swapped["tables"]) == (1, {"totals": "totals__0", "seen": "seen__0"})
    listed = printed(run(database_url, "projections", "list", "--json"))["projections"]
    assert [(each["state"], each["subscription"]) for each in listed] == [
        ("retired", "totals"),
        ("live", "totals"),
    ]
    dropped = printed(run(database_url, "projections", "drop", "totals", "--yes", "--json"))
    assert dropped == {"dropped": ["totals__0", "seen__0"]}


@pytest.mark.sqlite
def test_no_projections(database_url: sa.URL, tables: MessageBusTables) -> None:
    """That there are none is no error."""
    listed = said(run(database_url, "projections", "list"))
    assert listed == "no projections yet: the first run notes them down\n"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("app", "name", "problem"),
    [
        ("make_bus", "total", "has no projection 'total' (there are: 'totals')"),
        ("make_list", "totals", "filled by 'totals', but this one by '(inline)'"),
        ("Trouble", "totals", "has no projection 'totals' (there are none)"),
        ("missing", "totals", "has no attribute 'missing'"),
    ],
)
def test_what_cannot_be_rebuilt_says_why(
    shop: Shop, database_url: sa.URL, app: str, name: str, problem: str
) -> None:
    """One line, exit code 1."""
    done = run(database_url, "projections", "rebuild", name, "--app", f"tests.eventsourcing.projecting:{app}")
    assert problem in failed(done)
    unknown = run(database_url, "projections", "drop", "total", "--yes")
    assert "no projection is called 'total' (there are: 'totals')" in failed(unknown)


def test_the_colour_is_that_of_the_application(
    shop: Shop, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Async methods are run in an event loop."""

    def make_async() -> AsyncMessageBus:
        bus = AsyncMessageBus()
        bus.set_outbox_handlers([AsyncTotals()])
        return bus

    monkeypatch.setattr(projecting, "make_async", make_async, raising=False)
    app = ("--app", "tests.eventsourcing.projecting:make_async")
    done = run(database_url, "projections", "rebuild", "totals", *app, "--force", "--swap")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "swapped: it is live, at position 20"


def test_a_relay_a_list_or_one_projection_names_it(
    engine: sa.Engine, tables: MessageBusTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the application has at hand."""
    for made in (EventTotals(), [EventTotals()], Relay(MessageBus(), engine, projections=[EventTotals()])):
        monkeypatch.setattr(projecting, "found_here", made, raising=False)
        found, _, is_async = command._found("tests.eventsourcing.projecting:found_here", "totals")
        assert isinstance(found, EventTotals)
        assert not is_async


@pytest.mark.sqlite
def test_a_terminal_is_shown_a_bar(
    shop: Shop, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, and only there; nothing when it is no terminal."""
    with command._progress() as nothing:
        assert nothing is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with command._progress() as progress:
        assert progress is not None
        for position in (50, 100):
            progress(position, 100)
    shown = capsys.readouterr()
    assert "rebuilding" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    assert projections.name == "projections"
