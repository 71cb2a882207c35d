"""What both buses are before a message arrives: handlers registered, their calls composed. And how failures are told.

Each registration replaces one immutable `Route`, so a dispatch in hand keeps the one it has. Nothing is registered
unless all of it is valid.
"""

from __future__ import annotations

import copy
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from message_bus.bus.abc import AnyBusABC, C, E, F, M, only_one_handler, refuse_other_kind
from message_bus.bus.calling import (
    Call,
    EventHandlers,
    Handler,
    call_of,
    handler_name,
    short_call_of,
    target_of,
)
from message_bus.bus.context import Context, cascade_of, correlation_id, current_context, refuse_non_message
from message_bus.bus.dispatch import (
    ALWAYS_RAISED,
    Cascade,
    Emission,
    Route,
    decisive,
    failed,
    name_of,
    nesting,
)
from message_bus.bus.outcome import Failure
from message_bus.errors import HandlerNotFound, SettingsError, WiringError, names_of
from message_bus.messages.definition import MAX_PAYLOAD_BYTES, definition_of
from message_bus.messages.envelope import Envelope, is_of
from message_bus.messages.message import Command, Event, Message, Query
from message_bus.messages.registry import Registry
from message_bus.observability.observer import Observer, Observers
from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC
from message_bus.repositories.registering import register, register_all

logger = logging.getLogger("message_bus")

Q = TypeVar("Q", bound=Query[Any])
W = TypeVar("W")  # the middleware of a colour
_LABELS: dict[type[Message], Literal["command", "event", "query"]] = {
    Command: "command",
    Event: "event",
    Query: "query",
}


class _OnClassAndInstance(classmethod):  # type: ignore[type-arg]  # (none is told from the function)
    """`register_outbox_message`: a classmethod of the bus class, and a method of each bus, which learns the type."""

    def __get__(self, bus: Any, owner: Any = None) -> Any:
        return super().__get__(bus, owner) if bus is None else MethodType(WiredBus._register_and_learn, bus)


class WiredBus(AnyBusABC, Generic[W]):
    """The half of a bus that has no colour. Registering is for start-up; handling is safe for threads and tasks then."""

    def __init__(
        self,
        event_handlers: Mapping[type[E], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[C], Any] | None = None,
        *,
        on_event_error: Literal["log", "raise"] = "log",
        max_cascade: int = 1_000,
        max_payload: int = MAX_PAYLOAD_BYTES,
        middleware: Sequence[W] = (),
    ) -> None:
        problems: list[str] = []
        if on_event_error not in ("log", "raise"):
            problems.append(f"on_event_error {on_event_error!r} is unknown (use 'log' or 'raise')")
        if not isinstance(max_cascade, int) or isinstance(max_cascade, bool) or max_cascade < 1:
            problems.append("max_cascade must be a whole number >= 1")
        if not isinstance(max_payload, int) or isinstance(max_payload, bool) or max_payload < 1:
            problems.append("max_payload must be a whole number of bytes >= 1")
        if problems:
            raise SettingsError(type(self).__name__, problems)
        self.context = {}
        self.registry = Registry()
        self._raises_event_errors = on_event_error == "raise"
        self._max_cascade = max_cascade
        self.max_payload = max_payload
        self._routes: dict[type[Message], Route] = {}
        self._outbox_handlers: tuple[Any, ...] = ()
        self._middleware: tuple[Any, ...] = ()
        self._twins: list[Self] = []
        self._observers: tuple[Observer, ...] = ()
        self.observer: Observers | None = None
        self._wiring = threading.RLock()
        for each in middleware:
            self.add_middleware(each)
        for event_type, handlers in (event_handlers or {}).items():
            self.set_event_handlers(event_type, handlers)
        for command_type, handler in (command_handlers or {}).items():
            self.set_command_handler(command_type, handler)

    @abstractmethod
    def _refuse(self, handler: Any, target: Call) -> None:
        """Raise if this bus cannot run `target`."""

    @abstractmethod
    def _check_middleware(self, middleware: Any) -> None:
        """Raise if this bus cannot run it."""

    @abstractmethod
    def _around(self, handler: Any, call: Call) -> Call:
        """`call` with the bus's middleware around it."""

    def _target_of(self, handler: Any) -> Call:
        target = target_of(handler)
        self._refuse(handler, target)
        return target

    # --- registering ---------------------------------------------------------------------------------------------

    def register_messages(self, *classes: type[Message]) -> None:
        """Make message types known that have no handler here, so that rows with them are passed over (G7).

        Types that have a handler here are known, and so are those that this very bus has put into an outbox. A bus in
        another process is told here, at its start.

        Raises: SettingsError if a name belongs to another class.
        """
        with self._wiring:
            self.registry.register(*classes)

    def set_command_handler(self, command_type: type[C], handler: Handler[C]) -> None:
        """Let `handler` handle this command, in place of the one before.

        A handler is a `CommandHandlerABC`, any object with `handle`, or a callable. It is called with the message, the
        context if it takes one, and whatever else is given to `handle`.

        Raises: NotAMessage, SettingsError; AsyncHandlerOnSyncBus on a MessageBus.
        """
        self._set(command_type, Command, (handler,))

    def set_event_handlers(self, event_type: type[E], handlers: EventHandlers[E]) -> None:
        """Let `handlers` handle this event, in this order, in place of those before; none of them is fine, too.

        Raises: NotAMessage, SettingsError; AsyncHandlerOnSyncBus on a MessageBus.
        """
        if not isinstance(handlers, Sequence):
            raise SettingsError(f"handlers of {_name_of_thing(event_type)}", ["must be a list of handlers"])
        self._set(event_type, Event, tuple(handlers))

    def set_query_handler(self, query_type: type[Q], handler: Handler[Q]) -> None:
        """Let `handler` answer this query, in place of the one before.

        Raises: NotAMessage, SettingsError; AsyncHandlerOnSyncBus on a MessageBus.
        """
        self._set(query_type, Query, (handler,))

    def subscribe(self, message_type: type[M], handler: Handler[M]) -> None:
        """Let `handler` handle this message: an event behind the handlers that it has already, else as its only one.

        A dispatch in hand keeps the handlers it began with.

        Raises: SettingsError if a command or query has a handler already; as `set_event_handlers`.
        """
        with self._wiring:
            route = self._routes.get(message_type) if isinstance(message_type, type) else None
            if route is not None and route.label == "event" and route.handlers:
                self._routes[message_type] = self._longer(route, handler)
            elif not _is_class_of(message_type, Query):
                super().subscribe(message_type, handler)
            elif self._only_handler(message_type, "query") is not None:
                raise only_one_handler("query", message_type)
            else:
                self._set(message_type, Query, (handler,))

    def query_handler(self, query_type: type[Query[Any]]) -> Callable[[F], F]:
        """Register the decorated function for a query: `@bus.query_handler(GetOrder)`.

        Raises: as `subscribe`.
        """
        return self._subscriber("query_handler", Query, query_type)

    def add_middleware(self, middleware: W) -> None:
        """Put a function around every call of every handler, inside of the middleware that is there already.

        It is called as `middleware(message, context, call_next)` and returns what `call_next()` returned, or something
        else; on an AsyncMessageBus it is async, and so is `call_next`. Holds for handlers registered before and later.

        Raises: SettingsError; AsyncHandlerOnSyncBus on a MessageBus.
        """
        self._check_middleware(middleware)
        with self._wiring:
            self._middleware = (*self._middleware, middleware)
            self._routes = {
                message_type: self._route(route.label, route.handlers)
                for message_type, route in self._routes.items()
            }
            for twin in self._twins:
                twin.add_middleware(middleware)

    def observe(self, observer: Observer) -> None:
        """Let `observer` be told what this bus does, and what its outbox and the workers that deliver from it do.

        For metrics and traces: `bus.observe(PrometheusMetrics())`. Once at start-up; several observers are told in order.

        Raises: SettingsError if it is not an Observer, or observes this bus already.
        """
        if not isinstance(observer, Observer):
            raise SettingsError(
                "observe", [f"{_name_of_thing(observer)} is not an Observer (derive it from Observer)"]
            )
        with self._wiring:
            if observer in self._observers:
                raise SettingsError("observe", [f"this {_name_of_thing(observer)} observes this bus already"])
            middleware = observer.middleware(self)
            if middleware is not None:
                self.add_middleware(middleware)
            self._observers = (*self._observers, observer)
            self.observer = Observers(self._observers)
            for twin in self._twins:
                twin._observers, twin.observer = self._observers, self.observer

    def get_query_handler(self, query_type: type[Query[Any]]) -> Any:
        """Return the handler of a query as it was registered; None if there is none."""
        return self._only_handler(query_type, "query")

    def get_command_handler(self, command_type: type[Command]) -> Any:
        """Return the handler of a command as it was registered; None if there is none."""
        return self._only_handler(command_type, "command")

    def get_event_handlers(self, event_type: type[Event]) -> list[Any]:
        """Return the handlers of an event as they were registered; changing the list changes nothing."""
        route = self._routes.get(event_type)
        return list(route.handlers) if route is not None and route.label == "event" else []

    @property
    def outbox_handlers(self) -> list[Any]:
        """The outbox handlers that were set; by default one `DispatchOutboxHandler`."""
        if not self._outbox_handlers:
            from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler

            self.set_outbox_handlers([DispatchOutboxHandler()])
        return list(self._outbox_handlers)

    def set_outbox_handlers(self, handlers: Sequence[Any]) -> None:
        """Let `handlers` work on what comes out of the outbox, each as a subscription of its own.

        Raises: SettingsError for what is no outbox handler, and for two under one subscription name;
        AsyncHandlerOnSyncBus on a MessageBus.
        """
        self._outbox_handlers = tuple(self.attach_outbox_handlers(handlers))

    def attach_outbox_handlers(self, handlers: Sequence[Any], *, beside: Sequence[Any] = ()) -> list[Any]:
        """Check outbox handlers and attach them to this bus without setting them; return them with their companions.

        For those who run more than the bus's own, as a relay runs projections. `beside`: those whose names are taken.

        Raises: what `set_outbox_handlers` raises.
        """
        problems: list[str] = []
        found: list[Any] = []
        for handler in handlers:
            if isinstance(handler, OutboxHandlerABC | AsyncOutboxHandlerABC):
                found += (handler, *handler.companions())
            else:
                remedy = (
                    "is a class (make an instance)"
                    if isinstance(handler, type)
                    else "is not an outbox handler (derive it from OutboxHandlerABC)"
                )
                problems.append(f"{_name_of_thing(handler)} {remedy}")
        for handler in found:
            for method in (handler.handle, handler._handle):
                self._refuse(handler, method)
        names = [_subscription_name(handler) for handler in (*beside, *found)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            problems.append(
                f"more than one outbox handler is called {names_of(list(twice))} (give each subscription=Subscription(name=...))"
            )
        for number, handler in enumerate(found):
            problems += handler.clashes_with((*beside, *found[:number]))
        if problems:
            raise SettingsError("set_outbox_handlers", problems)
        for handler in found:
            handler.attach(self)
        return found

    def with_event_handlers(self, event_handlers: Mapping[type[E], Sequence[Any]]) -> Self:
        """Return a bus like this one, with its context, message types and middleware, for these event handlers only."""
        with self._wiring:
            twin = copy.copy(self)
            twin._routes = {}
            twin._twins = []
            for event_type, handlers in event_handlers.items():
                twin.set_event_handlers(event_type, handlers)
            self._twins.append(twin)  # for middleware that is added later
        return twin

    def _only_handler(self, message_type: type[Message], label: str) -> Any:
        route = self._routes.get(message_type)
        return route.handlers[0] if route is not None and route.label == label else None

    def _set(
        self,
        message_type: type[Message],
        kind: type[Command | Event | Query[Any]],
        handlers: tuple[Any, ...],
    ) -> None:
        refuse_other_kind(message_type, kind)
        with self._wiring:
            route = self._route(_LABELS[kind], handlers)
            if kind is Query:
                definition_of(
                    message_type
                )  # checks the class; no row names a query, so its name may be another's, too
            else:
                self.registry.register(message_type)
            self._routes[message_type] = route

    def _route(self, label: Literal["command", "event", "query"], handlers: tuple[Any, ...]) -> Route:
        targets = [self._target_of(handler) for handler in handlers]
        short = short_call_of(targets[0]) if len(targets) == 1 else None
        return Route(
            label=label,
            handlers=handlers,
            calls=tuple(
                self._around(handler, call_of(target))
                for handler, target in zip(handlers, targets, strict=True)
            ),
            only=None if short is None else self._around(handlers[0], short),
        )

    def _longer(self, route: Route, handler: Any) -> Route:
        """The route with one more handler; those that it has are not composed again."""
        call = self._around(handler, call_of(self._target_of(handler)))
        return replace(route, handlers=(*route.handlers, handler), calls=(*route.calls, call), only=None)

    if not TYPE_CHECKING:
        register_outbox_message = _OnClassAndInstance(AnyBusABC.register_outbox_message.__func__)

    def _register_and_learn(
        self,
        outbox_repo: Any,
        message: Message,
        id: Any = None,  # noqa: A002  (the ancestor's word)
        meta: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        delay: timedelta | None = None,
    ) -> Any:
        """Register a message in an outbox, and make its type known here."""
        row = register(
            outbox_repo,
            message,
            id=id,
            meta=meta,
            key=key,
            delay=delay,
            observer=self.observer,
            max_payload=self.max_payload,
        )
        self._learn((message,))
        return row

    def _send(self, outbox: Any, messages: Sequence[Message], parent: Envelope) -> None:
        """Register what a handler has emitted while `parent` was in hand."""
        register_all(outbox, messages, parent=parent, observer=self.observer, max_payload=self.max_payload)
        self._learn(messages)

    def _learn(self, messages: Iterable[Message]) -> None:
        with self._wiring:
            clashes = self.registry.notice(messages)
        for clash in clashes:
            logger.warning(
                "a message was put into an outbox that this bus would read as another class: %s", clash
            )

    # --- for the two colours -------------------------------------------------------------------------------------

    def _route_of(self, message: Message) -> Route | None:
        """The route of a message; None for an event that nobody handles."""
        route = self._routes.get(type(message))
        if route is not None:
            return route
        refuse_non_message(message)
        if not isinstance(message, Event):
            raise HandlerNotFound(name_of(message), "query" if isinstance(message, Query) else "command")
        logger.debug("no handler for event %r", name_of(message), extra={"message_name": name_of(message)})
        return None

    def _context_for(self, message: Message, given: Mapping[str, Any] | None) -> Context:
        """A fresh context for a dispatch that may be inside another one, or be given an envelope."""
        context = Context(self.context)
        if given:
            context.update(given)
        envelope = context.pop("envelope", None)
        surrounding = current_context.get()
        outer = None if surrounding is None else cascade_of(surrounding)
        root = Emission(
            message,
            parent=None if outer is None else outer.in_hand,
            # A handler that passes its own context on passes the envelope of its own message with it.
            envelope=envelope if envelope is not None and is_of(envelope, message) else None,
        )
        context._state = Cascade(
            root,
            depth=nesting(outer, message, self._max_cascade),
            correlation_id=correlation_id(),
            outer=outer,
        )
        return context

    def _failed(
        self, route: Route, handler: Any, message: Message, context: Context, mark: int, error: Exception
    ) -> None:
        """Record that an event handler failed, and drop what it emitted; raise again what is not to be survived."""
        cascade = cascade_of(context)
        if route.label != "event" or isinstance(error, ALWAYS_RAISED) or cascade is None:
            raise error
        if cascade.depth and isinstance(error, RecursionError):
            raise error  # a circle that met Python's own limit: on every level the other handlers would meet it again
        cascade.drop(mark)
        failure = Failure(message, handler, error)
        cascade.failures.append(failure)
        if not self._raises_event_errors:
            self._report(failure)

    def _report_hidden(self, context: Context) -> None:
        """Log the failures that cannot be raised together, because something else is being raised."""
        cascade = cascade_of(context)
        if self._raises_event_errors and cascade is not None:
            for failure in cascade.failures:
                self._report(failure)

    def _raise_failures(self, message: Message, failures: Sequence[Failure]) -> None:
        if failures and self._raises_event_errors:
            raise failed(message, [failure.error for failure in failures])

    def _decisive(self, message: Message, failures: Sequence[Failure]) -> Exception:
        """The error to raise for a message behind the outbox; those that it hides are logged."""
        chosen = decisive(message, [failure.error for failure in failures])
        if not isinstance(chosen, ExceptionGroup):
            for failure in failures:
                if failure.error is not chosen:
                    self._report(failure)
        return chosen

    def _report_batch_error(self, message: Message, error: BaseException) -> None:
        logger.error(
            "handling %r failed in a batch that had failed already: %s",
            name_of(message),
            type(error).__name__,
            exc_info=error,
            extra={"message_name": name_of(message)},
        )

    def _report(self, failure: Failure) -> None:
        logger.error(
            "event handler %s failed on %r: %s",
            handler_name(failure.handler),
            name_of(failure.message),
            type(failure.error).__name__,
            exc_info=failure.error,
            extra={"message_name": name_of(failure.message), "handler_name": handler_name(failure.handler)},
        )


def refuse_ask(query: Message) -> None:
    """Raise unless `query` is something with exactly one handler."""
    refuse_non_message(query)
    if isinstance(query, Event):
        raise WiringError(
            f"ask() wants a message with one handler, and {name_of(query)!r} is an event (use handle())"
        )


def _is_class_of(thing: object, kind: type[Message]) -> bool:
    return isinstance(thing, type) and issubclass(thing, kind)


def _subscription_name(handler: Any) -> str:
    settings = handler.subscription
    return str(settings.name) if settings is not None and settings.name else type(handler).__name__


def _name_of_thing(thing: object) -> str:
    return repr(thing.__name__ if isinstance(thing, type) else type(thing).__name__)
