"""A path of the ancestor: `Event`. It lives in `message_bus.messages`."""

from __future__ import annotations

from message_bus.messages.message import Event

__all__ = ["Event"]
