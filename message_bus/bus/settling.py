"""Where emissions go when the handler that made them has succeeded: into the context's outbox, if it has one.

The buses call it after each handler. What goes into the queue of the call instead is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from message_bus.bus.context import Context, cascade_of
from message_bus.bus.dispatch import name_of
from message_bus.errors import WiringError

if TYPE_CHECKING:
    from message_bus.bus.wired import WiredBus


def emitted_so_far(context: Context) -> int:
    """The mark to drop from if the next handler fails."""
    cascade = cascade_of(context)
    return 0 if cascade is None else len(cascade.emissions)


def settle(context: Context, bus: WiredBus[Any]) -> None:
    """Register what the handler that just succeeded has emitted, if the context has an outbox."""
    outbox = context.outbox
    cascade = cascade_of(context)
    if outbox is not None and cascade is not None:
        bus._send(outbox, cascade.take_all(), context.envelope)


def settle_delivery(context: Context, bus: WiredBus[Any]) -> None:
    """The same behind the outbox, where an emitted message must not get lost for want of an outbox."""
    cascade = cascade_of(context)
    if cascade is not None and context.outbox is None and cascade.emissions:
        raise WiringError(
            f"{name_of(cascade.emissions[0].message)!r} was emitted behind the outbox, but the context has no outbox "
            "to put it in (deliver with context['outbox'])"
        )
    settle(context, bus)
