"""An application whose relay ends as soon as it runs, and says what was loaded by then."""

from __future__ import annotations

import sys

from message_bus import MessageBus
from message_bus.relay.health import Health
from message_bus.relay.wiring import AnyRelay


class Idle(AnyRelay):
    """Says whether prometheus_client is loaded, and whether its bus is observed."""

    def __init__(self) -> None:
        self.bus = MessageBus()

    def run(self) -> None:
        """Say it."""
        print("prometheus_client" in sys.modules, self.bus.observer is not None)

    def stop(self) -> None:
        """Nothing runs."""

    def health(self) -> Health:
        """Nobody asks."""
        raise NotImplementedError
