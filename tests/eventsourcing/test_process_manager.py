"""Process managers on real databases: state, commands and timeouts are committed with the checkpoint."""

# ruff: noqa: RUF012  (what a class declares is copied for each process, or only read)

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Command,
    Context,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    Registry,
    SQLAlchemyOutBoxRepo,
    Subscription,
    correlate,
)
from message_bus.eventsourcing.processes.process_manager import ProcessManager
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
from message_bus.eventsourcing.when import when
from message_bus.storage import process_statements
from message_bus.storage.tables import MessageBusTables as Tables

AT_ONCE = FixedDelay(0)


class OrderPlaced(Event, key="order_id"):
    """Begins a process."""

    order_id: int
    total: Decimal = Decimal(1)


class OrderPaid(Event, key="payment"):
    """Keyed otherwise than the process is correlated."""

    order_id: int
    payment: str = "p"


class PaymentOverdue(Event):
    """What a process sends to itself."""

    order_id: int


class RequestPayment(Command):
    """Sent when an order is placed."""

    order_id: int


class ShipOrder(Command):
    """Sent when it is paid."""

    order_id: int


class CancelOrder(Command):
    """Sent when it is not."""

    order_id: int


@dataclass
class Line:
    """A nested value of the state."""

    order_id: int
    total: Decimal


class Fulfilment(ProcessManager):
    """Waits for the money."""

    name = "fulfilment"
    log = "outbox"
    correlate = {OrderPlaced: "order_id", OrderPaid: lambda event: event.order_id, PaymentOverdue: "order_id"}
    timeouts = (PaymentOverdue,)
    subscription = Subscription(backoff=AT_ONCE)

    seen: int = 0
    lines: list[Line] = []
    paid: bool = False

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced) -> None:
        """Ask for the money, for a while."""
        self.seen += 1
        self.lines.append(Line(event.order_id, event.total))
        self.send(RequestPayment(order_id=event.order_id))
        self.timeout_in(timedelta(hours=1), PaymentOverdue(order_id=event.order_id))

    @when(OrderPaid)
    def was_paid(self, event: OrderPaid, context: Any) -> None:
        """Ship it."""
        self.seen += 1
        self.paid = True
        assert context.envelope.message is event
        self.send(ShipOrder(order_id=event.order_id))
        self.complete()

    @when(PaymentOverdue)
    def overdue(self, event: PaymentOverdue) -> None:
        """Give up."""
        self.send(CancelOrder(order_id=event.order_id))
        self.complete()


@pytest.fixture
def bus() -> MessageBus:
    """A bus that knows the commands, but does not handle them: they stay in the outbox to be looked at."""
    return MessageBus()


def register(bus: MessageBus, sessions: sessionmaker[Session], *messages: Event | Command) -> None:
    """One transaction."""
    with sessions.begin() as session:
        for message in messages:
            bus.register_outbox_message(session, message)


def process(bus: MessageBus, sessions: sessionmaker[Session], **options: Any) -> Any:
    """One run."""
    with sessions() as session:
        return bus.process_outbox(session, **options)


def make_due(sessions: sessionmaker[Session]) -> None:
    """An hour passes."""
    with sessions.begin() as session:
        session.execute(
            sa.update(MessageBusTables().schedule).values(due_at=datetime(2020, 1, 1, tzinfo=UTC))
        )


def sent(sessions: sessionmaker[Session]) -> list[tuple[str, int]]:
    """The commands in the outbox, in order."""
    with sessions() as session:
        t = MessageBusTables().outbox
        rows = session.execute(
            sa.select(t.c.message, t.c.payload).where(t.c.type == "COMMAND").order_by(t.c.position)
        )
        return [(name, payload["order_id"]) for name, payload in rows]


def stored(sessions: sessionmaker[Session]) -> list[tuple[str, str, dict[str, Any]]]:
    """(key, state, data) of every process."""
    with sessions() as session:
        t = MessageBusTables().process
        return [
            tuple(row) for row in session.execute(sa.select(t.c.key, t.c.state, t.c.data).order_by(t.c.key))
        ]


def test_a_process_from_its_first_message_to_its_end(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """State is kept between messages, commands are sent, and what comes after the end is passed over."""
    bus.set_outbox_handlers([Fulfilment()])
    register(bus, session_factory, OrderPlaced(order_id=1, total=Decimal("2.50")), OrderPaid(order_id=1))
    report = process(bus, session_factory)
    assert sent(session_factory) == [("RequestPayment", 1), ("ShipOrder", 1)]
    [(key, state, data)] = stored(session_factory)
    assert (key, state) == ("1", "completed")
    assert data == {"seen": 2, "lines": [{"order_id": 1, "total": "2.50"}], "paid": True}
    assert report.ok
    make_due(session_factory)
    assert process(bus, session_factory).passed_over == 1
    register(bus, session_factory, OrderPlaced(order_id=1))
    assert process(bus, session_factory).passed_over == 1
    assert sent(session_factory) == [("RequestPayment", 1), ("ShipOrder", 1)]


def test_a_late_timeout_is_ignored_and_said_so(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    """A completed process passes its late timeout over, with a debug line."""
    bus.set_outbox_handlers([Fulfilment()])
    register(bus, session_factory, OrderPaid(order_id=3), PaymentOverdue(order_id=3))
    with caplog.at_level(logging.DEBUG, "message_bus.eventsourcing"):
        assert process(bus, session_factory).passed_over == 1
    assert "'PaymentOverdue' came for a process that has completed" in caplog.text
    assert sent(session_factory) == [("ShipOrder", 3)]


def test_a_timeout_comes_back_when_it_is_due(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """It waits in the schedule, and then finds the process that asked for it."""
    bus.set_outbox_handlers([Fulfilment()])
    register(bus, session_factory, OrderPlaced(order_id=1), OrderPlaced(order_id=2))
    process(bus, session_factory)
    register(bus, session_factory, OrderPaid(order_id=2))
    process(bus, session_factory)
    make_due(session_factory)
    process(bus, session_factory)
    assert sorted(sent(session_factory)) == [
        ("CancelOrder", 1),
        ("RequestPayment", 1),
        ("RequestPayment", 2),
        ("ShipOrder", 2),
    ]


def test_what_is_sent_inherits_correlation_and_causation(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """Commands and timeouts are caused by the message in hand, and belong to its story."""
    bus.set_outbox_handlers([Fulfilment()])
    with session_factory.begin() as session:
        row = bus.register_outbox_message(session, OrderPlaced(order_id=1))
    process(bus, session_factory)
    with session_factory() as session:
        t = tables.outbox
        found = [*session.scalars(sa.select(t.c.headers).where(t.c.message == "RequestPayment"))]
        found += session.scalars(sa.select(tables.schedule.c.headers)).all()
    assert found == [{"correlation_id": str(row.id), "causation_id": str(row.id)}] * 2


def test_a_batch_that_is_repeated_message_by_message_doubles_nothing(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """G5: a poisonous message rolls a batch back; state and commands of the others are there once."""

    class Batched(Fulfilment):
        """Fails for order 13."""

        name = "batched"
        subscription = Subscription(messages_per_commit=10, max_attempts=1, backoff=AT_ONCE)
        attempts: int = 0

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """Count, and ask for the money."""
            super().placed(event)
            if event.order_id == 13:
                raise ValueError("13")

    bus.set_outbox_handlers([Batched()])
    register(bus, session_factory, *(OrderPlaced(order_id=n) for n in (1, 2, 13, 1)))
    report = process(bus, session_factory)
    assert report.dead == 1
    assert sent(session_factory) == [("RequestPayment", 1), ("RequestPayment", 2), ("RequestPayment", 1)]
    assert [(key, data["seen"]) for key, _, data in stored(session_factory)] == [("1", 2), ("2", 1)]


def test_a_failing_method_leaves_nothing(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """G5: no row, no command, no timeout of an attempt that failed; the next one is as if it were the first."""
    failures = [ValueError("once")]

    class Failing(Fulfilment):
        """Fails once, after everything was decided."""

        name = "failing"
        subscription = Subscription(backoff=AT_ONCE)

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """Fail at first."""
            super().placed(event)
            if failures:
                raise failures.pop()

    bus.set_outbox_handlers([Failing()])
    register(bus, session_factory, OrderPlaced(order_id=1))
    process(bus, session_factory)
    assert (sent(session_factory), stored(session_factory)) == ([], [])
    process(bus, session_factory)
    assert sent(session_factory)[:1] == [("RequestPayment", 1)]
    assert [data["seen"] for _, _, data in stored(session_factory)] == [1]


@pytest.mark.postgresql
@pytest.mark.parametrize("in_place", [True, False], ids=["locked", "rule taken out"])
def test_two_subscriptions_meet_the_first_messages_of_one_process(
    session_factory: sessionmaker[Session], tables: Tables, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions with two messages of one process, new to both: one after the other, no update is lost."""
    if not in_place:
        lock = process_statements.lock(tables)
        unlocked = lock.with_for_update(read=False)
        unlocked._for_update_arg = None
        monkeypatch.setattr(process_statements, "lock", lambda tables: unlocked)
    manager = Fulfilment()
    with session_factory.begin() as session:
        session.execute(
            sa.insert(tables.process).values(name="fulfilment", key="1", data={}, schema_version=1)
        )
    first, second = session_factory(), session_factory()
    both_have_read = threading.Barrier(2)
    reacted = manager.react

    def react(*args: Any) -> Any:
        if not in_place:
            both_have_read.wait(timeout=30)
        return reacted(*args)

    monkeypatch.setattr(manager, "react", react)

    def one(session: Session, message: Event) -> None:
        context = Context(
            db_session=session, outbox=SQLAlchemyOutBoxRepo(session), envelope=_envelope(message)
        )
        manager._step(session, tables, message, context)
        session.commit()
        session.close()

    threads = [
        threading.Thread(target=one, args=(session, OrderPlaced(order_id=1))) for session in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(_, _, data)] = stored(session_factory)
    assert data["seen"] == (2 if in_place else 1)


def _envelope(message: Event) -> Any:
    from message_bus.messages.envelope import new_envelope

    return new_envelope(message)


@pytest.mark.postgresql
def test_a_process_begun_by_two_at_once_is_begun_once(
    session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """The second INSERT waits for the first transaction, and then finds its state."""
    manager = Fulfilment()
    first = session_factory()

    def step(session: Session) -> None:
        message = OrderPlaced(order_id=1)
        context = Context(
            db_session=session, outbox=SQLAlchemyOutBoxRepo(session), envelope=_envelope(message)
        )
        manager._step(session, tables, message, context)

    def other() -> None:
        with session_factory() as session:
            step(session)
            session.commit()

    step(first)
    thread = threading.Thread(target=other)
    thread.start()
    first.commit()
    first.close()
    thread.join()
    [(_, _, data)] = stored(session_factory)
    assert data["seen"] == 2


async def test_on_an_async_bus(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: Tables
) -> None:
    """The same class on an AsyncMessageBus: its statements run on the AsyncSession."""
    bus = AsyncMessageBus()
    bus.set_outbox_handlers([Fulfilment()])
    async with async_session_factory() as session:
        bus.register_outbox_message(session, OrderPlaced(order_id=1))
        bus.register_outbox_message(session, OrderPaid(order_id=1))
        await session.commit()
        report = await bus.process_outbox(session)
        assert report.ok
        t = async_tables.outbox
        rows = await session.scalars(
            sa.select(t.c.message).where(t.c.type == "COMMAND").order_by(t.c.position)
        )
        assert rows.all() == ["RequestPayment", "ShipOrder"]
        states = await session.scalars(sa.select(async_tables.process.c.state))
        assert states.all() == ["completed"]


def test_its_commands_reach_their_handlers(session_factory: sessionmaker[Session], tables: Tables) -> None:
    """Beside the dispatch subscription: what the process sends is handled by the bus, its timeouts are passed over there."""
    handled: list[int] = []
    bus = MessageBus(
        command_handlers={
            RequestPayment: lambda command: handled.append(command.order_id),
            CancelOrder: lambda command: handled.append(-command.order_id),
        }
    )
    bus.set_outbox_handlers([Fulfilment(), DispatchOutboxHandler()])
    register(bus, session_factory, OrderPlaced(order_id=1))
    for _ in range(2):
        assert process(bus, session_factory).ok
    make_due(session_factory)
    for _ in range(2):
        assert process(bus, session_factory).ok
    assert handled == [1, -1]


def test_state_of_an_older_version_is_upgraded(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """`upgrade_state` gets what the old class stored; attributes that are new take their default."""

    class Renamed(ProcessManager):
        """Was Fulfilment once."""

        name = "fulfilment"
        log = "outbox"
        schema_version = 2
        correlate = {OrderPlaced: "order_id"}
        orders: int = 0
        note: str = "new"

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """Count."""
            self.orders += 1

        @classmethod
        def upgrade_state(cls, data: dict[str, Any], from_version: int) -> dict[str, Any]:
            """It was called `seen`."""
            assert from_version == 1
            return {"orders": data["seen"]}

    bus.set_outbox_handlers([Fulfilment()])
    register(bus, session_factory, OrderPlaced(order_id=1))
    process(bus, session_factory)
    register(bus, session_factory, OrderPlaced(order_id=1))
    newer = MessageBus()
    newer.register_messages(RequestPayment)
    newer.set_outbox_handlers([Renamed()])
    assert process(newer, session_factory).ok
    assert [data for _, _, data in stored(session_factory)] == [{"orders": 2, "note": "new"}]
    # and the old class, still running somewhere, waits for its own end
    register(bus, session_factory, OrderPlaced(order_id=1))
    report = process(bus, session_factory)
    assert report.retrying == 1
    with session_factory() as session:
        [error] = session.scalars(sa.select(tables.delivery.c.error))
    assert "written by a newer version" in error


def test_upcasters_of_a_registry_are_used(session_factory: sessionmaker[Session], tables: Tables) -> None:
    """An old payload is upcast by the registry that is given."""

    class Renamed(Event, name="OrderPlaced", version=2, key="order"):
        """`order_id` was its name."""

        order: int

    class Counting(ProcessManager):
        """Counts."""

        log = "outbox"
        correlate = {Renamed: "order"}
        seen: int = 0

        @when(Renamed)
        def placed(self, event: Renamed) -> None:
            """Count."""
            self.seen += 1

    registry = Registry()
    registry.add_upcaster(Renamed, lambda data: {"order": data["order_id"]}, from_version=1)
    register(MessageBus(), session_factory, OrderPlaced(order_id=5))
    bus = MessageBus()
    bus.set_outbox_handlers([Counting(registry=registry)])
    assert process(bus, session_factory).ok
    assert [(key, data) for key, _, data in stored(session_factory)] == [("5", {"seen": 1})]


def test_a_message_of_no_process_is_a_dead_letter(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """G7: without a value to correlate by, no attempt would help."""

    class Signed(Event):
        """Signed by somebody, perhaps."""

        by: str | None = None

    class Signing(ProcessManager):
        """One a person."""

        log = "outbox"
        correlate = {Signed: "by"}

        @when(Signed)
        def signed(self, event: Signed) -> None:
            """Nothing."""

    bus.set_outbox_handlers([Signing()])
    register(bus, session_factory, Signed(), Signed(by="ann"))
    report = process(bus, session_factory)
    assert (report.dead, report.delivered) == (1, 1)


def test_timeouts_beside_the_event_log_have_a_subscription_of_their_own() -> None:
    """The manager has a companion on the outbox, which has the rest of its settings from it."""

    class OnEvents(Fulfilment):
        """Reads the event log."""

        name = "on events"
        log = "events"  # type: ignore[assignment]

    first = OnEvents()
    [second] = first.companions()
    assert (first.log, second.log) == ("events", "outbox")
    assert first.subscription is not None
    assert second.subscription is not None
    assert first.subscription.types == (OrderPlaced, OrderPaid)
    assert second.subscription.types == (PaymentOverdue,)
    assert (first.subscription.name, second.subscription.name) == ("on events", "on events timeouts")
    assert second.subscription.start == "beginning"
    assert second.default_mode == "transactional"
    assert list(Fulfilment().companions()) == []

    class Without(OnEvents):
        """Never asks to be woken."""

        timeouts = ()  # type: ignore[assignment]

    assert list(Without().companions()) == []
    assert Without().subscription.types == (OrderPlaced, OrderPaid, PaymentOverdue)


def test_the_companion_handles_timeouts(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """A timeout that the companion reads reaches the process that the manager has begun."""

    class Both(Fulfilment):
        """As if on the event log."""

        name = "both"
        log = "events"  # type: ignore[assignment]

    bus.set_outbox_handlers([Both()])
    register(bus, session_factory, PaymentOverdue(order_id=1))
    assert process(bus, session_factory).ok
    assert sent(session_factory) == [("CancelOrder", 1)]
    assert [row[:2] for row in stored(session_factory)] == [("1", "completed")]


def test_tables_of_another_name(
    bus: MessageBus, session_factory: sessionmaker[Session], engine: sa.Engine
) -> None:
    """State and what is sent go where the repository's tables are."""
    own = Tables(prefix="own_")
    own.create_all(engine)
    try:
        bus.set_outbox_handlers([Fulfilment()])
        with session_factory.begin() as session:
            bus.register_outbox_message(SQLAlchemyOutBoxRepo(session, tables=own), OrderPlaced(order_id=1))
        with session_factory() as session:
            assert bus.process_outbox(SQLAlchemyOutBoxRepo(session, tables=own)).ok
            assert session.scalars(sa.select(own.process.c.key)).all() == ["1"]
            assert session.scalars(sa.select(own.schedule.c.message)).all() == ["PaymentOverdue"]
            session.rollback()
    finally:
        own.drop_all(engine)


# --- on the event log -----------------------------------------------------------------------------------------------------


class OnEvents(Fulfilment):
    """Reads the event log; its timeouts come through the outbox."""

    name = "on events"
    log = "events"  # type: ignore[assignment]
    subscription = Subscription(backoff=AT_ONCE)


def save(sessions: sessionmaker[Session], stream: str, *events: Event) -> None:
    """Events of one stream, in one transaction."""
    with sessions.begin() as session:
        SQLAlchemyEventStore(session).save(stream, events)


def test_events_and_timeouts_meet_in_one_process(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """Events come from the event log, timeouts from the outbox: one row, whatever the subscription."""
    bus.set_outbox_handlers([OnEvents()])
    save(session_factory, "order-1", OrderPlaced(order_id=1))
    save(session_factory, "order-2", OrderPlaced(order_id=2), OrderPaid(order_id=2))
    report = process(bus, session_factory)
    assert report.ok
    assert set(report.subscriptions) == {"on events", "on events timeouts"}
    assert sent(session_factory) == [("RequestPayment", 1), ("RequestPayment", 2), ("ShipOrder", 2)]
    make_due(session_factory)
    report = process(bus, session_factory)
    assert (report.delivered, report.passed_over) == (1, 1)
    assert sent(session_factory)[3:] == [("CancelOrder", 1)]
    save(session_factory, "order-1", OrderPaid(order_id=1))
    assert process(bus, session_factory).passed_over == 1
    assert [(key, state) for key, state, _ in stored(session_factory)] == [
        ("1", "completed"),
        ("2", "completed"),
    ]


def test_timeouts_that_are_not_declared(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """Any event of a method may be a timeout; one that is in both logs is not handled twice."""

    class Undeclared(OnEvents):
        """Says nothing of its timeouts."""

        name = "undeclared"
        timeouts = None  # type: ignore[assignment]

    bus.set_outbox_handlers([Undeclared()])
    save(session_factory, "order-1", OrderPlaced(order_id=1))
    register(bus, session_factory, OrderPlaced(order_id=1), PaymentOverdue(order_id=1))  # for somebody else
    report = process(bus, session_factory)
    assert (report.delivered, report.passed_over) == (1, 2)
    assert [data["seen"] for _, _, data in stored(session_factory)] == [1]
    make_due(session_factory)
    assert process(bus, session_factory).delivered == 1
    assert sent(session_factory) == [("RequestPayment", 1), ("CancelOrder", 1)]


def test_what_an_event_brings_about_belongs_to_its_story(
    bus: MessageBus, session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """Commands inherit correlation and causation from an event of the event log, too."""
    bus.set_outbox_handlers([OnEvents()])
    with correlate("web-7"):
        save(session_factory, "order-1", OrderPlaced(order_id=1))
    process(bus, session_factory)
    with session_factory() as session:
        event = session.scalars(sa.select(tables.event.c.id)).one()
        headers = session.scalars(sa.select(tables.outbox.c.headers)).one()
    assert headers == {"correlation_id": "web-7", "causation_id": str(event)}


async def test_on_the_event_log_of_an_async_bus(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: Tables
) -> None:
    """The same on an AsyncMessageBus."""
    bus = AsyncMessageBus()
    bus.set_outbox_handlers([OnEvents()])
    async with async_session_factory() as session:
        await AsyncSQLAlchemyEventStore(session).save(
            "order-1", [OrderPlaced(order_id=1), OrderPaid(order_id=1)]
        )
        await session.commit()
        assert (await bus.process_outbox(session)).ok
        t = async_tables.outbox
        rows = await session.scalars(sa.select(t.c.message).order_by(t.c.position))
        assert rows.all() == ["RequestPayment", "ShipOrder"]


def seen_after_a_death(sessions: sessionmaker[Session], *, apart: bool) -> int:
    """How often a message was counted whose first attempt died; `apart`: the state has a transaction of its own."""
    deaths = [ValueError("between the state and the checkpoint")]

    class Dying(Fulfilment):
        """Its first attempt dies."""

        name = "dying"
        subscription = Subscription(backoff=AT_ONCE)

        def _step(self, session: Session, *args: Any) -> Any:
            if apart:
                with sessions.begin() as own:
                    super()._step(own, *args)
            else:
                super()._step(session, *args)
            if deaths:
                raise deaths.pop()

    bus = MessageBus()
    bus.set_outbox_handlers([Dying()])
    register(bus, sessions, OrderPlaced(order_id=1))
    for _ in range(2):
        process(bus, sessions)
    [(_, _, data)] = stored(sessions)
    return int(data["seen"])


def test_an_attempt_that_dies_after_its_state_was_written(
    session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """G5: state and checkpoint are committed together, so the message counts once."""
    assert seen_after_a_death(session_factory, apart=False) == 1


@pytest.mark.postgresql
def test_with_the_rule_taken_out_it_counts_twice(
    session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """State in a transaction of its own: the test before this one would see it."""
    assert seen_after_a_death(session_factory, apart=True) == 2


@pytest.mark.slow
@pytest.mark.postgresql
def test_two_subscriptions_of_one_process_at_once(
    session_factory: sessionmaker[Session], tables: Tables
) -> None:
    """Workers of the event log and of the outbox run side by side on the same processes: no update is lost."""

    class Counting(ProcessManager):
        """Counts what comes, wherever it comes from."""

        name = "counting"
        correlate = {OrderPlaced: "order_id", PaymentOverdue: "order_id"}
        timeouts = (PaymentOverdue,)
        subscription = Subscription(backoff=AT_ONCE)
        events: int = 0
        late: int = 0

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            """One more."""
            self.events += 1

        @when(PaymentOverdue)
        def overdue(self, event: PaymentOverdue) -> None:
            """One more."""
            self.late += 1

    bus = MessageBus()
    bus.set_outbox_handlers([Counting()])
    process(bus, session_factory)
    for number in range(100):
        save(session_factory, f"order-{number % 5}", OrderPlaced(order_id=number % 5))
        register(bus, session_factory, PaymentOverdue(order_id=number % 5))

    reports: list[Any] = []
    threads = [
        threading.Thread(target=lambda name=name: reports.append(process(bus, session_factory, only=[name])))
        for name in ("counting", "counting timeouts")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.ok for report in reports] == [True, True]
    while any(process(bus, session_factory).delivered for _ in range(2)):
        pass
    assert [data for _, _, data in stored(session_factory)] == [{"events": 20, "late": 20}] * 5
