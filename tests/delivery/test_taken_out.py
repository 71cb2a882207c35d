"""A type is taken out of `types=` while messages of it are retrying or held: they are passed over, nobody handles them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import Event, FixedDelay, SQLAlchemyOutBoxRepo
from message_bus.admin import DeadLetters
from tests.delivery.world import Noted, Placed, World, placed

LATER = FixedDelay(3_600)


class Moved(Event, key="order"):
    """Of the same keys as Placed."""

    order: str


def _restart_without_placed(world: World, **settings: Any) -> None:
    world.bus.set_event_handlers(
        Moved, [lambda event, context: world._handle(f"moved {event.order}", context)]
    )
    world.settings(types=[Noted, Moved], **settings)


@pytest.mark.parametrize("due", [True, False])
def test_it_is_passed_over_and_blocks_nobody(
    world: World, due: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """G3, G9: its row goes, whether it is due or not; its key goes on, and retention does not wait for it."""
    world.settings(**({} if due else {"backoff": LATER}))
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]))
    assert (world.process().retrying, world.deliveries()[1][1]) == (1, "held")
    _restart_without_placed(world)
    world.register(Moved(order="a"))
    report = world.process()
    assert (world.effects(), report.delivered, world.deliveries()) == (["moved a"], 1, [])
    assert "does not read its type any more" in caplog.text


def test_a_dead_letter_of_it_stays_until_somebody_decides(world: World) -> None:
    """G7: replaying it does not bring it back to a handler that is not to have it."""
    world.settings(max_attempts=1)
    world.fail("a:1", 1)
    world.register(Placed(order="a", n=1))
    world.process()
    _restart_without_placed(world)
    world.process()
    assert [state for _, state, _ in world.deliveries()] == ["dead"]
    with world.sessions.begin() as session:
        assert DeadLetters(session, tables=world.tables).replay(everything=True).count == 1
    assert (world.process().delivered, world.effects(), world.deliveries()) == (0, [], [])


def test_one_that_was_being_tried_by_a_worker_that_died(world: World) -> None:
    """S6: it is not blamed for the death of a worker, and not tried."""
    d, s = world.tables.delivery, world.tables.subscription
    world.register(Placed(order="a", n=1))
    world.process()
    row = {"subscription": "dispatch", "position": 1, "key": "a", "key_hash": 1, "state": "trying"}
    world.write(sa.insert(d).values(**row))
    world.write(sa.update(s).values(owner="dead", lease_until=sa.text("'2020-01-01 00:00:00.000000'")))
    _restart_without_placed(world)
    world.process()
    assert (world.effects(), world.deliveries()) == (["a:1"], [])


def test_a_row_whose_message_was_replayed_meanwhile(world: World) -> None:
    """S3: what comes into the delivery table during a lease is looked at as well."""
    world.settings(max_attempts=1)
    world.fail("a:1", 1)
    world.register(Placed(order="a", n=1))
    world.process()
    _restart_without_placed(world)

    def replay(context: Any) -> None:
        repo = SQLAlchemyOutBoxRepo(context.db_session, tables=world.tables)
        DeadLetters(repo.session, tables=world.tables).replay(everything=True)

    world.before["5"] = replay
    world.register(Noted(n=5), Noted(n=6))
    assert world.process().delivered == 2
    assert (world.effects(), world.deliveries()) == (["5", "6"], [])
