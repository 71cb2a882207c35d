"""Commit data and messages in one transaction of SQLAlchemy, then deliver the messages: in order per key, none lost.

Everything public is importable from here; each name is loaded when it is first used, so that `import message_bus`
loads neither SQLAlchemy nor any driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
    from message_bus.bus.async_bus import AsyncMessageBus
    from message_bus.bus.context import Context, correlate
    from message_bus.bus.outcome import Failure, Outcome
    from message_bus.bus.sync_bus import MessageBus
    from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandlerABC
    from message_bus.delivery.report import OutboxReport, SubscriptionReport
    from message_bus.delivery.retry import ExponentialBackoff, FixedDelay, LinearBackoff, NoRetry, RetryPolicy
    from message_bus.delivery.subscription import Subscription
    from message_bus.errors import (
        AsyncHandlerOnSyncBus,
        CascadeLimitExceeded,
        ConflictError,
        DeliveryError,
        DispatchEnded,
        HandlerNotFound,
        InvalidMessage,
        InvalidOutboxMessage,
        LeaseLost,
        MessageBusError,
        MessageDecodeError,
        MessageDefinitionError,
        NotAMessage,
        PositionBehind,
        Reject,
        RetryLater,
        SchemaError,
        SessionOwnedBySubscription,
        SettingsError,
        Unavailable,
        UnflushedWork,
        UnknownMessageType,
        UnsupportedDatabase,
        UnwrittenMessages,
        WiringError,
    )
    from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
    from message_bus.messages.envelope import Envelope
    from message_bus.messages.message import Command, Event, Message
    from message_bus.messages.registry import Registry
    from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC
    from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
    from message_bus.repositories.outbox import AsyncOutBoxRepoABC, OutBoxRepoABC
    from message_bus.repositories.outbox_message import OutboxMessage
    from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
    from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
    from message_bus.storage.schema import check_schema
    from message_bus.storage.sqlite import configure_sqlite
    from message_bus.storage.tables import MessageBusTables

_NAMES_OF: dict[str, str] = {
    "bus.abc": "AsyncMessageBusABC MessageBusABC",
    "bus.async_bus": "AsyncMessageBus",
    "bus.context": "Context correlate",
    "bus.outcome": "Failure Outcome",
    "bus.sync_bus": "MessageBus",
    "command_handlers.base": "AsyncCommandHandlerABC CommandHandlerABC",
    "delivery.report": "OutboxReport SubscriptionReport",
    "delivery.retry": "ExponentialBackoff FixedDelay LinearBackoff NoRetry RetryPolicy",
    "delivery.subscription": "Subscription",
    "errors": "AsyncHandlerOnSyncBus CascadeLimitExceeded ConflictError DeliveryError DispatchEnded HandlerNotFound "
    "InvalidMessage InvalidOutboxMessage LeaseLost MessageBusError MessageDecodeError MessageDefinitionError "
    "NotAMessage PositionBehind Reject RetryLater SchemaError SessionOwnedBySubscription SettingsError Unavailable "
    "UnflushedWork UnknownMessageType UnsupportedDatabase UnwrittenMessages WiringError",
    "event_handlers.base": "AsyncEventHandlerABC EventHandlerABC",
    "messages.envelope": "Envelope",
    "messages.message": "Command Event Message",
    "messages.registry": "Registry",
    "outbox_handlers.base": "AsyncOutboxHandlerABC OutboxHandlerABC",
    "outbox_handlers.dispatch": "DispatchOutboxHandler",
    "repositories.outbox": "AsyncOutBoxRepoABC OutBoxRepoABC",
    "repositories.outbox_message": "OutboxMessage",
    "repositories.sqlalchemy": "SQLAlchemyOutBoxRepo",
    "repositories.sqlalchemy_async": "AsyncSQLAlchemyOutBoxRepo",
    "storage.schema": "check_schema",
    "storage.sqlite": "configure_sqlite",
    "storage.tables": "MessageBusTables",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

__all__ = [
    "__version__",
    "AsyncCommandHandlerABC",
    "AsyncEventHandlerABC",
    "AsyncHandlerOnSyncBus",
    "AsyncMessageBus",
    "AsyncMessageBusABC",
    "AsyncOutBoxRepoABC",
    "AsyncOutboxHandlerABC",
    "AsyncSQLAlchemyOutBoxRepo",
    "CascadeLimitExceeded",
    "Command",
    "CommandHandlerABC",
    "ConflictError",
    "Context",
    "DeliveryError",
    "DispatchEnded",
    "DispatchOutboxHandler",
    "Envelope",
    "Event",
    "EventHandlerABC",
    "ExponentialBackoff",
    "Failure",
    "FixedDelay",
    "HandlerNotFound",
    "InvalidMessage",
    "InvalidOutboxMessage",
    "LeaseLost",
    "LinearBackoff",
    "Message",
    "MessageBus",
    "MessageBusABC",
    "MessageBusError",
    "MessageBusTables",
    "MessageDecodeError",
    "MessageDefinitionError",
    "NoRetry",
    "NotAMessage",
    "OutBoxRepoABC",
    "OutboxHandlerABC",
    "OutboxMessage",
    "OutboxReport",
    "Outcome",
    "PositionBehind",
    "Registry",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "SQLAlchemyOutBoxRepo",
    "SchemaError",
    "SessionOwnedBySubscription",
    "SettingsError",
    "Subscription",
    "SubscriptionReport",
    "Unavailable",
    "UnflushedWork",
    "UnknownMessageType",
    "UnsupportedDatabase",
    "UnwrittenMessages",
    "WiringError",
    "check_schema",
    "configure_sqlite",
    "correlate",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'message_bus' has no attribute {name!r}")
    value = getattr(import_module(f"message_bus.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
