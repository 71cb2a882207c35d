"""The theatre of docs/examples/flask_shop: served by its README's command, delivered by cron, killed, and nothing lost."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from flask import Flask
from sqlalchemy.orm import Session

from message_bus import DeadLetters, MessageBusTables
from message_bus.cli.main import main as message_bus_command
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.conftest import unavailable
from tests.docs.pages import ROOT, Walk, text_of
from tests.examples.serving import command_in, environment, own_tests, serving, words_of
from tests.waiting import wait_until

PAGE: Final = "docs/examples/flask_shop/README.md"
EXAMPLE: Final = ROOT / "docs/examples/flask_shop"
STEP: Final = "message-bus process-outbox --app theatre.handlers:bus"
LEASE: Final = "1"  # seconds; how long a killed step keeps the next ones from working
THREADS: Final = 3
TURNS: Final = 30  # requests that book, of each thread at most
PAUSE: Final = 0.2  # seconds between them
MAIL: Final = re.compile(r"^mail to (\S+): ticket (\d+), seat (\S+) \((.*)\)$", re.MULTILINE)

tables = MessageBusTables()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the example."""
    copy = tmp_path / "flask_shop"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    return copy


@pytest.fixture
def changes(database_url: sa.URL) -> dict[str, str]:
    """What its reader exports."""
    return {DATABASE_URL_VARIABLE: database_url.render_as_string(hide_password=False)}


@pytest.fixture
def app(changes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """The application in this process, on the test's own database."""
    monkeypatch.syspath_prepend(EXAMPLE)
    from theatre import create_app, db  # type: ignore[import-not-found]

    made: Flask = create_app(changes[DATABASE_URL_VARIABLE])
    with made.app_context():
        db.create_all()
        engine = db.engine
    yield made
    left = engine.pool.checkedout()
    engine.dispose()
    assert left == 0, "a request kept its connection"


# --- in this process --------------------------------------------------------------------------------------------------


def test_a_request_that_is_rolled_back_leaves_no_message(app: Flask, engine: sa.Engine) -> None:
    """Its first seat was free, and the message registered: both are gone (G1)."""
    with app.test_client() as client:
        client.post("/performances", json={"title": "Faust", "hall": "Main"})
        assert _book(client, ["A2"]).status_code == 201
        assert _book(client, ["A1", "A2"]).status_code == 409
        assert [each["seat"] for each in client.get("/performances/1").json["bookings"]] == ["A2"]
        assert _book(client, ["A1"]).status_code == 201
    assert len(_messages(engine)) == 2


def test_messages_carry_the_request_id(app: Flask, engine: sa.Engine) -> None:
    """The client's own, cut to a sane length, or a new one; it is in the answer, too, and does not reach the next request."""
    with app.test_client() as client:
        client.post("/performances", json={"title": "Faust", "hall": "Main"})
        ids = [
            _book(client, [seat], headers=headers).headers["X-Request-ID"]
            for seat, headers in (
                ("A1", {"X-Request-ID": "r-1"}),
                ("A2", {"X-Request-ID": "r" * 99}),
                ("A3", {}),
            )
        ]
    assert ids[:2] == ["r-1", "r" * 64]
    assert len(set(ids)) == 3
    assert [row.headers["correlation_id"] for row in _messages(engine)] == ids


def test_what_a_command_emits_is_committed_with_the_request(app: Flask, engine: sa.Engine) -> None:
    """A cancelled booking: its event is in the outbox; a booking that does not exist: 404 and no message."""
    with app.test_client() as client:
        client.post("/performances", json={"title": "Faust", "hall": "Main"})
        _book(client, ["A1"])
        assert client.delete("/bookings/1").status_code == 204
        assert client.delete("/bookings/1").status_code == 404
    assert [row.message for row in _messages(engine)] == ["theatre.seat_booked", "theatre.booking_cancelled"]


def test_the_step_as_a_command_of_flask(app: Flask, engine: sa.Engine) -> None:
    """It says what it did, and ends with 3 as long as something is not delivered."""
    with app.test_client() as client:
        client.post("/performances", json={"title": "Faust"})
        _book(client, ["A1", "A2"])
    for words in (["init-db"], ["process-outbox"]):  # making the tables again changes nothing
        done = app.test_cli_runner().invoke(args=words)
    assert (done.exit_code, done.output) == (3, "0 delivered, 1 retrying, 0 dead\n")
    with app.test_client() as client:
        client.patch("/performances/1", json={"hall": "Main"})
        _make_due(engine)
        done = app.test_cli_runner().invoke(args=["process-outbox"])
        assert (done.exit_code, MAIL.sub("", done.output).strip()) == (0, "4 delivered, 0 retrying, 0 dead")
        assert [each["number"] for each in client.get("/performances/1").json["tickets"]] == [1, 2]


def test_a_dead_letter_is_found_and_replayed(app: Flask, changes: dict[str, str], engine: sa.Engine) -> None:
    """The step ends with 3 until the cause is repaired and the letter replayed; others do not wait for it (G7)."""
    with app.test_client() as client:
        client.post("/performances", json={"title": "Faust", "hall": "Main"})
        _book(client, ["A1"], email="nowhere")
        _book(client, ["A2"])
        assert _run_step(changes) == 3
        assert [each["booking"] for each in client.get("/performances/1").json["tickets"]] == [2]
        with Session(engine) as session:
            (letter,) = DeadLetters(session).list(payload=True)
        assert (letter.payload["booking_id"], letter.error) == (1, "Reject: the e-mail address has no @")
        client.patch("/bookings/1", json={"email": "bob@example.com"})
        assert _run_step(changes) == 3
        with Session(engine) as session, session.begin():
            assert DeadLetters(session).replay(ids=[letter.id]).count == 1
        assert _run_step(changes) == 0
        assert [each["booking"] for each in client.get("/performances/1").json["tickets"]] == [2, 1]


def _run_step(changes: dict[str, str]) -> int:
    return CliRunner().invoke(message_bus_command, STEP.split()[1:], env=changes).exit_code


def _book(client: Any, seats: list[str], *, email: str = "ann@example.com", **options: Any) -> Any:
    wanted = {"seats": seats, "email": email}
    return client.post("/performances/1/bookings", json=wanted, **options)


def _messages(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(tables.outbox).order_by(tables.outbox.c.position)))


def _make_due(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.update(tables.delivery).values(next_attempt_at=tables.delivery.c.created_at))


# --- as its reader runs it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_own_tests_pass(directory: Path) -> None:
    """In a clone, with what the README installs and no plugin: they use their own settings. Warnings are errors."""
    assert "`pip install pytest`, then `pytest` in this directory" in text_of(PAGE)
    assert "3 passed" in own_tests(directory)


def test_a_mail_is_seen_at_once(directory: Path) -> None:
    """Although stdout is no terminal: else the mails of a killed step would be lost from its output."""
    program = "import os; from theatre.handlers import MailTicketHandler; MailTicketHandler().send('mail'); os._exit(9)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=directory, env=environment({"PYTHONUNBUFFERED": ""}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (9, "mail\n"), done.stderr


@pytest.mark.slow
@pytest.mark.sqlite
def test_the_readme_word_for_word(directory: Path, changes: dict[str, str], database_url: sa.URL) -> None:
    """Its commands in order, the server beside them: a handler that fails and recovers, a dead letter that is replayed."""
    if shutil.which("curl") is None:
        unavailable("curl is missing")
    serve = "flask --app theatre run"
    with serving(command_in(PAGE, serve), directory=directory, changes=changes) as server:
        walk = Walk(directory, ModuleType("page"))
        walk.replaced = {
            serve: ": running",
            "http://localhost:5000": server.url,
            "sqlite:///$PWD/theatre.db": changes[DATABASE_URL_VARIABLE],
        }
        assert all(old in text_of(PAGE) for old in walk.replaced)
        walk.follow(PAGE, commands=True)


class Step:
    """One run of the README's cron step."""

    def __init__(self, directory: Path, changes: dict[str, str], *options: str) -> None:
        self.process = subprocess.Popen(
            [*words_of(STEP), "--lease", LEASE, "--json", *options],
            cwd=directory, env=environment(changes), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.output = ""

    def kill_at_first_mail(self) -> bool:
        """Kill it while it handles the message whose handler prints a mail; False: it ended without printing any."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        self.process.kill()
        self.output = line + self.process.stdout.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.wait() == -signal.SIGKILL

    def report(self) -> dict[str, Any]:
        """Wait for its end; what it reported, with its exit code."""
        self.output, errors = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, 3), errors
        report: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return {**report, "exit code": self.process.returncode}


@dataclass
class Audience:
    """Somebody who books and cancels for a while, and remembers what the theatre has confirmed."""

    url: str
    number: int
    stopped: threading.Event
    booked: dict[int, tuple[str, str]] = field(default_factory=dict)  # by booking: who, and which seat
    cancelled: set[int] = field(default_factory=set)
    refused: int = 0
    failure: BaseException | None = None

    def run(self) -> None:
        """Book; every now and then a seat that is taken beside a free one; and cancel."""
        dice = random.Random(self.number)
        try:
            with httpx.Client(base_url=self.url, timeout=60) as client:
                for turn in range(1, TURNS + 1):
                    if self.stopped.wait(PAUSE):
                        return
                    self._book(client, dice, turn)
                    if turn % 5 == 0:
                        self._cancel(
                            client, dice.choice([each for each in self.booked if each not in self.cancelled])
                        )
        except BaseException as error:
            self.failure = error

    def _book(self, client: httpx.Client, dice: random.Random, turn: int) -> None:
        who, performance = f"{self.number}-{turn}@example.com", dice.randint(1, 3)
        seats = [f"{self.number}-{turn}-{row}" for row in "AB"]
        if turn % 4 == 0:
            seats.append("best")  # sorted last: the other two were booked, and messages registered, before
        answer = client.post(
            f"/performances/{performance}/bookings",
            json={"seats": seats, "email": who}, headers={"X-Request-ID": who},
        )  # fmt: skip
        if answer.status_code == 409:
            self.refused += 1
        else:
            assert answer.status_code == 201, answer.text
            self.booked |= dict(zip(answer.json()["bookings"], ((who, seat) for seat in seats), strict=True))

    def _cancel(self, client: httpx.Client, booking: int) -> None:
        assert client.delete(f"/bookings/{booking}").status_code == 204
        self.cancelled.add(booking)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("app")  # its tables
def test_booked_by_many_and_killed_once(directory: Path, changes: dict[str, str], engine: sa.Engine) -> None:
    """Requests in threads, steps that overlap, one killed at work: each seat its one ticket, in order (G1, G2, G3, G5)."""
    engine = engine.execution_options(sqlite_begin="DEFERRED")  # looking must not keep writers out
    stopped = threading.Event()
    with serving(command_in(PAGE, "flask --app theatre run"), directory=directory, changes=changes) as server:
        for hall in ("Main", "Studio", None):
            httpx.post(f"{server.url}/performances", json={"title": "Faust", "hall": hall}).raise_for_status()
        people = [Audience(server.url, number, stopped) for number in range(THREADS)]
        threads = [threading.Thread(target=each.run) for each in people]
        for thread in threads:
            thread.start()
        try:
            mails = _deliver_meanwhile(directory, changes, engine, server.url)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
        assert [each.failure for each in people] == [None] * THREADS
    mails += _deliver_the_rest(directory, changes)
    booked = {booking: whose for each in people for booking, whose in each.booked.items()}
    cancelled = {booking for each in people for booking in each.cancelled}
    assert booked
    assert sum(each.refused for each in people) > 0
    _check(engine, booked, cancelled, mails)


def _deliver_meanwhile(directory: Path, changes: dict[str, str], engine: sa.Engine, url: str) -> str:
    """Steps beside the requests; the third performance gets its hall after its first failure. What they printed."""
    wait_until(lambda: _count(engine, "booking") >= 8, timeout=60)
    first = Step(directory, changes, "--limit", "12")  # leaves mails, and tickets behind them
    first.report()
    output = first.output
    killed = False
    while not killed:
        doomed = Step(directory, changes)
        killed = doomed.kill_at_first_mail()
        output += doomed.output
    failing = 0
    while not failing:  # busy, as long as the dead one has its lease
        step = Step(directory, changes)
        report = step.report()
        output += step.output
        failing = report["retrying"]
    assert report["exit code"] == 3
    httpx.patch(f"{url}/performances/3", json={"hall": "Garden"}, timeout=60).raise_for_status()
    for step in [Step(directory, changes), Step(directory, changes)]:
        step.report()
        output += step.output
    return output


def _deliver_the_rest(directory: Path, changes: dict[str, str]) -> str:
    """Steps until one finds nothing to do; the first ones may find the dead one's lease. What they printed."""
    output: list[str] = []

    def is_done() -> bool:
        step = Step(directory, changes)
        report = step.report()
        output.append(step.output)
        return report["exit code"] == 0 and not any(
            report[name] for name in ("busy", "delivered", "unsettled")
        )

    wait_until(is_done, timeout=60)
    return "".join(output)


def _count(engine: sa.Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0)


def _check(engine: sa.Engine, booked: dict[int, tuple[str, str]], cancelled: set[int], mails: str) -> None:
    """Everything that the audience was told is true, and nothing else has happened."""
    events = [(row.message, row.payload["booking_id"]) for row in _messages(engine) if row.type == "EVENT"]
    assert Counter(events) == Counter(
        [("theatre.seat_booked", each) for each in booked]
        + [("theatre.booking_cancelled", each) for each in cancelled]
    )
    position = {payload: place for place, payload in enumerate(events)}
    with engine.connect() as connection:
        tickets = connection.execute(sa.text("SELECT * FROM ticket ORDER BY performance_id, number")).all()
        left = set(connection.scalars(sa.text("SELECT id FROM booking")))
        printed = dict(connection.execute(sa.text("SELECT id, printed FROM performance")).all())
    assert left == booked.keys() - cancelled
    per_booking = Counter(ticket.booking_id for ticket in tickets)
    assert {
        each for each in booked if per_booking[each] != 1
    } <= cancelled  # those had none to print any more
    assert max(per_booking.values()) == 1
    assert {ticket.booking_id for ticket in tickets if ticket.void} == per_booking.keys() & cancelled
    of_performance: dict[int, list[Any]] = defaultdict(list)
    for ticket in tickets:
        of_performance[ticket.performance_id].append(ticket)
    for performance, its_tickets in of_performance.items():
        assert [ticket.number for ticket in its_tickets] == list(range(1, printed[performance] + 1))
        places = [position["theatre.seat_booked", ticket.booking_id] for ticket in its_tickets]
        assert all(before < after for before, after in pairwise(places)), (
            f"performance {performance}: out of order"
        )
    sent = MAIL.findall(mails)
    assert all(request == who for who, _, _, request in sent), "a mail carries the id of another request"
    assert {booked[each] for each in left} <= {(who, seat) for who, _, seat, _ in sent}
    assert {ticket.mails for ticket in tickets if ticket.booking_id in left} == {
        1
    }  # however often one was printed
    assert {ticket.mails for ticket in tickets} <= {0, 1}
