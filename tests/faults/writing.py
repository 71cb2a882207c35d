"""Writers: threads that commit messages, roll some back, and overlap, so that commits come out of position order.

With each message they write a row of the table `written`, in the same transaction: that table is the truth, also about
commits whose answer was lost. What they were told is committed they remember besides; it must all be there (G1).
`Writers` run in this process; `main` is a process of them that can be killed.
"""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from message_bus import MessageBus, configure_sqlite
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from tests.faults.app import Moved, written

ENOUGH_ON_SQLITE: Final = timedelta(minutes=2)  # for a turn, where nobody keeps the order of those who wait
KEYS: Final = tuple(f"key-{number:02}" for number in range(20))
MIX: Final = {"emit": 0.05, "fail:1": 0.03}
"""What the handlers of some messages do besides, and how often; see `Moved.does`."""
ROLLED_BACK: Final = 0.1
LONGEST: Final = 0.05  # seconds that a transaction stays open after it has drawn its positions
SPAN: Final = 1_000_000  # numbers that a thread has for itself
PAUSE_AFTER_AN_ERROR: Final = 0.1


def register(session: Session, message: Moved, *, delay: timedelta | None = None) -> None:
    """Register it, and write down that it was."""
    row = MessageBus.register_outbox_message(session, message, delay=delay)
    session.execute(
        written.insert().values(message_id=row.id, key=message.key, n=message.n, does=message.does)
    )


class Writers:
    """Threads that write until they are stopped, `rate` transactions a second in all. `first`: the first number."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        threads: int = 3,
        rate: float = 60.0,
        seed: int = 0,
        first: int = 0,
        keys: tuple[str, ...] = KEYS,
        mix: Mapping[str, float] = MIX,
        told: Callable[[list[Moved]], Any] | None = None,
    ) -> None:
        self.acknowledged: list[Moved] = []
        self.unanswered = 0
        self._engine = engine
        self._overlap = LONGEST if engine.dialect.name == "postgresql" else 0.0
        self._pause = threads / rate
        self._keys = keys
        self._mix = dict(mix)
        self._told = self.acknowledged.extend if told is None else told
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(
                target=self._guarded, args=(random.Random(seed * 1_000 + number), first + number * SPAN), name="writer"
            )
            for number in range(threads)
        ]  # fmt: skip

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the transactions that are open, and end. Raises what has gone wrong, besides outages."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _guarded(self, dice: random.Random, n: int) -> None:
        try:
            self._write(dice, n)
        except BaseException as error:
            self._error = error

    def _write(self, dice: random.Random, n: int) -> None:
        while not self._stopped.wait(dice.expovariate(1 / self._pause)):
            messages = [self._message(dice, n + number) for number in range(dice.choice((1, 1, 1, 2, 3)))]
            n += len(messages)
            try:
                with Session(self._engine) as session:
                    committed = self._transact(session, dice, messages)
            except DBAPIError:  # of those whose commit raised nobody knows: the table says
                self.unanswered += 1
                self._stopped.wait(PAUSE_AFTER_AN_ERROR)
                continue
            if committed:
                self._told(messages)

    def _message(self, dice: random.Random, n: int) -> Moved:
        (does,) = dice.choices(["", *self._mix], [1 - sum(self._mix.values()), *self._mix.values()])
        return Moved(key=dice.choice(self._keys), n=n, does=does)

    def _transact(self, session: Session, dice: random.Random, messages: list[Moved]) -> bool:
        with session.begin() as transaction:
            for message in messages:
                register(session, message)
            if dice.random() < 0.3:  # draws the positions now, so that others may commit before
                SQLAlchemyOutBoxRepo(session).flush()
                self._stopped.wait(dice.uniform(0, self._overlap))
            if dice.random() < ROLLED_BACK:
                transaction.rollback()
                return False
        return True


@contextmanager
def writing(engine: sa.Engine, **options: Any) -> Iterator[Writers]:
    """Writers in this process, until the end of the block."""
    writers = Writers(engine, **options)
    writers.start()
    try:
        yield writers
    finally:
        writers.stop()


def read_acknowledged(path: Path) -> list[Moved]:
    """What a process of writers was told is committed, although it may have been killed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Moved(key=key, n=n, does=does) for key, n, does in map(json.loads, lines)]


def main(arguments: list[str]) -> None:
    """Write until SIGTERM: URL, threads, rate, seed, first number, and the file for what was acknowledged."""
    url, threads, rate, seed, first, path = arguments
    ended = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, on_signal)
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine, busy_timeout=ENOUGH_ON_SQLITE)
    with Path(path).open("a") as file:

        def told(messages: list[Moved]) -> None:
            lines = [json.dumps([each.key, each.n, each.does]) for each in messages]
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()

        options: dict[str, Any] = {"seed": int(seed), "first": int(first), "told": told}
        with writing(engine, threads=int(threads), rate=float(rate), **options):
            while not ended.wait(0.2):  # a signal that comes while it goes to sleep would not wake it
                pass
    engine.dispose()
