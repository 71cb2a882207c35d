"""Which registry a projection or process manager decodes a row with: the one it was given, else the bus's, else its own.

Asked for each row and not once, when it is set on a bus: upcasters may be registered after that. It adds nothing to the
bus's registry, since what a bus knows decides over its outbox (G7), and these may read the event log.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from message_bus.messages.message import Message
from message_bus.messages.registry import Registry


def registry_for(
    name: str, *, own: Registry, is_given: bool, bus: Any, types: Collection[type[Message]]
) -> Registry:
    """Return the registry for a row with this message name.

    The bus's is meant if it knows the name as one of the `types` that the handler takes; `own` knows all of them, but no
    upcasters unless it was given.
    """
    of_bus: Registry | None = None if is_given or bus is None else bus.registry
    return of_bus if of_bus is not None and of_bus.get(name) in types else own
