# ruff: noqa: D102  (the documents' code is left as it is)
"""The documents of Orchestrix, where they concern event stores, aggregates and snapshots.

Word for word, but for the imports, which all come from `message_bus`, and for the names of the event types, which other
tests of this repository use as well. Where its documents disagree with its code, or call what they never define, the test
says what holds here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import (
    AggregateRoot,
    AsyncAggregateRepository,
    Command,
    ConcurrencyError,
    Event,
    EventStore,
    InMemoryAsyncEventStore,
    InMemoryEventStore,
    InMemoryMessageBus,
    PostgreSQLEventStore,
    RecordedEvent,
    Snapshot,
)
from tests.docs.test_seed_orchestrix import CreateOrder, OrderCreated, OrderModule, UserCreatedEvent


@dataclass(frozen=True, kw_only=True)
class ItemAdded(Event, name="orchestrix.ItemAdded"):
    order_id: str
    item: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OrderPaid(Event, name="orchestrix.OrderPaid"):
    order_id: str
    payment_id: str = ""


@dataclass(frozen=True, kw_only=True)
class OrderShipped(Event, name="orchestrix.OrderShipped"):
    order_id: str


@dataclass(frozen=True, kw_only=True)
class OrderCancelled(Event, name="orchestrix.OrderCancelled"):
    order_id: str


@dataclass(frozen=True, kw_only=True)
class AccountOpened(Event, name="orchestrix.AccountOpened"):
    account_id: str


order = {"order_id": "ORD-001", "customer_id": "CUST-123"}


@pytest.fixture
def store() -> InMemoryEventStore:
    """The store of the reference."""
    return InMemoryEventStore()


class Order(AggregateRoot):
    """What `Order.from_events(events)` of the reference may mean."""

    def __init__(self) -> None:
        self.status = "new"
        self.items: list[dict[str, Any]] = []

    def on_order_created(self, event: OrderCreated) -> None:
        self.status = "pending"

    def on_item_added(self, event: ItemAdded) -> None:
        self.items.append(event.item)

    def on_order_paid(self, event: OrderPaid) -> None:
        self.status = "paid"


# --- the reference of the in-memory store -------------------------------------------------------------------------


def test_save_and_load(store: InMemoryEventStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Three events, in chronological order, with their timestamps; an aggregate is made of them."""
    events = [
        OrderCreated(order_id="ORD-001", customer_id="CUST-123"),
        ItemAdded(order_id="ORD-001", item={"sku": "A", "qty": 2}),
        OrderPaid(order_id="ORD-001", payment_id="PAY-001"),
    ]

    store.save("ORD-001", events)

    # Load all events
    events = store.load("ORD-001")

    for event in events:
        print(f"{event.timestamp}: {event.__class__.__name__}")  # type: ignore[attr-defined]

    # Reconstruct aggregate
    order = Order.from_events(events)
    assert (order.status, order.items, order.version) == ("paid", [{"sku": "A", "qty": 2}], 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["OrderCreated", "ItemAdded", "OrderPaid"]


def test_append_only(store: InMemoryEventStore) -> None:
    """A second save appends, it does not replace."""
    # First save
    store.save("ORD-001", [OrderCreated(**order)])

    # Second save - appends, doesn't replace
    store.save("ORD-001", [OrderPaid(order_id="ORD-001")])

    # Load returns both
    events = store.load("ORD-001")
    # → [OrderCreated, OrderPaid]
    assert [type(event) for event in events] == [OrderCreated, OrderPaid]


def test_an_empty_stream_and_isolation(store: InMemoryEventStore) -> None:
    """Nothing is an empty list; each aggregate has a stream of its own, in order."""
    assert store.load("DOES-NOT-EXIST") == store.load("UNKNOWN") == []
    event1, event2, event3, event4 = (OrderPaid(order_id="ORD", payment_id=str(n)) for n in range(4))
    store.save("ORD-001", [event1, event2])
    store.save("ORD-002", [event3, event4])
    assert store.load("ORD-001") == [event1, event2]
    assert store.load("ORD-002") == [event3, event4]


def test_optimistic_locking(store: InMemoryEventStore) -> None:
    """`expected_version=2` after two events; then it is a conflict."""
    # Save events
    store.save("ORD-001", [OrderCreated(**order)])
    store.save("ORD-001", [OrderPaid(order_id="ORD-001")])

    # Optimistic locking
    store.save("ORD-001", [OrderShipped(order_id="ORD-001")], expected_version=2)
    with pytest.raises(ConcurrencyError) as caught:
        store.save("ORD-001", [OrderShipped(order_id="ORD-001")], expected_version=2)
    error = caught.value
    assert (error.aggregate_id, error.expected_version, error.actual_version) == ("ORD-001", 2, 3)


def test_load_by_trace(store: InMemoryEventStore) -> None:
    """Events across all aggregates by the id of their trace."""
    from message_bus import correlate

    with correlate("trace-1"):
        store.save("ORD-001", [OrderCreated(**order)])
        store.save("ACC-001", [AccountOpened(account_id="ACC-001")])
    store.save("ORD-001", [OrderPaid(order_id="ORD-001")])
    assert [type(event) for event in store.load_by_trace("trace-1")] == [OrderCreated, AccountOpened]


async def test_the_async_store() -> None:
    """The same to be awaited, with snapshots."""
    store = InMemoryAsyncEventStore()
    await store.save("ORD-001", [OrderCreated(**order)], expected_version=0)
    await store.save_snapshot(Snapshot("ORD-001", "Order", 1, {"status": "pending"}))
    assert await store.load("ORD-001") == [OrderCreated(**order)]
    snapshot = await store.load_snapshot("ORD-001")
    assert snapshot is not None
    assert await store.load("ORD-001", from_version=snapshot.version) == []


def test_the_complete_example_with_its_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Application, execution and verification of the reference."""
    # Application
    bus = InMemoryMessageBus()
    store = InMemoryEventStore()

    module = OrderModule()
    module.register(bus, store)

    # Execute
    bus.publish(CreateOrder(order_id="ORD-001", customer_id="CUST-123"))

    # Verify
    events = store.load("ORD-001")
    assert len(events) == 1
    assert isinstance(events[0], OrderCreated)
    assert capsys.readouterr().out == "📦 Order ORD-001 created\n"


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
async def test_the_postgresql_store(database_url: sa.URL, schema: str) -> None:
    """initialize, save with an expected version, load, snapshots under both names, ping, close."""
    store = PostgreSQLEventStore(
        connection_string=database_url.set(drivername="postgresql").render_as_string(hide_password=False),
        pool_min_size=5,
        pool_max_size=20,
    )
    await store.initialize()
    try:
        await store.save("ACC-001", [AccountOpened(account_id="ACC-001")], expected_version=0)
        events = await store.load("ACC-001")
        assert events == [AccountOpened(account_id="ACC-001")]
        assert await store.ping()
        await store.save_snapshot_async(Snapshot("ACC-001", "Account", 1, {"open": True}))
        snapshot = await store.load_snapshot_async("ACC-001")
        assert snapshot == await store.load_snapshot("ACC-001")

        class Account(AggregateRoot):
            open = False

            def on_account_opened(self, event: AccountOpened) -> None:
                self.open = True

        account = await AsyncAggregateRepository(store, Account).load("ACC-001")
        assert (account.open, account.version) == (True, 1)
    finally:
        await store.close()


# --- the architecture -------------------------------------------------------------------------------------------


def test_state_is_a_fold_of_events(store: InMemoryEventStore) -> None:
    """Plain functions over plain values: no base class needed."""

    @dataclass(frozen=True)
    class Order:
        order_id: str
        status: str

    def apply(order: Order | None, event: Event) -> Order | None:
        match event:
            case OrderCreated():
                return Order(event.order_id, "pending")
            case OrderPaid() if order is not None:
                return Order(order.order_id, "paid")
        return order

    # State = fold(events)  # noqa: ERA001
    def from_events(events: list[Event]) -> Order | None:
        order = None
        for event in events:
            order = apply(order, event)
        return order

    store.save("ORD-001", [OrderCreated(**order), OrderPaid(order_id="ORD-001")])
    assert from_events(store.load("ORD-001")) == Order("ORD-001", "paid")
    assert from_events(store.load("ORD-002")) is None


def test_a_domain_object_that_keeps_its_events_itself(store: InMemoryEventStore) -> None:
    """The document's domain layer: a plain dataclass with a list of events."""

    @dataclass
    class Order:
        """Domain aggregate."""

        order_id: str = "ORD-001"
        status: str = "pending"
        _events: list[Event] = field(default_factory=list)

        def cancel(self) -> None:
            """Business rule: Can only cancel pending orders."""
            if self.status != "pending":
                raise ValueError("Can only cancel pending orders")
            self.status = "cancelled"
            self._events.append(OrderCancelled(order_id=self.order_id))

    it = Order()
    it.cancel()
    with pytest.raises(ValueError, match="Can only cancel pending orders"):
        it.cancel()
    store.save(it.order_id, it._events)
    assert store.load("ORD-001") == [OrderCancelled(order_id="ORD-001")]


def test_the_same_rule_as_an_aggregate(store: InMemoryEventStore) -> None:
    """What the document means, with the state changed by the event."""

    class Cancellable(Order):
        def cancel(self) -> None:
            """Business rule: Can only cancel pending orders."""
            if self.status != "pending":
                raise ValueError("Can only cancel pending orders")
            self.apply(OrderCancelled(order_id=self.aggregate_id))

        def on_order_cancelled(self, event: OrderCancelled) -> None:
            self.status = "cancelled"

    store.save("ORD-001", [OrderCreated(**order)])
    it = Cancellable.from_events(store.load("ORD-001"))
    it.cancel()
    with pytest.raises(ValueError, match="Can only cancel pending orders"):
        it.cancel()
    assert it.uncommitted_events == [OrderCancelled(order_id="ORD-001")]


def test_snapshots_of_the_architecture(store: InMemoryEventStore) -> None:
    """Snapshot and recent events: its `load_after_version` is `load(id, from_version=...)`, a snapshot holds a state."""
    aggregate_id = "ORD-001"
    store.save(aggregate_id, [OrderCreated(**order), ItemAdded(order_id="ORD-001", item={"sku": "A"})])

    # Without snapshot: Load 10,000 events
    events = store.load(aggregate_id)  # Slow!
    it = Order.from_events(events)
    store.save_snapshot(Snapshot(aggregate_id, "Order", it.version, it.to_dict()))
    store.save(aggregate_id, [OrderPaid(order_id="ORD-001")])

    # With snapshot: Load snapshot + recent events
    snapshot = store.load_snapshot(aggregate_id)
    assert snapshot is not None
    recent_events = store.load(aggregate_id, snapshot.version)
    again = Order.from_snapshot(snapshot)
    for event in recent_events:
        again.apply(event)
    assert (again.status, again.items, again.version) == ("paid", [{"sku": "A"}], 3)
    assert len(recent_events) == 1


def test_a_store_of_ones_own() -> None:
    """The document derives it from the protocol; an aggregate repository works with it."""
    from message_bus import AggregateRepository

    class JSONLinesEventStore(EventStore):
        """Lines of JSON in a list."""

        def __init__(self) -> None:
            self.lines: list[str] = []

        def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
            if expected_version not in (None, len(self.load(aggregate_id))):
                raise ConcurrencyError(aggregate_id, expected_version, len(self.load(aggregate_id)))
            self.lines += [
                json.dumps([aggregate_id, type(event).__name__, event.serialize()]) for event in events
            ]
            return []

        def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
            classes = {"OrderCreated": OrderCreated, "OrderPaid": OrderPaid}
            rows = [json.loads(line) for line in self.lines]
            found: list[Event] = [
                classes[name].deserialize(data) for stream, name, data in rows if stream == aggregate_id
            ]
            return found[from_version:]

        def load_snapshot(self, aggregate_id: str) -> Snapshot | None:
            return None

    repository = AggregateRepository(JSONLinesEventStore(), Order)
    it = Order()
    it.aggregate_id = "ORD-001"
    it.apply(OrderCreated(**order))
    repository.save(it)
    again = repository.load("ORD-001")
    it.apply(OrderPaid(order_id="ORD-001"))
    repository.save(it)
    assert (again.status, repository.load("ORD-001").status) == ("pending", "paid")
    again.apply(OrderPaid(order_id="ORD-001"))
    with pytest.raises(ConcurrencyError):
        repository.save(again)


# --- the quick reference ----------------------------------------------------------------------------------------


# Define commands
class CreateUserCommand(Command):
    name: str
    email: str


# Define aggregate
class UserAggregate(AggregateRoot):
    def handle_create(self, cmd: CreateUserCommand):
        self.apply(UserCreatedEvent(
            user_id="user-123",
            name=cmd.name,
            email=cmd.email
        ))  # fmt: skip

    def on_user_created(self, event: UserCreatedEvent):
        self.user_id = event.user_id
        self.name = event.name


def test_basic_usage() -> None:
    """A command, an event, an aggregate; saved, and rebuilt by applying what was loaded."""
    # Usage
    agg = UserAggregate()
    agg.handle_create(CreateUserCommand(name="John", email="john@example.com"))

    store = InMemoryEventStore()
    store.save("user-123", agg.uncommitted_events)

    # Rebuild from events
    loaded = UserAggregate()
    for event in store.load("user-123"):
        loaded.apply(event)
    assert (loaded.user_id, loaded.name, loaded.version) == ("user-123", "John", 1)
    assert loaded.uncommitted_events == []
    assert loaded.aggregate_id == "user-123"


def test_using_snapshots(store: InMemoryEventStore) -> None:
    """Every 100 events; loaded with the snapshot and what came after it."""
    agg = UserAggregate()
    for _ in range(100):
        agg.handle_create(CreateUserCommand(name="John", email="john@example.com"))
    store.save("agg-123", agg.uncommitted_events)

    # Create snapshot every 100 events
    if agg.version % 100 == 0:
        snapshot = Snapshot(
            aggregate_id="agg-123",
            version=agg.version,
            aggregate_type="UserAggregate",
            state=agg.to_dict()
        )  # fmt: skip
        store.save_snapshot(snapshot)
    store.save("agg-123", [UserCreatedEvent(user_id="user-123", name="Jane")], expected_version=100)

    # Load with snapshot
    snapshot = store.load_snapshot("agg-123")  # type: ignore[assignment]
    agg = UserAggregate.from_snapshot(snapshot)

    # Load remaining events
    remaining = store.load("agg-123", from_version=snapshot.version)
    assert (agg.name, agg.version, len(remaining)) == ("John", 100, 1)
    for event in remaining:
        agg.apply(event)
    assert (agg.name, agg.version) == ("Jane", 101)


def test_event_ids_of_a_loaded_event(store: InMemoryEventStore) -> None:
    """`event.id`, as in its tracing example, once the event is loaded; and all else in its envelope."""
    [recorded] = store.save("ORD-001", [OrderCreated(**order)])
    [event] = store.load("ORD-001")
    assert event.id == recorded.id  # type: ignore[attr-defined]
    assert isinstance(event.envelope, RecordedEvent)
