"""What travels with a message: trace context and baggage, with an observer and without, with an SDK and without."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import TraceFlags

from message_bus import (
    DispatchOutboxHandler,
    MessageBus,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Telemetry,
)
from message_bus.messages.envelope import new_envelope
from message_bus.repositories.registering import register
from tests.delivery.world import Noted, World
from tests.observability.requests import headers, request
from tests.observability.spans import Recorded, linked, parent, span_id, told, trace_id


@pytest.fixture
def recorded(world: World) -> Recorded:
    """What is recorded of the world's bus."""
    made = Recorded()
    world.bus.observe(made.telemetry)
    return made


def test_baggage_travels(world: World, recorded: Recorded) -> None:
    """From the request to the handler, to what it emits and to its handler; not from where the worker runs."""
    seen: list[dict[str, object]] = []

    def look(context: Any) -> None:
        seen.append(dict(baggage.get_all()))

    world.before["1"] = lambda context: (look(context), context.emit(Noted(n=2)))
    world.before["2"] = world.before["3"] = look
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    world.register(Noted(n=1))
    context.detach(token)
    world.register(Noted(n=3))
    token = context.attach(baggage.set_baggage("worker", "7"))
    world.process()
    context.detach(token)
    assert seen == [{"tenant": "acme"}, {}, {"tenant": "acme"}]
    assert [each.get("baggage") for each in headers(world)] == ["tenant=acme", None, "tenant=acme"]


def test_processing_inside_another_span(world: World, recorded: Recorded) -> None:
    """A cron job's span stays apart: the attempt is in the trace of the message, and linked to both."""
    web = request(world, recorded, Noted(n=1))
    with recorded.web.start_as_current_span("cron") as cron:
        world.process()
    process = recorded.one("process outbox")
    assert trace_id(process) == web.get_span_context().trace_id
    assert linked(process) == [span_id(recorded.one("create outbox")), cron.get_span_context().span_id]
    assert parent(recorded.one("settle outbox")) == cron.get_span_context().span_id


def test_a_message_without_a_trace(world: World) -> None:
    """Registered by somebody who does not trace: its attempt begins a trace, or belongs to the one that is current."""
    world.register(Noted(n=1))
    assert "traceparent" not in headers(world)[0]
    recorded = Recorded()
    world.bus.observe(recorded.telemetry)
    with recorded.web.start_as_current_span("cron") as cron:
        world.process()
    process = recorded.one("process outbox")
    assert (parent(process), linked(process)) == (cron.get_span_context().span_id, [])


def test_without_an_observer_the_context_travels(world: World) -> None:
    """What is current at registration is stored, inherited by what is emitted, and found by a worker that observes."""
    world.before["1"] = lambda context: context.emit(Noted(n=2))
    elsewhere = Recorded()
    web = request(world, elsewhere, Noted(n=1))
    assert headers(world)[0]["traceparent"].split("-")[1] == f"{web.get_span_context().trace_id:032x}"
    world.process(limit=1)
    assert headers(world)[1]["traceparent"] == headers(world)[0]["traceparent"]
    recorded = Recorded()
    world.bus.observe(recorded.telemetry)
    world.process()
    assert parent(recorded.one("process outbox")) == web.get_span_context().span_id
    assert linked(recorded.one("process outbox")) == [web.get_span_context().span_id]


def test_a_message_registered_by_hand_is_below_its_handler(world: World, recorded: Recorded) -> None:
    """`register_outbox_message` inside a handler, not an emission: the span of that handler is current there."""
    world.before["1"] = lambda context: world.bus.register_outbox_message(context.outbox, Noted(n=2))
    world.register(Noted(n=1))
    world.process()
    handle, _ = recorded.spans("handle Noted")
    _, second = recorded.spans("create outbox")
    assert parent(second) == span_id(handle)


def test_a_current_trace_replaces_an_inherited_one_whole(world: World) -> None:
    """A handler with a span of its own, and no observer: state and baggage of the former trace do not go with it."""
    elsewhere = Recorded()
    former = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "a=1", "baggage": "tenant=acme"}

    def with_a_span(context: Any) -> None:
        with elsewhere.web.start_as_current_span("job"):
            world.bus.register_outbox_message(context.outbox, Noted(n=2))

    world.before["1"] = with_a_span
    world.register(Noted(n=1))
    world.write(sa.update(world.tables.outbox).values(headers={"correlation_id": "c", **former}))
    world.process(limit=1)
    second = headers(world)[1]
    assert int(second["traceparent"].split("-")[1], 16) == trace_id(elsewhere.one("job"))
    assert second.keys() == {"correlation_id", "causation_id", "traceparent"}


def test_an_envelope_from_elsewhere_brings_its_trace(recorded: Recorded) -> None:
    """A message that is handled with its envelope, where no span is current: a consumer of another transport, say."""
    bus = MessageBus(event_handlers={Noted: [lambda event: None]})
    bus.observe(recorded.telemetry)
    given = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    message = Noted(n=1)
    bus.handle(message, context={"envelope": new_envelope(message, headers=given)})
    assert parent(recorded.one("handle Noted")) == int("b" * 16, 16)
    with recorded.web.start_as_current_span("request") as web:
        bus.handle(message, context={"envelope": new_envelope(message, headers=given)})
    assert parent(recorded.spans("handle Noted")[1]) == web.get_span_context().span_id


def test_what_is_registered_where_nobody_traces(world: World, recorded: Recorded) -> None:
    """It belongs to the trace of the message that it inherits from."""
    given = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    with world.sessions.begin() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        envelope = new_envelope(Noted(n=1), headers=given)
        register(repo, Noted(n=2), parent=envelope, observer=world.bus.observer)
    assert parent(recorded.one("create outbox")) == int("b" * 16, 16)
    assert headers(world)[0]["traceparent"].split("-")[2] == f"{span_id(recorded.one('create outbox')):016x}"


def test_with_the_api_alone(world: World) -> None:
    """No provider is set: nothing is recorded, nothing fails, and the context is handed on all the same."""
    seen: list[Any] = []

    def look(context: Any) -> None:
        seen.append(trace.get_current_span().get_span_context())

    world.before["1"] = lambda context: (look(context), context.emit(Noted(n=2)))
    world.before["2"] = look
    world.bus.observe(Telemetry())
    elsewhere = Recorded()
    web = request(world, elsewhere, Noted(n=1))
    world.process()
    assert world.effects() == ["1", "2"]
    assert {each.trace_id for each in seen} == {web.get_span_context().trace_id}
    assert len({each["traceparent"] for each in headers(world)}) == 1
    assert [span.name for span in elsewhere.spans()] == ["POST /orders"]


def test_a_provider_that_is_set_later_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Telemetry()` in a module, the set-up of the SDK in another one: the order does not matter."""
    world.bus.observe(Telemetry())
    recorded = Recorded()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorded.provider)
    world.register(Noted(n=1))
    world.process()
    assert len(recorded.spans("process outbox")) == 1


def test_what_is_not_sampled_is_not_recorded(world: World) -> None:
    """The decision of the request holds to the end: it is in the headers."""
    recorded = Recorded(DEFAULT_ON)
    world.bus.observe(recorded.telemetry)
    unsampled = Recorded(ALWAYS_OFF)
    request(world, unsampled, Noted(n=1))
    world.process()
    flags = headers(world)[0]["traceparent"].rpartition("-")[2]
    assert not int(flags, 16) & TraceFlags.SAMPLED
    assert recorded.spans() == []
    assert world.effects() == ["1"]


def test_two_buses(world: World, recorded: Recorded) -> None:
    """Two applications over one outbox, each with an SDK of its own: each records what is its own, in one trace."""
    web = request(world, recorded, Noted(n=1))
    other = MessageBus(event_handlers={Noted: [lambda event: None]})
    subscription = Subscription(name="other", start="beginning")
    other.set_outbox_handlers([DispatchOutboxHandler(subscription=subscription)])
    theirs = Recorded()
    other.observe(theirs.telemetry)
    world.process()
    recorded_here = len(recorded.spans())
    with world.sessions() as session:
        assert other.process_outbox(SQLAlchemyOutBoxRepo(session, tables=world.tables)).delivered == 1
    assert len(recorded.spans()) == recorded_here
    process, handle = theirs.one("process outbox"), theirs.one("handle Noted")
    assert told(process)["messaging.consumer.group.name"] == "other"
    assert (parent(process), parent(handle)) == (span_id(recorded.one("create outbox")), span_id(process))
    for span in (*recorded.spans(), *theirs.spans()):
        assert trace_id(span) == web.get_span_context().trace_id
