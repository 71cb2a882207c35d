"""`ProcessManager`: reacts to events over time, remembers what it has seen, and sends commands.

    message ──► whose process? ──► its row, locked ──► @when method ──► commands and timeouts ──► new state
                                       all of it in the transaction that moves the checkpoint (G5)

A subscription like any other: Relay and `process_outbox` run it. It only decides; who does the work are the handlers of the
commands that it sends. For steps that are run one after another, and undone when one fails, there is `Saga`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from sqlalchemy.orm import Session

from message_bus.bus.context import Context, refuse_unsendable
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.verdicts import PassedOver
from message_bus.errors import RetryLater, SettingsError, WiringError
from message_bus.eventsourcing.bus_registry import registry_for
from message_bus.eventsourcing.processes.process_plan import (
    Correlation,
    Plan,
    plan_of,
    refuse_one_name_twice,
    settings_of,
)
from message_bus.eventsourcing.processes.process_timeouts import TIMEOUT_OF, ProcessTimeouts
from message_bus.messages.definition import MAX_PAYLOAD_BYTES, definition_of
from message_bus.messages.envelope import Envelope, stored_envelope
from message_bus.messages.message import Command, Event, Message
from message_bus.messages.registry import Registry
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.repositories.registering import register, register_all
from message_bus.storage import process_statements
from message_bus.storage.event_tables import COMPLETED, RUNNING
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG

if TYPE_CHECKING:
    from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.eventsourcing")

_UNSET: Final = object()
_NO_STATE: Final = frozenset(
    {"name", "correlate", "timeouts", "log", "schema_version", "subscription", "default_mode"}
)


@dataclass(slots=True)
class InHand:
    """One message, while a process handles it; then what it has decided."""

    key: str
    sent: list[Command | Event] = field(default_factory=list["Command | Event"])
    timeouts: list[tuple[timedelta, Event]] = field(default_factory=list["tuple[timedelta, Event]"])
    completed: bool = False
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


class ProcessManager(OutboxHandlerABC):
    """Derive from it, say in `correlate` which process a message belongs to, and mark methods with `@when`.

        class Fulfilment(ProcessManager):
            correlate = {OrderPlaced: "order_id", OrderPaid: "order_id", PaymentOverdue: "order_id"}
            paid: bool = False

            @when(OrderPlaced)
            def placed(self, event: OrderPlaced) -> None:
                self.send(RequestPayment(order_id=event.order_id))
                self.timeout_in(timedelta(days=1), PaymentOverdue(order_id=event.order_id))

    There is one process for each value that `correlate` leads to (the name of a field, or a function of the message); the
    first message of one begins it. Methods take `(self, event)` or `(self, event, context)`; they decide and do no I/O.

    State: annotated attributes of the class, each with a default. It is stored as JSON in the same transaction as the
    checkpoint and whatever is sent, so it is right after any crash (G5); one row a process, locked while it handles a message.
    `schema_version`: of the state; raise it and override `upgrade_state` when the attributes change their meaning.

    `name`: of the rows and the subscription (default: the class name); keep it when the class is renamed. `log`: "events" or
    "outbox". What processes send to themselves by `timeout_in` comes back through the outbox, so beside the event log it has
    a subscription of its own, `"<name> timeouts"`, which comes with this one. `timeouts`: the events that are used so, and
    come from nowhere else; `()` for none, which saves the subscription. Left out, any event of a method may be one.

    `registry`: for messages with upcasters (default: that of the bus that it is set on).

    Works on MessageBus and AsyncMessageBus alike, and may be shared by threads.

    Raises: SettingsError, at the class statement, with all that is wrong about the class; WiringError, when an instance is
    made, for state that cannot be stored.
    """

    default_mode: ClassVar[Literal["transactional", "concurrent"]] = "transactional"
    _makes_envelopes = True
    name: ClassVar[str] = ""
    log: ClassVar[Literal["outbox", "events"]] = EVENT_LOG
    correlate: ClassVar[Mapping[Any, Correlation]] = {}
    timeouts: ClassVar[tuple[type[Event], ...] | None] = None
    schema_version: ClassVar[int] = 1
    _plan: ClassVar[Plan]
    _in_hand: InHand | None = None
    _bus: Any = None
    _has_own_registry: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        cls._plan = plan_of(cls, ProcessManager, settings=_NO_STATE)
        own: Subscription | None = cls.__dict__.get("subscription")
        cls.subscription = settings_of(cls, cls._plan, own, own or cls.subscription or Subscription())

    def __init__(self, *, subscription: Subscription | None = None, registry: Registry | None = None) -> None:
        super().__init__()
        types = self._plan.types
        if not types:
            raise SettingsError(
                f"process manager {type(self).__name__!r}", ["it handles nothing (mark a method with @when)"]
            )
        refuse_one_name_twice(type(self), types)
        self._plan.state.check()
        if subscription is not None:
            self.subscription = settings_of(type(self), self._plan, subscription, subscription)
        if registry is not None:
            self._has_own_registry = True
        self.registry = Registry() if registry is None else registry
        self.registry.register(*types)

    # --- what methods call ---

    @property
    def key(self) -> str:
        """The key of the process in hand."""
        return self._hand().key

    def send(self, message: Command | Event) -> None:
        """Put a message into the outbox, in this transaction (G1), caused by the one in hand.

        Raises: NotAMessage; WiringError outside of a @when method.
        """
        refuse_unsendable(message)
        self._hand().sent.append(message)

    def timeout_in(self, delay: timedelta, message: Event) -> None:
        """Send this process a message after `delay`, by the database's clock; a process that has completed ignores it.

        Raises: WiringError for what is no timeout of this process; SettingsError for a delay that is none.
        """
        hand = self._hand()
        if not isinstance(delay, timedelta) or delay < timedelta(0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingsError("timeout_in", ["the delay must be a timedelta that is not negative"])
        if type(message) not in self._plan.timeouts:
            remedy = (
                "name it in timeouts" if self._plan.declared else "give an Event that a @when method takes"
            )
            raise WiringError(
                f"{type(message).__name__!r} is no timeout of process manager {self.name!r} ({remedy})"
            )
        if self._plan.key_of(message) != hand.key:
            raise WiringError(
                f"timeout {type(message).__name__!r} belongs to another process than the one in hand "
                f"(give it the same {self._plan.correlate[type(message)]!r})"
            )
        hand.timeouts.append((delay, message))

    def complete(self) -> None:
        """End this process: messages that still come for it are ignored. What it has sent is sent, and its row stays."""
        self._hand().completed = True

    @classmethod
    def upgrade_state(cls, data: dict[str, Any], from_version: int) -> dict[str, Any]:
        """Turn state that was stored under an older `schema_version` into what the class declares now.

        Override it; `data` is JSON-ready and may be changed. What is missing in it takes the default.
        """
        return data

    # --- what runs it ---

    def companions(self) -> Sequence[OutboxHandlerABC]:
        """Return the handler that reads the timeouts from the outbox, if this one reads the event log."""
        if self.log == OUTBOX_LOG or not self._plan.timeouts:
            return []
        return [ProcessTimeouts(self, self._plan)]

    def attach(self, bus: Any) -> None:
        """Called by the bus that this handler is set on: it learns what will be in its outbox."""
        self._bus = bus
        known = self._plan.types if self.log == OUTBOX_LOG else self._plan.timeouts
        bus.register_messages(*known)

    def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Decode the row and let its process handle it. On an AsyncMessageBus the result is to be awaited.

        Raises: what decoding and the method raise; RetryLater for state of a newer version; WiringError in concurrent mode.
        """
        context = context if isinstance(context, Context) else Context(context)
        session, tables = context.db_session, getattr(context.outbox, "tables", None)
        if session is None or tables is None:
            raise WiringError(
                f"process manager {self.name!r} needs the session of a transactional subscription "
                "(process a SQLAlchemy session, and leave mode= as it is)"
            )
        row = outbox_message
        registry = registry_for(
            row.message,
            own=self.registry,
            is_given=self._has_own_registry,
            bus=self._bus,
            types=self._plan.types,
        )
        message = registry.decode(row.message, row.version, row.payload_json)
        context["envelope"] = stored_envelope(message, row)
        if isinstance(session, Session):
            return self._step(session, tables, message, context)
        return session.run_sync(self._step, tables, message, context)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return self.handle(outbox_message, context, *args, **kwargs)

    def _step(
        self, session: Session, tables: MessageBusTables, message: Message, context: Context
    ) -> PassedOver | None:
        """One message of one process, in the caller's transaction."""
        key = self.key_of(message)
        mine = {"process_name": self.name, "process_key": key}
        row = session.execute(process_statements.lock(tables), mine).one_or_none()
        if row is None:
            made = {"name": self.name, "key": key, "data": {}, "schema_version": self.schema_version}
            dialect = session.connection().dialect.name
            session.execute(process_statements.create(dialect, tables).values(made))
            row = session.execute(process_statements.lock(tables), mine).one()
        if row.state == COMPLETED:
            _log_ignored(self.name, message)
            return PassedOver()
        decided = self.react(message, row.data, row.schema_version, context)
        envelope: Envelope = context.envelope
        observer = None if self._bus is None else self._bus.observer
        max_payload = MAX_PAYLOAD_BYTES if self._bus is None else self._bus.max_payload
        register_all(
            context.outbox, decided.sent, parent=envelope, observer=observer, max_payload=max_payload
        )
        for delay, timeout in decided.timeouts:
            register(
                context.outbox,
                timeout,
                key=key,
                delay=delay,
                parent=envelope,
                meta={TIMEOUT_OF: self.name},
                observer=observer,
                max_payload=max_payload,
            )
        if self._bus is not None:
            self._bus._learn(decided.sent)
        session.execute(
            process_statements.save(tables),
            {
                **mine,
                "new_state": COMPLETED if decided.completed else RUNNING,
                "new_data": decided.data,
                "new_schema_version": self.schema_version,
            },
        )
        return None

    def key_of(self, message: Message) -> str:
        """Return the key of the process that a message belongs to.

        Raises: Reject if it belongs to none; WiringError for a type that no method takes.
        """
        if type(message) not in self._plan.calls:
            raise WiringError(
                f"process manager {self.name!r} takes no {type(message).__name__!r} (mark a method with @when)"
            )
        return self._plan.key_of(message)

    def read_state(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes that stored data stands for. Raises: WiringError if it does not fit the class."""
        return self._plan.state.decode(data)

    def react(
        self, message: Message, data: Mapping[str, Any], schema_version: int, context: Context
    ) -> InHand:
        """Return what a process with this stored state decides about a message; changes nothing outside."""
        process, hand = copy.copy(self), InHand(self._plan.key_of(message))
        state = self._plan.state
        for name, value in state.decode(self._current(data, schema_version)).items():
            setattr(process, name, value)
        process._in_hand = hand
        result = self._plan.calls[type(message)](process, message, context)
        process._in_hand = None
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise WiringError(
                f"a method of process manager {self.name!r} returned an awaitable (make it a plain def)"
            )
        self._refuse_lost(process)
        hand.data = state.encode({name: getattr(process, name) for name in state.names})
        return hand

    def _current(self, data: Mapping[str, Any], schema_version: int) -> Mapping[str, Any]:
        if schema_version > self.schema_version:
            raise RetryLater(
                reason=f"process manager {self.name!r}: its state was written by a newer version"
            )
        if schema_version == self.schema_version or not data:
            return data
        return self.upgrade_state(copy.deepcopy(dict(data)), schema_version)

    def _refuse_lost(self, process: ProcessManager) -> None:
        """What a method sets that is no state would be gone with the next message."""
        state = self._plan.state.names
        lost = [
            name
            for name, value in process.__dict__.items()
            if name not in state and name != "_in_hand" and self.__dict__.get(name, _UNSET) is not value
        ]
        if lost:
            raise WiringError(
                f"process manager {self.name!r}: {lost[0]!r} is set in a @when method, but is no state, and would be "
                f"lost (declare it in the class, with a default: {lost[0]}: <type> = <default>)"
            )

    def _hand(self) -> InHand:
        if self._in_hand is None:
            raise WiringError(
                f"no message is in hand of process manager {self.name!r} (key, send, timeout_in and complete are for "
                "@when methods)"
            )
        return self._in_hand


def _log_ignored(name: str, message: Message) -> None:
    shown = definition_of(type(message)).name
    logger.debug(
        "process manager %r: %r came for a process that has completed",
        name,
        shown,
        extra={"process_manager": name, "message_name": shown},
    )
