"""What an observer is told by the bus, the outbox, the engine and the relay, and that it can do no harm."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import (
    Context,
    MessageBus,
    Observer,
    OutboxHandlerABC,
    Relay,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Unavailable,
)
from message_bus.observability.observer import Gauges, Part, PartitionGauges
from message_bus.relay.board import Board
from tests.delivery.test_round_trips import counted
from tests.delivery.world import AT_ONCE, Noted, Pay, Placed, World, placed
from tests.observability.observing import Broken, Diary
from tests.waiting import wait_until

DISPATCH = Part(subscription="dispatch", partition=0, log="outbox")


@pytest.fixture
def diary(world: World) -> Diary:
    """Observes the world's bus."""
    made = Diary()
    world.bus.observe(made)
    return made


def test_the_way_of_a_message(world: World, diary: Diary) -> None:
    """Registered, written, read, tried, recorded, in this order; what it adds to the headers is stored."""
    world.register(Noted(n=1), Pay(n=2))
    assert diary.entries == [
        ("registering", "Noted", "EVENT", "ok"),
        ("registering", "Pay", "COMMAND", "ok"),
        ("writing", ["Noted", "Pay"], "ok"),
    ]
    headers = world.rows(sa.select(world.tables.outbox.c.headers))
    assert all("seen-by" in row[0] for row in headers)
    diary.entries.clear()
    world.settings(messages_per_commit=10)
    world.process()
    assert diary.entries == [
        ("leased", DISPATCH, "claimed"),
        ("received", DISPATCH, ["Noted", "Pay"]),
        ("attempting", "Noted", 1, "ok", False),
        ("attempting", "Pay", 1, "ok", False),
        ("recording", [("Noted", "delivered"), ("Pay", "delivered")], "ok"),
        ("leased", DISPATCH, "released"),
    ]


def test_what_is_rolled_back_is_registered_but_never_written(world: World, diary: Diary) -> None:
    """Whoever counts written rows counts what commits, but for commits that fail."""
    with world.sessions() as session:
        world.bus.register_outbox_message(SQLAlchemyOutBoxRepo(session, tables=world.tables), Noted(n=1))
        session.rollback()
    assert (len(diary.of("registering")), diary.of("writing")) == (1, [])


def test_what_handlers_emit_is_told_too(world: World, diary: Diary) -> None:
    """An emission into the outbox is a registration like any other."""
    world.before["1"] = lambda context: context.emit(Noted(n=2))
    world.register(Noted(n=1))
    world.process()
    assert len(diary.of("registering")) == 2
    assert diary.of("writing") == [(["Noted"], "ok")] * 2


def test_failures_and_those_held_behind(world: World, diary: Diary) -> None:
    """Each verdict when it is committed: retrying, held, then delivered; a dead letter."""
    world.fail("a:1", ValueError)
    world.settings(max_attempts=2)
    world.register(*placed("a", range(1, 3)))
    world.process()
    world.process()
    world.fail("pay 1", 2)
    world.register(Pay(n=1))
    world.process()
    world.process()
    told = [verdicts for verdicts, _ in diary.of("recording")]
    assert told[:4] == [
        [("Placed", "retrying")],
        [("Placed", "held")],
        [("Placed", "delivered")],
        [("Placed", "delivered")],
    ]
    assert told[4:] == [[("Pay", "retrying")], [("Pay", "dead")]]
    assert [(number, how) for _, number, how, *_ in diary.of("attempting")] == [
        (1, "ValueError"),
        (2, "ok"),
        (1, "ok"),
        (1, "ValueError"),
        (2, "ValueError"),
    ]


def test_a_batch_that_is_repeated_is_recorded_once(world: World, diary: Diary) -> None:
    """What was rolled back was tried, but nothing of it is recorded."""
    world.settings(messages_per_commit=10)
    world.fail("2", 2)
    world.register(*(Noted(n=n) for n in range(4)))
    world.process()
    assert len(diary.of("attempting")) > 4
    verdicts = [each for batch, _ in diary.of("recording") for each in batch]
    assert sorted(verdict for _, verdict in verdicts) == ["delivered"] * 3 + ["retrying"]


def test_passed_over(world: World, diary: Diary) -> None:
    """A known event without handlers."""
    world.bus.set_event_handlers(Noted, [])
    world.register(Noted(n=1))
    world.process()
    assert diary.of("attempting") == [("Noted", 1, "ok", True)]
    assert diary.of("recording") == [([("Noted", "passed over")], "ok")]


class Send(OutboxHandlerABC):
    """Several at once; one fails, one emits."""

    subscription = Subscription(backoff=AT_ONCE, concurrency=4)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        if outbox_message.payload.get("n") == 2:
            raise ValueError("two")


def test_concurrent_mode(world: World, diary: Diary) -> None:
    """The same is told where no transaction is open while handlers run."""
    world.bus.set_outbox_handlers([Send()])
    world.register(*(Noted(n=n) for n in range(4)))
    world.process()
    assert len(diary.of("attempting")) == 4
    [[verdicts, how]] = diary.of("recording")
    assert (sorted(verdict for _, verdict in verdicts), how) == (["delivered"] * 3 + ["retrying"], "ok")


def test_outages(world: World, diary: Diary) -> None:
    """The beginning of one, and with a worker that stays its end (G8)."""
    world.fail("1", Unavailable)
    world.register(Noted(n=1))
    with Relay(world.bus, world.sessions, tables=world.tables, poll=timedelta(seconds=0.05)) as relay:
        wait_until(lambda: diary.of("out of reach") == [(DISPATCH, True), (DISPATCH, False)])
        relay.wait_until_idle()
    assert diary.of("recording") == [([("Noted", "delivered")], "ok")]


def test_a_relay_tells_why_it_woke(world: World, diary: Diary) -> None:
    """A commit of its own process rings at once; what others commit comes by notification, or is found by looking."""
    relay = Relay(world.bus, world.sessions, tables=world.tables, poll=timedelta(seconds=0.05), listen=False)
    with relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        relay.wait_until_idle()
        assert "commit" in {cause for _, cause in diary.of("woken")}
    assert diary.of("leased")[0] == (DISPATCH, "claimed")
    assert diary.of("leased")[-1] == (DISPATCH, "released")


def test_a_relay_reads_gauges_for_those_who_want_them(world: World) -> None:
    """Lag, failures, the size of the outbox, what is delayed; one look of a relay costs a few statements."""
    diary = Diary(gauges=True)
    world.bus.observe(diary)
    world.settings(max_attempts=1)
    world.fail("1", ValueError)
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    world.register(Noted(n=3), delay=timedelta(hours=1))
    with Relay(world.bus, world.sessions, tables=world.tables) as relay:
        wait_until(lambda: diary.of("measured"))
        relay.wait_until_idle()
    gauges: Gauges = diary.of("measured")[0][0]
    assert list(gauges.partitions) == [
        PartitionGauges(part=DISPATCH, lag=0, lag_seconds=0.0, retrying=0, held=0, dead=1)
    ]
    assert (gauges.outbox_rows, gauges.delayed, gauges.due) == (2, 1, 0)
    assert gauges.outbox_oldest_seconds >= 0
    assert set(gauges.watermark_age) == {"outbox"}


def test_an_observer_that_fails_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises is logged; the messages are delivered, and others are told."""
    diary = Diary()
    world.bus.observe(Broken())
    world.bus.observe(diary)
    world.register(Noted(n=1))
    assert world.process().delivered == 1
    assert world.effects() == ["1"]
    assert len(diary.of("recording")) == 1
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    told = {record.getMessage().partition("(")[2].partition(")")[0] for record in caplog.records}
    assert told == {
        "Broken.registering",
        "Broken.writing",
        "Broken.attempting",
        "Broken.recording",
        "Broken.received",
        "Broken.leased",
    }


@pytest.mark.postgresql
def test_without_observers_no_statement_more(world: World, engine: sa.Engine) -> None:
    """Nor with them: what is told is known already."""
    world.register(*(Noted(n=n) for n in range(5)))
    with counted(engine) as before:
        world.process()
    world.bus.observe(Diary())
    world.register(*(Noted(n=n) for n in range(5)))
    with counted(engine) as after:
        world.process()
    assert len(after) <= len(before)


def test_what_is_no_observer_is_refused(world: World) -> None:
    """With the remedy; and twice the same one."""
    with pytest.raises(SettingsError, match="'str' is not an Observer"):
        world.bus.observe("metrics")  # type: ignore[arg-type]
    observer = Observer()
    world.bus.observe(observer)
    with pytest.raises(SettingsError, match="already"):
        world.bus.observe(observer)


def test_its_middleware_is_around_handlers() -> None:
    """A bus gets it when the observer comes; twins of the bus too."""
    seen: list[str] = []

    class Timing(Observer):
        def middleware(self, bus: Any) -> Any:
            """One that notes."""

            def note(message: Any, context: Context, call_next: Any) -> Any:
                seen.append(type(message).__name__)
                return call_next()

            return note

    bus = MessageBus(command_handlers={Pay: lambda command: command.n})
    twin = bus.with_event_handlers({Noted: [lambda event: None]})
    bus.observe(Timing())
    assert bus.handle(Pay(n=3)) == [{"command": Pay(n=3), "result": 3}]
    twin.handle(Noted(n=1))
    assert seen == ["Pay", "Noted"]


def test_headers_of_a_trace_are_inherited(world: World) -> None:
    """A message that is emitted while another is in hand belongs to its trace, with or without OpenTelemetry (here: without)."""
    world.before["1"] = lambda context: context.emit(Noted(n=2))

    class Parent(Observer):
        def registering(self, registration: Any) -> None:
            """Only the first one is given a trace."""
            if "causation_id" not in registration.headers:
                registration.headers["traceparent"] = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

    world.bus.observe(Parent())
    world.register(Noted(n=1))
    world.process()
    found = world.rows(sa.select(world.tables.outbox.c.headers).order_by(world.tables.outbox.c.position))
    assert ["traceparent" in row[0] for row in found] == [True, True]


def test_placed_is_keyed(world: World, diary: Diary) -> None:
    """Two keys beside each other in one batch."""
    world.settings(messages_per_commit=10)
    world.register(Placed(order="a", n=1), Placed(order="b", n=1))
    world.process()
    assert diary.of("recording") == [([("Placed", "delivered")] * 2, "ok")]


def test_what_rang_first_is_the_cause() -> None:
    """Of a commit and its own notification, which comes after it, the commit counts; each station has its own place."""
    board = Board()
    first = board.ring()
    board.heard()
    assert [board.cause_after(ring) for ring in (first - 1, first)] == ["commit", "notification"]
    for _ in range(1_000):
        board.heard()
    assert board.cause_after(0) == "notification"
