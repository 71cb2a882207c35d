"""What operators do, as a Python API that the command line only wraps.

    dead_letters_async.py -> dead_letters.py      find, replay, discard                    letters.py     the values (pure)
    subscriptions_async.py -> subscriptions.py    list, start, pause, reset, repartition   partitions.py  the values (pure)
    schedule_async.py -> schedule.py              delayed messages: list, cancel           delayed.py     the values (pure)
    status, doctor, why, retention                functions: status(), doctor(), why(), prune()
        overview.py, findings.py, life.py         their values; checks.py: what doctor looks at
        history.py, emitted.py                    of a life: what has happened, what came of it
    describe, export_message_schemas, ...         functions without a database; description*.py
    ground.py                                     what all of them stand on

Each is about both logs, the outbox and the events. All but `prune` happens in the caller's transaction (G10). Operators
change what is recorded only under the locks on the log and on the checkpoint rows (S3, S4), and tell the worker by adding two
to their revision. They handle no message.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from message_bus.admin.dead_letters import DeadLetters
from message_bus.admin.delayed import CancelReport, ScheduledMessage
from message_bus.admin.description.description import (
    Delivery,
    Description,
    Guarantee,
    HandlerDescription,
    MessageDescription,
    SagaDescription,
    Setting,
    StepDescription,
    SubscriptionDescription,
    WiringWarning,
)
from message_bus.admin.description.diagram import mermaid
from message_bus.admin.doctor import doctor
from message_bus.admin.emitted import Emitted
from message_bus.admin.findings import Finding
from message_bus.admin.history import HistoryEntry
from message_bus.admin.letters import ChosenLetter, DeadLetter, DeadLetterReport
from message_bus.admin.life import Fate, Life, Moment, Recorded
from message_bus.admin.overview import DeadCount, EventLogStatus, Status, WatermarkStatus
from message_bus.admin.partitions import PartitionStatus, SubscriptionChange
from message_bus.admin.retention import prune
from message_bus.admin.schedule import Schedule
from message_bus.admin.status import status
from message_bus.admin.subscriptions import Subscriptions
from message_bus.admin.why import why
from message_bus.messages.schemas.compatibility import MessageChange

if TYPE_CHECKING:
    from message_bus.admin.dead_letters_async import AsyncDeadLetters
    from message_bus.admin.description.schemas import check_message_schemas, export_message_schemas
    from message_bus.admin.description.wiring import describe
    from message_bus.admin.doctor_async import async_doctor
    from message_bus.admin.retention_async import async_prune
    from message_bus.admin.schedule_async import AsyncSchedule
    from message_bus.admin.status_async import async_status
    from message_bus.admin.subscriptions_async import AsyncSubscriptions
    from message_bus.admin.why_async import async_why

__all__ = [
    "AsyncDeadLetters",
    "AsyncSchedule",
    "AsyncSubscriptions",
    "CancelReport",
    "ChosenLetter",
    "DeadCount",
    "DeadLetter",
    "DeadLetterReport",
    "DeadLetters",
    "Delivery",
    "Description",
    "Emitted",
    "EventLogStatus",
    "Fate",
    "Finding",
    "Guarantee",
    "HandlerDescription",
    "HistoryEntry",
    "Life",
    "MessageChange",
    "MessageDescription",
    "Moment",
    "PartitionStatus",
    "Recorded",
    "SagaDescription",
    "Schedule",
    "ScheduledMessage",
    "Setting",
    "Status",
    "StepDescription",
    "SubscriptionChange",
    "SubscriptionDescription",
    "Subscriptions",
    "WatermarkStatus",
    "WiringWarning",
    "async_doctor",
    "async_prune",
    "async_status",
    "async_why",
    "check_message_schemas",
    "describe",
    "doctor",
    "export_message_schemas",
    "mermaid",
    "prune",
    "status",
    "why",
]

_ASYNC = {  # their imports need greenlet, which synchronous users need not have
    "AsyncDeadLetters": "dead_letters_async",
    "AsyncSchedule": "schedule_async",
    "AsyncSubscriptions": "subscriptions_async",
    "async_doctor": "doctor_async",
    "async_prune": "retention_async",
    "async_status": "status_async",
    "async_why": "why_async",
}
_LATER = {  # they know all that can be wired, event sourcing included
    "check_message_schemas": "description.schemas",
    "describe": "description.wiring",
    "export_message_schemas": "description.schemas",
}


def __getattr__(name: str) -> Any:
    module = _ASYNC.get(name) or _LATER.get(name)
    if module is not None:
        return getattr(import_module(f"message_bus.admin.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
