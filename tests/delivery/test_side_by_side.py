"""`concurrency` and `handler_timeout`: several keys in hand, in threads and in tasks, and handlers that take too long."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    DispatchOutboxHandler,
    MessageBusTables,
    OutboxHandlerABC,
    Subscription,
    Unavailable,
)
from tests.delivery.world import AT_ONCE, Noted, Placed, World, placed

CALLER = ContextVar("CALLER", default="nobody")


class Send(OutboxHandlerABC):
    """Sends from several threads; `before` runs first, with the text."""

    subscription = Subscription(backoff=AT_ONCE, concurrency=3, fetch_size=20)

    def __init__(self, before: Any = None) -> None:
        super().__init__()
        self.sent: list[str] = []
        self._before = before

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        text = f"{outbox_message.key or ''}{outbox_message.payload['n']}"
        if self._before is not None:
            self._before(text)
        self.sent.append(text)


def test_keys_go_side_by_side_in_order_each(world: World) -> None:
    """G3: three keys are in hand at once, each with one message; the caller's context variables are there."""
    together = threading.Barrier(3, timeout=10)
    callers: set[str] = set()

    def meet(text: str) -> None:
        callers.add(CALLER.get())
        together.wait()

    send = Send(meet)
    world.bus.set_outbox_handlers([send])
    world.register(*[Placed(order=order, n=n) for n in range(3) for order in "abc"])
    token = CALLER.set("me")
    assert world.process().delivered == 9
    CALLER.reset(token)
    assert callers == {"me"}
    for order in "abc":
        assert [text for text in send.sent if text[0] == order] == [f"{order}{n}" for n in range(3)]


def test_one_key_is_never_in_hand_twice(world: World) -> None:
    """G3: a failure holds back those behind it, also those that were read with it."""

    def fail(text: str) -> None:
        if text == "a1" and failures:
            raise failures.pop()

    failures = [ValueError()]
    send = Send(fail)
    world.bus.set_outbox_handlers([send])
    world.register(*placed("a", [1, 2, 3]), *[Noted(n=n) for n in range(4)])
    report = world.process()
    assert (report.retrying, report.held, sorted(send.sent)) == (1, 2, ["0", "1", "2", "3"])
    assert world.process().delivered == 3
    assert send.sent[4:] == ["a1", "a2", "a3"]


def test_an_outage_stops_new_starts_only(world: World) -> None:
    """G8: what is in hand is awaited and recorded; what was not done waits untried, and nothing is repeated."""
    outage = [True]
    others_done = threading.Event()

    def before(text: str) -> None:
        if outage[0] and text == "1":
            raise Unavailable("broker")
        if outage[0] and text in "02":
            assert others_done.wait(10)

    send = Send(before)
    world.bus.set_outbox_handlers([send])
    world.register(*[Noted(n=n) for n in range(9)])
    timer = threading.Timer(0.2, others_done.set)
    timer.start()
    report = world.process()
    timer.join()
    assert (sorted(send.sent), report.unavailable, report.delivered) == (["0", "2"], ("Send",), 2)
    outage[0] = False
    assert world.process().delivered == 7
    assert sorted(send.sent) == [str(n) for n in range(9)]


def test_a_death_in_a_thread_leaves_the_lease(world: World) -> None:
    """S6: SystemExit in one of the threads records nothing and leaves the lease to expire."""

    def die(text: str) -> None:
        if text == "2":
            raise SystemExit

    world.bus.set_outbox_handlers([Send(die)])
    world.register(*[Noted(n=n) for n in range(4)])
    with pytest.raises(SystemExit):
        world.process()
    assert world.process().busy == ("Send",)
    assert world.rows(sa.select(world.tables.subscription.c.position)) == [(0,)]


def test_emissions_are_recorded_in_order(world: World) -> None:
    """G1: in the order of the messages, whoever was done first."""
    turn = [threading.Event() for _ in range(3)]
    turn[2].set()

    def emit(event: Placed, context: Any) -> None:
        assert turn[event.n].wait(10)
        context.emit(Noted(n=event.n))
        if event.n:
            turn[event.n - 1].set()

    world.bus.set_event_handlers(Placed, [emit])
    world.settings(mode="concurrent", concurrency=3)
    world.register(*[Placed(order=order, n=n) for n, order in enumerate("abc")])
    world.process()
    o = world.tables.outbox
    rows = world.rows(sa.select(o.c.payload).where(o.c.message == "Noted").order_by(o.c.position))
    assert [payload["n"] for (payload,) in rows] == [0, 1, 2]


# --- asyncio ----------------------------------------------------------------------------------------------------------


async def _register(sessions: async_sessionmaker[AsyncSession], bus: AsyncMessageBus, *messages: Any) -> None:
    async with sessions.begin() as session:
        for message in messages:
            bus.register_outbox_message(session, message)


async def test_tasks_side_by_side(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """G3: with asyncio keys are in hand at once as tasks."""
    together = asyncio.Barrier(3)
    sent: list[str] = []

    class AsyncSend(AsyncOutboxHandlerABC):
        subscription = Subscription(concurrency=3)

        async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            async with asyncio.timeout(10):
                await together.wait()
            sent.append(f"{outbox_message.key}{outbox_message.payload['n']}")

    bus = AsyncMessageBus()
    bus.set_outbox_handlers([AsyncSend()])
    messages = [Placed(order=order, n=n) for n in range(3) for order in "abc"]
    await _register(async_session_factory, bus, *messages)
    async with async_session_factory() as session:
        assert (await bus.process_outbox(session)).delivered == 9
    assert [text for text in sent if text[0] == "a"] == ["a0", "a1", "a2"]


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
async def test_a_handler_that_takes_too_long_is_cancelled(
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
    mode: Any,
    swallows: bool,
) -> None:
    """S11: that is a failed attempt with a TimeoutError which names both; also if the handler swallows the cancellation."""
    bus = AsyncMessageBus()

    async def slow_handler(event: Noted) -> None:
        if event.n == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not swallows:
                    raise

    bus.set_event_handlers(Noted, [slow_handler])
    settings = Subscription(
        name="dispatch", mode=mode, handler_timeout=timedelta(seconds=0.1), unavailable_on=(TimeoutError,)
    )
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    await _register(async_session_factory, bus, Noted(n=1), Noted(n=2))
    async with async_session_factory() as session:
        report = await bus.process_outbox(session)
        error = await session.scalar(sa.select(async_tables.delivery.c.error))
    assert (report.delivered, report.retrying, report.unavailable) == (1, 1, ())
    assert "slow_handler" in str(error)
    assert "Noted" in str(error)
