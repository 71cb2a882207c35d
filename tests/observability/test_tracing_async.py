"""The same trace with asyncio: context is current in the tasks that handlers run in, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as contexts
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import AsyncMessageBus, AsyncOutboxHandlerABC, AsyncRelay, MessageBusTables, Subscription
from tests.delivery.test_async import AsyncWorld, Step
from tests.delivery.world import AT_ONCE, EFFECT
from tests.observability.spans import Recorded, linked, parent, span_id, told, trace_id

Request = Callable[..., Any]


@pytest.fixture
async def world(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> AsyncWorld:
    """A fresh application in a fresh database."""
    async with async_session_factory.begin() as session:
        await session.run_sync(lambda sync: EFFECT.metadata.create_all(sync.connection()))
    return AsyncWorld(async_session_factory, async_tables)


@pytest.fixture
def recorded(world: AsyncWorld) -> Recorded:
    """What is recorded of the world's bus."""
    made = Recorded()
    world.bus.observe(made.telemetry)
    return made


async def request(world: AsyncWorld, recorded: Recorded, *steps: Step) -> Any:
    """A web request that registers messages; its span."""
    with recorded.web.start_as_current_span("POST /orders", kind=SpanKind.SERVER) as span:
        await world.register(*steps)
    return span


async def test_one_trace_from_the_request_to_the_second_handler(
    world: AsyncWorld, recorded: Recorded
) -> None:
    """Through an AsyncRelay: parents, links and baggage of both messages."""
    seen: list[Any] = []

    async def first(context: Any) -> None:
        await asyncio.sleep(0)
        seen.append(baggage.get_baggage("tenant"))
        context.emit(Step(order="b", n=2))

    async def second(context: Any) -> None:
        seen.append(baggage.get_baggage("tenant"))

    world.before = {"a:1": first, "b:2": second}
    async with AsyncRelay(world.bus, world.sessions, poll=timedelta(seconds=0.05)) as relay:
        token = contexts.attach(baggage.set_baggage("tenant", "acme"))
        web = await request(world, recorded, Step(order="a", n=1))
        contexts.detach(token)
        await relay.wait_until_idle()
    assert await world.effects() == ["a:1", "b:2"]
    assert seen == ["acme", "acme"]
    assert {trace_id(span) for span in recorded.spans()} == {web.get_span_context().trace_id}
    create, recreate = recorded.spans("create outbox")
    process, reprocess = recorded.spans("process outbox")
    handle, rehandle = recorded.spans("handle Step")
    assert parent(create) == web.get_span_context().span_id
    assert (parent(process), parent(handle)) == (span_id(create), span_id(process))
    assert (parent(recreate), parent(reprocess)) == (span_id(process), span_id(recreate))
    assert parent(rehandle) == span_id(reprocess)
    assert [linked(span) for span in (process, reprocess)] == [[span_id(create)], [span_id(recreate)]]
    assert [linked(span) for span in recorded.spans("settle outbox")] == [
        [span_id(create)],
        [span_id(recreate)],
    ]


class Send(AsyncOutboxHandlerABC):
    """Four at once, in tasks that wait for each other."""

    subscription = Subscription(backoff=AT_ONCE, concurrency=4, mode="concurrent")

    def __init__(self, together: int) -> None:
        self.spans: dict[int, tuple[int, int]] = {}
        self._all_here = asyncio.Barrier(together)

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        before = trace.get_current_span().get_span_context().span_id
        await self._all_here.wait()
        self.spans[outbox_message.payload["n"]] = (
            before,
            trace.get_current_span().get_span_context().span_id,
        )


async def test_tasks_do_not_see_each_others_spans(world: AsyncWorld, recorded: Recorded) -> None:
    """While four handlers run at once, each has the attempt at its own message, before and after it has waited."""
    send = Send(1 if world.sessions.kw["bind"].dialect.name == "sqlite" else 4)
    world.bus.set_outbox_handlers([send])
    for n in range(4):
        await request(world, recorded, Step(order=f"k{n}", n=n))
    await world.process()
    expected = {span_id(span) for span in recorded.spans("process outbox")}
    assert len(expected) == 4
    assert {before for before, _ in send.spans.values()} == expected
    assert all(before == after for before, after in send.spans.values())
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_cancelled_attempt(world: AsyncWorld, recorded: Recorded) -> None:
    """Its span ends with the error that it was cancelled with, and what was current before is current again."""
    entered = asyncio.Event()

    async def hang(context: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    world.before["a:1"] = hang
    await world.register(Step(order="a", n=1))
    task = asyncio.create_task(world.process())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    process = recorded.one("process outbox")
    assert process.status.status_code is StatusCode.ERROR
    assert told(process)["error.type"] == "asyncio.exceptions.CancelledError"


async def test_a_handler_that_takes_too_long(world: AsyncWorld, recorded: Recorded) -> None:
    """`handler_timeout` ends it: an error of the attempt like any other."""
    world.settings(handler_timeout=timedelta(milliseconds=20))

    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    world.before["a:1"] = hang
    await world.register(Step(order="a", n=1))
    assert (await world.process()).retrying == 1
    assert told(recorded.one("process outbox"))["error.type"].endswith("HandlerTimedOut")


async def test_a_dispatch_without_an_outbox(recorded: Recorded) -> None:
    """An AsyncMessageBus gets an async middleware; synchronous handlers have a span, too."""
    bus = AsyncMessageBus(event_handlers={Step: [lambda event: None, fail]}, on_event_error="log")
    bus.observe(recorded.telemetry)
    await bus.handle(Step(order="a", n=1))
    first, second = recorded.spans("handle Step")
    assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)


async def fail(event: Step) -> None:
    """A handler that fails."""
    raise ValueError("no")
