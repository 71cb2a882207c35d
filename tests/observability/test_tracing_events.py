"""Events carry the trace in which they were saved: found by it, and continued by the subscriptions of their log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry import baggage, context
from sqlalchemy.orm import Session

from message_bus import (
    Event,
    InMemoryEventStore,
    MessageBus,
    MessageBusTables,
    OutboxHandlerABC,
    Subscription,
)
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from message_bus.messages.envelope import new_envelope
from tests.conftest import TABLES
from tests.observability.spans import Recorded, linked, parent, told, trace_id

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """With those of the event log."""
    return TABLES.all


@pytest.fixture
def session(engine: sa.Engine, tables: MessageBusTables) -> Iterator[Session]:
    """A session of the application."""
    with Session(engine) as made:
        yield made


class Counted(Event):
    """Something was counted."""

    n: int


class Note(OutboxHandlerABC):
    """Reads the event log."""

    log = "events"
    default_mode = "transactional"
    subscription = Subscription(name="notes")

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the attempt is what is looked at."""


def test_events_are_found_by_their_trace(session: Session) -> None:
    """`load_by_trace` with OpenTelemetry's id of the trace that was current when they were saved; with none, without."""
    store = SQLAlchemyEventStore(session)
    with Recorded().web.start_as_current_span("request") as web:
        store.save("a", [Counted(n=1), Counted(n=2)])
    store.save("a", [Counted(n=3)])
    found = store.load_by_trace(f"{web.get_span_context().trace_id:032x}")
    assert found == [Counted(n=1), Counted(n=2)]
    [third] = store.load("a", 2)
    assert "traceparent" not in third.envelope.headers
    session.commit()


def test_events_of_a_store_in_memory() -> None:
    """The same there."""
    store = InMemoryEventStore()
    with Recorded().web.start_as_current_span("request") as web:
        store.save("a", [Counted(n=1)])
    assert store.load_by_trace(f"{web.get_span_context().trace_id:032x}") == [Counted(n=1)]


def test_an_event_with_a_trace_of_its_own_keeps_it() -> None:
    """Nothing of the current trace is mixed in, neither its state nor its baggage."""
    store = InMemoryEventStore()
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    with Recorded().web.start_as_current_span("request"):
        [other] = store.save("b", [Counted(n=1)])
        [saved] = store.save("a", [new_envelope(Counted(n=1), headers={"traceparent": GIVEN})])
    context.detach(token)
    assert other.headers["baggage"] == "tenant=acme"
    assert saved.headers["traceparent"] == GIVEN
    assert "baggage" not in saved.headers
    assert store.load_by_trace(GIVEN[3:35]) == [Counted(n=1)]


def test_a_subscription_of_the_event_log(session: Session) -> None:
    """Its attempts are in the trace in which the event was saved, under the name of that log."""
    recorded = Recorded()
    bus = MessageBus()
    bus.register_messages(Counted)
    bus.set_outbox_handlers([Note()])
    bus.observe(recorded.telemetry)
    with recorded.web.start_as_current_span("request") as web:
        SQLAlchemyEventStore(session).save("a", [Counted(n=1)])
        session.commit()
    assert bus.process_outbox(session).delivered == 1
    process = recorded.one("process events")
    assert parent(process) == web.get_span_context().span_id
    assert trace_id(recorded.one("settle events")) == web.get_span_context().trace_id
    assert linked(recorded.one("receive events")) == [web.get_span_context().span_id]
    assert told(process)["messaging.destination.name"] == "events"
