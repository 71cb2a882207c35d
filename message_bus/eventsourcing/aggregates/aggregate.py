"""`AggregateRoot`: an object whose state is what its events have made of it.

    order.ship() ── apply(OrderShipped) ──► on_order_shipped(event) changes the state
                          │                          ▲
                          ▼                          │ replay(events), from_events, from_snapshot
                  uncommitted_events ──► store ──────┘

Business methods check the rules and apply events; handlers only change the state, for they run again at each replay. Pure:
stores know nothing of aggregates; `AggregateRepository` brings the two together. Not to be shared by threads or tasks.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from message_bus.errors import EventNotHandled, InvalidSnapshot, NotAMessage, SettingsError, WiringError
from message_bus.eventsourcing.aggregates import handling, state
from message_bus.eventsourcing.aggregates.aggregate_checks import problems_of
from message_bus.eventsourcing.aggregates.history import History, is_immutable
from message_bus.messages.message import STORED, Event
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.repairs import resolve_local_annotations

if TYPE_CHECKING:
    from message_bus.eventsourcing.stores.store import Snapshot


class AggregateRoot:
    """The base of aggregates: derive, and write one method for each event.

        class Order(AggregateRoot):
            shipped = False

            def ship(self) -> None:
                if self.shipped:
                    raise AlreadyShipped
                self.apply(OrderShipped(order_id=self.aggregate_id))

            def on_order_shipped(self, event: OrderShipped) -> None:
                self.shipped = True

    The method of an event is the one that `@when(OrderShipped)` marks, else `on_order_shipped`; for a class
    `OrderShippedEvent` the suffix may be dropped. An event without one is an error, unless `ignores` names it.

    Loading makes an instance without arguments: give every parameter of `__init__` a default. `super().__init__()` need
    not be called, and `@dataclass` works. What is annotated in the class comes back from snapshots as what it was.

    `aggregate_type`: what snapshots call the class (default: its name). `snapshot_version`: raise it when the state
    changes its form, and older snapshots are no longer used. `ignores`: events that change nothing here.

    Raises: SettingsError at the class statement, with all that is wrong: an `on_...` method that takes an event and is not
    called after it, two methods for one event, an async one, a mutable default that all instances would share.
    """

    aggregate_type: ClassVar[str] = "AggregateRoot"
    snapshot_version: ClassVar[int] = 1
    ignores: ClassVar[Sequence[type[Event]]] = ()

    _handlers: ClassVar[dict[type, Callable[..., Any]]] = {}
    _hints: ClassVar[state.Hints | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        resolve_local_annotations(cls)
        if "aggregate_type" not in vars(cls):
            cls.aggregate_type = cls.__name__
        cls._handlers, cls._hints = {}, None
        if problems := [*problems_of(cls), *handling.problems_of(cls)]:
            raise SettingsError(f"aggregate {cls.__name__!r}", problems)

    def __init__(self, aggregate_id: str | None = None) -> None:
        if aggregate_id is not None:
            self.aggregate_id = aggregate_id

    @cached_property
    def _history(self) -> History:  # also of those that never call super().__init__()
        return History()

    @property
    def aggregate_id(self) -> str:
        """The id that its events are stored under; a handler of the first event may set it.

        Raises: WiringError if it has none yet.
        """
        found = self._history.aggregate_id
        if found is None:
            raise WiringError(
                f"this {type(self).__name__!r} has no aggregate_id yet (set it in the handler of the first event, or give "
                "it to the constructor)"
            )
        return found

    @aggregate_id.setter
    def aggregate_id(self, aggregate_id: str) -> None:
        if not isinstance(aggregate_id, str) or not aggregate_id:
            problem = f"aggregate_id must be a str that is not empty, not a {type(aggregate_id).__name__}"
            raise SettingsError(f"aggregate {type(self).__name__!r}", [f"{problem} (give str(...))"])
        self._history.aggregate_id = aggregate_id

    @property
    def version(self) -> int:
        """The number of events that have made the state, uncommitted ones included: it belongs to `to_dict()`."""
        return self._history.version

    @property
    def stored_version(self) -> int:
        """The number of events that were stored when it was loaded or saved: the `expected_version` of the next save."""
        return self._history.version - len(self._history.uncommitted)

    @property
    def uncommitted_events(self) -> list[Event]:
        """The events that were applied and are not stored yet, in order; a list of the caller's own."""
        return list(self._history.uncommitted)

    def apply(self, event: Event | RecordedEvent) -> None:
        """Let an event change the state, and record it among the uncommitted ones.

        An event that a store has loaded is replayed: it changes the state and is not recorded again. (One of a class
        with slots cannot be told from a new one: give it to `replay`.) If the handler raises, nothing is recorded. What
        is recorded cannot be changed through the state any more, nor through the event that was given.

        Raises: EventNotHandled; NotAMessage for what is no event; WiringError if a handler calls it; as `replay`.
        """
        if event.__class__ is RecordedEvent or getattr(event, STORED, None) is not None:
            self.replay((event,))
            return
        new: Any = event
        handler = self._handlers.get(type(event)) or self._handler_of(event)
        kept, given = (new, new) if is_immutable(new) else (copy.deepcopy(new), copy.deepcopy(new))
        history = self._begin()
        try:
            handler(self, given)
        finally:
            history.is_applying = False
        history.uncommitted.append(kept)
        history.version += 1

    def replay(self, events: Iterable[Event | RecordedEvent]) -> None:
        """Let stored events change the state, without recording them; each once, in their order.

        Raises: EventNotHandled; WiringError if one is missing, comes twice, or belongs to another aggregate (as far as
        events tell, those of our stores do), or if there are uncommitted events.
        """
        loaded = list(events)
        history = self._begin()
        version = history.version
        known = self._handlers.get
        try:
            if history.uncommitted:
                raise WiringError(
                    f"this {type(self).__name__!r} has uncommitted events, before which nothing can be replayed (replay "
                    "first, or into a new instance)"
                )
            self._refuse_gaps(loaded)
            for each in loaded:
                event = each.message if isinstance(each, RecordedEvent) else each
                handler = known(event.__class__) or self._handler_of(event)
                handler(self, event)
                version += 1
        finally:
            history.version = version
            history.is_applying = False

    def mark_committed(self) -> None:
        """Note that the uncommitted events are stored. (`AggregateRepository.save` does it.)"""
        self._history.uncommitted.clear()

    @classmethod
    def from_events(cls, events: Iterable[Event | RecordedEvent], aggregate_id: str | None = None) -> Self:
        """Return what these stored events have made of a new instance; none of them is uncommitted.

        `aggregate_id`: default what the events say, those of our stores do, or their handlers set.

        Raises: as `replay`; SettingsError if an instance cannot be made without arguments.
        """
        aggregate = cls._made()
        if aggregate_id is not None:
            aggregate._history.aggregate_id = aggregate._history.stream = aggregate_id
        aggregate.replay(events)
        return aggregate

    def to_dict(self) -> dict[str, Any]:
        """Return the public attributes, ready for JSON, for the `state` of a Snapshot with this `version`.

        Override it together with `from_snapshot` to store something else. Aliases nothing.

        Raises: InvalidSnapshot naming the attribute that would not come back as what it is.
        """
        return state.to_json(type(self).__name__, state.attributes_of(self), self._hints_of_state())

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Self:
        """Return an instance with the state, id and version of a snapshot; later events are for `replay` or `apply`.

        Raises: InvalidSnapshot naming the attribute that does not fit its annotation.
        """
        aggregate = cls._made()
        for name, value in state.from_json(cls.__name__, snapshot.state, cls._hints_of_state()).items():
            try:
                object.__setattr__(aggregate, name, value)
            except AttributeError as error:
                reason = f"{name} cannot be set (raise snapshot_version when attributes go)"
                raise InvalidSnapshot(cls.__name__, reason, field=name) from error
        aggregate._came_from(snapshot)
        return aggregate

    def __repr__(self) -> str:
        history = self._history
        return f"<{type(self).__name__} {history.aggregate_id!r} at version {history.version}>"

    def _came_from(self, snapshot: Snapshot) -> None:
        history = self._history
        history.aggregate_id = history.stream = snapshot.aggregate_id
        history.version = history.snapshot_at = snapshot.version

    def _begin(self) -> History:
        history = self._history
        if history.is_applying:
            raise WiringError(
                f"a handler of {type(self).__name__!r} applies an event itself, and would again at each replay (apply all "
                "events in the method that decides)"
            )
        history.is_applying = True
        return history

    def _refuse_gaps(self, events: Sequence[Event | RecordedEvent]) -> None:
        """Look at both ends: what a store has loaded is in order, so that the rest must be between them."""
        version, count = self._history.version, len(events)
        for number, each in ((1, events[0]), (count, events[-1])) if events else ():
            recorded = _recorded(each)
            if recorded is None:
                continue
            if recorded.stream != self._stream_or(recorded.stream):
                raise WiringError(
                    f"an event of stream {recorded.stream!r} was given to the {type(self).__name__!r} of stream "
                    f"{self._history.stream!r} (make a new event of it)"
                )
            if recorded.version != version + number:
                raise WiringError(
                    f"event {recorded.version} of stream {recorded.stream!r} was given to a {type(self).__name__!r} as number "
                    f"{version + number} (replay each once, in order: load(aggregate_id, from_version={version}))"
                )

    def _stream_or(self, stream: str) -> str:
        """The stream that the events must come from; if nothing is known of it, the one that they do come from."""
        history = self._history
        if history.stream is None:
            known = (
                history.aggregate_id if history.version == 0 else None
            )  # later a handler may have set it, to anything
            history.stream = known or stream
            history.aggregate_id = history.aggregate_id or stream
        return history.stream

    @classmethod
    def _handler_of(cls, event: object) -> Callable[..., Any]:
        if not isinstance(event, Event):
            raise NotAMessage(event, "is no event (an aggregate applies instances of message_bus.Event)")
        event_type = type(event)
        handler = handling.handler_for(cls, event_type)
        if handler is None:
            if not any(event_type in vars(base).get("ignores", ()) for base in cls.__mro__):
                similar = handling.similar_method(cls, event_type)
                expected = handling.names_for(event_type)[-1]
                raise EventNotHandled(cls.__name__, event_type.__name__, expected, similar)
            handler = _pass_over
        elif inspect.iscoroutinefunction(handler):
            problem = f"{handler.__name__!r} is async (make it a plain def: a handler only changes the state)"
            raise SettingsError(f"aggregate {cls.__name__!r}", [problem])
        cls._handlers[event_type] = handler
        return handler

    @classmethod
    def _made(cls) -> Self:
        try:
            made = cls()
        except TypeError as error:
            try:
                inspect.signature(cls).bind()
            except TypeError:
                problem = "it is not made without arguments, as loading does (give each parameter of __init__ a default)"
                raise SettingsError(f"aggregate {cls.__name__!r}", [problem]) from error
            raise
        if made._history.version:
            problem = "its __init__ applies events, and would at each loading (apply them in a method)"
            raise SettingsError(f"aggregate {cls.__name__!r}", [problem])
        return made

    @classmethod
    def _hints_of_state(cls) -> state.Hints:
        if cls._hints is None:
            cls._hints = state.hints_of(cls)
        return cls._hints


def _recorded(event: Event | RecordedEvent) -> RecordedEvent | None:
    """What a store knows of the event, if one has loaded it."""
    if isinstance(event, RecordedEvent):
        return event
    row: Any = getattr(event, STORED, None)
    found: RecordedEvent | None = None if row is None else row.envelope_of(event)
    return found


def _pass_over(aggregate: object, event: object) -> None:
    """What takes events that the class ignores."""


__all__ = ["AggregateRoot"]
