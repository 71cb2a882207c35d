"""One trace from a web request through the outbox to its handlers, and on to what they emit: as the conventions want it."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import message_bus
from message_bus import (
    MessageBus,
    OutboxHandlerABC,
    Reject,
    Relay,
    Subscription,
    Telemetry,
)
from message_bus.observability.tracing import MOST_LINKS
from tests.delivery.world import AT_ONCE, Noted, World, placed
from tests.observability.requests import request
from tests.observability.spans import Recorded, linked, parent, span_id, told, trace_id


@pytest.fixture
def recorded(world: World) -> Recorded:
    """What is recorded of the world's bus."""
    made = Recorded()
    world.bus.observe(made.telemetry)
    return made


def test_one_trace_from_the_request_to_the_second_handler(world: World, recorded: Recorded) -> None:
    """Request, create, send; receive, process, handle, settle; and the same again for what the handler emits."""
    world.before["1"] = lambda context: context.emit(Noted(n=2))
    with Relay(world.bus, world.sessions, tables=world.tables, poll=timedelta(seconds=0.05)) as relay:
        web = request(world, recorded, Noted(n=1))
        relay.wait_until_idle()
    assert world.effects() == ["1", "2"]

    spans = recorded.spans()
    of_a_message = (
        *("create outbox", "send outbox", "receive outbox"),
        *("process outbox", "handle Noted", "settle outbox"),
    )
    assert Counter(span.name for span in spans) == {"POST /orders": 1, **dict.fromkeys(of_a_message, 2)}
    assert {trace_id(span) for span in spans} == {web.get_span_context().trace_id}
    first, second = recorded.spans("create outbox")
    process, reprocess = recorded.spans("process outbox")
    handle, rehandle = recorded.spans("handle Noted")
    assert parent(first) == web.get_span_context().span_id
    assert (parent(process), parent(handle)) == (span_id(first), span_id(process))
    # what a handler emits is registered when it has succeeded, so within the attempt, after the handler
    assert (parent(second), parent(reprocess)) == (span_id(process), span_id(second))
    assert parent(rehandle) == span_id(reprocess)
    send, resend = recorded.spans("send outbox")
    assert (parent(send), parent(resend)) == (web.get_span_context().span_id, span_id(second))
    for name in ("send outbox", "receive outbox", "process outbox", "settle outbox"):
        assert [linked(span) for span in recorded.spans(name)] == [[span_id(first)], [span_id(second)]], name
    for name in ("receive outbox", "settle outbox"):
        assert [parent(span) for span in recorded.spans(name)] == [span_id(first), span_id(second)], name
    kinds = {span.name: span.kind for span in spans}
    assert kinds == {
        "POST /orders": SpanKind.SERVER,
        "create outbox": SpanKind.PRODUCER,
        "send outbox": SpanKind.CLIENT,
        "receive outbox": SpanKind.CLIENT,
        "process outbox": SpanKind.CONSUMER,
        "settle outbox": SpanKind.CLIENT,
        "handle Noted": SpanKind.INTERNAL,
    }
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}
    scope = first.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version) == ("message_bus", message_bus.__version__)
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_attributes(world: World, recorded: Recorded) -> None:
    """What the conventions require and recommend, and what we add: the type, the attempt, the time in the outbox."""
    request(world, recorded, Noted(n=1))
    world.process()
    [row] = world.rows(sa.select(world.tables.outbox.c.id, world.tables.outbox.c.headers))
    of_message = {
        "messaging.message.id": str(row[0]),
        "messaging.message.conversation_id": row[1]["correlation_id"],
    }
    of_log = {"messaging.system": "message_bus", "messaging.destination.name": "outbox"}
    of_part = {"messaging.consumer.group.name": "dispatch", "messaging.destination.partition.id": "0"}

    def operation(name: str) -> dict[str, str]:
        return {**of_log, "messaging.operation.name": name, "messaging.operation.type": name}

    batch = {"messaging.batch.message_count": 1}
    create, process = recorded.one("create outbox"), recorded.one("process outbox")
    assert told(create) == {**operation("create"), **of_message, "message_bus.message.type": "Noted"}
    assert told(recorded.one("send outbox")) == {**operation("send"), **of_message, **batch}
    assert told(recorded.one("receive outbox")) == {**operation("receive"), **of_part, **of_message, **batch}
    assert told(recorded.one("settle outbox")) == {**operation("settle"), **of_part, **of_message, **batch}
    waited = told(process)["message_bus.outbox.wait_seconds"]
    assert 0 <= waited < 60
    assert told(process) == {
        **operation("process"), **of_part, **of_message,
        "message_bus.message.type": "Noted",
        "message_bus.attempt": 1,
        "message_bus.outbox.wait_seconds": waited,
    }  # fmt: skip
    assert told(recorded.one("handle Noted")) == {
        "message_bus.message.type": "Noted",
        "message_bus.handler": "World.on_noted",
    }
    [link] = recorded.one("settle outbox").links
    assert dict(link.attributes or {}) == {
        "messaging.message.id": str(row[0]),
        "message_bus.message.type": "Noted",
        "message_bus.verdict": "delivered",
    }


def test_the_time_in_the_outbox(world: World, recorded: Recorded) -> None:
    """An hour passes between the writing and the delivery: the attempt says so."""
    world.register(Noted(n=1))
    t = world.tables.outbox
    [(written,)] = world.rows(sa.select(t.c.created_at))
    world.write(sa.update(t).values(created_at=written - timedelta(hours=1)))
    world.process()
    assert 3600 <= told(recorded.one("process outbox"))["message_bus.outbox.wait_seconds"] < 3660


def test_messages_that_share_a_commit(world: World, recorded: Recorded) -> None:
    """Of different requests: each attempt in the trace of its own message, the rest apart and linked to all of them."""
    world.settings(messages_per_commit=10)
    webs = [request(world, recorded, Noted(n=n)) for n in range(3)]
    world.process()
    creates = recorded.spans("create outbox")
    assert [trace_id(span) for span in creates] == [web.get_span_context().trace_id for web in webs]
    processes = recorded.spans("process outbox")
    assert [parent(span) for span in processes] == [span_id(span) for span in creates]
    assert [trace_id(span) for span in processes] == [trace_id(span) for span in creates]
    for name in ("receive outbox", "settle outbox"):
        span = recorded.one(name)
        assert (parent(span), linked(span)) == (None, [span_id(each) for each in creates])
        assert trace_id(span) not in {trace_id(each) for each in creates}
        assert told(span)["messaging.batch.message_count"] == 3
        assert "messaging.message.id" not in told(span)


def test_a_batch_of_one_request_stays_in_its_trace(world: World, recorded: Recorded) -> None:
    """Three messages written by one INSERT, received and settled together."""
    world.settings(messages_per_commit=10)
    web = request(world, recorded, *(Noted(n=n) for n in range(3)))
    world.process()
    send = recorded.one("send outbox")
    assert told(send)["messaging.batch.message_count"] == 3
    assert linked(send) == [span_id(span) for span in recorded.spans("create outbox")]
    assert {trace_id(span) for span in recorded.spans()} == {web.get_span_context().trace_id}


def test_links_are_bounded(world: World, recorded: Recorded) -> None:
    """A batch of more messages than a span may have links."""
    world.settings(messages_per_commit=200, fetch_size=200)
    world.register(*(Noted(n=n) for n in range(MOST_LINKS + 2)))
    world.process()
    for name in ("send outbox", "receive outbox", "settle outbox"):
        span = recorded.one(name)
        assert told(span)["messaging.batch.message_count"] == MOST_LINKS + 2
        assert (len(span.links), span.dropped_links) == (MOST_LINKS, 0)


def test_a_failed_attempt_and_the_next_one(world: World, recorded: Recorded) -> None:
    """Both in the trace of the message; the first with status, error type and one exception event, the second without."""
    world.fail("1", 1)
    web = request(world, recorded, Noted(n=1))
    world.process()
    world.process()
    failed, succeeded = recorded.spans("process outbox")
    assert {trace_id(failed), trace_id(succeeded)} == {web.get_span_context().trace_id}
    assert [told(span)["message_bus.attempt"] for span in (failed, succeeded)] == [1, 2]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ValueError: failure 0"
    assert told(failed)["error.type"] == "ValueError"
    [event] = failed.events
    assert event.name == "exception"
    attributes = dict(event.attributes or {})
    assert attributes["exception.type"] == "ValueError"
    assert attributes["exception.message"] == "ValueError: failure 0"
    assert "in on_noted" in str(attributes["exception.stacktrace"])
    handle, _ = recorded.spans("handle Noted")
    assert (handle.status.status_code, told(handle)["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert handle.events == ()  # recorded once, further out
    assert succeeded.status.status_code is StatusCode.UNSET
    assert "error.type" not in told(succeeded)
    verdicts = [told_link(span) for span in recorded.spans("settle outbox")]
    assert verdicts == ["retrying", "delivered"]


def told_link(span: Any) -> Any:
    """What is recorded of the only message of a settle span."""
    [link] = span.links
    return link.attributes["message_bus.verdict"]


def test_held_and_dead(world: World, recorded: Recorded) -> None:
    """A message held behind another is settled without having been processed; a rejected one is dead."""
    world.fail("a:1", 1)
    world.register(*placed("a", range(1, 3)))
    world.process()
    assert [told_link(span) for span in recorded.spans("settle outbox")] == ["retrying", "held"]
    assert len(recorded.spans("process outbox")) == 1
    recorded.forget()
    world.fail("7", Reject("not ours"))
    world.register(Noted(n=7))
    world.process()
    assert "dead" in [told_link(span) for span in recorded.spans("settle outbox")]
    [failed] = [span for span in recorded.spans("process outbox") if "error.type" in told(span)]
    assert told(failed)["error.type"] == "message_bus.Reject"


def test_passed_over(world: World, recorded: Recorded) -> None:
    """A known event that nobody handles."""
    world.bus.set_event_handlers(Noted, [])
    world.register(Noted(n=1))
    world.process()
    assert told(recorded.one("process outbox"))["message_bus.passed_over"] is True


def test_a_commit_that_fails(world: World, recorded: Recorded) -> None:
    """What a database refuses late is an error of the settlement, and the message is tried again."""
    world.before["1"] = lambda context: sa.event.listen(
        context.db_session, "before_commit", refuse, once=True
    )

    def refuse(session: Any) -> None:
        raise ValueError("not now")

    world.register(Noted(n=1))
    assert world.process().retrying == 1
    failed, settled = recorded.spans("settle outbox")
    assert (failed.status.status_code, told(failed)["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert settled.status.status_code is StatusCode.UNSET
    assert recorded.one("process outbox").status.status_code is StatusCode.UNSET


class Send(OutboxHandlerABC):
    """Four at once, in threads; tells the trace that is current there."""

    subscription = Subscription(backoff=AT_ONCE, concurrency=4)

    def __init__(self) -> None:
        self.traces: dict[int, int] = {}

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        n = outbox_message.payload["n"]
        self.traces[n] = trace.get_current_span().get_span_context().span_id
        if n == 2:
            raise ValueError("two")


def test_concurrent_mode(world: World, recorded: Recorded) -> None:
    """In each thread the attempt at its message is current; one settlement, linked to all."""
    send = Send()
    world.bus.set_outbox_handlers([send])
    webs = [request(world, recorded, Noted(n=n)) for n in range(4)]
    world.process()
    processes = recorded.spans("process outbox")
    assert sorted(send.traces.values()) == sorted(span_id(span) for span in processes)
    assert {trace_id(span) for span in processes} == {web.get_span_context().trace_id for web in webs}
    creates = {span_id(span) for span in recorded.spans("create outbox")}
    assert {parent(span) for span in processes} == creates
    settle = recorded.one("settle outbox")
    assert (set(linked(settle)), told(settle)["messaging.batch.message_count"]) == (creates, 4)
    verdicts = sorted(str((link.attributes or {})["message_bus.verdict"]) for link in settle.links)
    assert verdicts == ["delivered"] * 3 + ["retrying"]
    [failed] = [span for span in processes if span.status.status_code is StatusCode.ERROR]
    assert [event.name for event in failed.events] == ["exception"]


def test_a_dispatch_without_an_outbox(world: World, recorded: Recorded) -> None:
    """A span for each handler that is called, below the span that is current; its error is recorded there."""
    bus = MessageBus(event_handlers={Noted: [lambda event: None, refuse_two]}, on_event_error="log")
    bus.observe(recorded.telemetry)
    with recorded.web.start_as_current_span("request") as web:
        bus.handle(Noted(n=2))
    first, second = recorded.spans("handle Noted")
    assert parent(first) == parent(second) == web.get_span_context().span_id
    assert [event.name for event in second.events] == ["exception"]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)


def refuse_two(event: Noted) -> None:
    """A handler that fails."""
    raise ValueError("two")


def test_an_error_is_recorded_without_values(world: World, recorded: Recorded) -> None:
    """Neither the parameters of a statement nor the row that did not fit: not in the status, not in any event."""
    secret = "ann@example.org"
    unique = sa.Table("person", sa.MetaData(), sa.Column("email", sa.Text, primary_key=True))
    with world.sessions.begin() as session:
        unique.metadata.create_all(session.connection())

    def twice(context: Any) -> None:
        for _ in range(2):
            context.db_session.execute(sa.insert(unique).values(email=secret))

    world.before["1"] = twice
    world.register(Noted(n=1))
    assert world.process().retrying == 1
    failed = recorded.one("process outbox")
    assert told(failed)["error.type"] == "sqlalchemy.exc.IntegrityError"
    everything = "".join(span.to_json() for span in recorded.spans())
    assert "IntegrityError" in everything
    assert secret not in everything


def test_errors_are_redacted(world: World) -> None:
    """What a handler's own error says goes through `redact=` before it leaves."""
    recorded = Recorded()
    redacting = Telemetry(
        tracer_provider=recorded.provider, redact=lambda text: re.sub(r"\d{4,}", "****", text)
    )
    world.bus.observe(redacting)
    world.fail("1", ValueError("card 4111111111111111"))
    world.register(Noted(n=1))
    world.process()
    everything = "".join(span.to_json() for span in recorded.spans("process outbox"))
    assert "ValueError: card ****" in everything
    assert "4111111111111111" not in everything
