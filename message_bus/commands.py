"""A path of the ancestor: `Command`. It lives in `message_bus.messages`."""

from __future__ import annotations

from message_bus.messages.message import Command

__all__ = ["Command"]
