"""S7, S11 and G8: the lease by one's own clock, handlers that hang, and what happens when everything fails."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import OutboxHandlerABC, Reject, RetryLater, Subscription, UnknownMessageType
from message_bus.delivery.lease import Lease
from message_bus.delivery.suspicion import KEYS, LONGEST_WAIT, Suspicion
from tests.delivery.world import AT_ONCE, Noted, World, placed

LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """The time that the test has set."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every lease."""
    made = Clock()
    monkeypatch.setattr(Lease, "clock", staticmethod(made))
    return made


class Send(OutboxHandlerABC):
    """Notes which numbers it was given."""

    subscription = Subscription(backoff=AT_ONCE)

    def __init__(self, before: Any = None) -> None:
        super().__init__()
        self.sent: list[int] = []
        self._before = before

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.sent.append(outbox_message.payload["n"])
        if self._before is not None:
            self._before(self.sent[-1])


def _steal(world: World) -> None:
    s = world.tables.subscription
    world.write(sa.update(s).values(owner="another", epoch=s.c.epoch + 1))


# --- S7: one's own clock ----------------------------------------------------------------------------------------------


def test_no_handler_is_started_after_the_lease_has_ended(world: World, clock: Clock) -> None:
    """S7: frozen past the end of its lease, a worker does not begin another message of its batch."""

    def freeze(n: int) -> None:
        clock.now += 31
        _steal(world)

    send = Send(freeze)
    world.bus.set_outbox_handlers([send])
    world.register(*[Noted(n=n) for n in range(3)])
    report = world.process()
    assert (send.sent, report.busy, report.delivered) == ([0], ("Send",), 0)


@pytest.mark.postgresql
def test_the_next_message_is_not_started_either(world: World, clock: Clock) -> None:
    """S7: with a commit for each message the lease is looked at before each of them."""

    def freeze(context: Any) -> None:
        clock.now += 31

    world.settings(messages_per_commit=5, commit_within=timedelta(hours=1))
    world.before["1"] = freeze
    world.register(*[Noted(n=n) for n in (1, 2)])
    s = world.tables.subscription
    revisions: list[int] = []
    world.before["2"] = lambda context: revisions.extend(context.db_session.scalars(sa.select(s.c.revision)))
    assert world.process().delivered == 2
    assert revisions == [1]


@pytest.mark.postgresql
def test_nor_the_first_one_after_a_read(world: World, clock: Clock) -> None:
    """S7: frozen between the read and the first handler, a worker asks the database before it begins."""
    world.register(*[Noted(n=n) for n in range(3)])
    frozen: list[bool] = []
    called: list[str] = []
    world.before["0"] = lambda _: called.append("0")

    def freeze(_: object, __: object, statement: str, *___: object) -> None:
        if not frozen and " AS payload" in statement:
            frozen.append(True)
            clock.now += 31
            _steal(world)

    engine = world.sessions.kw["bind"]
    sa.event.listen(engine, "after_cursor_execute", freeze)
    report = world.process()
    sa.event.remove(engine, "after_cursor_execute", freeze)
    assert (frozen, called, report.busy) == ([True], [], ("dispatch",))


def test_a_lease_that_nobody_took_is_renewed(world: World, clock: Clock) -> None:
    """S7: the clock says that the lease has ended, the database that it is still ours: the work goes on."""

    def wait(n: int) -> None:
        clock.now += 31

    send = Send(wait)
    world.bus.set_outbox_handlers([send])
    world.register(*[Noted(n=n) for n in range(3)])
    assert (world.process().delivered, send.sent) == (3, [0, 1, 2])


# --- G8: everything fails ---------------------------------------------------------------------------------------------


def _fail_always(world: World, fails: list[bool], tried: list[int]) -> None:
    def handle(event: Noted) -> None:
        tried.append(event.n)
        if fails[0]:
            raise ValueError

    world.bus.set_event_handlers(Noted, [handle])


@pytest.mark.parametrize("options", [{}, {"messages_per_commit": 50}, {"mode": "concurrent"}])
def test_a_bad_deploy_does_not_use_up_the_backlog(world: World, options: dict[str, Any]) -> None:
    """G8: after 20 different messages in a row have failed the rest is left for later, untried."""
    world.settings(**options)
    tried: list[int] = []
    fails = [True]
    _fail_always(world, fails, tried)
    world.register(*[Noted(n=n) for n in range(50)])
    report = world.process()
    # a batch of one commit is tried once together before it is repeated message by message
    assert (report.retrying, report.suspicious, set(tried)) == (KEYS, ("dispatch",), set(range(KEYS)))
    fails[0] = False
    report = world.process()
    assert (report.delivered, report.suspicious, report.ok) == (50, (), True)


def test_successes_in_between_are_trusted(world: World) -> None:
    """G8: many failures are none of the deploy's if others succeed."""
    for n in range(0, 60, 2):
        world.fail(str(n), 1)
    world.register(*[Noted(n=n) for n in range(60)])
    assert (world.process().delivered, world.process().delivered) == (30, 30)


@pytest.mark.parametrize("error", [Reject, RetryLater])
def test_what_handlers_decide_is_not_suspicious(world: World, error: type[Exception]) -> None:
    """G8: a handler that rejects works."""
    for n in range(30):
        world.fail(str(n), error)
    world.register(*[Noted(n=n) for n in range(31)])
    report = world.process()
    assert (report.delivered, report.suspicious) == (1, ())


def test_one_key_that_fails_is_not_suspicious(world: World) -> None:
    """G8: twenty messages are counted by their keys."""
    world.settings(max_attempts=1)
    for n in range(30):
        world.fail(f"a:{n}", 1)
    world.register(*placed("a", range(31)))
    report = world.process()
    assert (report.delivered, report.dead, report.suspicious) == (1, 30, ())


def test_the_waits_double_and_end_with_a_success() -> None:
    """G8: 1 s doubling to 60 s between single attempts; one success ends it."""
    suspicion = Suspicion()
    now = 0.0
    for n in range(KEYS):
        assert not suspicion.active
        suspicion.failed(n, now)
    waits: list[float] = []
    for _ in range(8):
        begun = now
        while suspicion.waits(now):
            now += 0.5
        waits.append(now - begun)
        suspicion.failed("a probe", now)
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST_WAIT, LONGEST_WAIT]
    suspicion.succeeded()
    assert not suspicion.active
    assert not suspicion.waits(now)


# --- G7: types that are known by now ---------------------------------------------------------------------------------


def test_dead_letters_of_a_type_that_is_known_by_now(world: World) -> None:
    """G7: a worker that knows the type sets them back when it starts; other dead letters stay dead."""
    world.settings(max_attempts=1)
    d, o = world.tables.delivery, world.tables.outbox
    world.register(Noted(n=1), Noted(n=2), Noted(n=3))
    for n in (1, 3):
        world.fail(str(n), UnknownMessageType("Noted"))
    world.fail("2", 1)
    world.write(sa.update(o).where(o.c.position == 3).values(message="Unheard"))
    assert world.process().dead == 3
    report = world.process()
    assert (report.delivered, report.dead, world.effects()) == (1, 2, ["1"])
    assert world.rows(sa.select(d.c.position).order_by(d.c.position)) == [(2,), (3,)]


# --- S11: handlers that hang -----------------------------------------------------------------------------------------


def test_a_handler_that_hangs_is_not_covered_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """S11: heartbeats stop and say why, another worker takes the partition; the late one commits nothing."""
    go_on = threading.Event()
    hanging = threading.Event()
    handled: list[str] = []

    def hang(event: Noted) -> None:
        handled.append(threading.current_thread().name)
        if len(handled) == 1:
            hanging.set()
            assert go_on.wait(30)

    world.bus.set_event_handlers(Noted, [hang])
    world.settings(handler_timeout=timedelta(seconds=0.1))
    world.register(Noted(n=1))
    late: list[Any] = []
    lease = timedelta(seconds=0.6)
    worker = threading.Thread(target=lambda: late.append(world.process(lease=lease)))
    worker.start()
    try:
        assert hanging.wait(10)
        from tests.waiting import wait_until

        wait_until(lambda: world.process(lease=lease).delivered == 1, timeout=20)
    finally:
        go_on.set()
        worker.join(20)
    assert (len(handled), late[0].delivered, late[0].busy) == (2, 0, ("dispatch",))
    assert "Noted" in caplog.text
    assert "longer than its handler_timeout" in caplog.text
