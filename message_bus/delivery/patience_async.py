"""How long one `process_outbox` waits for rows that are not settled yet, all its subscriptions together (W6)."""

from __future__ import annotations

from time import monotonic

from message_bus._compat import pause_async
from message_bus.storage.settled import Look, pause_before_next_look


class AsyncPatience:
    """Waits, in pauses, for what had been drawn when it was first asked; then it says that it is enough."""

    def __init__(self) -> None:
        self._goal = 0
        self._since: float | None = None

    async def wait(self, look: Look) -> bool:
        """Wait a little for `look` to be outdated; False, at once, if nothing is worth waiting for any more."""
        now = monotonic()
        if self._since is None:
            self._goal, self._since = look.high, now
        seconds = pause_before_next_look(look, goal=self._goal, waited=now - self._since)
        if seconds is None:
            return False
        await pause_async(seconds)
        return True
