"""The companion of a process manager that reads the event log: what its processes send themselves comes through the outbox."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from message_bus.delivery.verdicts import PassedOver
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.storage.logs import OUTBOX_LOG

if TYPE_CHECKING:
    from message_bus.eventsourcing.processes.process_manager import ProcessManager
    from message_bus.eventsourcing.processes.process_plan import Plan

TIMEOUT_OF: Final = "timeout_of"
"""In the meta of a timeout: the name of the process manager that has asked for it."""


class ProcessTimeouts(OutboxHandlerABC):
    """Reads the timeouts of a process manager from the outbox, where they arrive when they are due.

    A subscription beside the manager's own on the event log; both lock the row of the process that they change (G5).
    """

    default_mode: ClassVar[Literal["transactional", "concurrent"]] = "transactional"
    log: ClassVar[Literal["outbox", "events"]] = OUTBOX_LOG

    def __init__(self, manager: ProcessManager, plan: Plan) -> None:
        super().__init__()
        assert manager.subscription is not None, "it handles something"
        self.manager = manager
        self._declared = plan.declared
        # "beginning": nothing of these types is older than the manager, and nothing of them may be missed
        self.subscription = replace(
            manager.subscription,
            name=f"{manager.subscription.name} timeouts",
            types=plan.timeouts,
            start="beginning",
        )

    def attach(self, bus: Any) -> None:
        """Called by the bus that this handler is set on."""
        self.manager.attach(bus)

    def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Let the manager handle it; what it has not sent itself may be in the event log as well, and is passed over."""
        if not self._declared and outbox_message.meta.get(TIMEOUT_OF) != self.manager.name:
            return PassedOver()
        return self.manager.handle(outbox_message, context, *args, **kwargs)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return self.handle(outbox_message, context, *args, **kwargs)
