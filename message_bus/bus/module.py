"""Modules: parts of an application that register their own handlers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Module(ABC):
    """A part of an application: override `register` and call it once, where the application is put together.

    class OrderModule(Module):
        def register(self, bus, store):
            bus.subscribe(CreateOrder, CreateOrderHandler(bus, store))

    OrderModule().register(bus, store)
    """

    @abstractmethod
    def register(self, bus: Any, store: Any) -> None:
        """Subscribe the handlers of this module; `store` is whatever they keep their data in."""
