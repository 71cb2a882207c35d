"""Tests of process managers without a database: what was, what happens, what is sent then.

    ProcessManagerScenario(Fulfilment)
        .given(OrderPlaced(order_id=7))
        .when(OrderPaid(order_id=7))
        .then_sends(ShipOrder(order_id=7))
        .then_completed()

State is encoded and decoded between messages, as it would be between two transactions.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from message_bus.bus.context import Context
from message_bus.eventsourcing.processes.process_manager import InHand, ProcessManager
from message_bus.messages.envelope import new_envelope
from message_bus.messages.message import Command, Event, Message


class ProcessManagerScenario:
    """One scenario of a process manager, given as its class or as an instance.

    What is sent and asked for by `given` is left out of what `then_...` looks at; what `when` brings about adds up. Each
    `then_...` fails with an AssertionError that shows both sides.
    """

    def __init__(self, process_manager: ProcessManager | type[ProcessManager]) -> None:
        self._manager = process_manager() if isinstance(process_manager, type) else process_manager
        self._processes: dict[str, Mapping[str, Any]] = {}
        self._completed: dict[str, bool] = {}
        self._sent: list[Command | Event] = []
        self._timeouts: list[tuple[timedelta, Event]] = []
        self._last: str | None = None

    def given(self, *messages: Message) -> ProcessManagerScenario:
        """Let these have happened before."""
        for message in messages:
            self._handle(message)
        return self

    def when(self, *messages: Message) -> ProcessManagerScenario:
        """Let these happen now."""
        for message in messages:
            decided = self._handle(message)
            if decided is not None:
                self._sent += decided.sent
                self._timeouts += decided.timeouts
        return self

    def then_sends(self, *messages: Command | Event) -> ProcessManagerScenario:
        """Assert that exactly these were sent, in this order; none: that nothing was."""
        assert self._sent == list(messages), f"sent {self._sent}, not {list(messages)}"
        return self

    def then_timeouts(self, *timeouts: tuple[timedelta, Event]) -> ProcessManagerScenario:
        """Assert that exactly these `(delay, message)` were asked for, in this order."""
        assert self._timeouts == list(timeouts), f"timeouts {self._timeouts}, not {list(timeouts)}"
        return self

    def then_completed(self, *, completed: bool = True) -> ProcessManagerScenario:
        """Assert that the process of the last message has completed; `completed=False`: that it has not."""
        assert self._last is not None, "nothing has happened yet (call when())"
        found = self._completed[self._last]
        assert found is completed, "the process has completed" if found else "the process has not completed"
        return self

    def then_state(self, **values: Any) -> ProcessManagerScenario:
        """Assert what these attributes of the process of the last message are."""
        assert self._last is not None, "nothing has happened yet (call when())"
        state = self._manager.read_state(self._processes[self._last])
        found = {name: state[name] for name in values}
        assert found == values, f"state {found}, not {values}"
        return self

    def _handle(self, message: Message) -> InHand | None:
        self._last = key = self._manager.key_of(message)
        if self._completed.setdefault(key, False):
            return None
        context = Context(envelope=new_envelope(message), attempt=1)
        stored = self._processes.get(key, {})
        decided = self._manager.react(message, stored, self._manager.schema_version, context)
        self._processes[key] = decided.data
        self._completed[key] = decided.completed
        return decided
