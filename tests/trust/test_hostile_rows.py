"""Rows and settings that somebody has written who wishes us ill: no crash, and no terminal is spoken to."""

from __future__ import annotations

import json
import logging
import random
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from message_bus import (
    DispatchOutboxHandler,
    InvalidOutboxMessage,
    MessageBus,
    MessageBusError,
    OutboxMessage,
    SQLAlchemyOutBoxRepo,
    Subscription,
)
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.delivery.world import AT_ONCE, Noted, Placed, World
from tests.trust import hostile

IN_ONE_DATABASE = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_harmless(text: str) -> bool:
    """Whether a terminal only prints it."""
    return all(each.isprintable() or each == "\n" for each in text)


def emptied(world: World) -> None:
    """Nothing of the example before is left."""
    tables = world.tables
    world.write(
        *(
            sa.delete(table)
            for table in (tables.delivery, tables.subscription, tables.outbox, tables.schedule)
        )
    )


def _fails(text: str) -> Any:
    def fail(event: Placed) -> None:
        raise ValueError(text)

    return fail


@settings(IN_ONE_DATABASE, max_examples=6)  # each is a dozen commands, twice
@given(
    names=st.lists(hostile.names.filter(lambda text: len(text) <= 200), min_size=1, max_size=3),
    key=hostile.storable.filter(lambda text: len(text.encode()) <= 1_000),
    error=hostile.anything,
    subscription=hostile.names.filter(lambda text: len(text) <= 200),
)
@pytest.mark.sqlite
def test_every_table_stays_one_line_per_row(
    world: World, database_url: sa.URL, names: list[str], key: str, error: str, subscription: str
) -> None:
    """Type names, keys, errors and subscription names with control sequences and line ends in them."""
    emptied(world)
    bus = MessageBus(event_handlers={Placed: [_fails(error)]})
    one_attempt = Subscription(name=subscription, max_attempts=1, backoff=AT_ONCE)
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=one_attempt)])
    with world.sessions() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        for name in names:
            repo.add(OutboxMessage(type="EVENT", message=name, key=key, payload={"order": "a", "n": 1}))
        known = bus.register_outbox_message(repo, Placed(order="a", n=1), key=key).id
        later = OutboxMessage(type="EVENT", message=names[0], key=key, payload={}, delay=timedelta(hours=1))
        repo.add(later)
        session.commit()
        assert bus.process_outbox(repo).dead == len(names) + 1

    letters = len(names) + 1
    lines = _lines(database_url, "dead-letters", "list")
    assert len(lines) == 1 + letters + 1
    assert len(_lines(database_url, "dead-letters", "list", "--payload")) == 1 + 2 * letters + 1
    assert len(_lines(database_url, "dead-letters", "discard", "--all", "--dry-run")) == 2 + letters
    assert len(_lines(database_url, "subscriptions", "list")) == 2
    assert len(_lines(database_url, "schedule", "list")) == 3
    assert sum(line.startswith("dead letters  ") for line in _lines(database_url, "status")) == 1
    _lines(database_url, "dead-letters", "show", str(known))
    _lines(database_url, "why", str(known))
    _lines(database_url, "doctor")


def _lines(url: sa.URL, *words: str) -> list[str]:
    env = {
        DATABASE_URL_VARIABLE: url.render_as_string(hide_password=False),
        "FORCE_COLOR": "",
        "NO_COLOR": "1",
    }
    done = CliRunner().invoke(main, [*words], env=env)
    assert done.exit_code in (0, 3), done.output
    assert is_harmless(done.output), repr(done.output)
    as_json = CliRunner().invoke(main, [*words, "--json"], env=env)
    assert as_json.output.isascii()
    json.loads(as_json.output)
    return done.output.splitlines()


@IN_ONE_DATABASE
@given(
    payload=st.dictionaries(hostile.anything, hostile.values, max_size=4),
    key=hostile.anything,
    meta=st.dictionaries(hostile.anything, hostile.values, max_size=2),
)
def test_a_hostile_payload_is_delivered_or_is_a_dead_letter(
    world: World, payload: dict[str, Any], key: str, meta: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """G7: what the outbox takes ends, at once, one way or the other, and the message behind it is delivered."""
    emptied(world)
    caplog.clear()
    with world.sessions.begin() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        row = OutboxMessage(type="EVENT", message="Placed", key=key, payload=payload, meta=meta)
        try:
            repo.add(row)
        except InvalidOutboxMessage:
            taken = 0
        else:
            taken = 1
        world.bus.register_outbox_message(repo, Noted(n=1))
    with caplog.at_level(logging.INFO, "message_bus"):
        report = world.process()
    assert (report.delivered + report.dead, report.retrying) == (1 + taken, 0)
    assert report.delivered >= 1
    assert all(is_harmless(record.getMessage()) for record in caplog.records)


@pytest.mark.postgresql
@pytest.mark.parametrize("size", [1_000, 1_001, 3_000, 100_000])
def test_a_long_key_stops_nobody(world: World, size: int) -> None:
    """G7: a key is part of an index. What that could not hold is refused at registration, not when it fails."""
    order = _incompressible(size)
    message = Placed(order=order, n=1)
    if size > 1_000:
        with pytest.raises(InvalidOutboxMessage, match="more than 1000 bytes"):
            world.register(message)
        return
    world.settings(name="s" * 200)
    world.fail(f"{order}:1", 1)
    world.register(message, Placed(order=order, n=2), Placed(order="b", n=1))
    report = world.process()
    assert (report.retrying, report.held, report.delivered) == (1, 1, 1)


def _incompressible(size: int) -> str:
    return "".join(random.Random(size).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))


@given(text=hostile.anything.filter(bool))
def test_nonsense_is_refused(text: str) -> None:
    """Settings and arguments of another kind, by errors of ours."""
    for nonsense in (
        lambda: Subscription(name=text * 201),
        lambda: Subscription(mode=text),  # type: ignore[arg-type]
        lambda: Subscription(start=text),  # type: ignore[arg-type]
        lambda: MessageBus.register_outbox_message(text, Noted(n=1)),
        lambda: MessageBus.register_outbox_message(Session(), text),  # type: ignore[arg-type]
    ):
        with pytest.raises(MessageBusError):
            nonsense()
