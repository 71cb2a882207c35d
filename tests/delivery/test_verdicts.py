"""Decisions about failed attempts, and what is kept of an error."""

from datetime import timedelta

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from message_bus import (
    FixedDelay,
    MessageDecodeError,
    NoRetry,
    Reject,
    RetryLater,
    Subscription,
    Unavailable,
    UnknownMessageType,
)
from message_bus.delivery.verdicts import (
    LONGEST_ERROR,
    Dead,
    Delivered,
    Outage,
    Retry,
    Verdict,
    decide,
    error_text,
    traceback_text,
)

SECRET = "hunter2\n]still secret"
SETTINGS = Subscription(max_attempts=3, backoff=FixedDelay(2))


@pytest.mark.parametrize(
    ("error", "attempt", "verdict"),
    [
        (None, 1, Delivered()),
        (ValueError("x"), 1, Retry(timedelta(seconds=2))),
        (ValueError("x"), 2, Retry(timedelta(seconds=2))),
        (ValueError("x"), 3, Dead("gave up after 3 attempts")),
        (ValueError("x"), 4, Dead("gave up after 4 attempts")),
        (Reject("bad card"), 1, Dead("rejected by the handler: bad card")),
        (Reject(), 1, Dead("rejected by the handler")),
        (RetryLater(timedelta(hours=1)), 1, Retry(timedelta(hours=1))),
        (RetryLater(7), 99, Retry(timedelta(seconds=7))),
        (RetryLater(), 99, Retry(timedelta(seconds=2))),
        (Unavailable(), 99, Outage()),
        (ConnectionRefusedError(), 99, Outage()),
        (UnknownMessageType("X"), 1, Retry(timedelta(seconds=2))),
        (UnknownMessageType("X"), 3, Dead("gave up after 3 attempts")),
        (MessageDecodeError("X", "field 'a' is missing"), 1, Dead("cannot be decoded")),
    ],
)
def test_decide(error: Exception | None, attempt: int, verdict: Verdict) -> None:
    """G7, G8: each outcome of an attempt has the verdict that the docs name."""
    assert decide(error, attempt=attempt, settings=SETTINGS, chance=0.5) == verdict


def test_an_outage_of_the_database_burns_no_attempt() -> None:
    """G8: an error that the caller knows to be an outage is one, at any attempt."""
    assert decide(ValueError(), attempt=99, settings=SETTINGS, chance=0.5, outage=True) == Outage()


def test_what_means_an_outage_can_be_set() -> None:
    """G8: `unavailable_on` replaces the default."""
    settings = Subscription(unavailable_on=(TimeoutError,))
    assert decide(TimeoutError(), attempt=1, settings=settings, chance=0.5) == Outage()
    assert isinstance(decide(ConnectionError(), attempt=1, settings=settings, chance=0.5), Retry)


def test_a_policy_that_does_not_retry_makes_a_dead_letter() -> None:
    """G7: NoRetry buries at the first failure."""
    assert isinstance(
        decide(ValueError(), attempt=1, settings=Subscription(backoff=NoRetry()), chance=0.5), Dead
    )


def test_stored_errors_lose_the_parameters_of_statements() -> None:
    """A failing statement's values never reach the delivery table, neither in the text nor in the traceback."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.connect() as connection, pytest.raises(OperationalError) as caught:
        connection.execute(text("SELECT * FROM nowhere WHERE secret = :s"), {"s": SECRET})
    for stored in (error_text(caught.value), traceback_text(caught.value)):
        assert "no such table" in stored
        assert SECRET.split("\n", maxsplit=1)[0] not in stored
        assert SECRET.split("\n")[1] not in stored


def test_stored_errors_are_cut() -> None:
    """Error text and traceback keep at most 8 KiB each (and a mark), the traceback its end."""
    with pytest.raises(ValueError, match="é") as caught:
        raise ValueError("é" * 20_000 + "THE END")
    assert len(error_text(caught.value).encode()) <= LONGEST_ERROR + 3
    assert error_text(caught.value).endswith("…")
    assert len(traceback_text(caught.value).encode()) <= LONGEST_ERROR + 3
    assert traceback_text(caught.value).rstrip().endswith("THE END")


def test_stored_errors_have_no_nul() -> None:
    """PostgreSQL's text cannot hold NUL: an error text with one must not make recording fail."""
    assert "\x00" not in error_text(ValueError("a\x00b"))
