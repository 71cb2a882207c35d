# ruff: noqa: D102  (what the tests are made of)
"""The faults of the ancestor's aggregates, repositories and snapshots: one test each, named after the fault."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AggregateRepository,
    AggregateRoot,
    ConcurrencyError,
    Event,
    EventNotHandled,
    InMemoryAsyncEventStore,
    InMemoryEventStore,
    MessageBus,
    MessageBusTables,
    SettingsError,
    SQLAlchemyEventStore,
    SQLAlchemyOutBoxRepo,
    WiringError,
)
from message_bus.eventsourcing.aggregates.snapshotting import snapshot_of
from tests.eventsourcing.orders import Order, OrderPaid, OrderPlaced, an_order


class Deposited(Event, name="aggregates.Deposited"):
    amount: Decimal


class Transferred(Event, name="aggregates.Transferred"):
    amount: Decimal
    to: str


class Account(AggregateRoot):
    """The ancestor's demo: money goes from one account to another, by an event that somebody must publish."""

    balance: Decimal

    def __init__(self, aggregate_id: str | None = None) -> None:
        super().__init__(aggregate_id)
        self.balance = Decimal(0)

    def on_deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    def on_transferred(self, event: Transferred) -> None:
        self.balance -= event.amount


def test_the_repository_never_passes_the_expected_version(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Two that have loaded the same version: the second save is a conflict, and no update is lost (G12)."""
    with session_factory.begin() as session:
        AggregateRepository(SQLAlchemyEventStore(session), Order).save(an_order())
    loaded: list[Order] = []
    for _ in range(2):
        with session_factory() as session:
            loaded.append(AggregateRepository(SQLAlchemyEventStore(session), Order).load("o-1"))
    for order in loaded:
        order.pay(10)
    with session_factory.begin() as session:
        AggregateRepository(SQLAlchemyEventStore(session), Order).save(loaded[0])
    with session_factory.begin() as session:
        store = SQLAlchemyEventStore(session)
        with pytest.raises(ConcurrencyError) as caught:
            AggregateRepository(store, Order).save(loaded[1])
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert AggregateRepository(store, Order).load("o-1").paid == Decimal(10)


def test_a_sync_save_on_an_async_store_drops_the_events() -> None:
    """It is refused before there are any."""
    with pytest.raises(WiringError, match="its events would be dropped"):
        AggregateRepository(InMemoryAsyncEventStore(), Order)  # type: ignore[arg-type]


def test_events_are_cleared_before_anyone_could_publish_them(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """The money arrives: save returns the events, and has put them into the outbox in the same transaction (G1)."""

    def receive(event: Transferred, context: Any) -> None:
        accounts = AggregateRepository(SQLAlchemyEventStore(context.db_session), Account)
        receiver = accounts.load(event.to)
        receiver.apply(Deposited(amount=event.amount))
        accounts.save(receiver)

    bus = MessageBus(event_handlers={Transferred: [receive]})
    with session_factory.begin() as session:
        accounts = AggregateRepository(SQLAlchemyEventStore(session), Account)
        for name in ("ann", "bob"):
            account = Account(name)
            account.apply(Deposited(amount=Decimal(100)))
            accounts.save(account)
    with session_factory.begin() as session:
        accounts = AggregateRepository(SQLAlchemyEventStore(session), Account, outbox=session)
        ann = accounts.load("ann")
        ann.apply(Transferred(amount=Decimal(30), to="bob"))
        [recorded] = accounts.save(ann)
        assert recorded.message == Transferred(amount=Decimal(30), to="bob")
    with session_factory() as session:
        assert bus.process_outbox(session).delivered == 1
        accounts = AggregateRepository(SQLAlchemyEventStore(session), Account)
        assert [accounts.load(name).balance for name in ("ann", "bob")] == [Decimal(70), Decimal(130)]


def test_events_are_cleared_although_the_store_has_not_taken_them() -> None:
    """A store that fails leaves them uncommitted, to be saved again."""

    class Failing(InMemoryEventStore):
        def save(self, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionError

    order = an_order(lines=1)
    with pytest.raises(ConnectionError):
        AggregateRepository(Failing(), Order).save(order)
    assert len(order.uncommitted_events) == 2
    assert len(AggregateRepository(InMemoryEventStore(), Order).save(order)) == 2


@pytest.mark.parametrize("snapshot_at", [1, 2, 3])
def test_from_version_is_off_by_one(snapshot_at: int) -> None:
    """After a snapshot of version v come the events after v: none twice, none left out; and a store that errs is noticed."""
    store = InMemoryEventStore()
    repository = AggregateRepository(store, Order)
    order = an_order()
    for amount in (1, 10):
        order.pay(amount)
    repository.save(order)
    store.save_snapshot(snapshot_of(Order.from_events(store.load("o-1")[:snapshot_at])))
    assert (repository.load("o-1").paid, repository.load("o-1").version) == (Decimal(11), 3)
    for error in (-1, 1):

        class OffByOne(InMemoryEventStore):
            def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
                return store.load(aggregate_id, max(from_version + error, 0))  # noqa: B023

            def load_snapshot(self, aggregate_id: str) -> Any:
                return store.load_snapshot(aggregate_id)

        if snapshot_at + error < 3:
            with pytest.raises(WiringError, match="replay each once, in order"):
                AggregateRepository(OffByOne(), Order).load("o-1")


def test_the_first_event_is_skipped_by_default() -> None:
    """An aggregate without snapshot is made of all its events."""
    store = InMemoryEventStore()
    AggregateRepository(store, Order).save(an_order())
    assert AggregateRepository(store, Order).load("o-1").order_id == "o-1"


def test_snapshots_are_never_used() -> None:
    """A load after a snapshot asks for nothing before it: what it says is what the aggregate is."""
    store = InMemoryEventStore()
    repository = AggregateRepository(store, Order, snapshot_every=2)
    order = an_order(lines=1)
    repository.save(order)
    order.order_id = "seen in the snapshot only"
    store.save_snapshot(snapshot_of(order))
    assert repository.load("o-1").order_id == "seen in the snapshot only"


def test_snapshots_are_overwritten_by_older_ones(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A slow writer's snapshot does not replace that of a quick one."""
    with session_factory.begin() as session:
        store = SQLAlchemyEventStore(session)
        repository = AggregateRepository(store, Order, snapshot_every=1)
        order = an_order()
        repository.save(order)
        late = snapshot_of(order)
        order.pay(1)
        repository.save(order)
        store.save_snapshot(late)
        kept = store.load_snapshot("o-1")
        assert kept is not None
        assert kept.version == 2


def test_a_typo_in_an_on_handler_is_silently_ignored() -> None:
    """With an annotation it is an error of the class, without one when its repository is made, or its event applied."""
    with pytest.raises(SettingsError, match="'on_order_payed' would never be given a 'OrderPaid'"):

        class Annotated(AggregateRoot):
            def on_order_payed(self, event: OrderPaid) -> None: ...

    class Unannotated(AggregateRoot):
        def on_order_payed(self, event):  # type: ignore[no-untyped-def]
            raise AssertionError("nobody can call it")

    with pytest.raises(SettingsError, match="'on_order_payed' is no known event's handler"):
        AggregateRepository(InMemoryEventStore(), Unannotated)
    with pytest.raises(EventNotHandled, match="did you mean 'on_order_payed'"):
        Unannotated().apply(OrderPaid(Decimal(1)))


def test_live_objects_are_returned_and_aliased() -> None:
    """Two loads share nothing, neither with each other nor with what was saved or is kept as a snapshot."""

    class Noted(Event, name="aggregates.Noted"):
        notes: list[str]

    class Book(AggregateRoot):
        notes: list[str]

        def __init__(self) -> None:
            self.notes = []

        def on_noted(self, event: Noted) -> None:
            self.notes = event.notes

    store = InMemoryEventStore()
    repository = AggregateRepository(store, Book, snapshot_every=1)
    mine = ["a"]
    book = Book()
    book.aggregate_id = "b-1"
    book.apply(Noted(notes=mine))
    mine.append("mine")
    book.notes.append("state")
    assert book.uncommitted_events == [Noted(notes=["a"])]
    repository.save(book)
    book.notes.append("saved")
    first, second = repository.load("b-1"), repository.load("b-1")
    first.notes.append("first")
    assert second.notes == ["a", "state"]
    assert store.load("b-1") == [Noted(notes=["a"])]


def test_the_store_cannot_be_combined_with_the_applications_transaction(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Events, snapshot, outbox and the application's own rows: one transaction, committed or rolled back as one (G1)."""
    for ends in ("rollback", "commit"):
        with session_factory() as session:
            store = SQLAlchemyEventStore(session)
            repository = AggregateRepository(store, Order, snapshot_every=1, outbox=session)
            repository.save(an_order("o-1"))
            MessageBus.register_outbox_message(session, OrderPlaced("o-2"))
            getattr(session, ends)()
        with session_factory() as session:
            rows = SQLAlchemyOutBoxRepo(session).list_unprocessed()
            store = SQLAlchemyEventStore(session)
            there = (store.current_version("o-1"), store.load_snapshot("o-1") is not None, len(rows))
        assert there == ((1, True, 2) if ends == "commit" else (0, False, 0))
