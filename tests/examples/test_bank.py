"""The bank of docs/examples/bank: its README word for word; and clerks and relays that are killed, while no money is lost."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
import sqlalchemy as sa

from message_bus import MessageBusTables
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.docs.pages import ROOT, Walk
from tests.docs.quick_python import quick_python
from tests.examples.serving import environment, words_of
from tests.faults.scenario import seconds
from tests.waiting import wait_until

PAGE: Final = "docs/examples/bank/README.md"
EXAMPLE: Final = ROOT / "docs/examples/bank"
ACCOUNTS: Final = 6
OPENED: Final = 1_000  # cents in each
RELAY: Final = "message-bus relay --app bank.application:bus --lease 1"
CLERK: Final = """
import random, sys, time
from bank.application import request_transfer
accounts = [f"account-{number}" for number in range(int(sys.argv[1]))]
while True:
    source, target = random.sample(accounts, 2)
    request_transfer(source, target, random.randint(1, 400))
    time.sleep(random.uniform(0, 0.1))
"""

tables = MessageBusTables()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the example."""
    copy = tmp_path / "bank"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    return copy


@pytest.mark.slow
def test_the_readme_word_for_word(directory: Path) -> None:
    """Accounts are opened, one transfer is made, another refused."""
    Walk(directory, ModuleType("page")).follow(PAGE, commands=True)


class Bank:
    """The example on a database, with processes that work in it."""

    def __init__(self, directory: Path, engine: sa.Engine) -> None:
        self._directory = directory
        self._engine = engine
        self._changes = {DATABASE_URL_VARIABLE: engine.url.render_as_string(hide_password=False)}

    def run(self, command: str) -> str:
        """What a command of the README prints."""
        return subprocess.run(
            words_of(command, quick_python()), cwd=self._directory, env=environment(self._changes),
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    @contextmanager
    def working(self, *words: str) -> Iterator[Killable]:
        """A process, and another in its place whenever it is killed."""
        process = Killable(list(words), self._directory, self._changes)
        try:
            yield process
        finally:
            process.end()

    def facts(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """How often each transfer was asked for, sent or refused, and received."""
        asked, answered, received = Counter[str](), Counter[str](), Counter[str]()
        with self._engine.connect() as connection:
            e = tables.event.c
            for message, payload in connection.execute(sa.select(e.message, e.payload)):
                match message:
                    case "bank.transfer_requested":
                        asked[payload["transfer_id"]] += 1
                    case "bank.money_sent" | "bank.sending_refused":
                        answered[payload["transfer_id"]] += 1
                    case "bank.money_received":
                        received[payload["transfer_id"]] += 1
                    case _:
                        pass
        return asked, answered, received

    def sent(self) -> set[str]:
        """The transfers whose money has left its account."""
        with self._engine.connect() as connection:
            e = tables.event.c
            rows = connection.scalars(sa.select(e.payload).where(e.message == "bank.money_sent"))
            return {payload["transfer_id"] for payload in rows}

    def is_settled(self) -> bool:
        """Whether each transfer that was asked for is made or refused."""
        asked, answered, received = self.facts()
        return set(asked) == set(answered) and set(received) == self.sent() and bool(asked)

    def balances(self) -> dict[str, int]:
        """What the projection shows."""
        with self._engine.connect() as connection:
            return {
                row[0]: row[1]
                for row in connection.execute(sa.text("SELECT account_id, cents FROM bank_balance"))
            }

    def balances_by_events(self) -> dict[str, int]:
        """What the events say, added up here."""
        signs = {"bank.account_opened": 1, "bank.money_received": 1, "bank.money_sent": -1}
        found: Counter[str] = Counter()
        with self._engine.connect() as connection:
            e = tables.event.c
            for message, payload in connection.execute(
                sa.select(e.message, e.payload).where(e.message.in_(signs))
            ):
                found[payload["account_id"]] += signs[message] * payload["cents"]
        return dict(found)


class Killable:
    """A process that is killed and started again."""

    def __init__(self, words: list[str], directory: Path, changes: dict[str, str]) -> None:
        self._words, self._directory, self._changes = words, directory, changes
        self._log = directory / f"{id(self)}.log"
        self._start()

    @property
    def errors(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, cwd=self._directory, env=environment(self._changes),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL; then another one."""
        self.end()
        self._start()

    def end(self) -> None:
        """SIGKILL. Fails if it had ended by itself."""
        ended = self._process.poll()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert ended is None, self.errors


def keep_the_sum(bank: Bank, *, clerks: int, span: float, kills: int) -> None:
    """Clerks ask for transfers, two relays make them, all are killed at random; then everything adds up."""
    bank.run("message-bus db upgrade")
    bank.run("python -m bank init")
    for number in range(ACCOUNTS):
        bank.run(f"python -m bank open account-{number} {OPENED}")
    with ExitStack() as stack:
        relays = [stack.enter_context(bank.working(*words_of(RELAY))) for _ in range(2)]
        with ExitStack() as counter:
            at_work = [
                counter.enter_context(bank.working(sys.executable, "-c", CLERK, str(ACCOUNTS)))
                for _ in range(clerks)
            ]
            wait_until(lambda: len(bank.facts()[2]) > 0, timeout=60, message="nothing is transferred")
            for _ in range(kills):
                time.sleep(span / kills)  # how long they work between two kills
                random.choice([*at_work, *relays]).kill()
        try:
            wait_until(bank.is_settled, timeout=100, message="not every transfer is made or refused")
            wait_until(lambda: bank.balances() == bank.balances_by_events(), timeout=60)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *(relay.errors for relay in relays)])) from error
    asked, answered, received = bank.facts()
    assert {*asked.values(), *answered.values(), *received.values()} == {1}, "something was done twice"
    assert sum(bank.balances().values()) == ACCOUNTS * OPENED
    assert min(bank.balances().values()) >= 0
    print(
        f"  {len(asked)} transfers, {len(received)} made, {len(answered) - len(received)} refused, {kills} kills"
    )


@pytest.mark.slow
@pytest.mark.postgresql
def test_no_money_is_lost(directory: Path, engine: sa.Engine) -> None:
    """The short form (G2, G5, G12)."""
    keep_the_sum(Bank(directory, engine), clerks=2, span=2, kills=4)


@pytest.mark.faults
@pytest.mark.postgresql
@pytest.mark.timeout(900)
def test_no_money_is_lost_by_eight_clerks(directory: Path, engine: sa.Engine) -> None:
    """Eight processes that ask for transfers, two relays, all killed again and again (G2, G5, G12)."""
    span = seconds(30)
    keep_the_sum(Bank(directory, engine), clerks=8, span=span, kills=int(span))
