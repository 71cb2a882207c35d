# ruff: noqa: D102  (what the tests are made of)
"""Aggregate repositories over every store: loaded, saved, conflicts, outbox, snapshots. The async one has a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from message_bus import (
    AggregateNotFound,
    AggregateRepository,
    AggregateRoot,
    ConcurrencyError,
    Event,
    InMemoryAsyncEventStore,
    InMemoryEventStore,
    InMemoryOutBoxRepo,
    InvalidMessage,
    MessageBus,
    MessageBusTables,
    OutBoxRepoABC,
    SettingsError,
    Snapshot,
    SQLAlchemyEventStore,
    SQLAlchemyOutBoxRepo,
    WiringError,
    correlate,
)
from tests.eventsourcing.orders import Order, OrderPaid, OrderPlaced, an_order, state_of

Units = Callable[[], AbstractContextManager[Any]]


class Spy:
    """A store around a store, which notes what is asked of it; `fail` names the method that fails."""

    def __init__(self, store: Any, fail: str = "") -> None:
        self.store, self.fail, self.calls = store, fail, list[tuple[Any, ...]]()

    def _ask(self, name: str, *args: Any) -> Any:
        self.calls.append((name, *args))
        if name == self.fail:
            raise RuntimeError("no room")
        return getattr(self.store, name)(*args)

    def save(self, *args: Any) -> Any:
        return self._ask("save", *args)

    def load(self, *args: Any) -> Any:
        return self._ask("load", *args)

    def save_snapshot(self, *args: Any) -> Any:
        return self._ask("save_snapshot", *args)

    def load_snapshot(self, *args: Any) -> Any:
        return self._ask("load_snapshot", *args)

    def asked(self) -> list[str]:
        return [call[0] for call in self.calls]


class Lenient(Order):
    """Takes what cannot be stored."""

    def on_order_paid(self, event: OrderPaid) -> None: ...


class Repositories:
    """What holds whatever the store."""

    def test_an_aggregate_is_saved_and_loaded(self, unit: Units) -> None:
        """What is returned are the recorded events, in order; what is loaded has the same state and no uncommitted ones."""
        order = an_order(lines=2)
        applied = order.uncommitted_events
        with unit() as store:
            recorded = AggregateRepository(store, Order).save(order)
        assert [each.message for each in recorded] == applied
        assert [(each.stream, each.version) for each in recorded] == [("o-1", 1), ("o-1", 2), ("o-1", 3)]
        assert (order.uncommitted_events, order.version, order.stored_version) == ([], 3, 3)
        with unit() as store:
            loaded = AggregateRepository(store, Order).load("o-1")
        assert state_of(loaded) == state_of(order)
        assert (loaded.version, loaded.aggregate_id, loaded.uncommitted_events) == (3, "o-1", [])

    def test_saving_goes_on_where_loading_ended(self, unit: Units) -> None:
        """Again and again, with the same object or another."""
        with unit() as store:
            repository = AggregateRepository(store, Order)
            order = an_order()
            repository.save(order)
            order.pay(1)
            repository.save(order)
            again = repository.load("o-1")
            again.pay(2)
            [recorded] = repository.save(again)
            assert (recorded.version, repository.load("o-1").paid) == (3, Decimal(3))

    def test_what_does_not_exist_is_not_found(self, unit: Units) -> None:
        """A LookupError and a ValueError, with type and id."""
        with (
            unit() as store,
            pytest.raises(AggregateNotFound, match="no 'Order' with the id 'o-9'") as caught,
        ):
            AggregateRepository(store, Order).load("o-9")
        assert isinstance(caught.value, LookupError)
        assert isinstance(caught.value, ValueError)

    def test_a_second_new_aggregate_of_the_same_id_is_a_conflict(self, unit: Units) -> None:
        """A new one expects that there is none."""
        with unit() as store:
            AggregateRepository(store, Order).save(an_order())
        with unit() as store, pytest.raises(ConcurrencyError) as caught:
            AggregateRepository(store, Order).save(an_order())
        assert (caught.value.expected_version, caught.value.actual_version) == (0, 1)

    def test_after_a_conflict_the_events_are_still_uncommitted(self, unit: Units) -> None:
        """Nothing of them is stored, and the transaction can be used on (G12)."""
        with unit() as store:
            AggregateRepository(store, Order).save(an_order())
        with unit() as store:
            mine = AggregateRepository(store, Order).load("o-1")
        with unit() as store:
            repository = AggregateRepository(store, Order)
            theirs = repository.load("o-1")
            theirs.pay(5)
            repository.save(theirs)
        with unit() as store:
            repository = AggregateRepository(store, Order)
            mine.pay(7)
            with pytest.raises(ConcurrencyError):
                repository.save(mine)
            assert mine.uncommitted_events == [OrderPaid(Decimal(7))]
            assert (mine.version, mine.stored_version) == (2, 1)
            again = repository.load("o-1")
            again.pay(7)
            repository.save(again)
        with unit() as store:
            assert AggregateRepository(store, Order).load("o-1").paid == Decimal(12)

    def test_a_snapshot_and_the_events_after_it(self, unit: Units) -> None:
        """Taken at a multiple; the later load reads it and nothing before it, in two statements."""
        order = an_order()
        with unit() as store:
            repository = AggregateRepository(store, Order, snapshot_every=3)
            for _ in range(3):
                repository.save(order)
                order.add("a")
            assert store.load_snapshot("o-1").version == 3
            repository.save(order)
        with unit() as store:
            spy = Spy(store)
            loaded = AggregateRepository(spy, Order, snapshot_every=3).load("o-1")
        assert spy.calls == [("load_snapshot", "o-1"), ("load", "o-1", 3)]
        assert state_of(loaded) == state_of(order)
        assert loaded.version == 4

    def test_one_save_that_passes_several_multiples_takes_one_snapshot(self, unit: Units) -> None:
        """Of the state after it; an empty save takes none."""
        with unit() as store:
            spy = Spy(store)
            repository = AggregateRepository(spy, Order, snapshot_every=2)
            order = an_order(lines=6)
            repository.save(order)
            assert repository.save(order) == []
            assert spy.asked() == ["save", "save_snapshot"]
            assert store.load_snapshot("o-1").version == 7

    @pytest.mark.parametrize("stale", ["aggregate_type", "schema_version", "state"])
    def test_a_stale_snapshot_is_passed_over(
        self, unit: Units, stale: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of another class or form, or unreadable (which is logged): all events are loaded, and the next save takes a new one."""
        with unit() as store:
            AggregateRepository(store, Order).save(an_order(lines=4))
            wrong: dict[str, Any] = {"aggregate_type": "Basket", "schema_version": 7, "state": {"paid": "x"}}
            values: dict[str, Any] = {"aggregate_type": "Order", "state": {"paid": "99"}}
            store.save_snapshot(Snapshot(aggregate_id="o-1", version=2, **{**values, stale: wrong[stale]}))
        with unit() as store, caplog.at_level(logging.WARNING, "message_bus.eventsourcing"):
            repository = AggregateRepository(store, Order, snapshot_every=2)
            order = repository.load("o-1")
            assert (order.version, order.paid, len(order.lines)) == (5, Decimal(0), 4)
            order.pay(1)
            repository.save(order)
            assert (store.load_snapshot("o-1").version, store.load_snapshot("o-1").aggregate_type) == (
                6,
                "Order",
            )
        assert len(caplog.records) == (stale == "state")

    def test_an_event_that_cannot_be_stored_leaves_everything_as_it_was(self, unit: Units) -> None:
        """Nothing is saved, nothing is cleared."""
        order = Lenient()
        order.place("o-1")
        order.apply(OrderPaid(amount=None))  # type: ignore[arg-type]
        with unit() as store:
            with pytest.raises(InvalidMessage):
                AggregateRepository(store, Lenient).save(order)
            assert len(order.uncommitted_events) == 2
            assert store.load("o-1") == []


class TestInMemory(Repositories):
    @pytest.fixture
    def unit(self) -> Units:
        """One store for the whole test."""
        store = InMemoryEventStore()

        @contextmanager
        def open_one() -> Iterator[Any]:
            yield store

        return open_one


class TestDatabase(Repositories):
    @pytest.fixture
    def unit(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Units:
        """A store on a session that commits."""

        @contextmanager
        def open_one() -> Iterator[Any]:
            with session_factory.begin() as session:
                yield SQLAlchemyEventStore(session)

        return open_one

    def test_loading_and_saving_cost_two_statements_each(
        self, engine: sa.Engine, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """Snapshot and tail; stream and events. A snapshot is one more, in a savepoint."""
        counted: list[str] = []
        with session_factory() as session:
            session.connection()
            repository = AggregateRepository(SQLAlchemyEventStore(session), Order, snapshot_every=3)
            repository.save(an_order())

            def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
                counted.append(statement.split(maxsplit=1)[0])

            sa.event.listen(engine, "before_cursor_execute", count)
            order = repository.load("o-1")
            assert len(counted) == 2
            order.pay(1)
            repository.save(order)
            assert len(counted) == 4
            order.pay(1)
            repository.save(order)
            sa.event.remove(engine, "before_cursor_execute", count)
        assert [word for word in counted[6:] if word not in ("SAVEPOINT", "RELEASE")] == ["INSERT"]

    def test_the_transaction_is_the_callers(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """Rolled back: neither events nor snapshot nor outbox rows are there; the aggregate must be loaded again (G1, G10)."""
        with session_factory() as session:
            repository = AggregateRepository(
                SQLAlchemyEventStore(session), Order, snapshot_every=1, outbox=session
            )
            order = an_order()
            repository.save(order)
            session.rollback()
            assert SQLAlchemyOutBoxRepo(session).list_unprocessed() == []
            with pytest.raises(AggregateNotFound):
                repository.load("o-1")
            order.pay(1)
            with pytest.raises(ConcurrencyError):
                repository.save(order)

    def test_a_failing_snapshot_statement_leaves_the_transaction_usable(
        self,
        session_factory: sessionmaker[Session],
        tables: MessageBusTables,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The table of snapshots is gone: the events are saved and committed, what was lost is one line in the log."""
        with session_factory.begin() as session:
            session.execute(sa.text("DROP TABLE message_bus_snapshot"))
        with session_factory() as session, caplog.at_level(logging.WARNING, "message_bus.eventsourcing"):
            store = SQLAlchemyEventStore(session)
            order = an_order()
            assert len(AggregateRepository(store, Order, snapshot_every=1).save(order)) == 1
            session.commit()
            assert store.current_version("o-1") == 1
        assert order.uncommitted_events == []
        [line] = caplog.messages
        assert line.startswith("no snapshot of Order 'o-1' was taken: ")

    def test_events_go_to_the_outbox_in_the_same_transaction(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """In order, under the same ids, with the same correlation, keyed by the aggregate; and are delivered (G1, G3)."""
        seen: list[Event] = []
        bus = MessageBus(event_handlers={OrderPlaced: [seen.append], OrderPaid: [seen.append]})
        with session_factory() as session:
            repository = AggregateRepository(SQLAlchemyEventStore(session), Order, outbox=session)
            order = an_order()
            order.pay(1)
            with correlate("story-1"):
                recorded = repository.save(order)
            session.commit()
            rows = SQLAlchemyOutBoxRepo(session).list_unprocessed()
            assert [row.id for row in rows] == [each.id for each in recorded]
            assert {row.key for row in rows} == {"o-1"}
            assert {row.headers["correlation_id"] for row in rows} == {"story-1"}
            assert [each.correlation_id for each in recorded] == ["story-1", "story-1"]
            assert bus.process_outbox(session).ok
        assert seen == [OrderPlaced("o-1"), OrderPaid(Decimal(1))]

    def test_without_a_correlation_one_save_is_one_story(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """Log and outbox say the same."""
        with session_factory() as session:
            repository = AggregateRepository(SQLAlchemyEventStore(session), Order, outbox=session)
            recorded = repository.save(an_order(lines=1))
            session.commit()
            rows = SQLAlchemyOutBoxRepo(session).list_unprocessed()
        assert [row.headers["correlation_id"] for row in rows] == [each.correlation_id for each in recorded]

    def test_behind_the_outbox_events_are_caused_by_the_message_in_hand(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """A handler that saves with the session it was given: its events carry on correlation and causation."""

        def place(event: OrderPaid, context: Any) -> None:
            order = Order()
            order.place("o-2")
            store = SQLAlchemyEventStore(context.db_session)
            AggregateRepository(store, Order, outbox=context.db_session).save(order)

        bus = MessageBus(event_handlers={OrderPaid: [place]})
        with session_factory() as session:
            row = bus.register_outbox_message(session, OrderPaid(Decimal(1)))
            session.commit()
            assert bus.process_outbox(session, limit=1).ok
            [event] = SQLAlchemyEventStore(session).load("o-2")
            waiting = SQLAlchemyOutBoxRepo(session).get(event.envelope.id)
        assert event.envelope.causation_id == str(row.id)
        assert waiting is not None
        assert waiting.headers["causation_id"] == str(row.id)
        assert waiting.headers["correlation_id"] == event.envelope.correlation_id

    def test_a_key_of_the_events_class_wins(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """What the class says orders deliveries; the aggregate's id is for those that say nothing."""

        class Joined(Event, key="club"):
            club: str

        class Member(AggregateRoot):
            def on_joined(self, event: Joined) -> None: ...

        member = Member("m-1")
        member.apply(Joined(club="chess"))
        with session_factory() as session:
            AggregateRepository(SQLAlchemyEventStore(session), Member, outbox=session).save(member)
            session.commit()
            [row] = SQLAlchemyOutBoxRepo(session).list_unprocessed()
        assert row.key == "chess"

    def test_a_key_that_cannot_be_read_stores_nothing(
        self, session_factory: sessionmaker[Session], tables: MessageBusTables
    ) -> None:
        """Neither in the log nor in the outbox: whoever catches the error and commits has lost no message (G1)."""

        class Joined(Event, key="club_id", name="aggregates.unreadable"):
            club: str

            @property
            def club_id(self) -> str:
                raise LookupError

        class Member(AggregateRoot):
            def on_joined(self, event: Joined) -> None: ...

        member = Member("m-1")
        member.apply(Joined(club="chess"))
        with session_factory() as session:
            store = SQLAlchemyEventStore(session)
            with pytest.raises(InvalidMessage, match="key cannot be read"):
                AggregateRepository(store, Member, outbox=session).save(member)
            session.commit()
            assert (store.current_version("m-1"), len(member.uncommitted_events)) == (0, 1)

    def test_scoped_sessions_and_connections(self, engine: sa.Engine, tables: MessageBusTables) -> None:
        """Whatever store and outbox can stand on."""
        sessions = scoped_session(sessionmaker(engine))
        AggregateRepository(SQLAlchemyEventStore(sessions), Order, snapshot_every=1, outbox=sessions).save(
            an_order()
        )
        sessions.commit()
        sessions.remove()
        with engine.begin() as connection:
            store = SQLAlchemyEventStore(connection)
            repository = AggregateRepository(store, Order, snapshot_every=1, outbox=connection)
            order = repository.load("o-1")
            order.pay(1)
            repository.save(order)
        with Session(engine) as session:
            assert len(SQLAlchemyOutBoxRepo(session).list_unprocessed()) == 2
            assert SQLAlchemyEventStore(session).load_snapshot("o-1").version == 2  # type: ignore[union-attr]


# --- wiring --------------------------------------------------------------------------------------------------


def test_an_outbox_in_another_transaction_is_refused(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Another session, or a store that has none: an event could be stored and never sent, or the other way round."""
    with session_factory() as session, session_factory() as other:
        for store in (SQLAlchemyEventStore(other), InMemoryEventStore()):
            with pytest.raises(WiringError, match="does not share the session of the outbox"):
                AggregateRepository(store, Order, outbox=session)
        with pytest.raises(WiringError, match="no outbox"):
            AggregateRepository(InMemoryEventStore(), Order, outbox="here")


def test_an_outbox_of_ones_own() -> None:
    """In memory, and with a model that has no key."""

    class Row:
        def __init__(self, id: Any, type: str, message: str, payload: Any) -> None:  # noqa: A002
            self.id, self.type, self.message, self.payload = id, type, message, payload

    class Own(OutBoxRepoABC):
        rows: list[Row] = []  # noqa: RUF012

        def get_model(self) -> type[Row]:
            return Row

        def _add(self, outbox_message: Row) -> None:
            self.rows.append(outbox_message)

    memory, own = InMemoryOutBoxRepo(), Own()
    for outbox in (memory, own):
        recorded = AggregateRepository(InMemoryEventStore(), Order, outbox=outbox).save(an_order(lines=1))
        memory.save()
        rows = own.rows if outbox is own else memory.list_unprocessed()
        assert [row.id for row in rows] == [each.id for each in recorded]


def test_a_store_that_returns_nothing_cannot_feed_an_outbox() -> None:
    """Its events would be sent under other ids than they are stored under."""

    class Silent(InMemoryEventStore):
        def save(self, *args: Any, **kwargs: Any) -> Any:
            super().save(*args, **kwargs)
            return []

    order = an_order()
    with pytest.raises(WiringError, match="returned no RecordedEvent"):
        AggregateRepository(Silent(), Order, outbox=InMemoryOutBoxRepo()).save(order)
    assert len(order.uncommitted_events) == 1


def test_what_is_put_together_wrongly_is_refused_at_once() -> None:
    """No store, an async store, no aggregate class, a nonsensical number."""
    store = InMemoryEventStore()
    with pytest.raises(WiringError, match="is no event store, it has no save"):
        AggregateRepository(object(), Order)  # type: ignore[arg-type]
    with pytest.raises(WiringError, match="async store"):
        AggregateRepository(InMemoryAsyncEventStore(), Order)  # type: ignore[arg-type]
    for wrong in (an_order(), dict):
        with pytest.raises(WiringError, match="no class of aggregates"):
            AggregateRepository(store, wrong)  # type: ignore[arg-type, type-var]
    for number in (0, -1, 1.5, True):
        with pytest.raises(SettingsError, match="snapshot_every"):
            AggregateRepository(store, Order, snapshot_every=number)  # type: ignore[arg-type]


def test_an_aggregate_of_another_class_or_stream_is_refused() -> None:
    """And one without an id."""

    class Anonymous(AggregateRoot):
        def on_order_paid(self, event: OrderPaid) -> None: ...

    store = InMemoryEventStore()
    with pytest.raises(WiringError, match="repository of 'Anonymous' was given a 'Order'"):
        AggregateRepository(store, Anonymous).save(an_order())  # type: ignore[arg-type]
    nobody = Anonymous()
    nobody.apply(OrderPaid(Decimal(1)))
    with pytest.raises(WiringError, match="no aggregate_id yet"):
        AggregateRepository(store, Anonymous).save(nobody)
    repository = AggregateRepository(store, Order)
    repository.save(an_order())
    order = repository.load("o-1")
    order.place("o-2")
    with pytest.raises(WiringError, match="'Order' of stream 'o-1' calls itself 'o-2'"):
        repository.save(order)


def test_aggregates_of_classes_that_name_their_id_themselves() -> None:
    """A property, or a field, in place of the attribute of the base."""

    class ByProperty(AggregateRoot):
        number = 0

        @property
        def aggregate_id(self) -> str:  # type: ignore[override]
            return f"order-{self.number}"

        def on_order_placed(self, event: OrderPlaced) -> None:
            self.number = int(event.order_id)

    store = InMemoryEventStore()
    repository = AggregateRepository(store, ByProperty, snapshot_every=1)
    order = ByProperty()
    order.apply(OrderPlaced("7"))
    repository.save(order)
    assert repository.load("order-7").number == 7
