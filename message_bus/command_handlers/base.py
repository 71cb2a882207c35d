"""Base classes of command handlers: override `handle`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from message_bus.bus.context import Emitting
from message_bus.messages.message import Message

M = TypeVar("M", bound=Message)


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


class CommandHandler(Emitting, ABC, Generic[M]):
    """Handles a command that is named in brackets, on a bus of either colour; `handle` may be async on an async one.

        class CreateOrderHandler(CommandHandler[CreateOrder]):
            def handle(self, command: CreateOrder) -> None: ...

        bus.subscribe(CreateOrder, CreateOrderHandler())

    One instance serves all threads and tasks: keep nothing of a message on `self`.
    """

    @abstractmethod
    def handle(self, command: M, *args: Any, **kwargs: Any) -> Any:
        """Handle the command; add a parameter `context` to get the context, too."""
