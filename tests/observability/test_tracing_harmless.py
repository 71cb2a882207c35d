"""Trace headers that others wrote, and propagators that fail: nothing of it stands in the way of a message."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator

from message_bus.observability.opentelemetry import _are_of_one_trace, _headers_of
from message_bus.observability.trace_context import add_trace_context
from message_bus.observability.tracing import LONGEST_HEADER, Tracing, type_of
from tests.delivery.world import Noted, World
from tests.observability.spans import Recorded, linked, parent, told

VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOSTILE = (
    "",
    "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    "'; DROP TABLE message_bus_outbox; --",
    VALID + "\r\nSet-Cookie: a=b",
    "x" * 2 * LONGEST_HEADER,
    "\u202e\u0663" * 40,
)


@pytest.fixture
def recorded(world: World) -> Recorded:
    """What is recorded of the world's bus."""
    made = Recorded()
    world.bus.observe(made.telemetry)
    return made


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_broken_traceparent_is_no_trace(world: World, hostile: str) -> None:
    """The message is delivered; its attempt begins a trace of its own, linked to nothing."""
    world.register(Noted(n=1))
    t = world.tables.outbox
    headers = {"correlation_id": "c", "traceparent": hostile, "tracestate": hostile, "baggage": hostile}
    world.write(sa.update(t).values(headers=headers))
    recorded = Recorded()
    world.bus.observe(recorded.telemetry)
    assert world.process().delivered == 1
    process = recorded.one("process outbox")
    assert (parent(process), linked(process)) == (None, [])
    assert told(process)["messaging.message.conversation_id"] == "c"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "headers",
    ['{"traceparent": 7}', '["traceparent"]', '{"traceparent": null}'],
    ids=["number", "list", "null"],
)
def test_headers_of_another_shape(world: World, headers: str) -> None:
    """Somebody wrote numbers, lists, nulls where texts belong: a message of which little is known, no lost observer."""
    world.register(Noted(n=1))
    world.write(sa.text("UPDATE message_bus_outbox SET headers = :headers").bindparams(headers=headers))
    recorded = Recorded()
    world.bus.observe(recorded.telemetry)
    world.process()
    assert len(recorded.spans("process outbox")) == 1
    assert len(recorded.spans("settle outbox")) == 1


_headers = st.dictionaries(
    st.sampled_from(["traceparent", "tracestate", "baggage", "correlation_id", "b3"]) | st.text(max_size=8),
    st.sampled_from([VALID, *HOSTILE])
    | st.text(max_size=200)
    | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)
    | st.integers()
    | st.none(),
)


@given(_headers)
@example({"traceparent": VALID, "baggage": 7})
@example({"traceparent": VALID, "tracestate": "a=1," * 600, "baggage": "k=" + "v" * LONGEST_HEADER})
def test_nothing_in_headers_raises(headers: dict[str, Any]) -> None:
    """Whatever stands there: a context comes out of it, and a valid one only of a valid header."""
    tracing = Tracing()
    context, creation = tracing.continued(headers)
    assert trace.get_current_span(context).get_span_context().is_valid == (creation is not None)
    assert tracing.creation_of(headers) == creation
    if headers.get("traceparent") == VALID:
        assert creation is not None
        assert f"{creation.trace_id:032x}" == VALID[3:35]


@given(_headers)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_was_read_can_be_written(headers: dict[str, Any]) -> None:
    """A context made of any headers gives texts again, which are no longer than what came in may be."""
    tracing = Tracing()
    token = tracing.enter(tracing.continued(headers)[0])
    written: dict[str, str] = {}
    add_trace_context(written)
    tracing.leave(token)
    assert all(isinstance(value, str) and value.isascii() for value in written.values())
    assert all(len(value) <= LONGEST_HEADER for value in written.values())


class Failing(TextMapPropagator):
    """A propagator that is broken."""

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        """Fail."""
        raise ValueError("broken")

    def inject(self, *args: Any, **kwargs: Any) -> None:
        """Fail."""
        raise ValueError("broken")

    @property
    def fields(self) -> set[str]:
        """None."""
        return set()


def test_a_propagator_that_fails(
    world: World, recorded: Recorded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message goes without a trace, and the log says so; it is delivered."""
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([Failing()]))
    world.register(Noted(n=1))
    assert world.process().delivered == 1
    assert parent(recorded.one("process outbox")) is None
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "message_bus.observability")


def test_rows_of_which_little_is_known() -> None:
    """What has killed a worker has neither id nor headers: nothing is linked, nothing raises."""

    class Row:
        position = 1

    assert _headers_of(Row()) == {}
    assert _are_of_one_trace([Row(), Row()])
    assert not _are_of_one_trace([])


def test_names_of_errors() -> None:
    """A builtin by its name, others with their module: few values, as metrics want it."""
    assert type_of(ValueError("x")) == "ValueError"
    assert type_of(sa.exc.SQLAlchemyError("x")) == "sqlalchemy.exc.SQLAlchemyError"
