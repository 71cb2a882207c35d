"""Help for tests of applications that use message_bus: `drain` delivers what a test has registered."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any, overload

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.delivery.report import OutboxReport

__all__ = ["drain"]


@overload
def drain(bus: MessageBusABC, session: Any, *, only: Collection[str] | None = None) -> OutboxReport: ...
@overload
def drain(
    bus: AsyncMessageBusABC, session: Any, *, only: Collection[str] | None = None
) -> Awaitable[OutboxReport]: ...
def drain(bus: Any, session: Any, *, only: Collection[str] | None = None) -> Any:
    """Deliver what was registered on `session`, and what its handlers emit; to be awaited with an AsyncMessageBus.

    Commits the session, then processes the outbox with it. In a test that is rolled back at its end, bind the session
    to the test's connection with `join_transaction_mode="create_savepoint"`: everything, checkpoints included, then
    lives and dies with the test's transaction. Check the report: `assert drain(bus, session).ok`.

    Raises: SettingsError for a session of a test's transaction in another join_transaction_mode.
    """
    if isinstance(bus, AsyncMessageBusABC):
        from message_bus.testing.draining_async import drain_async

        return drain_async(bus, session, only=only)
    from message_bus.testing.draining import drain as drain_now

    return drain_now(bus, session, only=only)
