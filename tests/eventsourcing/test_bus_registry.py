# ruff: noqa: D102, D103, RUF012  (what the tests are made of)
"""Projections and process managers read old events with the upcasters of the bus that they are set on."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Command,
    Event,
    MessageBus,
    MessageBusTables,
    ProcessManager,
    Projection,
    Registry,
    when,
)
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore

NAMES = sa.Table("reader_names", sa.MetaData(), sa.Column("first", sa.String, primary_key=True))


class Joined(Event, name="busregistry.Joined"):
    """The form of years ago."""

    name: str


class Registered(Event, name="busregistry.registered", version=2, renamed_from="busregistry.Joined"):
    """The form of today."""

    first: str


class Greet(Command, name="busregistry.greet"):
    """What the process manager sends."""

    first: str


class Names(Projection):
    """Keeps the first names."""

    tables = {"names": NAMES}

    @when(Registered)
    def registered(self, event: Registered, context: Any) -> Any:
        return context.db_session.execute(sa.insert(self.table("names")).values(first=event.first))


class AsyncNames(Projection):
    """The same, awaited."""

    tables = {"names": NAMES}

    @when(Registered)
    async def registered(self, event: Registered, context: Any) -> None:
        await context.db_session.execute(sa.insert(self.table("names")).values(first=event.first))


class Greeting(ProcessManager):
    """Greets whoever has joined."""

    correlate = {Registered: "first"}
    timeouts = ()

    @when(Registered)
    def registered(self, event: Registered) -> None:
        self.send(Greet(first=event.first))


def first_word(payload: dict[str, Any]) -> dict[str, Any]:
    return {"first": payload["name"].split()[0]}


def in_capitals(payload: dict[str, Any]) -> dict[str, Any]:
    return {"first": payload["name"].split()[0].upper()}


def taught(registry: Registry, upcaster: Any = first_word) -> Registry:
    registry.add_upcaster(Registered, upcaster, from_version=1)
    return registry


@pytest.fixture
def sessions(session_factory: sessionmaker[Session], tables: MessageBusTables) -> sessionmaker[Session]:
    """Sessions of a database with an old event."""
    with session_factory.begin() as session:
        NAMES.metadata.create_all(session.connection())
        SQLAlchemyEventStore(session).save("reader-1", [Joined("Ann Ames")])
    return session_factory


def names(session: Session) -> list[str]:
    return list(session.scalars(sa.select(NAMES.c.first)))


def test_the_upcasters_of_the_bus_are_used(sessions: sessionmaker[Session]) -> None:
    """One registry serves all: a projection and a process manager need not be told of it."""
    bus = MessageBus()
    greeted: list[str] = []
    bus.set_command_handler(Greet, lambda command: greeted.append(command.first))
    bus.set_outbox_handlers([Names(), Greeting(), *bus.outbox_handlers])
    taught(bus.registry)  # later than the wiring: it is asked when a row is read
    with sessions() as session:
        report = bus.process_outbox(session)
        assert (report.dead, report.retrying) == (0, 0)
    with sessions() as session:
        bus.process_outbox(session)
        assert names(session) == ["Ann"]
    assert greeted == ["Ann"]


def test_what_is_given_wins(sessions: sessionmaker[Session]) -> None:
    """`registry=` is used in place of the bus's, whatever that one knows."""
    bus = MessageBus()
    taught(bus.registry)
    mine = taught(Registry(), in_capitals)
    greeting = Greeting(registry=mine)
    greeted: list[str] = []
    bus.set_command_handler(Greet, lambda command: greeted.append(command.first))
    bus.set_outbox_handlers([Names(registry=mine), greeting, *bus.outbox_handlers])
    for _ in range(2):
        with sessions() as session:
            bus.process_outbox(session)
    with sessions() as session:
        assert names(session) == ["ANN"]
    assert greeted == ["ANN"]


def test_a_bus_that_knows_nothing_of_the_type_changes_nothing(
    sessions: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Without upcasters anywhere events of today are read, and the bus does not come to know them: its outbox is another."""
    bus = MessageBus()
    bus.set_outbox_handlers([Names(), Greeting()])
    with sessions.begin() as session:
        SQLAlchemyEventStore(session).save("reader-2", [Registered("Bob")])
    with sessions() as session:
        report = bus.process_outbox(session)
        assert report.dead == 2, "the old event has no upcaster"
        assert names(session) == ["Bob"]
    assert Registered not in bus.registry


def test_another_class_of_the_same_name_is_not_taken_for_it(sessions: sessionmaker[Session]) -> None:
    """The bus may know the name as another class: the projection reads its own."""

    class Other(Event, name="busregistry.registered", version=2):
        first: str

    bus = MessageBus()
    bus.register_messages(Other)
    bus.set_outbox_handlers([Names()])
    with sessions.begin() as session:
        SQLAlchemyEventStore(session).save("reader-2", [Registered("Bob")])
    with sessions() as session:
        assert bus.process_outbox(session).delivered == 1
        assert names(session) == ["Bob"]


async def test_on_an_async_bus(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """The same on an AsyncMessageBus, with an async method."""
    async with async_session_factory.begin() as session:
        await session.run_sync(lambda plain: NAMES.metadata.create_all(plain.connection()))
        await AsyncSQLAlchemyEventStore(session).save("reader-1", [Joined("Ann Ames")])
    bus = AsyncMessageBus()
    taught(bus.registry)
    bus.set_outbox_handlers([AsyncNames(), Greeting()])
    async with async_session_factory() as session:
        report = await bus.process_outbox(session)
        assert (report.dead, report.retrying) == (0, 0)
    async with async_session_factory() as session:
        assert await session.run_sync(names) == ["Ann"]
