"""Base classes of command handlers: override `handle`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from message_bus.bus.context import Emitting


class CommandHandlerABC(Emitting, ABC):
    """Handles a command; register it with `bus.set_command_handler(PlaceOrder, PlaceOrderHandler())`.

    One instance serves all threads: keep nothing of a message on `self`.
    """

    @abstractmethod
    def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the command; what is returned is its result, what is raised reaches the caller of the bus."""


class AsyncCommandHandlerABC(Emitting, ABC):
    """Handles a command on an AsyncMessageBus. One instance serves all tasks: keep nothing of a message on `self`."""

    @abstractmethod
    async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the command; what is returned is its result, what is raised reaches the caller of the bus."""
