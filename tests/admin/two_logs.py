"""A world with two logs, in which the same positions mean different messages; for tests of what operators see and do."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from message_bus import FixedDelay, OutboxHandlerABC, Subscription
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from tests.delivery.world import EFFECT, Noted, World, placed


class Orders(OutboxHandlerABC):
    """Reads the event log: writes the effect `stream:n`, and fails for those in `failing`."""

    log = "events"
    default_mode = "transactional"

    def __init__(self, *failing: str, **settings: Any) -> None:
        self.subscription = Subscription(
            **{"name": "orders", "max_attempts": 1, "backoff": FixedDelay(0), **settings}
        )
        self.failing = set(failing)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        note = f"{outbox_message.key}:{outbox_message.payload['n']}"
        if note in self.failing:
            raise ValueError(f"no order {note}")
        context.db_session.execute(sa.insert(EFFECT).values(note=note))


def append(world: World, stream: str, *numbers: int) -> list[UUID]:
    """Commit events of a stream; their ids."""
    with world.sessions.begin() as session:
        store = SQLAlchemyEventStore(session, tables=world.tables)
        return [each.id for each in store.save(stream, placed(stream, numbers))]


def reading_both(world: World, *failing: str, **settings: Any) -> Orders:
    """Let "dispatch" read the outbox and "orders" the event log."""
    orders = Orders(*failing, **settings)
    dispatch = [each for each in world.bus.outbox_handlers if not isinstance(each, Orders)]
    world.bus.set_outbox_handlers([*dispatch, orders])
    return orders


def one_letter_each(world: World) -> UUID:
    """At position 1 of each log a message that is dead; three more events follow. The id of the dead event.

    The dead message of the outbox has the id 1, and is behind one event in the other log, ahead of two.
    """
    reading_both(world, "a:1")
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    [dead] = append(world, "a", 1)
    append(world, "b", 1, 2)
    append(world, "a", 2)
    report = world.process()
    assert (report.dead, world.effects()) == (2, ["b:1", "b:2", "a:2"])
    return dead
