"""The async repository: what the sync one promises, on asyncio and its drivers."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import (
    AggregateNotFound,
    AsyncAggregateRepository,
    AsyncMessageBus,
    AsyncSQLAlchemyEventStore,
    AsyncSQLAlchemyOutBoxRepo,
    ConcurrencyError,
    InMemoryAsyncEventStore,
    InMemoryEventStore,
    MessageBusTables,
    WiringError,
)
from tests.eventsourcing.orders import Order, OrderPaid, OrderPlaced, an_order, state_of


async def test_in_memory() -> None:
    """Saved, loaded with a snapshot, a conflict, nothing there."""
    store = InMemoryAsyncEventStore()
    repository = AsyncAggregateRepository(store, Order, snapshot_every=2)
    order = an_order(lines=2)
    recorded = await repository.save(order)
    assert [each.version for each in recorded] == [1, 2, 3]
    again = await repository.load("o-1")
    assert state_of(again) == state_of(order)
    snapshot = await store.load_snapshot("o-1")
    assert snapshot is not None
    assert snapshot.version == 3
    again.pay(1)
    await repository.save(again)
    order.pay(2)
    with pytest.raises(ConcurrencyError):
        await repository.save(order)
    assert order.uncommitted_events == [OrderPaid(Decimal(2))]
    with pytest.raises(AggregateNotFound):
        await repository.load("o-2")


async def test_in_a_database(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """With outbox and snapshot, in the caller's transaction; delivered by an AsyncMessageBus."""
    seen: list[Any] = []
    bus = AsyncMessageBus(event_handlers={OrderPlaced: [seen.append], OrderPaid: [seen.append]})
    async with async_session_factory() as session:
        store = AsyncSQLAlchemyEventStore(session)
        repository = AsyncAggregateRepository(store, Order, snapshot_every=2, outbox=session)
        order = an_order()
        await repository.save(order)
        order.pay(5)
        recorded = await repository.save(order)
        assert await AsyncSQLAlchemyOutBoxRepo(session).get(recorded[0].id) is not None
        await session.commit()
        loaded = await repository.load("o-1")
        assert (loaded.paid, loaded.version) == (Decimal(5), 2)
        snapshot = await store.load_snapshot("o-1")
        assert snapshot is not None
        assert snapshot.version == 2
        await session.rollback()
        assert (await bus.process_outbox(session)).ok
    assert seen == [OrderPlaced("o-1"), OrderPaid(Decimal(5))]


async def test_a_failing_snapshot_statement_leaves_the_transaction_usable(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also through a savepoint of an async connection."""
    async with async_session_factory.begin() as session:
        await session.execute(sa.text("DROP TABLE message_bus_snapshot"))
    async with async_session_factory() as session:
        store = AsyncSQLAlchemyEventStore(session)
        with caplog.at_level(logging.WARNING, "message_bus.eventsourcing"):
            await AsyncAggregateRepository(store, Order, snapshot_every=1).save(an_order())
        await session.commit()
        assert await store.current_version("o-1") == 1
    assert [message[:32] for message in caplog.messages] == ["no snapshot of Order 'o-1' was t"]


def test_a_sync_store_is_refused() -> None:
    """What it returns could not be awaited."""
    with pytest.raises(WiringError, match="sync store"):
        AsyncAggregateRepository(InMemoryEventStore(), Order)  # type: ignore[arg-type]
