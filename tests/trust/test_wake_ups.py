"""NOTIFY carries no data and is only a hint; whoever may connect may notify, so wake-ups are rate-limited."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBus, MessageBusTables
from message_bus.relay.board import Board
from message_bus.relay.listening import _REST, Listener
from message_bus.storage.channel import channel_name, notify
from message_bus.storage.logs import quoted_name
from tests.delivery.world import Noted
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql


def test_a_notification_carries_nothing(
    engine: sa.Engine, tables: MessageBusTables, session_factory: sessionmaker[Session]
) -> None:
    """Neither the payload of a message nor its type or key: an empty text, from every kind of writer."""
    with engine.connect() as connection:
        listening = connection.execution_options(isolation_level="AUTOCOMMIT")
        table = {"log_table": quoted_name(listening, tables.outbox)}
        name = listening.execute(channel_name(), table).scalar_one()
        listening.exec_driver_sql(f'LISTEN "{name}"')
        with session_factory.begin() as session:
            session.execute(sa.update(tables.log).values(asleep_until=sa.text("'2999-01-01'")))
            session.execute(
                sa.dialects.postgresql.insert(tables.log)
                .values(log="outbox", asleep_until=sa.text("'2999-01-01'"))
                .on_conflict_do_nothing()
            )
        with session_factory.begin() as session:
            MessageBus.register_outbox_message(session, Noted(n=1), key="a secret key")
        driver: Any = connection.connection.driver_connection
        heard = list(driver.notifies(timeout=5, stop_after=1))
        listening.exec_driver_sql("UNLISTEN *")
    assert [each.payload for each in heard] == [""]
    compiled = notify().compile(dialect=postgresql.dialect())
    assert list(compiled.params.values()).count("") == 1


def test_a_storm_of_notifications_wakes_nobody_more_often(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """A thousand notifications with whatever in them: as many rings as there are rests in that time, and no error."""
    board = Board()
    board.ready = True
    listener = Listener(engine, tables, board)
    thread = threading.Thread(target=listener.listen)
    thread.start()
    try:
        wait_until(lambda: board.listening)
        before, begun_at = board.rings, time.monotonic()
        with engine.connect() as connection:
            storm = connection.execution_options(isolation_level="AUTOCOMMIT")
            name = storm.execute(
                channel_name(), {"log_table": quoted_name(storm, tables.outbox)}
            ).scalar_one()
            storm.execute(
                sa.text("SELECT count(pg_notify(:name, 'DROP TABLE ' || n)) FROM generate_series(1, 1000) n"),
                {"name": name},
            )
        wait_until(lambda: board.rings > before)
        took = time.monotonic() - begun_at
        assert board.rings - before <= took / _REST + 2
        assert thread.is_alive()
    finally:
        board.ask_to_stop()
        listener.stop()
        thread.join(20)
    assert not thread.is_alive()
