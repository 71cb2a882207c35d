"""Help for tests of applications that use message_bus.

`drain` delivers what a test has registered. `Recorder` is a handler that remembers; `DryRunMessageBus` a bus that runs no
handler; `AggregateScenario`, `ProcessManagerScenario` and `ProjectionTester` say what was given, what is done, what follows.
The contracts are tests that a repository, bus or event store of your own inherits; they alone need pytest, and are
loaded when they are first used.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Collection
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.delivery.report import OutboxReport

if TYPE_CHECKING:
    from message_bus.testing.bus_contract import AsyncBusContract, BusContract
    from message_bus.testing.capabilities import Capabilities
    from message_bus.testing.dry_run import AsyncDryRunMessageBus, DryRunMessageBus, WouldHandle
    from message_bus.testing.event_store_contract import EventStoreContract
    from message_bus.testing.event_store_contract_async import AsyncEventStoreContract
    from message_bus.testing.given_when_then import AggregateOutcome, AggregateScenario
    from message_bus.testing.outbox_contract import AsyncOutboxContract, OutboxContract
    from message_bus.testing.process_manager_scenario import ProcessManagerScenario
    from message_bus.testing.projection_tester import ProjectionTester
    from message_bus.testing.recorder import Recorded, Recorder

__all__ = [
    "AggregateOutcome",
    "AggregateScenario",
    "AsyncBusContract",
    "AsyncDryRunMessageBus",
    "AsyncEventStoreContract",
    "AsyncOutboxContract",
    "BusContract",
    "Capabilities",
    "DryRunMessageBus",
    "EventStoreContract",
    "OutboxContract",
    "ProcessManagerScenario",
    "ProjectionTester",
    "Recorded",
    "Recorder",
    "WouldHandle",
    "drain",
]

_MODULE_OF = {
    "AggregateOutcome": "given_when_then",
    "AggregateScenario": "given_when_then",
    "AsyncBusContract": "bus_contract",
    "AsyncDryRunMessageBus": "dry_run",
    "AsyncEventStoreContract": "event_store_contract_async",
    "AsyncOutboxContract": "outbox_contract",
    "BusContract": "bus_contract",
    "Capabilities": "capabilities",
    "DryRunMessageBus": "dry_run",
    "EventStoreContract": "event_store_contract",
    "OutboxContract": "outbox_contract",
    "ProcessManagerScenario": "process_manager_scenario",
    "ProjectionTester": "projection_tester",
    "Recorded": "recorder",
    "Recorder": "recorder",
    "WouldHandle": "dry_run",
}
_TESTS = {  # the modules behind it that hold tests
    "bus_contract": "bus_contract bus_handling bus_handling_async bus_registering bus_registering_async",
    "event_store_contract": "event_store_contract",
    "event_store_contract_async": "event_store_contract_async",
    "outbox_contract": "outbox_processing outbox_processing_async outbox_registering outbox_registering_async",
}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'message_bus.testing' has no attribute {name!r}")
    _explain_asserts(_TESTS.get(module, ""))
    value = getattr(import_module(f"message_bus.testing.{module}"), name)
    globals()[name] = value
    return value


def _explain_asserts(modules: str) -> None:
    """Let a failing assert in these modules say what it compared, as it does in the user's own tests."""
    new = [name for each in modules.split() if (name := f"message_bus.testing.{each}") not in sys.modules]
    if new:
        import pytest

        pytest.register_assert_rewrite(*new)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


@overload
def drain(bus: MessageBusABC, session: Any, *, only: Collection[str] | None = None) -> OutboxReport: ...
@overload
def drain(
    bus: AsyncMessageBusABC, session: Any, *, only: Collection[str] | None = None
) -> Awaitable[OutboxReport]: ...
def drain(bus: Any, session: Any, *, only: Collection[str] | None = None) -> Any:
    """Deliver what was registered on `session`, and what its handlers emit; to be awaited with an AsyncMessageBus.

    Commits the session, then processes the outbox with it. In a test that is rolled back at its end, bind the session
    to the test's connection with `join_transaction_mode="create_savepoint"`: everything, checkpoints included, then
    lives and dies with the test's transaction. A repository, in memory or of your own, does in place of a session: it is
    saved, then processed. Check the report: `assert drain(bus, session).ok`.

    Raises: SettingsError for a session of a test's transaction in another join_transaction_mode.
    """
    if isinstance(bus, AsyncMessageBusABC):
        from message_bus.testing.draining_async import drain_async

        return drain_async(bus, session, only=only)
    from message_bus.testing.draining import drain as drain_now

    return drain_now(bus, session, only=only)
