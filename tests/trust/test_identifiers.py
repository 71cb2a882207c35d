"""Schema and prefix are checked and quoted; everything else that reaches the database is a bound parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from message_bus import (
    DeadLetters,
    MessageBus,
    MessageBusTables,
    OutboxMessage,
    SettingsError,
    SQLAlchemyOutBoxRepo,
)
from message_bus.admin import Schedule, Subscriptions
from message_bus.storage import migrations
from message_bus.storage.types import utc_after, utc_now
from tests.delivery.world import Noted, World
from tests.storage.catalogue import catalogue
from tests.trust import hostile

IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*\Z")
RESERVED = "select"
LONGEST_PREFIX = "p" * 35
IN_ONE_DATABASE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(hostile.anything.filter(lambda text: text and not IDENTIFIER.match(text)))
def test_what_is_no_identifier_is_refused(name: str) -> None:
    """As schema and as prefix, before a statement is made of it; the text is shown in quotes, on its line."""
    for options in ({"schema": name}, {"prefix": name}):
        with pytest.raises(SettingsError) as refused:
            MessageBusTables(**options)  # type: ignore[arg-type]
        assert "is not a lower-case SQL identifier" in str(refused.value)


def _names_in(tables: MessageBusTables) -> set[str]:
    names: set[str] = set()
    for table in tables.all:
        names |= {table.name, *(str(each.name) for each in table.constraints | table.indexes if each.name)}
    return names


def test_with_the_longest_suffix_a_name_has_63_bytes() -> None:
    """The longest prefix that is allowed makes no name that PostgreSQL would cut; one more is refused."""
    assert max(len(name) for name in _names_in(MessageBusTables(prefix=LONGEST_PREFIX))) <= 63
    with pytest.raises(SettingsError, match="too long"):
        MessageBusTables(prefix=f"{LONGEST_PREFIX}p")
    MessageBusTables(schema="s" * 63)
    with pytest.raises(SettingsError, match="too long"):
        MessageBusTables(schema="s" * 64)


@pytest.fixture
def reserved(engine: sa.Engine) -> Iterator[str]:
    """The name of a schema that is a word of SQL; gone, with all that is in it, after the test."""
    yield RESERVED
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema(RESERVED, cascade=True, if_exists=True))


def _deliver_one(engine: sa.Engine, tables: MessageBusTables) -> int:
    bus = MessageBus(event_handlers={Noted: [lambda event: None]})
    with Session(engine) as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=tables)
        bus.register_outbox_message(repo, Noted(n=1))
        session.commit()
        return bus.process_outbox(repo).delivered


@pytest.mark.postgresql
@pytest.mark.parametrize("prefix", ["order", LONGEST_PREFIX])
def test_names_are_quoted_and_not_cut(
    engine: sa.Engine, database_url: sa.URL, reserved: str, prefix: str
) -> None:
    """Tables, view, triggers, functions, sequences in schema `select`; messages are written there, and delivered."""
    tables = MessageBusTables(schema=reserved, prefix=prefix)
    migrations.upgrade(database_url, tables=tables)
    with engine.connect() as connection:
        found = [
            row[1:3]
            for row in catalogue(connection, reserved)
            if row[0] in ("constraints", "indexes", "triggers")
        ]
    made = {name.rpartition(".")[2].strip('"') for names in found for name in names}
    assert _names_in(tables) <= made
    assert max(map(len, made)) <= 63
    assert _deliver_one(engine, tables) == 1


@IN_ONE_DATABASE
@given(text=hostile.names)
def test_what_operators_type_is_a_bound_parameter(world: World, text: str) -> None:
    """No selection finds what it does not say, whatever it is made of; `%` and `_` of an error text stand for themselves."""
    with world.sessions() as session:
        letters = DeadLetters(session, tables=world.tables)
        assert letters.list(subscription=text, message=text, error=text) == []
        assert letters.count(error=text) == 0
        assert Schedule(session, tables=world.tables).list(message=text, key=text) == []
        assert Subscriptions(session, tables=world.tables).list(text) == []
        session.rollback()
        assert sa.inspect(session.connection()).has_table("message_bus_outbox")


def test_an_error_text_is_searched_for_word_for_word(world: World) -> None:
    """The wildcards of LIKE are none for operators."""
    world.settings(max_attempts=1)
    world.fail("1", ValueError("100 % sure"))
    world.fail("2", ValueError("100 x sure"))
    world.register(Noted(n=1), Noted(n=2))
    assert world.process().dead == 2
    with world.sessions() as session:
        letters = DeadLetters(session, tables=world.tables)
        assert [letters.count(error=text) for text in ("100 % sure", "100 _ sure", "100%sure", "100")] == [
            1,
            0,
            0,
            2,
        ]


@IN_ONE_DATABASE
@given(name=hostile.names.filter(lambda text: len(text) <= 200), key=hostile.storable, value=hostile.storable)
def test_what_messages_bring_is_a_bound_parameter(world: World, name: str, key: str, value: str) -> None:
    """Type name, key, payload and meta are stored as they are, and read as they were."""
    with world.sessions() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        row = OutboxMessage(
            type="EVENT", message=name, key=key[:500], payload={"text": value}, meta={value: value}
        )
        repo.add(row)
        repo.flush()
        found = repo.get(row.id)
        assert found is not None
        assert (found.message, found.key, found.payload, found.meta) == (
            name,
            key[:500],
            {"text": value},
            {value: value},
        )
        session.rollback()


@pytest.mark.parametrize("dialect", [postgresql.dialect(), sqlite.dialect()])
@given(delay=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=365)))
def test_numbers_are_bound_too(dialect: Any, delay: timedelta) -> None:
    """The clock is an expression of the database; what is added to it is a parameter."""
    compiled = str(sa.select(utc_after(sa.bindparam("delay")), utc_now()).compile(dialect=dialect))
    assert str(delay.total_seconds()) not in compiled
