"""The ancestor's path of the buses and their contracts; it only hands names on."""

from __future__ import annotations

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.sync_bus import MessageBus

__all__ = ["AsyncMessageBus", "AsyncMessageBusABC", "MessageBus", "MessageBusABC"]
