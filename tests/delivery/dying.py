"""A process that delivers until nothing is left, unless a message kills it: `python -m tests.delivery.dying URL MODE`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import DispatchOutboxHandler, FixedDelay, MessageBus, Subscription
from message_bus.delivery.process import process_outbox
from message_bus.storage.sqlite import configure_sqlite
from tests.delivery.world import EFFECT, Noted
from tests.waiting import wait_until

KILLER = 3
MAX_ATTEMPTS = 2


def make_bus(engine: sa.Engine, mode: Any) -> MessageBus:
    """A bus whose handler writes an effect, or dies."""

    def handle(event: Noted, context: Any) -> None:
        if event.n == KILLER:
            os._exit(9)
        if mode == "transactional":
            context.db_session.execute(sa.insert(EFFECT).values(note=str(event.n)))
        else:
            with engine.begin() as connection:
                connection.execute(sa.insert(EFFECT).values(note=str(event.n)))

    bus = MessageBus(event_handlers={Noted: [handle]})
    settings = Subscription(name="dispatch", mode=mode, max_attempts=MAX_ATTEMPTS, backoff=FixedDelay(0))
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    return bus


def main() -> None:
    """Run until nothing is left to be tried."""
    url, mode = sys.argv[1:]
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    bus = make_bus(engine, mode)

    def all_done() -> bool:
        with Session(engine) as session:
            report = process_outbox(bus, session, lease=timedelta(seconds=0.4))
        return not (report.busy or report.retrying or report.held)

    wait_until(all_done, timeout=20)
    engine.dispose()


if __name__ == "__main__":
    main()
