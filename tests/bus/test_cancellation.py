"""Cancelling a dispatch ends it, also when the handler in hand keeps the cancellation for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context
from tests.bus.shop import OrderPlaced


async def _swallows(event: Any) -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "never mind"
    raise AssertionError


async def _turns_it_into_another_error(event: Any) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("no connection") from None


@pytest.mark.parametrize("first", [_swallows, _turns_it_into_another_error])
@pytest.mark.parametrize("delivered", [False, True])
async def test_no_other_handler_is_started(first: Any, delivered: bool) -> None:
    """Neither by `handle` nor behind the outbox; the dispatch ends with CancelledError."""
    started: list[Any] = []
    bus = AsyncMessageBus({OrderPlaced: [first, started.append]})
    work = bus.deliver(OrderPlaced(), Context()) if delivered else bus.handle(OrderPlaced())
    task = asyncio.ensure_future(work)  # type: ignore[type-var]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started == []


async def test_a_timeout_of_the_handlers_own_is_none_of_our_business() -> None:
    """`asyncio.timeout` cancels the task and takes that back: the next handler runs."""
    started: list[Any] = []

    async def impatient(event: Any) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            started.append("timeout")

    bus = AsyncMessageBus({OrderPlaced: [impatient, lambda event: started.append("next")]})
    await bus.handle(OrderPlaced())
    assert started == ["timeout", "next"]


async def test_a_task_that_was_cancelled_before_may_still_handle() -> None:
    """A clean-up that handles messages after a cancellation does so to its end."""
    started: list[str] = []
    bus = AsyncMessageBus(
        {OrderPlaced: [lambda event: started.append("first"), lambda event: started.append("second")]}
    )

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await bus.handle(OrderPlaced())

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started == ["first", "second"]
