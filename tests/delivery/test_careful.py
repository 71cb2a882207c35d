"""Careful mode (S6, G7): after a death messages are tried one by one, so that the one that kills is found and dies."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import DispatchOutboxHandler, Subscription, Unavailable
from message_bus.delivery.hands import Hands
from message_bus.delivery.jobs import Stop
from message_bus.delivery.worker import Worker
from message_bus.storage.watermark import Watermark
from tests.delivery import dying
from tests.delivery.world import Noted, World, placed
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")


def _die(world: World, note: str) -> None:
    """A worker dies with this message in hand: its transaction is gone, its lease ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(world.before, note, _raise_exit)
        with pytest.raises(SystemExit):
            _process_twice(world)
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO))


def _process_twice(world: World) -> None:
    world.process()  # the run that finds out about a death does not repeat the message at once
    world.process()


def _raise_exit(_: Any) -> None:
    raise SystemExit


def _query(world: World) -> Any:
    d = world.tables.delivery
    return sa.select(d.c.position, d.c.state, d.c.attempts, d.c.crashes).order_by(d.c.position)


def _states(world: World) -> list[tuple[int, str, int, int]]:
    return world.rows(_query(world))


def _look(world: World, note: str) -> list[Any]:
    """What the delivery table holds while this message is handled, seen from its own transaction."""
    seen: list[Any] = []

    def look(context: Any) -> None:
        seen.extend(tuple(row) for row in context.db_session.execute(_query(world)))
        seen.append(context.db_session.scalar(sa.select(world.tables.subscription.c.position)))

    world.before[note] = look
    return seen


@pytest.mark.parametrize("mode", ["transactional", pytest.param("concurrent", marks=pytest.mark.slow)])
def test_a_message_that_kills_its_process_dies_alone(world: World, database_url: sa.URL, mode: str) -> None:
    """G7, S6: real processes: the killer is a dead letter after `max_attempts` counted deaths, all others are delivered."""
    world.register(*[Noted(n=n) for n in range(6)])
    command = [sys.executable, "-m", "tests.delivery.dying"]
    command += [database_url.render_as_string(hide_password=False), mode]
    deaths = 0
    while (ended := subprocess.run(command, cwd=ROOT, check=False).returncode) == 9:
        deaths += 1
        assert deaths < 9
    assert ended == 0
    assert deaths == dying.MAX_ATTEMPTS + 1  # the first one did not count: nobody was careful
    innocent = [str(n) for n in range(6) if n != dying.KILLER]
    # a concurrent batch that died is delivered again, once; a transaction is not
    assert sorted(set(world.effects())) == innocent
    if mode == "transactional":
        assert sorted(world.effects()) == innocent
    assert _states(world) == [(dying.KILLER + 1, "dead", 0, dying.MAX_ATTEMPTS)]
    assert world.rows(sa.select(world.tables.delivery.c.error)) == [("killed the worker 2 times",)]


def test_a_careful_success_leaves_no_row(world: World) -> None:
    """S6: while it is tried the message is `trying`, and the checkpoint has passed it; afterwards nothing is left."""
    world.register(*[Noted(n=n) for n in (1, 2)])
    _die(world, "1")
    seen = _look(world, "1")
    assert world.process().delivered == 2
    assert seen == [(1, "trying", 0, 0), 1]
    assert (_states(world), world.effects()) == ([], ["1", "2"])


def test_a_lease_that_was_given_back_is_no_reason_to_be_careful(world: World) -> None:
    """S6: ordinary work pays nothing."""
    world.register(Noted(n=1))
    world.process()
    world.register(Noted(n=2))
    seen = _look(world, "2")
    world.process()
    assert seen == [1]


def test_deaths_are_counted_and_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """G7, S6: each death in careful mode counts, in a column of its own; followers of the key wait meanwhile."""
    world.settings(max_attempts=2)
    world.register(*placed("a", [1, 2]))
    for _ in range(3):
        _die(world, "a:1")
    assert [state for state in _states(world) if state[0] == 1] == [(1, "trying", 0, 1)]
    report = world.process()
    assert (report.dead, world.effects()) == (1, ["a:2"])
    assert "killed the worker 2 times" in caplog.text


def test_one_that_has_killed_is_always_tried_carefully(world: World) -> None:
    """S6: also when its next attempt comes long after the others, and the lease was given back in between."""
    world.settings(max_attempts=5)
    world.register(Noted(n=1))
    _die(world, "1")
    _die(world, "1")
    world.fail("1", 1)
    assert world.process().retrying == world.process().retrying == 1
    seen = _look(world, "1")
    assert world.process().delivered == 1
    assert seen == [(1, "trying", 1, 1), 1]


@pytest.mark.parametrize(
    ("failures", "unavailable", "expected"),
    [
        (0, "a:1", [(1, "retrying", 0, 0)]),
        (1, "a:1", [(1, "retrying", 1, 0), (2, "held", 0, 0)]),
        (1, "a:2", [(2, "held", 0, 0)]),
    ],
    ids=["new", "failed", "held"],
)
def test_an_outage_takes_the_attempt_back(
    world: World, failures: int, unavailable: str, expected: list[Any]
) -> None:
    """S6, G8: nobody has died of a message whose mail server was away: its row is what it was."""
    world.register(*placed("a", [1, 2]))
    if failures:
        world.fail("a:1", failures)
        world.process()
    _die(world, "a:1")
    world.fail(unavailable, Unavailable("mail"))
    assert world.process().unavailable == ("dispatch",)
    assert _states(world) == expected
    assert world.process().ok
    assert world.effects() == ["a:1", "a:2"]


def test_an_outage_of_the_database_takes_it_back_too(world: World) -> None:
    """S6, S7: the connection is lost while a message is tried carefully: no crash, the same run delivers it."""
    world.register(Noted(n=1))
    _die(world, "1")
    world.fail("1", sa.exc.OperationalError("x", {}, ConnectionResetError()))
    assert world.process().delivered == 1
    assert _states(world) == []


def test_payloads_are_read_after_the_attempt_is_recorded(world: World) -> None:
    """S6: a payload that kills whoever reads it is counted as well."""
    world.register(Noted(n=1))
    _die(world, "1")
    order: list[str] = []

    def see(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("INSERT INTO message_bus_delivery"):
            order.append("recorded")
        elif "message_bus_outbox.payload AS" in " ".join(statement.split()):
            order.append("payload")

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", see)
    world.process()
    sa.event.remove(engine, "before_cursor_execute", see)
    assert order[:2] == ["recorded", "payload"]


def test_who_is_alone_has_nobody_beside_him() -> None:
    """S6: one message in hand over all workers of a process, or any number of ordinary ones."""
    hands = Hands()
    inside: list[str] = []
    go_on = threading.Event()
    begun = threading.Event()

    def ordinary() -> None:
        with hands.shared():
            begun.set()
            assert go_on.wait(10)
            inside.append("ordinary")

    def careful() -> None:
        with hands.alone():
            inside.append("careful begins")
            inside.append("careful ends")

    threads = [threading.Thread(target=ordinary)]
    threads[0].start()
    assert begun.wait(10)
    threads += [threading.Thread(target=careful) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    assert inside == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert inside == ["ordinary", *["careful begins", "careful ends"] * 2]


@pytest.mark.postgresql
def test_a_careful_one_waits_for_the_others_of_its_process(world: World) -> None:
    """S6: as long as another worker of the process has a message in hand, nobody tries one carefully, and the reverse."""
    inside: list[str] = []
    most: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def handle(event: Noted) -> None:
        inside.append("in")
        most.append(len(inside))
        if len(most) == 1:
            busy.set()
            assert go_on.wait(10)
        inside.pop()

    world.bus.set_event_handlers(Noted, [handle])
    names = ("ordinary", "careful")
    handlers = [DispatchOutboxHandler(subscription=Subscription(name=name)) for name in names]
    world.bus.set_outbox_handlers(handlers)
    world.process()
    world.register(*[Noted(n=n) for n in range(3)])
    s = world.tables.subscription
    world.write(sa.update(s).where(s.c.name == "careful").values(owner="dead", lease_until=LONG_AGO))
    hands, stop, watermark = Hands(), Stop(), Watermark(world.tables)

    def work(handler: DispatchOutboxHandler) -> None:
        assert handler.subscription is not None
        worker = Worker(
            world.bus,
            handler,
            handler.subscription,
            0,
            tables=world.tables,
            watermark=watermark,
            lease=timedelta(seconds=30),
            stop=stop,
            hands=hands,
        )
        with world.sessions() as session:
            assert worker.claim(session)
            worker.run(session)
            worker.release(session)

    threads = [threading.Thread(target=work, args=(handler,)) for handler in handlers]
    threads[0].start()
    assert busy.wait(10)
    threads[1].start()
    waiting = sa.select(sa.func.count()).where(s.c.name == "careful", s.c.epoch == 2)
    wait_until(lambda: hands._waiting or len(most) > 1)
    assert world.rows(waiting) == [(1,)]
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert (len(most), max(most)) == (6, 1)


def test_care_is_handed_on(world: World) -> None:
    """S6: an owner that ends before it has met what killed the last one leaves the next one as careful, and free at once."""
    world.register(*[Noted(n=n) for n in range(3)])
    _die(world, "0")
    world.process(limit=1)
    seen = _look(world, "1")
    assert world.process(limit=1).busy == ()
    assert (2, "trying", 0, 0) in seen
    world.process()
    assert (world.effects(), _states(world)) == (["0", "1", "2"], [])
    assert world.rows(sa.select(world.tables.subscription.c.owner)) == [(None,)]
