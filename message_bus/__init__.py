"""Commit data and messages in one transaction of SQLAlchemy, then deliver the messages: in order per key, none lost.

Everything public is importable from here; each name is loaded when it is first used, so that `import message_bus`
loads neither SQLAlchemy nor any driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from message_bus.admin.dead_letters import DeadLetters
    from message_bus.admin.dead_letters_async import AsyncDeadLetters
    from message_bus.admin.delayed import CancelReport, ScheduledMessage
    from message_bus.admin.letters import ChosenLetter, DeadLetter, DeadLetterReport
    from message_bus.admin.partitions import PartitionStatus, SubscriptionChange
    from message_bus.admin.schedule import Schedule
    from message_bus.admin.schedule_async import AsyncSchedule
    from message_bus.admin.subscriptions import Subscriptions
    from message_bus.admin.subscriptions_async import AsyncSubscriptions
    from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
    from message_bus.bus.async_bus import AsyncMessageBus
    from message_bus.bus.context import Context, correlate
    from message_bus.bus.in_memory import InMemoryAsyncMessageBus, InMemoryMessageBus
    from message_bus.bus.middleware import AsyncCallNext, AsyncMiddleware, CallNext, Middleware
    from message_bus.bus.module import Module
    from message_bus.bus.outcome import Failure, Outcome
    from message_bus.bus.sync_bus import MessageBus
    from message_bus.bus.threads import in_thread
    from message_bus.command_handlers.base import AsyncCommandHandlerABC, CommandHandler, CommandHandlerABC
    from message_bus.delivery.report import OutboxReport, SubscriptionReport
    from message_bus.delivery.retry import ExponentialBackoff, FixedDelay, LinearBackoff, NoRetry, RetryPolicy
    from message_bus.delivery.subscription import Subscription
    from message_bus.errors import (
        AggregateNotFound,
        AsyncHandlerOnSyncBus,
        CascadeLimitExceeded,
        ConcurrencyError,
        ConflictError,
        DeliveryError,
        DispatchEnded,
        DuplicateEvent,
        EventNotHandled,
        HandlerNotFound,
        InvalidCloudEvent,
        InvalidMessage,
        InvalidOutboxMessage,
        InvalidSnapshot,
        LeaseLost,
        MessageBusError,
        MessageDecodeError,
        MessageDefinitionError,
        NotAMessage,
        PositionBehind,
        ProjectionNotReady,
        QueryNotSendable,
        RebuildRefused,
        Reject,
        RetryLater,
        SagaChanged,
        SagaNotFound,
        SchemaError,
        SessionOwnedBySubscription,
        SettingsError,
        Unavailable,
        UnflushedWork,
        UnknownEventType,
        UnknownMessageType,
        UnsupportedDatabase,
        UnwrittenMessages,
        ValidationError,
        WiringError,
    )
    from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
    from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
    from message_bus.eventsourcing.aggregates.aggregate_repository import AggregateRepository
    from message_bus.eventsourcing.aggregates.aggregate_repository_async import AsyncAggregateRepository
    from message_bus.eventsourcing.aggregates.conflicts import retry_on_conflict
    from message_bus.eventsourcing.processes.process_manager import ProcessManager
    from message_bus.eventsourcing.projections.projection import Projection
    from message_bus.eventsourcing.projections.projection_state import Lag
    from message_bus.eventsourcing.projections.projections_admin import Projections
    from message_bus.eventsourcing.projections.projections_admin_async import AsyncProjections
    from message_bus.eventsourcing.sagas.saga import Saga
    from message_bus.eventsourcing.sagas.saga_async import AsyncSaga
    from message_bus.eventsourcing.sagas.saga_progress import SagaOutcome
    from message_bus.eventsourcing.sagas.saga_steps import SagaContext, SagaStep
    from message_bus.eventsourcing.stores.deleting import delete_stream
    from message_bus.eventsourcing.stores.deleting_async import delete_stream_async
    from message_bus.eventsourcing.stores.in_memory_store import InMemoryAsyncEventStore, InMemoryEventStore
    from message_bus.eventsourcing.stores.postgresql_store import PostgreSQLEventStore
    from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
    from message_bus.eventsourcing.stores.sqlalchemy_store_async import AsyncSQLAlchemyEventStore
    from message_bus.eventsourcing.stores.sqlite_store import SQLiteEventStore
    from message_bus.eventsourcing.stores.store import AsyncEventStore, EventStore, Snapshot
    from message_bus.eventsourcing.when import when
    from message_bus.messages.cloudevents.bindings import CloudEventMessage
    from message_bus.messages.cloudevents.reader import CloudEventReader
    from message_bus.messages.cloudevents.writer import CloudEventWriter
    from message_bus.messages.envelope import Envelope
    from message_bus.messages.message import Command, Event, Message, Query
    from message_bus.messages.recorded import RecordedEvent
    from message_bus.messages.registry import Registry
    from message_bus.messages.validation import (
        validate_in_range,
        validate_max_length,
        validate_min_length,
        validate_non_negative,
        validate_not_empty,
        validate_one_of,
        validate_positive,
    )
    from message_bus.observability.jaeger import JaegerTracer, TracingConfig, get_tracer, init_tracing
    from message_bus.observability.observer import Observer
    from message_bus.observability.opentelemetry import Telemetry
    from message_bus.observability.prometheus import MetricConfig, MetricOperationType, PrometheusMetrics
    from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC
    from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
    from message_bus.relay.async_relay import AsyncRelay
    from message_bus.relay.health import Health
    from message_bus.relay.relay import Relay
    from message_bus.repositories.in_memory import InMemoryOutBoxRepo
    from message_bus.repositories.in_memory_async import AsyncInMemoryOutBoxRepo
    from message_bus.repositories.in_memory_store import InMemoryOutBox
    from message_bus.repositories.outbox import AsyncOutBoxRepoABC, OutBoxRepoABC
    from message_bus.repositories.outbox_message import OutboxMessage
    from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
    from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
    from message_bus.storage.schema import check_schema
    from message_bus.storage.sqlite import configure_sqlite
    from message_bus.storage.tables import MessageBusTables

_NAMES_OF: dict[str, str] = {
    "admin.dead_letters": "DeadLetters",
    "admin.dead_letters_async": "AsyncDeadLetters",
    "admin.delayed": "CancelReport ScheduledMessage",
    "admin.letters": "ChosenLetter DeadLetter DeadLetterReport",
    "admin.partitions": "PartitionStatus SubscriptionChange",
    "admin.schedule": "Schedule",
    "admin.schedule_async": "AsyncSchedule",
    "admin.subscriptions": "Subscriptions",
    "admin.subscriptions_async": "AsyncSubscriptions",
    "bus.abc": "AsyncMessageBusABC MessageBusABC",
    "bus.async_bus": "AsyncMessageBus",
    "bus.context": "Context correlate",
    "bus.in_memory": "InMemoryAsyncMessageBus InMemoryMessageBus",
    "bus.middleware": "AsyncCallNext AsyncMiddleware CallNext Middleware",
    "bus.module": "Module",
    "bus.outcome": "Failure Outcome",
    "bus.sync_bus": "MessageBus",
    "bus.threads": "in_thread",
    "command_handlers.base": "AsyncCommandHandlerABC CommandHandler CommandHandlerABC",
    "delivery.report": "OutboxReport SubscriptionReport",
    "delivery.retry": "ExponentialBackoff FixedDelay LinearBackoff NoRetry RetryPolicy",
    "delivery.subscription": "Subscription",
    "errors": "AggregateNotFound AsyncHandlerOnSyncBus CascadeLimitExceeded ConcurrencyError "
    "ConflictError DeliveryError DispatchEnded DuplicateEvent EventNotHandled "
    "HandlerNotFound InvalidCloudEvent InvalidMessage InvalidOutboxMessage InvalidSnapshot LeaseLost "
    "MessageBusError MessageDecodeError MessageDefinitionError NotAMessage PositionBehind "
    "ProjectionNotReady QueryNotSendable RebuildRefused Reject RetryLater SagaChanged SagaNotFound "
    "SchemaError SessionOwnedBySubscription SettingsError Unavailable UnflushedWork "
    "UnknownEventType UnknownMessageType UnsupportedDatabase UnwrittenMessages "
    "ValidationError WiringError",
    "event_handlers.base": "AsyncEventHandlerABC EventHandlerABC",
    "eventsourcing.aggregates.aggregate": "AggregateRoot",
    "eventsourcing.aggregates.aggregate_repository": "AggregateRepository",
    "eventsourcing.aggregates.aggregate_repository_async": "AsyncAggregateRepository",
    "eventsourcing.aggregates.conflicts": "retry_on_conflict",
    "eventsourcing.processes.process_manager": "ProcessManager",
    "eventsourcing.projections.projection": "Projection",
    "eventsourcing.projections.projection_state": "Lag",
    "eventsourcing.projections.projections_admin": "Projections",
    "eventsourcing.projections.projections_admin_async": "AsyncProjections",
    "eventsourcing.sagas.saga": "Saga",
    "eventsourcing.sagas.saga_async": "AsyncSaga",
    "eventsourcing.sagas.saga_progress": "SagaOutcome",
    "eventsourcing.sagas.saga_steps": "SagaContext SagaStep",
    "eventsourcing.stores.deleting": "delete_stream",
    "eventsourcing.stores.deleting_async": "delete_stream_async",
    "eventsourcing.stores.in_memory_store": "InMemoryAsyncEventStore InMemoryEventStore",
    "eventsourcing.stores.postgresql_store": "PostgreSQLEventStore",
    "eventsourcing.stores.sqlalchemy_store": "SQLAlchemyEventStore",
    "eventsourcing.stores.sqlalchemy_store_async": "AsyncSQLAlchemyEventStore",
    "eventsourcing.stores.sqlite_store": "SQLiteEventStore",
    "eventsourcing.stores.store": "AsyncEventStore EventStore Snapshot",
    "eventsourcing.when": "when",
    "messages.cloudevents.bindings": "CloudEventMessage",
    "messages.cloudevents.reader": "CloudEventReader",
    "messages.cloudevents.writer": "CloudEventWriter",
    "messages.envelope": "Envelope",
    "messages.message": "Command Event Message Query",
    "messages.recorded": "RecordedEvent",
    "messages.registry": "Registry",
    "messages.validation": "validate_in_range validate_max_length validate_min_length validate_non_negative "
    "validate_not_empty validate_one_of validate_positive",
    "observability.jaeger": "JaegerTracer TracingConfig get_tracer init_tracing",
    "observability.observer": "Observer",
    "observability.opentelemetry": "Telemetry",
    "observability.prometheus": "MetricConfig MetricOperationType PrometheusMetrics",
    "outbox_handlers.base": "AsyncOutboxHandlerABC OutboxHandlerABC",
    "outbox_handlers.dispatch": "DispatchOutboxHandler",
    "relay.async_relay": "AsyncRelay",
    "relay.health": "Health",
    "relay.relay": "Relay",
    "repositories.in_memory": "InMemoryOutBoxRepo",
    "repositories.in_memory_async": "AsyncInMemoryOutBoxRepo",
    "repositories.in_memory_store": "InMemoryOutBox",
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
    "AggregateNotFound",
    "AggregateRepository",
    "AggregateRoot",
    "AsyncAggregateRepository",
    "AsyncCallNext",
    "AsyncCommandHandlerABC",
    "AsyncDeadLetters",
    "AsyncEventHandlerABC",
    "AsyncEventStore",
    "AsyncHandlerOnSyncBus",
    "AsyncInMemoryOutBoxRepo",
    "AsyncMessageBus",
    "AsyncMessageBusABC",
    "AsyncMiddleware",
    "AsyncOutBoxRepoABC",
    "AsyncOutboxHandlerABC",
    "AsyncProjections",
    "AsyncRelay",
    "AsyncSQLAlchemyEventStore",
    "AsyncSQLAlchemyOutBoxRepo",
    "AsyncSaga",
    "AsyncSchedule",
    "AsyncSubscriptions",
    "CallNext",
    "CancelReport",
    "CascadeLimitExceeded",
    "ChosenLetter",
    "CloudEventMessage",
    "CloudEventReader",
    "CloudEventWriter",
    "Command",
    "CommandHandler",
    "CommandHandlerABC",
    "ConcurrencyError",
    "ConflictError",
    "Context",
    "DeadLetter",
    "DeadLetterReport",
    "DeadLetters",
    "DeliveryError",
    "DispatchEnded",
    "DispatchOutboxHandler",
    "DuplicateEvent",
    "Envelope",
    "Event",
    "EventHandlerABC",
    "EventNotHandled",
    "EventStore",
    "ExponentialBackoff",
    "Failure",
    "FixedDelay",
    "HandlerNotFound",
    "Health",
    "InMemoryAsyncEventStore",
    "InMemoryAsyncMessageBus",
    "InMemoryEventStore",
    "InMemoryMessageBus",
    "InMemoryOutBox",
    "InMemoryOutBoxRepo",
    "InvalidCloudEvent",
    "InvalidMessage",
    "InvalidOutboxMessage",
    "InvalidSnapshot",
    "JaegerTracer",
    "Lag",
    "LeaseLost",
    "LinearBackoff",
    "Message",
    "MessageBus",
    "MessageBusABC",
    "MessageBusError",
    "MessageBusTables",
    "MessageDecodeError",
    "MessageDefinitionError",
    "MetricConfig",
    "MetricOperationType",
    "Middleware",
    "Observer",
    "Module",
    "NoRetry",
    "NotAMessage",
    "OutBoxRepoABC",
    "OutboxHandlerABC",
    "OutboxMessage",
    "OutboxReport",
    "Outcome",
    "PartitionStatus",
    "PositionBehind",
    "PostgreSQLEventStore",
    "ProcessManager",
    "Projection",
    "ProjectionNotReady",
    "Projections",
    "PrometheusMetrics",
    "Query",
    "QueryNotSendable",
    "RebuildRefused",
    "RecordedEvent",
    "Registry",
    "Reject",
    "Relay",
    "RetryLater",
    "RetryPolicy",
    "SQLAlchemyEventStore",
    "SQLAlchemyOutBoxRepo",
    "SQLiteEventStore",
    "Saga",
    "SagaChanged",
    "SagaNotFound",
    "SagaContext",
    "SagaOutcome",
    "SagaStep",
    "Schedule",
    "ScheduledMessage",
    "SchemaError",
    "SessionOwnedBySubscription",
    "SettingsError",
    "Snapshot",
    "Subscription",
    "SubscriptionChange",
    "SubscriptionReport",
    "Subscriptions",
    "Telemetry",
    "TracingConfig",
    "Unavailable",
    "UnflushedWork",
    "UnknownEventType",
    "UnknownMessageType",
    "UnsupportedDatabase",
    "UnwrittenMessages",
    "ValidationError",
    "WiringError",
    "check_schema",
    "configure_sqlite",
    "correlate",
    "delete_stream",
    "delete_stream_async",
    "get_tracer",
    "in_thread",
    "init_tracing",
    "retry_on_conflict",
    "validate_in_range",
    "validate_max_length",
    "validate_min_length",
    "validate_non_negative",
    "validate_not_empty",
    "validate_one_of",
    "validate_positive",
    "when",
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
