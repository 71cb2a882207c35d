"""The outbox in memory, beyond the contract: what is shared, the clock, row objects, threads, both colours of bus."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from message_bus import (
    AsyncHandlerOnSyncBus,
    AsyncInMemoryOutBoxRepo,
    AsyncMessageBus,
    Event,
    InMemoryOutBox,
    InMemoryOutBoxRepo,
    InvalidOutboxMessage,
    MessageBus,
    WiringError,
)
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.testing import drain


class Noted(Event, key="n"):
    n: int = 1


def add(repo: Any, n: int = 1, **options: Any) -> Any:
    """Register a message; return the row."""
    return MessageBus.register_outbox_message(repo, Noted(n), **options)


def numbers(repo: InMemoryOutBoxRepo) -> list[int]:
    """What is not processed."""
    return [row.payload["n"] for row in repo.list_unprocessed()]


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """The time."""
        return self.now


def test_a_repository_has_an_outbox_of_its_own_unless_it_is_given_one() -> None:
    """Repositories share what they are given, or what another one has, and nothing else."""
    first = InMemoryOutBoxRepo()
    add(first)
    first.save()
    assert numbers(InMemoryOutBoxRepo()) == []
    assert numbers(InMemoryOutBoxRepo(first.outbox)) == [1]


def test_positions_are_drawn_at_the_commit() -> None:
    """In the order of the commits, whichever was registered first; rolled back rows draw none."""
    outbox = InMemoryOutBox()
    early, late, gone = (InMemoryOutBoxRepo(outbox) for _ in range(3))
    row = add(early, 1)
    add(gone, 3)
    add(late, 2)
    late.save()
    gone.rollback()
    assert (numbers(early), row.position) == ([2, 1], None)
    early.save()
    rows = InMemoryOutBoxRepo(outbox).list_unprocessed()
    assert [(each.payload["n"], each.position) for each in rows] == [(2, 1), (1, 2)]


def test_the_clock_is_the_callers() -> None:
    """It says when a row was created, and when a delayed one is due; due ones enter in the order of their times."""
    clock = Clock()
    repo = InMemoryOutBoxRepo(InMemoryOutBox(clock=clock))
    slow = add(repo, 1, delay=timedelta(hours=2))
    quick = add(repo, 2, delay=timedelta(hours=1))
    add(repo, 3)
    repo.save()
    assert numbers(repo) == [3]
    waiting = repo.get(slow.id)
    assert waiting is not None
    assert (waiting.position, waiting.created_at, waiting.processed) == (None, clock.now, False)
    clock.now += timedelta(hours=2)
    assert numbers(repo) == [3, 2, 1]
    found = repo.get(quick.id)
    assert found is not None
    assert found.position == 2


def test_only_the_mark_of_a_row_can_be_changed() -> None:
    """`save` stores `processed`, `rollback` undoes it in the row object, too; all else is as it was registered."""
    repo = InMemoryOutBoxRepo()
    row = add(repo, meta={"n": 1})
    row.meta["n"] = 2
    row.message = "Changed"
    repo.save()
    other = InMemoryOutBoxRepo(repo.outbox)
    (found,) = other.list_unprocessed()
    assert (found.message, found.meta, found.payload) == ("Noted", {"n": 1}, {"n": 1})
    found.processed = True
    found.payload["n"] = 5
    assert numbers(repo) == [1]
    assert other.list_unprocessed() == []
    other.rollback()
    assert (found.processed, numbers(other)) == (False, [1])
    (found,) = other.list_unprocessed()
    found.processed = True
    other.save()
    assert numbers(repo) == numbers(other) == []


def test_the_registered_row_can_be_marked_as_well() -> None:
    """Before and after it is saved."""
    repo = InMemoryOutBoxRepo()
    add(repo, 1).processed = True
    row = add(repo, 2)
    repo.save()
    assert numbers(InMemoryOutBoxRepo(repo.outbox)) == [2]
    row.processed = True
    repo.save()
    assert numbers(InMemoryOutBoxRepo(repo.outbox)) == []


def test_two_units_of_work_mark_different_rows() -> None:
    """What one has marked is not undone by the other, who has read it before."""
    outbox = InMemoryOutBox()
    first, second = InMemoryOutBoxRepo(outbox), InMemoryOutBoxRepo(outbox)
    add(first, 1)
    add(first, 2)
    first.save()
    for repo, index in ((first, 0), (second, 1)):
        repo.list_unprocessed()[index].processed = True
    first.save()
    second.save()
    assert numbers(InMemoryOutBoxRepo(outbox)) == []


def test_a_taken_id_stores_nothing_of_the_unit_of_work() -> None:
    """All or nothing (G1); after a rollback the repository goes on."""
    repo = InMemoryOutBoxRepo()
    row = add(repo, 1)
    repo.save()
    add(repo, 2)
    add(repo, 3, id=row.id)
    with pytest.raises(InvalidOutboxMessage, match=f"'{row.id}' is in the outbox already"):
        repo.save()
    assert numbers(InMemoryOutBoxRepo(repo.outbox)) == [1]
    repo.rollback()
    taken = uuid4()
    add(repo, 4, id=taken)
    with pytest.raises(InvalidOutboxMessage, match="added twice"):
        add(repo, 5, id=taken)
    repo.save()
    assert numbers(repo) == [1, 4]


def test_threads_share_an_outbox() -> None:
    """Each with repositories of its own: nothing is lost, each thread's order is kept, positions have no gaps."""
    outbox = InMemoryOutBox()

    def work(thread: int) -> None:
        for number in range(50):
            repo = InMemoryOutBoxRepo(outbox)
            add(repo, thread * 1_000 + number)
            repo.save()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = InMemoryOutBoxRepo(outbox).list_unprocessed()
    assert [row.position for row in rows] == list(range(1, 401))
    for thread in range(8):
        mine = [row.payload["n"] for row in rows if row.payload["n"] // 1_000 == thread]
        assert mine == [thread * 1_000 + number for number in range(50)]


def test_drain_delivers_what_handlers_emit() -> None:
    """`message_bus.testing.drain` saves the repository and processes it until nothing is left."""
    seen: list[int] = []

    def count_down(event: Noted, context: Any) -> None:
        seen.append(event.n)
        if event.n:
            context.emit(Noted(event.n - 1))

    bus = MessageBus({Noted: [count_down]})
    repo = InMemoryOutBoxRepo()
    add(repo, 3)
    report = drain(bus, repo)
    assert (report.delivered, report.ok, seen) == (4, True, [3, 2, 1, 0])


@pytest.mark.parametrize("repository", [InMemoryOutBoxRepo, AsyncInMemoryOutBoxRepo])
async def test_an_async_bus_takes_both_colours(repository: type[Any]) -> None:
    """The repository in memory does no I/O, so both will do, for process_outbox and for drain."""
    seen: list[int] = []
    bus = AsyncMessageBus({Noted: [lambda event: seen.append(event.n)]})
    repo = repository()
    add(repo, 1)
    assert (await drain(bus, repo)).delivered == 1
    assert (await bus.process_outbox(repo)).delivered == 0
    assert seen == [1]


def test_a_repository_derived_from_ours_is_known_for_its_colour() -> None:
    """One over a Session on an AsyncMessageBus would be marked in vain: it is refused, derived or not."""

    class Mine(SQLAlchemyOutBoxRepo):
        pass

    from sqlalchemy.orm import Session

    with Session() as session, pytest.raises(WiringError, match="not on Mine"):
        AsyncMessageBus().process_outbox(Mine(session)).send(None)


def test_a_sync_bus_refuses_the_async_repository() -> None:
    """It cannot await its methods, and says so before anything is handled."""
    seen: list[Any] = []
    repo = AsyncInMemoryOutBoxRepo()
    add(repo)
    with pytest.raises(AsyncHandlerOnSyncBus, match="list_unprocessed"):
        MessageBus({Noted: [seen.append]}).process_outbox(repo)
    assert seen == []
