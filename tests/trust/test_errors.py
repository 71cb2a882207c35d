"""Error texts hold names of types and fields, never values; stored errors lose what drivers add to them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    Event,
    InvalidMessage,
    InvalidOutboxMessage,
    MessageBus,
    MessageBusError,
    MessageDecodeError,
    OutboxMessage,
    OutBoxRepoABC,
    SettingsError,
)
from message_bus.delivery.verdicts import LONGEST_ERROR, error_text, traceback_text
from message_bus.messages.definition import definition_of
from message_bus.storage.record import encode
from message_bus.storage.urls import parse_url
from tests.delivery.world import Noted, World
from tests.trust import hostile

SECRET = "hunter2-the-secret"


@dataclasses.dataclass
class Inner:
    """Inside a message."""

    number: int
    words: list[str]


class Broad(Event, name="trust.broad"):
    """A message of many types."""

    number: int
    inner: Inner
    table: dict[str, int]
    maybe: float | None = None
    text: str = ""


class Nowhere(OutBoxRepoABC):
    """An outbox that takes a row and forgets it."""

    def get_model(self) -> Any:
        """The rows of our own tables."""
        return OutboxMessage

    def _add(self, outbox_message: Any) -> None:
        encode(outbox_message)


def refusal(do: Callable[[], object]) -> MessageBusError | None:
    """The error of ours with which this is refused; others are raised."""
    try:
        do()
    except MessageBusError as error:
        return error
    return None


PLACES = ["number", "inner", "table", "maybe", "text"]
SECRETS = st.sampled_from(
    [
        SECRET,
        [SECRET],
        {SECRET: SECRET},
        {"number": SECRET, "words": [1]},
        {"number": 1, "words": {SECRET: 1}},
    ]
) | st.builds(lambda other: [SECRET, other], hostile.values)


@given(place=st.sampled_from(PLACES), value=SECRETS)
def test_decoding_never_quotes_the_payload(place: str, value: Any) -> None:
    """Whatever stands in whichever field: the error names the field, or it is decoded."""
    payload = {"number": 1, "inner": {"number": 1, "words": []}, "table": {}, place: value}
    error = refusal(lambda: Broad.deserialize(payload))
    assert error is None or isinstance(error, MessageDecodeError)
    assert SECRET not in f"{error!r}{error}"
    assert "\n" not in str(error)


@given(values=st.fixed_dictionaries(dict.fromkeys(PLACES, SECRETS | hostile.values)))
def test_registration_never_quotes_a_value(values: dict[str, Any]) -> None:
    """What is refused is refused by one of our own errors, which names the field and not what was in it."""
    error = refusal(lambda: MessageBus.register_outbox_message(Nowhere(), Broad(**values)))
    assert SECRET not in f"{error!r}{error}"


@given(
    key=hostile.anything | st.integers() | st.none(),
    meta=st.none() | st.dictionaries(hostile.anything | st.integers(), SECRETS | hostile.values, max_size=3),
    message_id=hostile.anything | st.integers() | st.none(),
)
def test_key_meta_and_id_are_refused_without_being_quoted(key: Any, meta: Any, message_id: Any) -> None:
    """Whatever is given with a message: it is stored as it is, or refused by one of our own errors."""
    secret_key = key + SECRET if isinstance(key, str) else key
    secret_id = message_id + SECRET if isinstance(message_id, str) else message_id
    error = refusal(
        lambda: MessageBus.register_outbox_message(
            Nowhere(), Noted(n=1), key=secret_key, meta=meta, id=secret_id
        )
    )
    assert SECRET not in f"{error!r}{error}"


def test_numbers_that_python_does_not_print_are_refused() -> None:
    """A number of 5,000 digits is no value for JSON or a key: one of our own errors, and no digits."""

    class Huge(Event, key="number"):
        number: int

    huge = 10**5_000
    for message in (Huge(number=huge), Broad(huge, Inner(1, []), {})):
        with pytest.raises((InvalidMessage, InvalidOutboxMessage)) as refused:
            MessageBus.register_outbox_message(Nowhere(), message)
        assert "000000" not in str(refused.value)


@pytest.mark.parametrize("depth", [100, 1_000, 100_000])
def test_what_is_nested_deeply_is_stored_or_refused(depth: int) -> None:
    """No crash of the interpreter, in both directions."""

    class Deep(Event, name="trust.deep"):
        lists: list[Any]

    error = refusal(lambda: MessageBus.register_outbox_message(Nowhere(), Deep(lists=hostile.nested(depth))))
    assert error is None or isinstance(error, InvalidMessage)
    payload = '{"lists":' + "[" * depth + "]" * depth + "}"
    error = refusal(lambda: definition_of(Deep).decode(payload))
    assert error is None or isinstance(error, MessageDecodeError)


def _broken_statement(sessions: sessionmaker[Session], table: sa.Table, note: str | None) -> IntegrityError:
    with sessions() as session:
        if note is not None:
            session.execute(sa.insert(table).values(id=1, note=note, secret=SECRET))
        with pytest.raises(IntegrityError) as caught:
            session.execute(sa.insert(table).values(id=2, note=note, secret=SECRET))
    return caught.value


@pytest.mark.parametrize("note", [None, SECRET, f"{SECRET}\n\nsecond line, {SECRET}"])
def test_stored_errors_lose_the_values_of_a_statement(
    engine: sa.Engine, session_factory: sessionmaker[Session], note: str | None
) -> None:
    """The parameters that SQLAlchemy adds, and the key or the whole row that PostgreSQL adds as DETAIL."""
    table = sa.Table(
        "guarded",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("note", sa.Text, nullable=False, unique=True),
        sa.Column("secret", sa.Text),
    )
    table.create(engine)
    error = _broken_statement(session_factory, table, note)
    assert SECRET in str(error)
    for each in (error, ExceptionGroup("both", [error, ValueError()])):
        assert SECRET not in error_text(each)
        assert SECRET not in traceback_text(each)
    assert "IntegrityError" in error_text(error)
    outer = RuntimeError("while saving")
    outer.__cause__ = error
    assert SECRET not in traceback_text(outer)


@pytest.mark.parametrize("text", ["x" * 100_000, "ä" * 100_000, "🜁" * 100_000])
def test_stored_errors_are_cut_at_8_kib(text: str) -> None:
    """Bytes, not characters; an ellipsis says so, and no character is cut in half."""
    for stored in (error_text(ValueError(text)), traceback_text(ValueError(text))):
        assert len(stored.encode()) <= LONGEST_ERROR + len("…".encode()) == 8 * 1024 + 3
        assert "…" in stored


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=hostile.anything)
def test_whatever_a_handler_raises_can_be_stored(world: World, text: str) -> None:
    """NUL, lone surrogates, escape sequences, placeholders: the failure is recorded, and the next message is tried."""
    world.fail("1", ValueError(text))
    world.write(sa.delete(world.tables.delivery))
    world.register(Noted(n=1))
    assert world.process(limit=1).retrying == 1
    [(error,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert error.startswith("ValueError: ")


@pytest.mark.sqlite
def test_a_refused_setting_does_not_show_other_settings(caplog: pytest.LogCaptureFixture) -> None:
    """A database URL that cannot be read is not repeated: it holds a password."""
    with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError) as refused:
        parse_url(f"postgresql//ann:{SECRET}@host/name")
    assert SECRET not in f"{refused.value}{refused.value.__cause__}{caplog.text}"
