from __future__ import annotations

from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from message_bus import Event
from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
from message_bus.eventsourcing.aggregates.aggregate_repository import AggregateRepository
from message_bus.eventsourcing.aggregates.aggregate_repository_async import AsyncAggregateRepository
from message_bus.eventsourcing.aggregates.conflicts import retry_on_conflict
from message_bus.eventsourcing.stores.in_memory_store import InMemoryAsyncEventStore, InMemoryEventStore
from message_bus.eventsourcing.stores.postgresql_store import PostgreSQLEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlite_store import SQLiteEventStore
from message_bus.eventsourcing.when import when
from message_bus.messages.recorded import RecordedEvent
from message_bus.testing.given_when_then import AggregateOutcome, AggregateScenario


class Lent(Event):
    reader: str


class Book(AggregateRoot):
    ignores = (Lent,)
    snapshot_version = 2
    aggregate_type = "B"

    @when(Lent)
    def lent(self, event: Lent) -> None: ...


def f(session: Session) -> None:
    repo = AggregateRepository(SQLAlchemyEventStore(session), Book, snapshot_every=2, outbox=session)
    assert_type(repo, AggregateRepository[Book])
    book = repo.load("x")
    assert_type(book, Book)
    assert_type(repo.save(book), list[RecordedEvent])
    AggregateRepository(InMemoryEventStore(), Book)
    AggregateRepository(SQLiteEventStore("x"), Book)
    assert_type(retry_on_conflict(lambda: 3), int)
    assert_type(Book.from_events([]), Book)
    o = AggregateScenario(Book).given(Lent("a")).when(lambda b: b.lent(Lent("b")))
    assert_type(o, AggregateOutcome[Book])
    o.then(Lent("b")).then_nothing()
    AggregateRepository(InMemoryAsyncEventStore(), Book)  # type: ignore[arg-type]


@retry_on_conflict(attempts=2)
def g(a: int, *, b: str) -> float:
    return 1.0


assert_type(g(1, b=""), float)


async def h(session: AsyncSession) -> None:
    repo = AsyncAggregateRepository(AsyncSQLAlchemyEventStore(session), Book)
    assert_type(await repo.load("x"), Book)
    AsyncAggregateRepository(InMemoryAsyncEventStore(), Book)
    AsyncAggregateRepository(PostgreSQLEventStore("x"), Book)

    async def w() -> int:
        return 1

    assert_type(await retry_on_conflict(w), int)
