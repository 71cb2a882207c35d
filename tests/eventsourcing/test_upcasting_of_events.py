# ruff: noqa: D102, D103  (what the tests are made of)
"""Old events, read by the classes of today: over every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AggregateRepository,
    AggregateRoot,
    AsyncSQLAlchemyEventStore,
    Envelope,
    Event,
    InMemoryEventStore,
    MessageBusTables,
    MessageDecodeError,
    Registry,
    SettingsError,
    SQLAlchemyEventStore,
    UnknownMessageType,
)
from message_bus.messages import new_envelope

Stores = Callable[[Registry], AbstractContextManager[Any]]


class Opened1(Event, name="OrderOpened"):
    """Version 1: under another name, with one field for everything."""

    customer: str


class Opened2(Event, name="shop.opened", version=2):
    """Version 2: the name in two parts."""

    first: str
    last: str


class OrderOpened(Event, name="orders.opened", version=4, renamed_from=("shop.opened", "OrderOpened")):
    """Version 4, today: both again, and a channel."""

    first: str
    last: str
    channel: str


class Cart(AggregateRoot):
    """An aggregate that knows the event of today only."""

    customers: list[str]

    def __init__(self) -> None:
        self.customers = []

    def on_order_opened(self, event: OrderOpened) -> None:
        self.customers.append(f"{event.first} {event.last} by {event.channel}")


def split(payload: dict[str, Any]) -> dict[str, Any]:
    """From version 1 to 2; it changes what it is given."""
    first, _, last = payload.pop("customer").partition(" ")
    return payload | {"first": first, "last": last}


def old(*classes: type[Event]) -> Registry:
    registry = Registry()
    registry.register(*classes)
    return registry


def today() -> Registry:
    """What reads them all: step by step, and one that skips a version."""
    registry = Registry()
    registry.register(OrderOpened)
    registry.add_upcaster("OrderOpened", split, from_version=1)

    @registry.upcast(OrderOpened, from_version=2, to_version=4)
    def with_channel(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "channel": "web"}

    registry.check()
    return registry


class Upcasting:
    """What holds whatever the store."""

    def test_every_version_under_every_name_is_the_class_of_today(self, stores: Stores) -> None:
        """Renamed twice, over several hops, one of which skips a version; also in an aggregate."""
        self._write(stores)
        with stores(today()) as store:
            assert store.load("c-1") == [
                OrderOpened("Ann", "Ames", "web"),
                OrderOpened("Bob", "Best", "web"),
                OrderOpened("Cid", "Cole", "shop"),
            ]
            cart = AggregateRepository(store, Cart).load("c-1")
        assert cart.customers == ["Ann Ames by web", "Bob Best by web", "Cid Cole by shop"]
        assert cart.version == 3

    def test_only_the_payload_is_upcast(self, stores: Stores) -> None:
        """Id, position, version in the stream, time, headers and meta are those that were stored."""
        before = self._write(stores)
        with stores(today()) as store:
            after = store.read_all()
        assert [type(each.message) for each in after] == [OrderOpened] * 3
        for name in ("id", "position", "stream", "version", "timestamp", "headers", "meta"):
            assert [getattr(each, name) for each in after] == [getattr(each, name) for each in before]
        assert after[0].meta == {"by": "import"}

    def test_what_is_stored_stays_as_it_was(self, stores: Stores) -> None:
        """However often it is read; a program of yesterday reads it as ever."""
        self._write(stores)
        with stores(today()) as store:
            assert store.load("c-1") == store.load("c-1")
        with stores(old(Opened1, Opened2, Named)) as store:
            assert store.load("c-1", 0)[:1] == [Opened1("Ann Ames")]

    def test_reading_by_type_finds_former_names(self, stores: Stores) -> None:
        """Whoever asks for the class of today gets them all."""
        self._write(stores)
        with stores(today()) as store:
            assert len(store.read_all(types=[OrderOpened])) == 3

    def test_a_missing_step_is_an_error_of_the_one_event(self, stores: Stores) -> None:
        """With both versions; the check at start-up would have told."""
        self._write(stores)
        registry = old(OrderOpened)
        with pytest.raises(SettingsError, match="nothing leads from version 1 on to 4"):
            registry.check()
        with (
            stores(registry) as store,
            pytest.raises(MessageDecodeError, match="no upcaster leads from version 1 to 4"),
        ):
            store.load("c-1")

    def test_an_event_of_tomorrow_is_unknown(self, stores: Stores) -> None:
        """A version that this program has not reached is no poison: a newer one reads it."""
        self._write(stores)
        with stores(old(Tomorrow)) as store:
            store.save("c-2", [Tomorrow("x")])
        with stores(today()) as store:
            with pytest.raises(UnknownMessageType, match="version 5"):
                store.load("c-2")
            assert len(store.load("c-1")) == 3

    def _write(self, stores: Stores) -> list[Any]:
        with stores(old(Opened1)) as store:
            envelope: Envelope = new_envelope(
                Opened1("Ann Ames"), id=UUID(int=1), meta={"by": "import"}, headers={"traceparent": "x"}
            )
            recorded = store.save("c-1", [envelope], 0)
        with stores(old(Opened2)) as store:
            recorded += store.save("c-1", [Opened2("Bob", "Best")], 1)
        with stores(today()) as store:
            return [*recorded, *store.save("c-1", [OrderOpened("Cid", "Cole", "shop")], 2)]


class Named(Event, name="orders.opened", version=4):
    """A program of yesterday that was told of today's form only as something it can decode."""

    first: str
    last: str
    channel: str


class Tomorrow(Event, name="orders.opened", version=5):
    whatever: str


class TestInMemory(Upcasting):
    @pytest.fixture
    def stores(self) -> Stores:
        """Stores that share one log, each with a registry of its own."""
        first = InMemoryEventStore()

        @contextmanager
        def open_one(registry: Registry) -> Iterator[Any]:
            store = InMemoryEventStore(registry=registry)
            types, store._log = store._log._types, first._log
            first._log._types = types
            yield store

        return open_one


class TestDatabase(Upcasting):
    @pytest.fixture
    def stores(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Stores:
        """Stores on the test's database, each with a registry of its own."""

        @contextmanager
        def open_one(registry: Registry) -> Iterator[Any]:
            with session_factory.begin() as session:
                yield SQLAlchemyEventStore(session, registry=registry)

        return open_one

    def test_no_row_is_touched(
        self, stores: Stores, engine: sa.Engine, session_factory: sessionmaker[Session]
    ) -> None:
        """Payloads, names and versions in the table are those of the day on which they were written."""
        self._write(stores)

        def rows() -> list[Any]:
            with engine.connect() as connection:
                statement = "SELECT message, schema_version, payload FROM message_bus_event ORDER BY position"
                return list(connection.execute(sa.text(statement)))

        before = rows()
        with stores(today()) as store:
            store.load("c-1")
        assert rows() == before
        assert [row[:2] for row in before] == [("OrderOpened", 1), ("shop.opened", 2), ("orders.opened", 4)]


async def test_async(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """The async store reads old events the same way."""
    async with async_session_factory.begin() as session:
        await AsyncSQLAlchemyEventStore(session, registry=old(Opened1)).save("c-1", [Opened1("Ann Ames")])
    async with async_session_factory() as session:
        store = AsyncSQLAlchemyEventStore(session, registry=today())
        assert await store.load("c-1") == [OrderOpened("Ann", "Ames", "web")]
