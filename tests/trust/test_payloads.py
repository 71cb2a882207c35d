"""Payloads: how large they may be, what becomes of those that nobody can read, and who gets to see them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Context,
    Event,
    EventHandlerABC,
    InvalidMessage,
    MessageBus,
    MessageBusTables,
    OutboxMessage,
    SettingsError,
)
from message_bus.cli.main import main
from message_bus.cli.options import DATABASE_URL_VARIABLE
from tests.delivery.world import Noted, World

SECRET = "hunter2-the-secret"
MIB = 1024 * 1024


class Report(Event):
    """As large as its text."""

    text: str


def of_size(size: int) -> Report:
    """A message whose payload has so many bytes."""
    return Report(text="x" * (size - len('{"text":""}')))


def test_a_payload_over_one_mebibyte_is_refused_at_registration(
    session_factory: sessionmaker[Session],
) -> None:
    """To the byte; with the remedy, and without a word of the payload; the transaction is still good."""
    bus = MessageBus()
    with session_factory() as session:
        with pytest.raises(InvalidMessage) as refused:
            bus.register_outbox_message(session, of_size(MIB + 1))
        assert "store the content elsewhere and send a reference" in str(refused.value)
        assert "xx" not in str(refused.value)
        row = bus.register_outbox_message(session, of_size(MIB))
        assert len(row.payload_json) == MIB
        with pytest.raises(InvalidMessage):
            MessageBus.register_outbox_message(session, of_size(MIB + 1))


@pytest.mark.sqlite
@pytest.mark.parametrize("kind", [MessageBus, AsyncMessageBus])
def test_the_limit_is_a_setting_of_the_bus(kind: type[Any], session_factory: sessionmaker[Session]) -> None:
    """`max_payload=`, in bytes, up or down."""
    with session_factory() as session:
        kind(max_payload=2 * MIB).register_outbox_message(session, of_size(2 * MIB))
        with pytest.raises(InvalidMessage, match="more than 100"):
            kind(max_payload=100).register_outbox_message(session, of_size(101))
    with pytest.raises(SettingsError, match="max_payload"):
        kind(max_payload=0)


@pytest.mark.sqlite
def test_the_limit_holds_for_what_handlers_emit(world: World) -> None:
    """Behind the outbox it fails the message whose handler emits too much."""
    bus = MessageBus(max_payload=100)

    class Verbose(EventHandlerABC):
        def _handle(self, event: Noted, context: Context, *args: Any, **kwargs: Any) -> None:
            self.emit_message(of_size(101))

    bus.set_event_handlers(Noted, [Verbose()])
    world.register(Noted(n=1))
    with world.sessions() as session:
        assert bus.process_outbox(session).retrying == 1
    [(error,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert error.startswith("InvalidMessage")
    assert "xx" not in error


@pytest.mark.parametrize("payload", ['{"n": "x"}', "[]", "3", '"x"', "null", '{"n": 1e999}', '{"m": 1}'])
def test_what_cannot_be_decoded_is_a_dead_letter(world: World, payload: str) -> None:
    """G7: at the first attempt, whatever stands there; the next message is delivered."""
    world.register(Noted(n=1), Noted(n=2))
    t = world.tables.outbox
    world.write(sa.update(t).where(t.c.position == 1).values(payload=sa.literal_column(f"'{payload}'")))
    report = world.process()
    assert (report.dead, report.delivered) == (1, 1)
    [(error,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert error.startswith("MessageDecodeError: cannot decode 'Noted'")


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["doctor"],
        ["subscriptions", "list"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "{dead}"],
        ["dead-letters", "replay", "--all", "--dry-run"],
        ["dead-letters", "discard", "--all", "--dry-run"],
        ["schedule", "list"],
        ["schedule", "cancel", "{delayed}", "--dry-run"],
        ["why", "{dead}"],
    ],
)
@pytest.mark.sqlite
def test_payloads_and_meta_are_shown_only_on_request(
    world: World, database_url: sa.URL, command: list[str]
) -> None:
    """By no command, as text or as JSON; `--payload` shows both where it is to be had."""
    bus = MessageBus()
    world.settings(max_attempts=1)
    world.bus.register_messages(Report)
    with world.sessions.begin() as session:
        dead = bus.register_outbox_message(session, Report(text=f"{SECRET} text"), meta={"note": SECRET}).id
        session.flush()
        delayed = bus.register_outbox_message(
            session, Report(text=SECRET), meta={"note": SECRET}, delay=timedelta(hours=1)
        ).id
    world.write(sa.update(world.tables.outbox).values(message="gone"))
    assert world.process().dead == 1
    given = [word.format(dead=dead, delayed=delayed) for word in command]
    env = {DATABASE_URL_VARIABLE: database_url.render_as_string(hide_password=False)}
    for options in ([], ["--json"]):
        done = CliRunner().invoke(main, [*given, *options], env=env)
        assert done.exit_code in (0, 3), done.output
        assert SECRET not in done.output
    if command[1:2] in (["list"], ["show"]) and command[0] != "subscriptions":
        done = CliRunner().invoke(main, [*given, "--payload"], env=env)
        assert SECRET in done.output
        asked = json.loads(CliRunner().invoke(main, [*given, "--payload", "--json"], env=env).output)
        assert json.dumps(asked).count(SECRET) == 2


def test_a_row_does_not_show_its_payload() -> None:
    """Neither payload, meta nor key are in its `repr`, which ends up in logs and tracebacks."""
    row = OutboxMessage(
        type="EVENT", message="Report", payload={"text": SECRET}, meta={"note": SECRET}, key=SECRET
    )
    assert SECRET not in f"{row!r}{row}"


def test_a_foreign_model_is_measured_too(tables: MessageBusTables) -> None:
    """The limit belongs to registration, not to our own tables."""
    from message_bus import OutBoxRepoABC

    class Rows(OutBoxRepoABC):
        def get_model(self) -> Any:
            return dict

        def _add(self, outbox_message: Any) -> None:
            raise AssertionError("it was added")

    with pytest.raises(InvalidMessage):
        MessageBus().register_outbox_message(Rows(), of_size(MIB + 1))
