"""The watermark that an event store is given must be that of its own event log: no other knows who writes into it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from message_bus import AsyncSQLAlchemyEventStore, SQLAlchemyEventStore, WiringError
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from message_bus.storage.watermark_async import AsyncWatermark
from message_bus.testing.event_store_messages import Deposited, contract_registry

TABLES = MessageBusTables()
REMEDY = r'Watermark\(tables\.of_log\("events"\)\)'
COLOURS = [
    (SQLAlchemyEventStore, Session, Watermark),
    (AsyncSQLAlchemyEventStore, AsyncSession, AsyncWatermark),
]


@pytest.mark.parametrize(("store", "session", "watermark"), COLOURS)
def test_the_watermark_of_the_outbox_is_refused(store: Any, session: Any, watermark: Any) -> None:
    """The outbox's knows nothing of who writes events: reading up to it would miss some for good (G2)."""
    with pytest.raises(WiringError, match=f"of the log 'outbox'.*{REMEDY}"):
        store(session(), watermark=watermark(TABLES))


@pytest.mark.parametrize(("store", "session", "watermark"), COLOURS)
@pytest.mark.parametrize("other", [MessageBusTables(prefix="other_"), MessageBusTables(schema="other")])
def test_the_watermark_of_other_tables_is_refused(
    store: Any, session: Any, watermark: Any, other: MessageBusTables
) -> None:
    """Both tables are named: that of the watermark and that of the store."""
    with pytest.raises(WiringError, match=f"{other.event.fullname!r}.*'message_bus_event'.*{REMEDY}"):
        store(session(), watermark=watermark(other.of_log("events")))


@pytest.mark.parametrize(
    ("store", "session", "watermark"),
    [(SQLAlchemyEventStore, Session, AsyncWatermark), (AsyncSQLAlchemyEventStore, AsyncSession, Watermark)],
)
def test_the_watermark_of_the_other_colour_is_refused(store: Any, session: Any, watermark: Any) -> None:
    """A sync store needs a Watermark, an async one an AsyncWatermark."""
    with pytest.raises(WiringError, match=r"watermark is a .*Watermark', not a "):
        store(session(), watermark=watermark(TABLES.of_log("events")))


@pytest.mark.parametrize(("store", "session", "watermark"), COLOURS)
def test_the_right_watermark_may_be_made_of_other_objects(store: Any, session: Any, watermark: Any) -> None:
    """Tables are the same if they have the same names: whoever wires makes them anew in each module."""
    for tables in (MessageBusTables(), MessageBusTables(sa.MetaData())):
        store(session(), watermark=watermark(tables.of_log("events")))


@pytest.mark.postgresql
def test_nothing_is_missed_behind_a_writer_that_is_open(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """What the right watermark is for: events beyond an open writer are not settled, and come after its commit (G2, G4)."""
    watermark = Watermark(tables.of_log("events"))
    with session_factory() as early:
        SQLAlchemyEventStore(early).save("early", [Deposited(1)])
        with session_factory.begin() as late:
            SQLAlchemyEventStore(late).save("late", [Deposited(2)])
        with session_factory() as reading:
            store = SQLAlchemyEventStore(reading, watermark=watermark, registry=contract_registry())
            assert store.read_all() == []
        early.commit()
    with session_factory() as reading:
        store = SQLAlchemyEventStore(reading, watermark=watermark, registry=contract_registry())
        assert [each.stream for each in store.read_all()] == ["early", "late"]
