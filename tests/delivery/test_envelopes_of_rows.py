"""`context.envelope` of outbox handlers that users write: there at each attempt, its message decoded when it is asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    DispatchOutboxHandler,
    MessageBusTables,
    OutboxHandlerABC,
    OutboxMessage,
    Subscription,
    UnknownMessageType,
    correlate,
)
from tests.delivery.world import AT_ONCE, Noted, Pay, World

Mode = Literal["transactional", "concurrent"]
MODES: tuple[Mode, ...] = ("transactional", "concurrent")


class Send(OutboxHandlerABC):
    """Does with row and context what it is told."""

    def __init__(self, do: Callable[[Any, Any], object], mode: Mode = "concurrent") -> None:
        super().__init__()
        self.do = do
        self.subscription = Subscription(name="send", mode=mode, backoff=AT_ONCE)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.do(outbox_message, context)


class AsyncSend(AsyncOutboxHandlerABC):
    """The same for asyncio."""

    def __init__(self, seen: list[Any], mode: Mode) -> None:
        super().__init__()
        self.seen = seen
        self.subscription = Subscription(name="send", mode=mode)

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append((context.envelope, outbox_message.id))


@pytest.mark.parametrize("mode", MODES)
def test_it_tells_of_the_row(world: World, mode: Mode) -> None:
    """Id, position, key, correlation, meta and the message itself, at each attempt."""
    seen: list[Any] = []

    def send(row: Any, context: Any) -> None:
        envelope = context.envelope
        assert context["envelope"] is envelope
        seen.append((envelope.message, envelope.id == row.id, envelope.position, context.attempt))
        seen.append((envelope.name, envelope.type, envelope.correlation_id, envelope.meta))
        if context.attempt == 1:
            raise ValueError

    world.bus.set_outbox_handlers([Send(send, mode)])
    with correlate("the request"):
        world.register(Noted(n=7), meta={"by": "ann"})
    world.process()
    world.process()
    told = ("Noted", "EVENT", "the request", {"by": "ann"})
    assert seen == [(Noted(n=7), True, 1, 1), told, (Noted(n=7), True, 1, 2), told]


@pytest.mark.parametrize("mode", MODES)
async def test_with_asyncio(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables, mode: Mode
) -> None:
    """The same on an AsyncMessageBus."""
    bus, seen = AsyncMessageBus(), list[Any]()
    bus.set_outbox_handlers([AsyncSend(seen, mode)])
    bus.registry.register(Pay)
    async with async_session_factory.begin() as session:
        bus.register_outbox_message(session, Pay(n=1))
    async with async_session_factory() as session:
        assert (await bus.process_outbox(session)).delivered == 1
    [(envelope, row_id)] = seen
    assert (envelope.id, envelope.message, envelope.type) == (row_id, Pay(n=1), "COMMAND")


def test_what_cannot_be_decoded_can_be_sent(world: World) -> None:
    """Nothing is decoded for a handler that does not ask; who asks for a message of an unknown type is told so."""
    seen: list[Any] = []

    def send(row: Any, context: Any) -> None:
        seen.append(context.envelope.name)
        with pytest.raises(UnknownMessageType):
            context.envelope.message  # noqa: B018

    world.bus.set_outbox_handlers([Send(send)])
    world.register(Noted(n=1))
    world.write(sa.update(world.tables.outbox).values(message="Unheard"))
    assert world.process().delivered == 1
    assert seen == ["Unheard"]


def test_it_can_be_copied_and_pickled(world: World) -> None:
    """That of a handler of the bus, and that of an outbox handler, whether or not somebody has looked at it."""
    seen: list[Any] = []

    def keep(message: Any, context: Any) -> None:
        made = [copy(context.envelope), pickle.loads(pickle.dumps(context.envelope))]  # noqa: S301
        seen.append(
            (
                type(message),
                made == [context.envelope] * 2,
                made[1].message,
                made[1].id == context.envelope.id,
            )
        )

    world.bus.set_event_handlers(Noted, [keep])
    world.bus.set_outbox_handlers([Send(keep), DispatchOutboxHandler()])
    world.register(Noted(n=1))
    world.process()
    assert seen == [(OutboxMessage, True, Noted(n=1), True), (Noted, True, Noted(n=1), True)]


def test_a_context_that_is_handed_on(world: World) -> None:
    """A handler may let its bus handle another message with the context that it was given: that one has its own envelope."""
    seen: list[Any] = []
    world.bus.set_event_handlers(Noted, [lambda event, context: seen.append(context.envelope.message)])

    def send(row: Any, context: Any) -> None:
        world.bus.handle(Noted(n=2), context=context)
        world.bus.handle(context.envelope.message, context=context)
        seen.append(context.envelope.message)

    world.bus.set_outbox_handlers([Send(send)])
    world.register(Noted(n=1))
    assert world.process().delivered == 1
    assert seen == [Noted(n=2), Noted(n=1), Noted(n=1)]
