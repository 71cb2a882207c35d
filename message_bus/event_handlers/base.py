"""Base classes of event handlers: override `_handle`, and the two hooks around it if something must be set up.

A class that overrides `handle` in place of `_handle` is complete as well; calling the hooks is its own business then.
"""

from __future__ import annotations

from abc import ABC
from inspect import isawaitable
from typing import Any

from message_bus.bus.context import Emitting
from message_bus.bus.hooks import abstract_here, allow_own_handle


class EventHandlerABC(Emitting, ABC):
    """Handles an event; register it with `bus.set_event_handlers(OrderPlaced, [ReserveStock()])`.

    Define `_handle`; or define `handle`, which then is all that is called: no hooks. One instance serves all threads:
    keep nothing of a message on `self`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        allow_own_handle(cls, EventHandlerABC)

    def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `_before_handle`, `_handle` and, however that ends, `_after_handle`; return what `_handle` returned."""
        self._before_handle(context)
        try:
            return self._handle(event, context, *args, **kwargs)
        finally:
            self._after_handle(context)

    @abstract_here
    def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the event."""

    def _before_handle(self, context: Any) -> Any:
        """Called before each event; if it raises, nothing else is called."""

    def _after_handle(self, context: Any) -> Any:
        """Called after each event, also after a failed one. The context's session is the caller's: leave it open."""


class AsyncEventHandlerABC(Emitting, ABC):
    """Handles an event on an AsyncMessageBus; `_handle` and the hooks may be async or not.

    Define `_handle`; or define `handle`, which then is all that is called: no hooks. One instance serves all tasks:
    keep nothing of a message on `self`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        allow_own_handle(cls, AsyncEventHandlerABC)

    async def handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `_before_handle`, `_handle` and, however that ends, `_after_handle`; return what `_handle` returned."""
        await _done(self._before_handle(context))
        try:
            return await _done(self._handle(event, context, *args, **kwargs))
        finally:
            await _done(self._after_handle(context))

    @abstract_here
    async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the event."""

    async def _before_handle(self, context: Any) -> Any:
        """Called before each event; if it raises, nothing else is called."""

    async def _after_handle(self, context: Any) -> Any:
        """Called after each event, also after a failed one. The context's session is the caller's: leave it open."""


async def _done(value: Any) -> Any:
    return await value if isawaitable(value) else value
