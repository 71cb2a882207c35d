"""What both buses are before a message arrives: handlers registered, their calls composed. And how failures are told.

Each registration replaces one immutable `Route`, so a dispatch in hand keeps the one it has. Nothing is registered
unless all of it is valid.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from message_bus.bus.abc import AnyBusABC, C, E
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
from message_bus.errors import HandlerNotFound, NotAMessage, SettingsError, WiringError, names_of
from message_bus.messages.message import Command, Event, Message
from message_bus.messages.registry import Registry
from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC
from message_bus.repositories.registering import register_all

logger = logging.getLogger("message_bus")


class WiredBus(AnyBusABC):
    """The half of a bus that has no colour. Registering is for start-up; handling is safe for threads and tasks then."""

    def __init__(
        self,
        event_handlers: Mapping[type[Event], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[Command], Any] | None = None,
        *,
        on_event_error: Literal["log", "raise"] = "log",
        max_cascade: int = 1_000,
    ) -> None:
        problems: list[str] = []
        if on_event_error not in ("log", "raise"):
            problems.append(f"on_event_error {on_event_error!r} is unknown (use 'log' or 'raise')")
        if not isinstance(max_cascade, int) or isinstance(max_cascade, bool) or max_cascade < 1:
            problems.append("max_cascade must be a whole number >= 1")
        if problems:
            raise SettingsError(type(self).__name__, problems)
        self.context = {}
        self.registry = Registry()
        self._raises_event_errors = on_event_error == "raise"
        self._max_cascade = max_cascade
        self._routes: dict[type[Message], Route] = {}
        self._outbox_handlers: tuple[Any, ...] = ()
        for event_type, handlers in (event_handlers or {}).items():
            self.set_event_handlers(event_type, handlers)
        for command_type, handler in (command_handlers or {}).items():
            self.set_command_handler(command_type, handler)

    @abstractmethod
    def _refuse(self, handler: Any, target: Call) -> None:
        """Raise if this bus cannot run `target`."""

    def _target_of(self, handler: Any) -> Call:
        target = target_of(handler)
        self._refuse(handler, target)
        return target

    # --- registering ---------------------------------------------------------------------------------------------

    def register_messages(self, *classes: type[Message]) -> None:
        """Make message types known that have no handler here, so that rows with them are passed over.

        Raises: SettingsError if a name belongs to another class.
        """
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

    def get_command_handler(self, command_type: type[Command]) -> Any:
        """The handler of a command as it was registered; None if there is none."""
        route = self._routes.get(command_type)
        return route.handlers[0] if route is not None and route.is_command else None

    def get_event_handlers(self, event_type: type[Event]) -> list[Any]:
        """The handlers of an event as they were registered; changing the list changes nothing."""
        route = self._routes.get(event_type)
        return list(route.handlers) if route is not None and not route.is_command else []

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
        problems: list[str] = []
        names: list[str] = []
        for handler in handlers:
            if not isinstance(handler, OutboxHandlerABC | AsyncOutboxHandlerABC):
                problems.append(
                    f"{_name_of_thing(handler)} is not an outbox handler (derive it from OutboxHandlerABC)"
                )
                continue
            for method in (handler.handle, handler._handle):
                self._refuse(handler, method)
            settings = handler.subscription
            names.append(settings.name if settings is not None and settings.name else type(handler).__name__)
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            problems.append(
                f"more than one outbox handler is called {names_of(list(twice))} (give each subscription=Subscription(name=...))"
            )
        if problems:
            raise SettingsError("set_outbox_handlers", problems)
        for handler in handlers:
            handler.attach(self)
        self._outbox_handlers = tuple(handlers)

    def _set(
        self, message_type: type[Message], kind: type[Command | Event], handlers: tuple[Any, ...]
    ) -> None:
        if not isinstance(message_type, type) or not issubclass(message_type, kind):
            if isinstance(message_type, type) and issubclass(message_type, Message):
                problem = f"is not a{'n' if kind is Event else ''} {kind.__name__} (derive it from message_bus.{kind.__name__})"
                raise SettingsError(f"message type {message_type.__name__!r}", [problem])
            raise NotAMessage(message_type)
        targets = [self._target_of(handler) for handler in handlers]
        route = Route(
            is_command=kind is Command,
            label="command" if kind is Command else "event",
            handlers=handlers,
            calls=tuple(map(call_of, targets)),
            only=short_call_of(targets[0]) if len(targets) == 1 else None,
        )
        self.registry.register(message_type)
        self._routes[message_type] = route

    # --- for the two colours -------------------------------------------------------------------------------------

    def _route_of(self, message: Message) -> Route | None:
        """The route of a message; None for an event that nobody handles."""
        route = self._routes.get(type(message))
        if route is not None:
            return route
        refuse_non_message(message)
        if isinstance(message, Command):
            raise HandlerNotFound(name_of(message))
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
            envelope=envelope if envelope is not None and envelope.message is message else None,
        )
        context._state = Cascade(
            root, depth=nesting(outer, message, self._max_cascade), correlation_id=correlation_id()
        )
        return context

    def _failed(
        self, route: Route, handler: Any, message: Message, context: Context, mark: int, error: Exception
    ) -> None:
        """Record that an event handler failed, and drop what it emitted; raise again what is not to be survived."""
        cascade = cascade_of(context)
        if route.is_command or isinstance(error, ALWAYS_RAISED) or cascade is None:
            raise error
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


def emitted_so_far(context: Context) -> int:
    """The mark to drop from if the next handler fails."""
    cascade = cascade_of(context)
    return 0 if cascade is None else len(cascade.emissions)


def settle(context: Context) -> None:
    """Register what the handler that just succeeded has emitted, if the context has an outbox."""
    outbox = context.outbox
    cascade = cascade_of(context)
    if outbox is not None and cascade is not None:
        register_all(outbox, cascade.take_all(), parent=context.envelope)


def settle_delivery(context: Context) -> None:
    """The same behind the outbox, where an emitted message must not get lost for want of an outbox."""
    cascade = cascade_of(context)
    if cascade is not None and context.outbox is None and cascade.emissions:
        raise WiringError(
            f"{name_of(cascade.emissions[0].message)!r} was emitted behind the outbox, but the context has no outbox "
            "to put it in (deliver with context['outbox'])"
        )
    settle(context)


def refuse_ask(query: Message) -> None:
    """Raise unless `query` is something with exactly one handler."""
    refuse_non_message(query)
    if not isinstance(query, Command):
        raise WiringError(
            f"ask() wants a message with one handler, and {name_of(query)!r} is an event (use handle())"
        )


def _name_of_thing(thing: object) -> str:
    return repr(thing.__name__ if isinstance(thing, type) else type(thing).__name__)
