"""Handlers in threads: `in_thread` lets a blocking handler run beside the event loop of an AsyncMessageBus."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from message_bus.bus.async_bus import awaited
from message_bus.bus.calling import Handles, handler_name, is_async, target_of
from message_bus.errors import SettingsError

P = ParamSpec("P")
R = TypeVar("R")


@overload
def in_thread(handler: Handles) -> Callable[..., Coroutine[Any, Any, Any]]: ...
@overload
def in_thread(handler: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]: ...
def in_thread(handler: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return an async handler that runs `handler` in a worker thread and waits for it.

        bus.set_event_handlers(OrderPlaced, [in_thread(send_mail)])

    The thread sees the caller's context variables: the dispatch in hand, so that what the handler emits is handled as
    ever, and the correlation id. Use it for handlers that block (a client library without asyncio), not with an
    AsyncSession: sessions belong to one task. Cancelling the dispatch does not stop the thread; what the handler emits
    afterwards raises DispatchEnded.

    Raises: SettingsError for an async handler, and what registering `handler` itself would raise.
    """
    target = target_of(handler)
    if is_async(target):
        raise SettingsError(
            f"in_thread({handler_name(handler)})", ["the handler is async (register it as it is)"]
        )

    def work(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except StopIteration as error:
            # No future can hold one: up to Python 3.11 whoever waits for it would wait for ever.
            raise RuntimeError(f"handler {handler_name(handler)} raised StopIteration") from error

    async def run(message: Any, *args: Any, **kwargs: Any) -> Any:
        return await awaited(await asyncio.to_thread(work, message, *args, **kwargs))

    functools.update_wrapper(run, handler if inspect.isroutine(handler) else type(handler), updated=())
    run.__wrapped__ = target  # type: ignore[attr-defined]  # its signature says where the context goes
    return run
