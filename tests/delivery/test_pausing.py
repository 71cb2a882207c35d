"""An operator pauses or drops a subscription in the middle of a run: what is in hand is finished, nothing else is begun."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import OutboxHandlerABC, Relay, Subscription
from message_bus.admin import Subscriptions
from tests.delivery.world import AT_ONCE, Noted, World, placed
from tests.waiting import wait_until

pytestmark = pytest.mark.postgresql


def _decide(world: World, action: str) -> None:
    with world.sessions.begin() as session:
        subscriptions = Subscriptions(session, tables=world.tables)
        if action == "drop":
            subscriptions.drop("dispatch", force=True)
        else:
            getattr(subscriptions, action)("dispatch")


def _owners(world: World) -> list[Any]:
    return world.rows(sa.select(world.tables.subscription.c.owner))


@pytest.mark.parametrize(
    ("options", "handled"),
    [
        ({}, ["0", "1", "2"]),
        ({"messages_per_commit": 2}, ["0", "1", "2", "3"]),
        ({"mode": "concurrent", "fetch_size": 3}, ["0", "1", "2"]),
    ],
    ids=["one", "two", "concurrent"],
)
def test_a_pause_ends_a_run(world: World, options: dict[str, Any], handled: list[str]) -> None:
    """S3: whoever has the lease sees the decision with its next commit, keeps what is in hand, gives the lease back."""
    world.settings(**options)
    noted: list[str] = []

    def handle(event: Noted) -> None:
        noted.append(str(event.n))
        if event.n == 2:
            _decide(world, "pause")

    world.bus.set_event_handlers(Noted, [handle])
    world.register(*[Noted(n=n) for n in range(50)])
    report = world.process()
    assert (noted, report.delivered, _owners(world)) == (handled, len(handled), [(None,)])
    assert world.process().idle == ("dispatch",)
    _decide(world, "resume")
    assert world.process().delivered == 50 - len(handled)
    assert noted == [str(n) for n in range(50)]


def test_a_pause_while_failed_messages_are_tried_again(world: World) -> None:
    """S3: messages that are due are not begun either."""
    world.fail("a:0", 1)
    world.register(*placed("a", range(9)))
    world.process()
    world.before["a:1"] = lambda _: _decide(world, "pause")
    assert world.process().delivered == 2
    assert world.effects() == ["a:0", "a:1"]


class Slow(OutboxHandlerABC):
    """Handles a long batch outside of any transaction; pauses at its second message, and waits until that is seen."""

    subscription = Subscription(name="dispatch", backoff=AT_ONCE, fetch_size=100)

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.sent: list[int] = []

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.sent.append(outbox_message.payload["n"])
        if len(self.sent) == 2:
            _decide(self.world, "pause")
            s = self.world.tables.subscription
            paused_at = self.world.rows(sa.select(sa.func.clock_timestamp()))[0][0]
            wait_until(lambda: self.world.rows(sa.select(s.c.seen_at > paused_at)) == [(True,)])


def test_a_pause_is_heard_of_with_a_heartbeat(world: World) -> None:
    """S3: a batch that takes long is not begun to its end only because nothing of it is committed yet."""
    slow = Slow(world)
    world.bus.set_outbox_handlers([slow])
    world.register(*[Noted(n=n) for n in range(50)])
    assert world.process(lease=timedelta(seconds=0.3)).delivered <= 3
    assert len(slow.sent) <= 3  # the heartbeat's commit and its taking notice are two moments


def test_a_relay_stops_in_the_middle_of_a_backlog(world: World) -> None:
    """S3: a relay lets go of a paused subscription, and takes it again when it is resumed."""
    in_hand, go_on = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        in_hand.set()
        assert go_on.wait(10)

    world.before["a:5"] = wait
    world.register(*placed("a", range(200)))
    with Relay(world.bus, world.sessions, poll=timedelta(seconds=0.1)) as relay:
        assert in_hand.wait(10)
        _decide(world, "pause")
        go_on.set()
        wait_until(lambda: _owners(world) == [(None,)])
        assert len(world.effects()) == 6
        _decide(world, "resume")
        wait_until(lambda: len(world.effects()) == 200)
        relay.wait_until_idle()
    assert world.effects() == [f"a:{n}" for n in range(200)]


def test_a_pause_that_is_taken_back_at_once(world: World) -> None:
    """S3: the run ends or goes on, the relay handles everything all the same."""

    def pause_and_resume(_: Any) -> None:
        _decide(world, "pause")
        _decide(world, "resume")

    world.before["a:1"] = pause_and_resume
    world.register(*placed("a", range(9)))
    with Relay(world.bus, world.sessions, poll=timedelta(seconds=0.1)):
        wait_until(lambda: len(world.effects()) == 9)


def test_a_drop_ends_a_run(world: World) -> None:
    """G6: nothing of a dropped subscription is committed, nor begun."""
    handled: list[int] = []

    def handle(event: Noted) -> None:
        handled.append(event.n)
        if event.n == 2:
            _decide(world, "drop")

    world.bus.set_event_handlers(Noted, [handle])
    world.register(*[Noted(n=n) for n in range(50)])
    report = world.process()
    assert (handled, report.delivered, report.busy) == ([0, 1, 2], 0, ("dispatch",))
    assert _owners(world) == []
