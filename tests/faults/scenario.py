"""One run of the fault suite: a database, writers, relays that are killed, and at its end the check.

    with scenario("what is done to it") as run:
        relay = run.relay("make_bus")
        with run.writing(rate=50), run.interrupted():
            relay.kill()
        run.relay("make_async_bus")
    # here the relays deliver what is left and are stopped, and the history is checked and printed in one line

Whatever fails, every process and thread ends with the block. Its seed is printed first; MESSAGE_BUS_FAULTS_SEED repeats
the choices of a run, MESSAGE_BUS_FAULTS_SECONDS says how long the long ones take.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from message_bus import configure_sqlite
from message_bus.cli.options import DATABASE_URL_VARIABLE
from message_bus.storage.tables import DEAD
from message_bus.storage.types import utc_after
from tests.faults import app
from tests.faults.app import ONCE, Moved, Settings
from tests.faults.history import Effect, History, Interruption, Message, Reader, Result, check
from tests.faults.nursery import Child, Nursery
from tests.faults.writing import ENOUGH_ON_SQLITE, SPAN, Writers, read_acknowledged, register, writing
from tests.waiting import wait_until

SEED_VARIABLE: Final = "MESSAGE_BUS_FAULTS_SEED"
SECONDS_VARIABLE: Final = "MESSAGE_BUS_FAULTS_SECONDS"
APPS: Final = ("make_bus", "make_async_bus")
LEASE: Final = 3.0
POLL: Final = 0.1
Clock = tuple[float, float]
"""How wrong a process's clock is: offset and swing in seconds, see `clocks`."""
ENOUGH: Final = 120.0  # seconds for what is left at the end


@cache
def seed_of_this_run() -> int:
    """The seed that was given, or a new one: the same in all workers of a parallel run."""
    together = os.environ.get("PYTEST_XDIST_TESTRUNUID") or random.SystemRandom().random()
    return int(os.environ.get(SEED_VARIABLE) or random.Random(together).randrange(1_000_000))


def seconds(default: float) -> float:
    """How long a long run is to take."""
    return float(os.environ.get(SECONDS_VARIABLE) or default)


class Run:
    """A run of one scenario. `url` is where the processes connect, `engine` where the test does."""

    def __init__(
        self, name: str, nursery: Nursery, url: sa.URL, directory: Path, *, settings: Settings, engine_url: sa.URL
    ) -> None:  # fmt: skip
        self.name = name
        self.seed = seed_of_this_run()
        self.dice = random.Random(self.seed)
        self.settings = settings
        self.url = url
        engine = sa.create_engine(engine_url)
        self.engine = (
            configure_sqlite(engine, busy_timeout=ENOUGH_ON_SQLITE)
            if engine.dialect.name == "sqlite"
            else engine
        )
        self.interruptions: list[Interruption] = []
        self.relays: list[Child] = []
        self.excused: dict[str, Collection[Message]] = {}
        self.out_of_turn: dict[str, Collection[Message]] = {}
        self.codes_allowed = {0}
        self.result: Result | None = None
        self._nursery = nursery
        self._directory = directory
        self._children: list[Child] = []
        self._acknowledged: list[Moved] = []
        self._files: list[Path] = []
        self._first = 0
        self._started = time.time()
        sys.stdout.write(f"\n{name}: {SEED_VARIABLE}={self.seed} ({self.engine.dialect.name})\n")
        with self.engine.begin() as connection:
            app.metadata.create_all(connection)

    # --- processes ------------------------------------------------------------------------------------------------

    def relay(
        self,
        make: str = "make_bus",
        *options: str,
        settings: Settings | None = None,
        url: sa.URL | None = None,
        lease: float = LEASE,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `message-bus relay`. What is still there at the end finishes the work and is stopped by SIGTERM.

        `make`: a factory of `app`, or "module:factory".
        """
        app = make if ":" in make else f"tests.faults.app:{make}"
        arguments = ["relay", "--app", app, "--lease", str(lease), "--poll", str(POLL), *options]
        child = self.child(
            "message_bus.cli.main:main",
            arguments,
            settings=settings,
            url=url,
            clock=clock,
            environment=environment,
        )
        self.relays.append(child)
        return child

    def child(
        self,
        call: str,
        arguments: list[str],
        *,
        settings: Settings | None = None,
        url: sa.URL | None = None,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start any function of a module in a process of its own; it is killed at the end, if it is still there."""
        if clock is not None:
            call, arguments = "tests.faults.clocks:main", [*map(str, clock), call, *arguments]
        given = {
            DATABASE_URL_VARIABLE: text_of(self.url if url is None else url),
            **(self.settings if settings is None else settings).environment,
            **(environment or {}),
        }
        errors = self._directory / f"stderr-{len(self._children)}"
        child = self._nursery.start(call, arguments, environment=given, errors=errors)
        self._children.append(child)
        return child

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """What is killed, cut off or frozen in this block may lead to repetitions in concurrent mode."""
        began = time.time()
        try:
            yield
        finally:
            self.interruptions.append(Interruption(began, time.time()))

    # --- messages ---------------------------------------------------------------------------------------------------

    def write(self, *does: str, key: str | None = None) -> list[Moved]:
        """Commit one message for each of these words, in one transaction; see `Moved.does`."""
        messages = [
            Moved(key=key or f"key-{self.dice.randrange(4)}", n=self._first + number, does=each)
            for number, each in enumerate(does)
        ]
        self._first += len(messages)
        with Session(self.engine) as session, session.begin():
            for message in messages:
                register(session, message)
        self._acknowledged += messages
        return messages

    @contextmanager
    def writing(self, **options: Any) -> Iterator[Writers]:
        """Writers in this process until the end of the block; see `Writers`."""
        with writing(
            self.engine, **{"seed": self.seed, "first": self._reserve(options), **options}
        ) as writers:
            yield writers
        self._acknowledged += writers.acknowledged

    def writers(self, *, threads: int, rate: float, clock: Clock | None = None) -> Child:
        """A process of writers, that may be killed; end it with SIGTERM."""
        path = self._directory / f"acknowledged-{len(self._files)}"
        self._files.append(path)
        first = self._reserve({"threads": threads})
        arguments = [
            text_of(self.url),
            str(threads),
            str(rate),
            str(self.dice.randrange(1_000_000)),
            str(first),
            str(path),
        ]
        return self.child("tests.faults.writing:main", arguments, clock=clock)

    def _reserve(self, options: Mapping[str, Any]) -> int:
        """The first number of these writers: each number is given once in a run."""
        self._first = (self._first // SPAN + 1) * SPAN
        first = self._first
        self._first += options.get("threads", 3) * SPAN
        return first

    # --- looking ----------------------------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[sa.Connection]:
        """A connection to read with; it does not keep writers out."""
        with self.engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            yield connection

    def effects(self, reader: str = ONCE) -> list[int]:
        """The numbers of the effects of a subscription, in order."""
        with self.looking() as connection:
            t = app.effects
            return list(
                connection.scalars(sa.select(t.c.n).where(t.c.subscription == reader).order_by(t.c.id))
            )

    def wait_for_more(self, more: int = 1, reader: str = ONCE, timeout: float = 60.0) -> None:
        """Wait until a subscription has so many effects more than now; the database may be away meanwhile."""
        before: list[int] = []

        def has_more() -> bool:
            try:
                before.append(len(self.effects(reader)))
            except DBAPIError:
                return False
            return before[-1] >= before[0] + more

        self._wait(has_more, timeout, f"{reader} does not go on")

    def is_delivered(self) -> bool:
        """Whether each subscription has passed all that is committed, and nothing waits for another attempt."""
        t = app.tables
        last = sa.select(sa.func.coalesce(sa.func.max(t.outbox.c.position), 0)).scalar_subquery()
        s = t.subscription
        ready = sa.select(
            sa.func.count(sa.distinct(s.c.name)).filter(s.c.name.in_(self.settings.subscriptions)),
            sa.func.count().filter(s.c.position < last, s.c.name.in_(self.settings.subscriptions)),
            sa.select(sa.func.count())
            .select_from(t.delivery)
            .where(t.delivery.c.state != DEAD)
            .scalar_subquery(),
        )
        try:
            with self.looking() as connection:
                names, behind, waiting = connection.execute(ready).one()
        except DBAPIError:
            return False  # the database is away
        return (names, behind, waiting) == (len(self.settings.subscriptions), 0, 0)

    def expire_leases(self) -> None:
        """Let the time of all leases be over, when their owners are dead: waiting for it proves nothing more."""
        t = app.tables.subscription
        with self.engine.begin() as connection:
            connection.execute(t.update().where(t.c.owner.is_not(None)).values(lease_until=utc_after(-1)))

    def wait_until_delivered(self, timeout: float = ENOUGH) -> None:
        """Wait for that; if it does not come, say what the relays have said."""
        self._wait(self.is_delivered, timeout, "not everything is delivered")

    def _wait(self, predicate: Callable[[], bool], timeout: float, message: str) -> None:
        try:
            wait_until(predicate, timeout=timeout, message=message)
        except AssertionError as error:
            said = "\n".join(f"--- {each.pid}: {each.code}\n{each.errors[-3000:]}" for each in self.relays)
            raise AssertionError(f"{error}; {self.position()}\n{said}") from None

    def position(self) -> str:
        """Where the subscriptions are, for a failure's text."""
        t = app.tables
        with self.looking() as connection:
            return str(
                [
                    *map(tuple, connection.execute(sa.select(t.subscription))),
                    *map(tuple, connection.execute(sa.select(t.delivery.c.position, t.delivery.c.state))),
                ]
            )

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> Result:
        """Wait until all is delivered, stop the relays, check."""
        self.wait_until_delivered()
        for relay in self.relays:
            relay.send(signal.SIGTERM)
        for relay in self.relays:
            code = relay.end()
            # SIGTERM ends one that has only just been started
            allowed = {-signal.SIGKILL, -signal.SIGTERM, *self.codes_allowed}
            assert code in allowed, f"exit code {code}: {relay.errors}"
        self.result = check(self.history())
        sys.stdout.write(f"{self.result.line}\n")
        return self.result

    def history(self) -> History:
        """Read what was written and what handlers have recorded."""
        t = app.effects
        names = self.settings.subscriptions
        with self.looking() as connection:
            rows = connection.execute(sa.select(t).where(t.c.subscription.in_(names)).order_by(t.c.id)).all()
            committed = connection.execute(sa.select(app.written).order_by(app.written.c.n)).all()
            excused = {name: {*self._dead(connection, name), *self.excused.get(name, ())} for name in names}
        moved = [("Moved", row.key, row.n) for row in committed]
        # an Echo is written in the transaction of its Moved's effect, so that it is there if that one must be
        echoes = [
            ("Echo", row.key, row.n)
            for row in committed
            if row.does == "emit" and ("Moved", row.key, row.n) not in excused.get(ONCE, ())
        ]
        return History(
            scenario=self.name,
            seed=self.seed,
            readers=[
                Reader(name, transactional=name == ONCE, batch=self._batch * self.settings.partitions)
                for name in names
            ],
            written=[*moved, *(echoes if ONCE in names else ())],
            effects=[
                Effect(row.subscription, (row.message, row.key, row.n), row.position, row.at.timestamp(), row.attempt, row.pid)
                for row in rows
            ],
            acknowledged={("Moved", each.key, each.n) for each in self._all_acknowledged()},
            excused=excused,
            out_of_turn=self.out_of_turn,
            interruptions=self.interruptions,
            seconds=time.time() - self._started,
        )  # fmt: skip

    @property
    def _batch(self) -> int:
        return self.settings.fetch_size

    def _all_acknowledged(self) -> Sequence[Moved]:
        return [*self._acknowledged, *(each for path in self._files for each in read_acknowledged(path))]

    def _dead(self, connection: sa.Connection, name: str) -> set[Message]:
        d, e = app.tables.delivery, app.tables.outbox
        rows = connection.execute(
            sa.select(e.c.message, e.c.key, e.c.payload)
            .join_from(d, e, d.c.position == e.c.position)
            .where(d.c.subscription == name, d.c.state == DEAD)
        )
        return {(row.message, row.key, row.payload["n"]) for row in rows}

    def close(self) -> None:
        """Kill what is left; on PostgreSQL wait until the server has noticed that it is gone."""
        for child in self._children:
            child.kill()
        if self.engine.dialect.name == "postgresql":
            wait_until(
                lambda: not self._others_at_work(), message="transactions of killed processes are still open"
            )
        self.engine.dispose()

    def _others_at_work(self) -> int:
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        try:
            with self.looking() as connection:
                return int(connection.scalar(query) or 0)
        except DBAPIError:
            return 0


def text_of(url: sa.URL) -> str:
    """The URL with its password, for other processes of ours."""
    return url.render_as_string(hide_password=False)
