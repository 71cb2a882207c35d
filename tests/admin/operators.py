"""Operators in tests: who looks, replays and discards, each in a session of its own; and how a race is set up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from message_bus import DeadLetter, DeadLetterReport, DeadLetters
from tests.delivery.world import World
from tests.waiting import wait_until

LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")


def letters(world: World, **selection: Any) -> list[DeadLetter]:
    """The dead letters."""
    with world.sessions() as session:
        return DeadLetters(session, tables=world.tables).list(**selection)


def replay(world: World, **selection: Any) -> DeadLetterReport:
    """Replay, and commit."""
    with world.sessions.begin() as session:
        return DeadLetters(session, tables=world.tables).replay(**(selection or {"everything": True}))


def discard(world: World, **selection: Any) -> DeadLetterReport:
    """Discard, and commit."""
    with world.sessions.begin() as session:
        return DeadLetters(session, tables=world.tables).discard(**(selection or {"everything": True}))


def states(world: World) -> dict[int, str]:
    """Position -> state of every row of the delivery table."""
    return {position: state for position, state, _ in world.deliveries()}


@contextmanager
def before(world: World, text: str, do: Callable[[], object]) -> Iterator[None]:
    """Call `do()` once, before the first statement that has `text` in it."""
    done: list[bool] = []

    def hook(connection: object, cursor: object, statement: str, *_: object) -> None:
        if text in " ".join(statement.split()) and not done:
            done.append(True)
            do()

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", hook)
    try:
        yield
    finally:
        sa.event.remove(engine, "before_cursor_execute", hook)
    assert done, f"no statement had {text!r} in it"


class Meanwhile:
    """Something that another process does at the same time: it runs until it is done, or waits for a lock of ours."""

    def __init__(self, world: World, do: Callable[[], Any]) -> None:
        self.result: Any = None
        self.waited = False
        self._world = world
        self._do = do
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Start it, and return when it is done or waits for a lock."""
        self._thread.start()
        wait_until(lambda: self._waits() or not self._thread.is_alive())
        self.waited = self._thread.is_alive()

    def join(self) -> Any:
        """Let it end; what it returned."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def _run(self) -> None:
        try:
            self.result = self._do()
        except Exception as error:
            self.result = error

    def _waits(self) -> bool:
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(self._world.rows(waiting) != [(0,)])
