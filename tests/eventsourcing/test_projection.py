"""Projections as subscriptions: what they write and where they stand is one commit, in both logs and on both databases."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncRelay,
    MessageBus,
    MessageBusTables,
    Reject,
    Relay,
    SettingsError,
    Subscription,
)
from message_bus.delivery.changes import Recorder
from message_bus.errors import AsyncHandlerOnSyncBus, ProjectionNotReady
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projection_state import poll_pauses
from message_bus.eventsourcing.when import when
from message_bus.messages.envelope import new_envelope
from message_bus.messages.registry import Registry
from message_bus.repositories.outbox_message import OutboxMessage
from tests.eventsourcing.projecting import (
    METADATA,
    SEEN,
    TOTALS,
    Advertised,
    EventTotals,
    OrderCancelled,
    OrderPlaced,
    OutboxTotals,
    Shop,
    Totals,
    append_events,
    fill,
    projection_of,
)


@pytest.fixture(params=["events", "outbox"])
def shop(
    request: pytest.FixtureRequest, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> Shop:
    """A shop whose projection reads the event log or the outbox."""
    made = Shop(session_factory, tables, request.param)
    made.run_as(projection_of(request.param))
    return made


@pytest.fixture
def events(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Shop:
    """A shop whose projection reads the event log."""
    made = Shop(session_factory, tables, "events")
    made.run_as(projection_of("events"))
    return made


# --- what it does -----------------------------------------------------------------------------------------------------


def test_events_become_rows(shop: Shop) -> None:
    """Each event is handled once, in order, and the subscription stands at the last (G4, G5)."""
    fill(shop, 250)
    report = shop.process()
    assert (report.delivered, report.ok) == (250, True)
    assert shop.totals() == shop.expected()
    assert shop.checkpoint() == shop.high()
    assert shop.generations() == [(0, 1, "live")]


def test_what_nobody_handles_is_not_read(shop: Shop) -> None:
    """A type without a method does not reach it, and is passed by."""
    shop.write(Advertised(slogan="a"), OrderPlaced(customer="ann", cents=5), Advertised(slogan="b"))
    assert shop.process().delivered == 1
    assert shop.checkpoint() == shop.high() == 3
    assert shop.totals() == {"ann": (5, 1)}


def test_a_hundred_messages_share_a_commit(shop: Shop) -> None:
    """By default; each commit checks once that the tables are its own."""
    assert shop.projection.subscription is not None
    assert shop.projection.subscription.messages_per_commit == 100
    fill(shop, 101)
    looks: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        if "message_bus_projection" in statement and statement.startswith("SELECT"):
            looks.append(statement)

    fill(shop, 0)
    shop.process(limit=1)  # notes it down as live
    engine = shop.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", note)
    shop.process()
    sa.event.remove(engine, "before_cursor_execute", note)
    assert len(looks) == 1
    assert shop.totals() == shop.expected()


@pytest.mark.parametrize("log", ["events", "outbox"])
def test_a_relay_runs_it(
    log: str, session_factory: sessionmaker[Session], tables: MessageBusTables, engine: sa.Engine
) -> None:
    """`Relay(projections=[...])`; `wait_for` reads its own writes."""
    shop = Shop(session_factory, tables, log)
    projection = projection_of(log)
    with Relay(shop.bus, engine, projections=[projection], poll=timedelta(milliseconds=50)):
        shop.write(OrderPlaced(customer="ann", cents=5))
        with shop.sessions() as session:
            projection.wait_for(session, shop.high(), 30)
        assert shop.totals() == {"ann": (5, 1)}


def test_upcasters_are_given_with_a_registry() -> None:
    """An old payload under an old name reaches the method as an event of today."""

    class Renamed(OrderPlaced, name="shop.Renamed", version=2, renamed_from="shop.Old"):
        pass

    class Reading(Projection):
        tables = TOTALS
        seen: list[Any] = []  # noqa: RUF012

        @when(Renamed)
        def on_renamed(self, event: Renamed) -> None:
            self.seen.append(event)

    registry = Registry()
    registry.add_upcaster(
        Renamed, lambda old: {"customer": old["who"], "cents": old["cents"]}, from_version=1
    )
    reading = Reading(registry=registry)
    assert reading.message_names == ("shop.Renamed", "shop.Old")
    row = OutboxMessage(
        type="EVENT", message="shop.Old", version=1, payload={"who": "ann", "cents": 5}, position=3
    )
    reading.building(1).handle(row, {"db_session": None})
    assert reading.seen == [Renamed(customer="ann", cents=5)]


class AsyncTotals(Projection):
    """The read model with methods that are awaited."""

    name = "totals"
    tables = {"totals": TOTALS, "seen": SEEN}  # noqa: RUF012

    @when(OrderPlaced)
    async def placed(self, event: OrderPlaced, context: Any) -> None:
        """One more."""
        totals, session = self.table("totals"), context.db_session
        await session.execute(sa.delete(totals).where(totals.c.customer == event.customer))
        await session.execute(
            sa.insert(totals).values(
                customer=event.customer, cents=event.cents, orders=1, last_position=context.envelope.position
            )
        )
        await session.execute(
            sa.insert(self.table("seen")).values(position=context.envelope.position, what=event.customer)
        )


async def test_async_handlers_are_awaited(
    async_engine: AsyncEngine,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """On an AsyncMessageBus; lag and wait_for are awaited as well."""
    projection = AsyncTotals()
    bus = AsyncMessageBus()
    bus.set_outbox_handlers([projection])
    async with async_session_factory() as session:
        await (await session.connection()).run_sync(METADATA.create_all)
        await session.run_sync(append_events, async_tables, OrderPlaced(customer="ann", cents=5))
        await session.commit()
        assert (await projection.lag(session)).messages == 1
        await session.commit()
        assert (await bus.process_outbox(session)).delivered == 1
        lag = await projection.lag(session)
        assert (lag.messages, lag.age, lag.position) == (0, timedelta(0), 1)
        await session.commit()
        await projection.wait_for(session, 1)
        with pytest.raises(TimeoutError, match=r"stands at 1 .*is its relay running"):
            await projection.wait_for(session, 2, 0.02)
        assert (await session.execute(sa.select(TOTALS.c.cents))).scalar_one() == 5


async def test_an_async_relay_runs_it(
    async_engine: AsyncEngine,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """`AsyncRelay(projections=[...])`."""
    projection = AsyncTotals()
    async with async_session_factory() as session:
        await (await session.connection()).run_sync(METADATA.create_all)
        await session.commit()
        poll = timedelta(milliseconds=50)
        async with AsyncRelay(AsyncMessageBus(), async_engine, projections=[projection], poll=poll):
            await session.run_sync(append_events, async_tables, OrderPlaced(customer="ann", cents=5))
            await session.commit()
            await projection.wait_for(session, 1, 30)
        assert (await session.execute(sa.select(TOTALS.c.cents))).scalar_one() == 5


@pytest.mark.sqlite
def test_async_handlers_are_refused_on_a_sync_bus(shop: Shop) -> None:
    """When they are registered, not when the first event comes."""
    with pytest.raises(AsyncHandlerOnSyncBus, match="AsyncTotals"):
        MessageBus().set_outbox_handlers([AsyncTotals()])


# --- how far it is ----------------------------------------------------------------------------------------------------


def test_lag_counts_what_it_reads(shop: Shop) -> None:
    """Messages of its types behind its checkpoint, and since when; none for others, none when it is done."""
    shop.write(
        OrderPlaced(customer="ann", cents=5), Advertised(slogan="a"), OrderPlaced(customer="bob", cents=5)
    )
    with shop.sessions() as session:
        lag = shop.projection.lag(session)
        assert (lag.messages, lag.position) == (2, 0)
        assert lag.age >= timedelta(0)
    shop.process()
    with shop.sessions() as session:
        lag = shop.projection.lag(session)
    assert (lag.messages, lag.position, lag.age) == (0, 3, timedelta(0))


def test_wait_for_says_where_it_stands(shop: Shop) -> None:
    """TimeoutError: never run, behind, paused, or something has failed."""
    shop.write(OrderPlaced(customer="ann", cents=5))

    def waited(position: int) -> str:
        with shop.sessions() as session, pytest.raises(TimeoutError) as caught:
            shop.projection.wait_for(session, position, 0.01)
        return str(caught.value)

    assert "it has never run" in waited(1)
    shop.process()
    with shop.sessions() as session:
        shop.projection.wait_for(session, 1, 0)
    assert "it stands at 1 (" in waited(2)
    s = shop.tables.subscription
    with shop.sessions.begin() as session:
        session.execute(sa.update(s).values(state="paused"))
    assert "it stands at 1 and is paused" in waited(2)
    with shop.sessions.begin() as session:
        session.execute(sa.update(s).values(state="active"))
    shop.projection.trouble.of["bob"] = [ValueError()]
    shop.write(OrderPlaced(customer="bob", cents=5), OrderPlaced(customer="ann", cents=5))
    shop.process(limit=2)
    assert shop.checkpoint() == 3
    assert "something up to there has failed" in waited(2)
    assert "something up to there has failed" in waited(3)
    shop.process()
    with shop.sessions() as session:
        shop.projection.wait_for(session, 3, 0)


def test_wait_for_a_dead_letter_itself_ends_but_not_for_what_follows(shop: Shop) -> None:
    """What is dead will never be in the tables; later positions do not wait for it."""
    shop.projection.trouble.of["ann"] = [Reject()]
    shop.write(OrderPlaced(customer="ann", cents=5), OrderPlaced(customer="bob", cents=5))
    shop.process()
    with shop.sessions() as session:
        shop.projection.wait_for(session, 2, 0)
        with pytest.raises(TimeoutError, match="has failed"):
            shop.projection.wait_for(session, 1, 0.01)


def test_wait_for_looks_past_the_sessions_own_transaction(events: Shop) -> None:
    """A transaction that began before, with a snapshot of its own, does not hide that the projection has come further."""
    events.write(OrderPlaced(customer="ann", cents=5))
    engine = events.sessions.kw["bind"]
    with Session(engine.execution_options(sqlite_begin="DEFERRED")) as session:
        if engine.dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert session.scalar(sa.select(sa.func.count()).select_from(TOTALS)) == 0
        events.process()
        events.projection.wait_for(session, 1, 0)
        assert session.in_transaction()


# --- version and bookkeeping ------------------------------------------------------------------------------------------


class Version2(EventTotals):
    """Newer code."""

    name = "totals"
    version = 2


def test_newer_code_waits_until_it_is_rebuilt(events: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """It handles nothing and burns no attempt; the log says what to do; once it is swapped it goes on."""
    fill(events, 20)
    events.process()
    newer = Version2()
    events.run_as(newer)
    fill(events, 20)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        report = events.process()
        assert report.unavailable == ("totals",)
        assert (report.retrying, report.dead, report.delivered) == (0, 0, 0)
    said = [r.getMessage() for r in caplog.records if r.name == "message_bus.eventsourcing"]
    [line] = said
    assert line.startswith(
        "projection 'totals' waits: it is version 2 here, but its tables are version 1 (rebuild"
    )
    done = events.admin.rebuild(newer)
    assert done.verification.why_not == "the live tables are version 1"
    assert done.ok
    events.admin.swap(newer)
    events.process()
    assert events.totals() == events.expected()
    assert events.generations() == [(0, 1, "retired"), (1, 2, "live")]
    events.run_as(projection_of("events"))
    fill(events, 1)
    assert events.process().unavailable == ("totals",)
    assert events.totals() != events.expected()


@pytest.mark.parametrize("log", ["events"])
def test_without_its_tables_it_waits(
    log: str, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A migration that has not run yet makes no dead letters."""
    shop = Shop(session_factory, tables, log)
    shop.run_as(projection_of(log))
    shop.write(OrderPlaced(customer="ann", cents=5))
    with shop.sessions.begin() as session:
        TOTALS.drop(session.connection())
    assert shop.process().unavailable == ("totals",)
    with shop.sessions.begin() as session:
        METADATA.create_all(session.connection())
    assert shop.process().delivered == 1


def test_the_context_knows_the_event(shop: Shop) -> None:
    """id and position are those of the log."""
    shop.write(OrderPlaced(customer="ann", cents=5))
    shop.process()
    with shop.sessions() as session:
        assert session.scalar(sa.select(TOTALS.c.last_position)) == 1


# --- inline -----------------------------------------------------------------------------------------------------------


def recorded(*events: Any, first: int = 1) -> list[Any]:
    """Events as a store returns them: an envelope with a position is enough."""
    return [replace(new_envelope(event), position=first + i) for i, event in enumerate(events)]


def test_inline_it_lives_and_dies_with_the_writers_transaction(events: Shop) -> None:
    """Its rows are there when the writer commits, and not if it does not (G10)."""
    inline = EventTotals(inline=True)
    with events.sessions() as session:
        inline.apply(session, recorded(OrderPlaced(customer="ann", cents=5), Advertised(slogan="a")))
        session.rollback()
        assert events.totals() == {}
        inline.apply(session, recorded(OrderPlaced(customer="ann", cents=5)))
        session.commit()
        assert inline.lag(session).messages == 0
        inline.wait_for(session, 1_000)
    assert events.totals() == {"ann": (5, 1)}
    assert events.generations() == [(0, 1, "live")]


async def test_inline_with_an_async_session(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """`apply` is awaited then."""
    inline = AsyncTotals(inline=True)
    async with async_session_factory() as session:
        await (await session.connection()).run_sync(METADATA.create_all)
        await inline.apply(session, recorded(OrderPlaced(customer="ann", cents=5)))
        await session.commit()
        assert (await session.execute(sa.select(TOTALS.c.cents))).scalar_one() == 5
        await session.commit()


def test_inline_or_a_subscription_not_both(events: Shop) -> None:
    """Refused where it is set on a bus, where it is applied, and by the database between two programs."""
    inline = EventTotals(inline=True)
    with pytest.raises(SettingsError, match="it is inline"):
        MessageBus().set_outbox_handlers([inline])
    with events.sessions() as session:
        with pytest.raises(SettingsError, match="it is a subscription"):
            events.projection.apply(session, recorded(OrderPlaced(customer="ann", cents=5)))
        events.write(OrderPlaced(customer="ann", cents=5))
        events.process()
        with pytest.raises(ProjectionNotReady, match="filled by subscription 'totals' already"):
            inline.apply(session, recorded(OrderPlaced(customer="ann", cents=5)))


def test_a_subscription_does_not_take_over_what_is_inline(events: Shop) -> None:
    """The other way round it waits, with nothing handled twice."""
    with events.sessions.begin() as session:
        EventTotals(inline=True).apply(session, recorded(OrderPlaced(customer="ann", cents=5)))
    events.write(OrderPlaced(customer="ann", cents=5))
    assert events.process().unavailable == ("totals",)
    assert events.totals() == {"ann": (5, 1)}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_a_class_is_said_at_once() -> None:
    """At the class statement."""
    parent = sa.Table("parent", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    child = sa.Table(
        "c" * 60,
        parent.metadata,
        sa.Column("id", sa.ForeignKey("parent.id"), primary_key=True),
    )
    with pytest.raises(SettingsError) as caught:

        class Wrong(Projection):
            name = "wrong@name"
            version = 0
            tables = [parent, child]  # noqa: RUF012

    text = str(caught.value)
    for part in ("'wrong@name' has an @", "version must be", "too long for a copy", "has a foreign key"):
        assert part in text
    with pytest.raises(SettingsError, match="'str' is no Table"):

        class NoTable(Projection):
            tables = {"totals": "totals"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("subscription", "problem"),
    [
        (Subscription(name="other"), "leave the name out"),
        (Subscription(mode="concurrent"), "leave mode out"),
        (Subscription(partitions=2), "leave partitions out"),
        (Subscription(types=[OrderPlaced]), "leave them out: @when"),
    ],
)
def test_settings_that_make_no_sense_are_refused(subscription: Subscription, problem: str) -> None:
    """Each with what to do instead."""
    with pytest.raises(SettingsError, match=problem):
        EventTotals(subscription=subscription)
    with pytest.raises(SettingsError, match="it is inline, so it has no subscription"):
        EventTotals(subscription=Subscription(), inline=True)


def test_a_method_does_not_hide_one_of_ours() -> None:
    """A handler that is called `apply` would take the place of what inline writers call."""
    with pytest.raises(SettingsError, match="method 'apply' is Projection's own"):

        class Hiding(Projection):
            tables = TOTALS

            @when(OrderPlaced)
            def apply(self, event: OrderPlaced) -> None:  # type: ignore[override]
                pass


def test_nothing_to_handle_or_to_fill_is_refused() -> None:
    """A projection needs a method and a table; a table that is asked for must be there."""

    class Empty(Projection):
        pass

    with pytest.raises(SettingsError, match=r"it has no handler .*it has no tables"):
        Empty()
    with pytest.raises(SettingsError, match=r"there is no table 'total' \(there are: 'totals', 'seen'\)"):
        EventTotals().table("total")


def test_a_name_is_the_class_name_unless_the_class_says_otherwise() -> None:
    """Also when its base has one."""

    class Derived(EventTotals):
        pass

    assert (Derived.name, EventTotals.name, OutboxTotals.log, Totals.version) == (
        "Derived",
        "totals",
        "outbox",
        1,
    )


def test_mapped_classes_stand_for_their_tables() -> None:
    """`tables = [OrderTotal]`."""

    class Base(DeclarativeBase):
        pass

    class Total(Base):
        __tablename__ = "total"
        id: Mapped[int] = mapped_column(primary_key=True)

    class OfTotals(Projection):
        tables = [Total]  # noqa: RUF012

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced) -> None:
            pass

    assert OfTotals().table("total") is Total.__table__


# --- faults of the ancestors ------------------------------------------------------------------------------------------


def test_fault_projection_idempotent_only_against_the_previous_event(shop: Shop) -> None:
    """A batch that is rolled back and repeated after others were handled changes nothing twice (G5)."""
    shop.projection.trouble.of["b"] = [ValueError("once")]
    shop.write(*(OrderPlaced(customer=name, cents=1) for name in "aabacaab"))
    for _ in range(3):
        shop.process()
    assert shop.totals() == shop.expected() == {"a": (5, 5), "b": (2, 2), "c": (1, 1)}
    assert shop.scalar("SELECT count(*) - count(DISTINCT position) FROM seen") == 0


def test_fault_projection_position_always_0(shop: Shop) -> None:
    """The position is that of the log, and moves with what is committed."""
    positions: list[Any] = []
    for number in range(3):
        shop.write(OrderPlaced(customer="ann", cents=number))
        shop.process()
        with shop.sessions() as session:
            positions.append(
                (
                    shop.checkpoint(),
                    shop.projection.lag(session).position,
                    session.scalar(sa.select(TOTALS.c.last_position)),
                )
            )
    assert positions == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_fault_checkpoint_saved_separately_from_the_read_model(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two is impossible: if the checkpoint is not committed, the rows are not either (G5)."""
    fill(shop, 5)

    def dies(self: Any, session: Session, *args: Any) -> None:
        session.rollback()
        raise SystemExit("killed before the COMMIT")

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "_commit", dies)
        with pytest.raises(SystemExit):
            shop.process()
    assert (shop.totals(), shop.checkpoint()) == ({}, 0)
    shop.expire_leases()
    assert not shop.process().busy
    assert (shop.totals(), shop.checkpoint()) == (shop.expected(), 5)


def test_fault_projection_never_healthy_again_after_one_failure(shop: Shop) -> None:
    """One event fails, others go on, it is tried again; after that nothing is left of the failure."""
    shop.projection.trouble.of["bad"] = [ValueError("once")]
    shop.write(OrderPlaced(customer="bad", cents=1), OrderPlaced(customer="good", cents=1))
    report = shop.process()
    assert (report.retrying, report.ok, shop.totals()) == (1, False, {"good": (1, 1)})
    report = shop.process()
    assert (report.retrying, report.ok, report.delivered) == (0, True, 1)
    shop.write(OrderCancelled(customer="bad", cents=1))
    assert shop.process().ok
    with shop.sessions() as session:
        assert shop.projection.lag(session).messages == 0
    assert shop.totals() == shop.expected()


def test_the_pauses_of_a_wait() -> None:
    """The pauses of a wait are short at first, and never longer than 100 ms."""
    pauses = poll_pauses(1.0)
    assert pauses[0] == 0.005
    assert max(pauses) == 0.1
    assert sum(pauses) == pytest.approx(1.0)
    assert poll_pauses(0) == poll_pauses(-1) == []
