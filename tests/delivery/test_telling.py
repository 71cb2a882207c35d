"""One log line for each verdict, with its fields; never a value of a message, whatever handlers raise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    Reject,
    RetryLater,
    SettingsError,
    Subscription,
    Unavailable,
    correlate,
)
from message_bus.delivery.telling import FIELDS
from message_bus.delivery.verdicts import error_text, traceback_text
from tests.delivery.world import AT_ONCE

SECRET = "hunter2-the-secret"
MODES = pytest.mark.parametrize("mode", ["transactional", "concurrent"])


class Asked(Event, key="topic", name="telling.asked"):
    """An event with a secret in its payload and in its key."""

    topic: str
    wish: str = "succeed"


class Ignored(Event, name="telling.ignored"):
    """An event that nobody handles."""

    wish: str = "nothing"


WISHES: dict[str, Callable[[Asked], Exception | None]] = {
    "succeed": lambda event: None,
    "fail": lambda event: ValueError(f"no luck with {event.topic}"),
    "be rejected": lambda event: Reject(f"nobody likes {event.topic}"),
    "wait": lambda event: RetryLater(3_600),
    "be out of reach": lambda event: Unavailable(f"no way to {event.topic}"),
    "break a statement": lambda event: OperationalError(
        "SELECT :it", {"it": event.topic}, ValueError(event.topic)
    ),
}


def obey(event: Asked) -> None:
    """Do what the event says."""
    if error := WISHES[event.wish](event):
        raise error


async def obey_async(event: Asked) -> None:
    """The same, awaited."""
    obey(event)


def subscription(**settings: Any) -> Subscription:
    """Settings under which a failure is due again at once."""
    return Subscription(**{"name": "asked", "backoff": AT_ONCE, "max_attempts": 2, **settings})


def wired(bus: Any, settings: Subscription) -> Any:
    """A bus that handles `Asked` and knows `Ignored`."""
    bus.set_event_handlers(Asked, [obey_async if isinstance(bus, AsyncMessageBus) else obey])
    bus.register_messages(Ignored)
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    return bus


@pytest.fixture
def run(
    session_factory: sessionmaker[Session], tables: MessageBusTables, caplog: pytest.LogCaptureFixture
) -> Callable[..., list[Any]]:
    """Register messages, process once, and return what was logged about them from DEBUG."""

    def register_and_process(*messages: Event, **settings: Any) -> list[Any]:
        bus = wired(MessageBus(), subscription(**settings))
        with session_factory.begin() as session:
            for message in messages:
                bus.register_outbox_message(session, message)
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "message_bus"), session_factory() as session:
            bus.process_outbox(session)
        return [record for record in caplog.records if record.name == "message_bus.delivery"]

    return register_and_process


def fields(record: Any) -> dict[str, Any]:
    """The fields of a record, without the message's own id."""
    return {name: getattr(record, name) for name in FIELDS if name != "message_id"}


ABOUT = {"subscription": "asked", "partition": 0, "log": "outbox", "message_type": "telling.asked"}


@MODES
def test_a_delivered_message(run: Callable[..., list[Any]], mode: str) -> None:
    """DEBUG, and all that is known."""
    with correlate("a-trace"):
        [record] = run(Asked(topic="a"), mode=mode)
    assert (record.levelname, fields(record)) == (
        "DEBUG",
        {
            **ABOUT,
            "position": 1,
            "attempt": 1,
            "verdict": "delivered",
            "correlation_id": "a-trace",
            "error_type": None,
        },
    )
    assert record.getMessage() == f"telling.asked {record.message_id} is delivered by subscription 'asked'"


@MODES
def test_a_message_that_nobody_wants(run: Callable[..., list[Any]], mode: str) -> None:
    """DEBUG: passed over."""
    [record] = run(Ignored(), mode=mode)
    assert (record.levelname, record.verdict, record.message_type) == (
        "DEBUG",
        "passed over",
        "telling.ignored",
    )


@MODES
def test_a_failure_that_is_tried_again_and_who_is_held_behind_it(
    run: Callable[..., list[Any]], mode: str
) -> None:
    """WARNING for the failure, with the type of its error; DEBUG for the one of its key behind it."""
    records = run(Asked(topic="a", wish="fail"), Asked(topic="a"), mode=mode)
    told = {record.verdict: record for record in records if record.verdict}
    assert (told["retrying"].levelname, fields(told["retrying"])) == (
        "WARNING",
        {
            **ABOUT,
            "position": 1,
            "attempt": 1,
            "verdict": "retrying",
            "correlation_id": told["retrying"].message_id,
            "error_type": "ValueError",
        },
    )
    assert told["retrying"].getMessage().endswith("at attempt 1, again in 0.0 s: ValueError")
    assert (told["held"].levelname, told["held"].position, told["held"].attempt) == ("DEBUG", 2, None)
    assert len([record for record in records if record.verdict]) == 2


@MODES
def test_a_dead_letter(run: Callable[..., list[Any]], mode: str) -> None:
    """ERROR, with the command that shows the rest."""
    records = run(Asked(topic="a", wish="fail"), mode=mode, max_attempts=1)
    [dead] = [record for record in records if record.verdict]
    assert (dead.levelname, dead.verdict, dead.attempt, dead.error_type) == ("ERROR", "dead", 1, "ValueError")
    assert dead.getMessage() == (
        f"telling.asked {dead.message_id} is a dead letter of subscription 'asked': gave up after 1 attempts: ValueError "
        f"(`message-bus dead-letters show {dead.message_id}` shows all of it)"
    )
    assert dead.exc_info is None


@MODES
def test_a_rejected_message(run: Callable[..., list[Any]], mode: str) -> None:
    """ERROR; the reason is the user's own words, so it is stored and not logged."""
    [dead] = [record for record in run(Asked(topic="a", wish="be rejected"), mode=mode) if record.verdict]
    assert (dead.levelname, dead.verdict, dead.error_type) == ("ERROR", "dead", "Reject")
    assert "nobody likes" not in dead.getMessage()


@MODES
def test_something_out_of_reach_is_no_verdict(run: Callable[..., list[Any]], mode: str) -> None:
    """G8: one WARNING about the subscription, and none about the message."""
    records = run(Asked(topic="a", wish="be out of reach"), mode=mode)
    warned = [record for record in records if record.levelno >= logging.WARNING]
    assert [(record.subscription, record.verdict, record.error_type) for record in warned] == [
        ("asked", None, "Unavailable")
    ]


@pytest.mark.sqlite
def test_a_type_that_was_taken_out(
    run: Callable[..., list[Any]], session_factory: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    """WARNING: what had failed is passed over."""
    run(Asked(topic="a", wish="fail"))
    records = run(types=[Ignored])
    [record] = [record for record in records if record.verdict]
    assert (record.levelname, record.verdict, record.position) == ("WARNING", "passed over", 1)
    assert record.message_type == "telling.asked"


@pytest.mark.sqlite
def test_a_crash(
    run: Callable[..., list[Any]], session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """G7: ERROR for a message that the last worker had alone in hand when it died."""
    run(Asked(topic="a", wish="wait"))
    with session_factory.begin() as session:
        session.execute(sa.update(tables.delivery).values(state="trying"))
        session.execute(
            sa.update(tables.subscription).values(
                owner="killed", lease_until=sa.text("'2000-01-01 00:00:00.000000'")
            )
        )
    record = next(record for record in run() if record.levelname == "ERROR")
    with session_factory() as session:
        message_id = session.scalars(sa.select(tables.outbox.c.id)).one()
    assert (record.verdict, record.position, record.message_type, record.message_id) == (
        "retrying",
        1,
        "telling.asked",
        str(message_id),
    )


@MODES
@pytest.mark.sqlite
async def test_the_asynchronous_engine_says_the_same(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    """Every verdict of one run: delivered, retrying and held behind it, dead, passed over."""
    bus = wired(AsyncMessageBus(), subscription(mode=mode, backoff=FixedDelay(3_600)))
    async with async_session_factory.begin() as session:
        for message in (
            Asked(topic="a"),
            Asked(topic="b", wish="fail"),
            Asked(topic="b"),
            Asked(topic="c", wish="be rejected"),
            Ignored(),
        ):
            bus.register_outbox_message(session, message)
    with caplog.at_level(logging.DEBUG, "message_bus"):
        async with async_session_factory() as session:
            await bus.process_outbox(session)
    records: list[Any] = [record for record in caplog.records if getattr(record, "verdict", None)]
    assert {record.position: (record.verdict, record.levelname) for record in records} == {
        1: ("delivered", "DEBUG"),
        2: ("retrying", "WARNING"),
        3: ("held", "DEBUG"),
        4: ("dead", "ERROR"),
        5: ("passed over", "DEBUG"),
    }
    assert len(records) == 5
    assert all(hasattr(record, name) for record in records for name in FIELDS)


@MODES
@pytest.mark.sqlite
def test_nothing_is_said_of_messages_with_which_all_is_well(
    session_factory: sessionmaker[Session],
    tables: MessageBusTables,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    """Without DEBUG the log is asked once for each batch, not for each message."""
    asked: list[int] = []
    logger = logging.getLogger("message_bus.delivery")
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: bool(asked.append(level)))
    bus = wired(MessageBus(), subscription(mode=mode, messages_per_commit=50))
    with session_factory.begin() as session:
        for _ in range(50):
            bus.register_outbox_message(session, Asked(topic="a"))
    with session_factory() as session:
        assert bus.process_outbox(session).delivered == 50
    assert asked == [logging.DEBUG]
    assert caplog.records == []


@MODES
@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish != "succeed"])
def test_no_value_is_logged(run: Callable[..., list[Any]], mode: str, wish: str) -> None:
    """Above DEBUG: whatever way a handler fails with the value in its error, it is in no text and no field."""
    records = run(Asked(topic=SECRET, wish=wish), Asked(topic=SECRET), mode=mode)
    loud = [record for record in records if record.levelno > logging.DEBUG]
    assert loud or wish == "wait"
    for record in loud:
        assert SECRET not in f"{record.__dict__}{record.getMessage()}"
        assert record.exc_info is None
        assert "\n" not in record.getMessage()


@MODES
def test_at_debug_the_traceback_is_what_is_stored(run: Callable[..., list[Any]], mode: str) -> None:
    """It holds what the handler itself has said; `redact=` has the last word about it."""
    records = run(Asked(topic=SECRET, wish="fail"), mode=mode)
    assert any(SECRET in record.getMessage() for record in records)
    records = run(mode=mode, redact=lambda text: text.replace(SECRET, "***"))
    assert any("ValueError: no luck with ***" in record.getMessage() for record in records)
    assert not any(SECRET in record.getMessage() for record in records)


@MODES
def test_redact_has_the_last_word_about_what_is_stored(
    run: Callable[..., list[Any]], session_factory: sessionmaker[Session], tables: MessageBusTables, mode: str
) -> None:
    """At the first failure and at the second, error and traceback; what it does not take out stays."""
    d = tables.delivery
    for attempts in (1, 2):
        run(
            *([Asked(topic=SECRET, wish="fail")] if attempts == 1 else []),
            mode=mode,
            redact=lambda text: text.replace(SECRET, "***"),
        )
        with session_factory() as session:
            stored = session.execute(sa.select(d.c.attempts, d.c.error, d.c.traceback)).one()
        assert stored[:2] == (attempts, "ValueError: no luck with ***")
        assert "no luck with ***" in stored.traceback
        assert SECRET not in stored.traceback


def _raises(text: str) -> str:
    raise RuntimeError(text)


@pytest.mark.parametrize(
    ("redact", "said"),
    [
        (_raises, "ValueError: <left out: redact= raised RuntimeError>"),
        (lambda text: None, "ValueError: <left out: redact= returned NoneType>"),
    ],
)
def test_a_redact_that_fails_lets_nothing_through(redact: Any, said: str) -> None:
    """Neither the text nor the traceback is kept, and the failure is recorded all the same."""
    error = ValueError(SECRET)
    assert error_text(error, redact=redact) == said
    assert SECRET not in traceback_text(error, redact=redact)


def test_redact_sees_the_text_before_it_is_cut() -> None:
    """A secret that is cut in half would be none that a pattern finds."""
    error = ValueError("x" * (8 * 1024 - 15) + SECRET)
    assert "hunter" not in error_text(error, redact=lambda text: text.replace(SECRET, "***"))


def test_redact_must_be_a_function() -> None:
    """What cannot be called is refused with the other settings."""
    with pytest.raises(SettingsError, match="redact must be a function"):
        Subscription(redact="***")  # type: ignore[arg-type]


@pytest.mark.sqlite
def test_a_type_name_stays_on_its_line(
    run: Callable[..., list[Any]], session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """An unknown type is whatever somebody has written into the table: no second line, no control characters."""
    hostile = "Placed\n2026-01-01 CRITICAL root: all is lost\x1b[2J"
    run(Asked(topic="a"))
    with session_factory.begin() as session:
        session.execute(sa.update(tables.outbox).values(message=hostile))
        session.execute(sa.update(tables.subscription).values(position=0, revision=0))
    records = run(max_attempts=1)
    [dead] = [record for record in records if record.verdict]
    assert dead.message_type == hostile
    assert dead.getMessage().isprintable()
