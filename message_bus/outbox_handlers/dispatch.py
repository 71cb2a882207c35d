"""The default outbox handler: runs the bus's own command and event handlers on what comes out of the outbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from message_bus.bus.context import Context
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.verdicts import PassedOver
from message_bus.errors import SettingsError
from message_bus.messages.envelope import stored_envelope
from message_bus.messages.message import Event
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.repositories.outbox_message import outbox_message_of

E = TypeVar("E", bound=Event)

_DISPATCH = Subscription(name="dispatch")


class DispatchOutboxHandler(OutboxHandlerABC):
    """Hands each message to the handlers that are registered for its type, transactionally by default (G5).

    `bus`: the bus whose handlers run; None means the bus it is set on (`bus.set_outbox_handlers`), which is also the
    default when no outbox handler is set at all. `handlers`: run these event handlers instead of the bus's, and read only
    their events; give handlers with effects outside of the database such a `DispatchOutboxHandler` (so a subscription)
    of their own.

    All handlers of an event are one unit: if one fails, all are rolled back and tried again. What they emit is
    written to the outbox in their own transaction. Works on MessageBus and AsyncMessageBus alike.

    Raises: SettingsError if `handlers` are given, but the subscription has the default's name "dispatch".
    """

    default_mode = "transactional"
    _makes_envelopes = True

    def __init__(
        self,
        bus: Any = None,
        *,
        handlers: Mapping[type[E], Sequence[Any]] | None = None,
        subscription: Subscription = _DISPATCH,
    ) -> None:
        super().__init__()
        if handlers is not None and subscription is _DISPATCH:
            raise SettingsError(
                "DispatchOutboxHandler",
                ["handlers= needs a subscription of its own: subscription=Subscription(name=...)"],
            )
        self.bus = bus
        if handlers is not None and subscription.types is None:
            subscription = replace(subscription, types=tuple(handlers))
        self.subscription = subscription
        self._own_handlers = handlers
        self._attached_to: Any = None

    def attach(self, bus: Any) -> None:
        """Called by the bus that this handler is set on."""
        if self._attached_to is not None and self._attached_to is not bus:
            raise SettingsError(
                "DispatchOutboxHandler",
                ["it is set on another bus already, whose handlers it runs (make one for each bus)"],
            )
        self._attached_to = bus
        if self.bus is None:
            self.bus = bus
        if self._own_handlers is not None:
            self.bus = self.bus.with_event_handlers(self._own_handlers)
            self._own_handlers = None

    def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Decode the row and deliver its message. On an AsyncMessageBus the result is to be awaited.

        Raises: UnknownMessageType, MessageDecodeError, or what the message's handlers raise.
        """
        row = outbox_message_of(outbox_message)
        message = self.bus.registry.decode(row.message, row.version, row.payload_json)
        context = context if isinstance(context, Context) else Context(context)
        context["envelope"] = stored_envelope(message, row)
        delivered = self.bus.deliver(message, context)
        return _outcome(delivered) if isinstance(delivered, int) else _awaited(delivered)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return self.handle(outbox_message, context, *args, **kwargs)


async def _awaited(delivered: Any) -> PassedOver | None:
    return _outcome(await delivered)


def _outcome(handlers_run: int) -> PassedOver | None:
    return None if handlers_run else PassedOver()
