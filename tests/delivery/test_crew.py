"""Handlers side by side that hang: nobody waits for them for ever, and they do not keep the process (S11)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from message_bus import OutboxHandlerABC, Relay, Subscription
from message_bus.delivery.crew import AsyncCrew, Crew
from message_bus.errors import LeaseLost
from tests.delivery.world import AT_ONCE, Noted, World
from tests.waiting import async_wait_until, wait_until

ROOT = Path(__file__).parents[2]


class Lease:
    """A lease that a test lets end."""

    over = False
    hangs = False

    def lost(self) -> Exception:
        """What nobody can commit under any more."""
        return LeaseLost("test", 0)


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What hanging handlers wait for; set at the end, so that no thread is left."""
    event = threading.Event()
    before = set(threading.enumerate())
    yield event
    event.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_threads_are_joined() -> None:
    """In the normal case nothing is left behind; results and errors come to whoever waits."""
    before = threading.active_count()
    with Crew(2, Lease()) as crew:
        for n in range(6):
            crew.start(int, n)
        assert threading.active_count() <= before + 2
        assert sorted(crew.finished()[0] for _ in range(6)) == list(range(6))
        crew.start(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            crew.finished()
    assert threading.active_count() == before


def test_what_is_in_hand_is_waited_for_while_the_lease_lasts(go_on: threading.Event) -> None:
    """G11: an error elsewhere does not leave a handler behind that would end in time."""
    done: list[bool] = []

    def slow() -> None:
        assert go_on.wait(10)
        done.append(True)

    timer = threading.Timer(0.1, go_on.set)

    def fail_beside_it() -> None:
        with Crew(2, Lease()) as crew:
            crew.start(slow)
            timer.start()
            raise KeyError

    with pytest.raises(KeyError):
        fail_beside_it()
    assert done == [True]


def test_what_hangs_is_left_behind_with_the_lease(go_on: threading.Event) -> None:
    """S11: neither waiting for something to be done, nor the end of the block lasts longer than the lease."""
    lease = Lease()
    with Crew(2, lease) as crew:
        crew.start(go_on.wait, 30)
        lease.over = lease.hangs = True
        with pytest.raises(LeaseLost):
            crew.finished()
    assert not go_on.is_set()


async def test_a_task_that_swallows_its_cancellation_is_left_behind() -> None:
    """S11: the same with asyncio."""
    lease, go_on = Lease(), asyncio.Event()
    done: list[bool] = []

    async def swallow() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                lease.over = True
        done.append(True)

    async with asyncio.timeout(10):
        async with AsyncCrew(2, lease) as crew:
            crew.start(swallow)
            await asyncio.sleep(0)
    assert done == []
    go_on.set()
    await async_wait_until(lambda: done)


class Hang(OutboxHandlerABC):
    """Hangs with its first message, the first time."""

    subscription = Subscription(
        name="hang", backoff=AT_ONCE, concurrency=3, handler_timeout=timedelta(seconds=0.2)
    )

    def __init__(self, go_on: threading.Event) -> None:
        super().__init__()
        self.go_on = go_on
        self.sent: list[int] = []
        self.hung = threading.Event()

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        n = outbox_message.payload["n"]
        if n == 0 and not self.hung.is_set():
            self.hung.set()
            self.go_on.wait(60)
            return
        self.sent.append(n)


@pytest.mark.slow
@pytest.mark.postgresql
def test_a_relay_goes_on_without_a_handler_that_hangs(world: World, go_on: threading.Event) -> None:
    """S11, G2: once the lease has ended the same process takes the partition again, and handles every message."""
    hang = Hang(go_on)
    world.bus.set_outbox_handlers([hang])
    world.register(*[Noted(n=n) for n in range(6)])
    with Relay(world.bus, world.sessions, lease=timedelta(seconds=1), poll=timedelta(seconds=0.1)):
        wait_until(lambda: set(hang.sent) == set(range(6)), timeout=30)
        go_on.set()


@pytest.mark.slow
@pytest.mark.postgresql
def test_a_process_ends_although_a_handler_hangs(world: World, database_url: Any) -> None:
    """G11: leaving `with relay` takes drain_timeout, and then the interpreter ends."""
    world.register(Noted(n=1))
    url = database_url.render_as_string(hide_password=False)
    program = f"""
        import threading, time
        from datetime import timedelta
        import sqlalchemy as sa
        from message_bus import MessageBus, OutboxHandlerABC, Relay, Subscription
        from tests.delivery.world import Noted

        hung = threading.Event()

        class Hang(OutboxHandlerABC):
            subscription = Subscription(name="dispatch", concurrency=2)

            def _handle(self, outbox_message, context, *args, **kwargs):
                hung.set()
                threading.Event().wait()

        bus = MessageBus()
        bus.set_outbox_handlers([Hang()])
        with Relay(bus, sa.create_engine({url!r}), drain_timeout=timedelta(seconds=0.2)):
            assert hung.wait(20)
        print("left", flush=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        check=True,
        timeout=40,
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "left\n"
