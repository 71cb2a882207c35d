"""Metrics of event sourcing: aggregates, stores, projections, sagas; what raises is counted as such, what is not told is not."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AggregateNotFound,
    AggregateRepository,
    AsyncAggregateRepository,
    AsyncSaga,
    AsyncSQLAlchemyEventStore,
    ConcurrencyError,
    MessageBusTables,
    Observer,
    PostgreSQLEventStore,
    PrometheusMetrics,
    Relay,
    Saga,
    SagaStep,
    Snapshot,
    SQLAlchemyEventStore,
    SQLiteEventStore,
)
from message_bus.observability.observer import Around, SagaRun
from message_bus.testing.event_store_messages import Deposited, contract_registry
from tests.eventsourcing.orders import Order
from tests.eventsourcing.projecting import Advertised, OrderPlaced, Shop
from tests.observability.scraping import own_metrics, series, value
from tests.waiting import wait_until


@pytest.fixture
def metrics() -> PrometheusMetrics:
    """In a registry of their own."""
    return own_metrics()


def placed_order(order_id: str) -> Order:
    """An order that is to be saved."""
    order = Order(order_id)
    order.place(order_id)
    return order


# --- aggregates


@pytest.mark.sqlite
def test_aggregates(metrics: PrometheusMetrics, tmp_path: Path) -> None:
    """Loads are counted and timed by class; those in use are counted as long as they are."""
    with SQLiteEventStore(tmp_path / "events.db") as store:
        orders = AggregateRepository(store, Order, observer=metrics)
        for name in ("a", "b"):
            orders.save(placed_order(name))
        with pytest.raises(AggregateNotFound):
            orders.load("c")
        assert series(metrics, "aggregates_loaded_total") == {}
        assert value(metrics, "aggregates_load_time_seconds_count", aggregate_type="Order") == 1
        kept = orders.load("a"), orders.load("b")
        assert series(metrics, "aggregates_loaded_total") == {("Order",): 2}
        assert series(metrics, "aggregates_in_memory") == {("Order",): 2}
    del kept
    gc.collect()
    assert series(metrics, "aggregates_in_memory") == {("Order",): 0}


@pytest.mark.sqlite
async def test_async_aggregates(
    metrics: PrometheusMetrics,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """The same on an AsyncSession."""
    async with async_session_factory() as session:
        store = AsyncSQLAlchemyEventStore(session, tables=async_tables, observer=metrics)
        orders = AsyncAggregateRepository(store, Order, observer=metrics)
        await orders.save(placed_order("a"))
        await session.commit()
        order = await orders.load("a")
    assert order.version == 1
    assert series(metrics, "aggregates_loaded_total") == {("Order",): 1}
    assert series(metrics, "aggregates_in_memory") == {("Order",): 1}
    assert series(metrics, "storage_operations_total") == {
        (operation, "success"): 1 for operation in ("append", "load", "load_snapshot")
    }


# --- stores


EVERY_OPERATION = ("append", "load", "load_by_trace", "read_all", "save_snapshot", "load_snapshot")


def use(store: Any) -> None:
    """Every operation once, and an append that comes too late."""
    store.save("a", [Deposited(1)], 0)
    store.load("a")
    store.load_by_trace("none")
    store.read_all()
    store.save_snapshot(Snapshot("a", "Account", 1, {"cents": 1}))
    store.load_snapshot("a")
    assert store.current_version("a") == 1
    with pytest.raises(ConcurrencyError):
        store.save("a", [Deposited(2)], 0)


def seen(metrics: PrometheusMetrics) -> None:
    """Everything that `use` did was counted and timed."""
    assert series(metrics, "storage_operations_total") == {
        **{(operation, "success"): 1 for operation in EVERY_OPERATION},
        ("append", "error"): 1,
    }
    assert value(metrics, "storage_operation_seconds_count", operation_type="append") == 2
    assert 0 < value(metrics, "storage_operation_seconds_sum") < 60


@pytest.mark.sqlite
def test_operations_of_a_store_on_a_session(
    metrics: PrometheusMetrics, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Each is counted once, with its outcome."""
    with session_factory() as session:
        use(SQLAlchemyEventStore(session, tables=tables, registry=contract_registry(), observer=metrics))
        session.rollback()
    operations = series(metrics, "storage_operations_total")
    assert operations["append", "success"] == operations["append", "error"] == 1
    assert {operation for operation, _ in operations} == set(EVERY_OPERATION)


@pytest.mark.sqlite
def test_operations_of_a_store_with_a_file(metrics: PrometheusMetrics, tmp_path: Path) -> None:
    """The same, commits included."""
    with SQLiteEventStore(tmp_path / "events.db", registry=contract_registry(), observer=metrics) as store:
        use(store)
    seen(metrics)


@pytest.mark.postgresql
async def test_operations_of_a_store_with_a_pool(metrics: PrometheusMetrics, database_url: sa.URL) -> None:
    """The same on PostgreSQL."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with PostgreSQLEventStore(
        url, pool_min_size=1, registry=contract_registry(), observer=metrics
    ) as store:
        await store.save("a", [Deposited(1)], 0)
        await store.load("a")
        await store.load_by_trace("none")
        await store.read_all()
        await store.save_snapshot(Snapshot("a", "Account", 1, {"cents": 1}))
        await store.load_snapshot("a")
        with pytest.raises(ConcurrencyError):
            await store.save("a", [Deposited(2)], 0)
    seen(metrics)


# --- projections


@pytest.fixture
def shop(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Shop:
    """A shop with a read model."""
    return Shop(session_factory, tables)


@pytest.mark.sqlite
def test_projections(metrics: PrometheusMetrics, shop: Shop) -> None:
    """Its batches are timed, its types are known although no handler of the bus has them; how far behind it is, is read."""
    shop.bus.observe(metrics)
    shop.write(*(OrderPlaced(customer="ann", cents=n) for n in range(3)))
    shop.process()
    assert value(metrics, "projection_update_seconds_count", projection_name="totals") == 1
    assert series(metrics, "messages_delivered_total") == {("totals", "shop.OrderPlaced"): 3}
    assert series(metrics, "projection_events_behind") == {}
    with Relay(shop.bus, shop.sessions, tables=shop.tables):
        wait_until(lambda: series(metrics, "projection_events_behind") == {("totals",): 0})


@pytest.mark.sqlite
def test_subscriptions_that_are_no_projections_are_not_called_so(
    metrics: PrometheusMetrics, shop: Shop
) -> None:
    """The companion of the same relay has a lag, but no projection's."""
    shop.bus.observe(metrics)
    shop.bus.set_event_handlers(Advertised, [lambda event: None])
    with Relay(shop.bus, shop.sessions, tables=shop.tables):
        wait_until(lambda: series(metrics, "lag_messages"))
    assert series(metrics, "projection_events_behind") == {}
    assert series(metrics, "projection_update_seconds_count") == {}


# --- sagas


def act(context: Any) -> None:
    """Succeed."""


def fail(context: Any) -> None:
    """Fail for good."""
    raise TypeError("no")


def be_away(context: Any) -> None:
    """Find something out of reach."""
    raise ConnectionError("no")


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([SagaStep(act, act)], "completed"),
        ([SagaStep(act, act), SagaStep(fail)], "compensated"),
        ([SagaStep(act, fail), SagaStep(fail)], "failed"),
    ],
)
def test_sagas(
    steps: list[SagaStep],
    status: str,
    metrics: PrometheusMetrics,
    session_factory: sessionmaker[Session],
    tables: MessageBusTables,
) -> None:
    """Counted by how they end, once: who looks at an ended one runs nothing."""
    saga = Saga("order", steps, tables=tables, observer=metrics)
    for _ in range(2):
        assert saga.run(session_factory, "7", {"order": 7}).status == status
    assert series(metrics, "saga_executions_total") == {("order", status): 1}
    assert value(metrics, "saga_duration_seconds_count", saga_type="order") == 1


@pytest.mark.sqlite
async def test_a_saga_that_is_broken_off(
    metrics: PrometheusMetrics,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """An error of the world ends the run, not the saga."""
    saga = AsyncSaga("order", [SagaStep(be_away)], tables=async_tables, observer=metrics)
    with pytest.raises(Exception, match="out of reach"):
        await saga.run(async_session_factory, "7")
    assert series(metrics, "saga_executions_total") == {("order", "error"): 1}


# --- no harm


class Broken(Observer):
    """Fails at everything."""

    def loading(self, aggregate_type: str) -> Around:
        """Fail."""
        raise ValueError("broken")

    loaded: Callable[..., Any] = loading  # type: ignore[assignment]
    storing: Callable[..., Any] = loading  # type: ignore[assignment]

    def saga(self, run: SagaRun) -> Around:
        """Fail."""
        raise ValueError("broken")


@pytest.mark.sqlite
def test_an_observer_that_fails_changes_nothing(
    tmp_path: Path,
    session_factory: sessionmaker[Session],
    tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged; events are saved, aggregates loaded, sagas run."""
    with SQLiteEventStore(tmp_path / "events.db", observer=Broken()) as store:
        orders = AggregateRepository(store, Order, observer=Broken())
        orders.save(placed_order("a"))
        assert orders.load("a").version == 1
    saga = Saga("order", [SagaStep(act)], tables=tables, observer=Broken())
    assert saga.run(session_factory, "7").status == "completed"
    told = {record.getMessage().partition("(")[2].partition(")")[0] for record in caplog.records}
    assert told == {"Broken.loading", "Broken.loaded", "Broken.storing", "Broken.saga"}
