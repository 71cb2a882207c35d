"""Base classes of outbox handlers: what a subscription calls with each row that comes out of the outbox.

Derive from one of these to send rows to a queue or a service of your own. `DispatchOutboxHandler`, which runs the bus's
handlers, is the default. Each outbox handler is one subscription, named by its `subscription` or its class.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from message_bus.bus.hooks import abstract_here, allow_own_handle

if TYPE_CHECKING:
    from message_bus.delivery.subscription import Subscription


class OutboxHandlerABC(ABC):  # noqa: B024  (abstract_here)
    """Handles outbox rows; register it with `bus.set_outbox_handlers([MyOutboxHandler()])`.

    Define `_handle`; or define `handle`, which then is all that is called: no hooks.

    Delivery is at least once, in order per key (G2, G3): use the row's `id` where a repetition would hurt. Raise
    `RetryLater`, `Reject` or `Unavailable` to steer; any other error is tried again with back-off.
    """

    subscription: Subscription | None = None
    default_mode: ClassVar[Literal["transactional", "concurrent"]] = "concurrent"
    log: ClassVar[Literal["outbox", "events"]] = "outbox"
    """Which log it reads: "outbox" or "events"."""
    _makes_envelopes: ClassVar[bool] = False
    """Whether it decodes what it is given and puts the envelope into the context itself."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        allow_own_handle(cls, OutboxHandlerABC)

    def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `_before_handle`, `_handle` and, however that ends, `_after_handle`; return what `_handle` returned."""
        self._before_handle(context)
        try:
            return self._handle(outbox_message, context, *args, **kwargs)
        finally:
            self._after_handle(context)

    @abstract_here
    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the row; returning means that it is delivered."""

    def attach(self, bus: Any) -> None:
        """Called by the bus that this handler is set on."""

    def companions(self) -> Sequence[OutboxHandlerABC]:
        """Return other handlers that this one needs: they are set with it, each as a subscription of its own."""
        return ()

    def clashes_with(self, others: Sequence[Any]) -> Sequence[str]:
        """Say why this handler must not run beside these, which come before it in the same bus or relay."""
        return ()

    def _before_handle(self, context: Any) -> Any:
        """Called before each row; if it raises, nothing else is called."""

    def _after_handle(self, context: Any) -> Any:
        """Called after each row, also after a failed one."""


class AsyncOutboxHandlerABC(ABC):  # noqa: B024  (abstract_here)
    """Handles outbox rows on an AsyncMessageBus; `_handle` and the hooks may be async or not.

    What OutboxHandlerABC says of delivery holds here.
    """

    subscription: Subscription | None = None
    default_mode: ClassVar[Literal["transactional", "concurrent"]] = "concurrent"
    log: ClassVar[Literal["outbox", "events"]] = "outbox"
    """Which log it reads: "outbox" or "events"."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        allow_own_handle(cls, AsyncOutboxHandlerABC)

    async def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `_before_handle`, `_handle` and, however that ends, `_after_handle`; return what `_handle` returned."""
        await _done(self._before_handle(context))
        try:
            return await _done(self._handle(outbox_message, context, *args, **kwargs))
        finally:
            await _done(self._after_handle(context))

    @abstract_here
    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the row; returning means that it is delivered."""

    def attach(self, bus: Any) -> None:
        """Called by the bus that this handler is set on."""

    def companions(self) -> Sequence[AsyncOutboxHandlerABC]:
        """Return other handlers that this one needs: they are set with it, each as a subscription of its own."""
        return ()

    def clashes_with(self, others: Sequence[Any]) -> Sequence[str]:
        """Say why this handler must not run beside these, which come before it in the same bus or relay."""
        return ()

    async def _before_handle(self, context: Any) -> Any:
        """Called before each row; if it raises, nothing else is called."""

    async def _after_handle(self, context: Any) -> Any:
        """Called after each row, also after a failed one."""


async def _done(value: Any) -> Any:
    return await value if isawaitable(value) else value
