"""The synchronous bus: runs handlers in the caller's thread, one after another.

A thin shell: `dispatch.py` decides what comes next, `wired.py` holds the handlers. It never commits, rolls back or closes
a session (G10), and keeps nothing of a message once `handle` has returned or raised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from message_bus.bus.abc import LEASE, MessageBusABC
from message_bus.bus.calling import Call, handler_name, is_async
from message_bus.bus.context import Context, cascade_of, current_context
from message_bus.bus.dispatch import Route
from message_bus.bus.middleware import Middleware, around, check_middleware, refused_coroutine
from message_bus.bus.outcome import Failure, Outcome
from message_bus.bus.settling import emitted_so_far, settle, settle_delivery
from message_bus.bus.wired import WiredBus, refuse_ask
from message_bus.errors import AsyncHandlerOnSyncBus
from message_bus.messages.message import Command, Message, Query

if TYPE_CHECKING:
    from message_bus.delivery.report import OutboxReport

R = TypeVar("R")

_in_hand = current_context.get
_enter = current_context.set
_leave = current_context.reset


class MessageBus(WiredBus[Middleware], MessageBusABC):
    """Hands commands to their one handler and events to all of theirs.

    `on_event_error`: a failing event handler never stops the others. "log" logs it with its traceback, to the logger
    "message_bus"; "raise" makes `handle` raise an ExceptionGroup after all have run. `max_cascade`: how many emitted
    messages one dispatch may handle. `max_payload`: what is larger, in bytes, is not registered in an outbox (1 MiB, which
    also holds where no bus is at hand). `middleware`: functions around every call of a handler, the first outermost
    (`add_middleware`).

    Thread safety: register handlers first; then any number of threads may handle messages on one bus.
    """

    def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Handle a message and, breadth first, all that its handlers emit.

        Returns `{"command": message, "result": r}` for a command and `{"event": message, "result": r}` for each handler
        of an event that succeeded, in handling order. `args` and `kwargs` reach the handlers of this message, not of
        emitted ones. The handlers share a fresh context, `{**bus.context, **context}`.

        Raises: HandlerNotFound, NotAMessage, CascadeLimitExceeded; what a command handler raises, at once; an
        ExceptionGroup if event handlers failed and `on_event_error="raise"`.
        """
        try:
            route = self._routes[type(message)]
        except KeyError:
            return self._handle(message, args, kwargs, context)
        only = route.only
        if only is None or args or kwargs or context or _in_hand() is not None:
            return self._handle(message, args, kwargs, context)
        # One handler, nothing extra, nothing around it: the same in a straight line, for speed.
        mine = Context()
        if self.context:
            mine.update(self.context)
        mine._state = message
        token = _enter(mine)
        try:
            try:
                result = only(message, mine)
                if type(result) is CoroutineType:
                    raise refused_coroutine(route.handlers[0], result)
                if mine._state is message:  # nothing was emitted, nobody asked for the envelope
                    return [{route.label: message, "result": result}]
                settle(mine, self)
            except Exception as error:
                self._failed(route, route.handlers[0], message, mine, 0, error)
                results = []
            else:
                results = [{route.label: message, "result": result}]
            self._raise_failures(message, self._handle_emitted(mine, results))
            return results
        finally:
            _leave(token)
            mine._state = None

    def dispatch(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Outcome:
        """Do what `handle` does, and return what failed beside the results.

        Event handlers that failed are in `.failures`, whatever `on_event_error` says; the rest raises as in `handle`.
        """
        return self._dispatch(message, args, kwargs, context)

    @overload
    def ask(self, query: Query[R], *, context: Mapping[str, Any] | None = None) -> R: ...

    @overload
    def ask(self, query: Command, *, context: Mapping[str, Any] | None = None) -> Any: ...

    def ask(self, query: Message, *, context: Mapping[str, Any] | None = None) -> Any:
        """Handle a query (or a command) and return its handler's result.

        Raises: as `handle`; WiringError for an event.
        """
        refuse_ask(query)
        return self._handle(query, (), {}, context)[0]["result"]

    def batch_handle(
        self, messages: Iterable[Message], *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Handle messages one after another, each with a context of its own; return all results in one flat list.

        Raises: as `handle`; the messages behind the failing one are not handled.
        """
        return [
            result
            for message in messages
            for result in self.handle(message, *args, context=context, **kwargs)
        ]

    def deliver(self, message: Message, context: Context) -> int:
        """Run the handlers of a message that comes from a log, in the given context; return how many there are.

        What they emit goes to `context.outbox`, once all have succeeded. Called by outbox handlers.

        Raises: the handler's error after all have run, whatever `on_event_error` says: of several the one that steers
        (Unavailable, Reject, RetryLater), else an ExceptionGroup. HandlerNotFound for a command that nobody handles.
        """
        route = self._route_of(message)
        if route is None:
            return 0
        context._state = message
        token = _enter(context)
        try:
            if route.only is not None:
                result = route.only(message, context)
                if type(result) is CoroutineType:
                    raise refused_coroutine(route.handlers[0], result)
            else:
                self._deliver_to_all(route, message, context)
            if context._state is not message:
                settle_delivery(context, self)
        finally:
            _leave(token)
            context._state = None
        return len(route.calls)

    def _deliver_to_all(self, route: Route, message: Message, context: Context) -> None:
        failures: list[Failure] = []
        for handler, call in zip(route.handlers, route.calls, strict=True):
            try:
                result = call(message, context)
                if type(result) is CoroutineType:
                    raise refused_coroutine(handler, result)
            except Exception as error:
                failures.append(Failure(message, handler, error))
        if failures:
            raise self._decisive(message, failures)

    def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Deliver what is in the outbox until nothing is left, or `limit` messages of each subscription; return what was done.

        It commits the session behind `outbox_repo` (also a Session or Connection), and refuses one with unflushed work.
        Handlers' failures do not raise: they are retried by later calls and end as dead letters (G2, G3, G5, G7).
        Two calls at once do not hurt: each claims subscriptions, and reports those taken elsewhere as busy. `lease`: how long
        this process may be silent (killed, frozen) before another one takes its place.
        With a `limit` the partition that stands furthest behind comes first. `only`: names of subscriptions.

        Raises: UnflushedWork; SettingsError for a name in `only` that does not exist.
        """
        from message_bus.delivery.process import process_outbox

        return process_outbox(self, outbox_repo, limit=limit, only=only, lease=lease)

    # -------------------------------------------------------------------------------------------------------------

    def _refuse(self, handler: Any, target: Call) -> None:
        if is_async(target):
            raise AsyncHandlerOnSyncBus(handler_name(handler))

    def _check_middleware(self, middleware: Any) -> None:
        check_middleware(middleware)

    def _around(self, handler: Any, call: Call) -> Call:
        return around(self._middleware, handler, call, self._send)

    def _handle(
        self,
        message: Message,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Mapping[str, Any] | None,
    ) -> list[dict[str, Any]]:
        outcome = self._dispatch(message, args, kwargs, context)
        self._raise_failures(message, outcome.failures)
        return outcome.results

    def _dispatch(
        self,
        message: Message,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Mapping[str, Any] | None,
    ) -> Outcome:
        route = self._route_of(message)
        if route is None:
            return Outcome([])
        results: list[dict[str, Any]] = []
        mine = self._context_for(message, context)
        token = _enter(mine)
        try:
            self._handle_one(route, message, mine, results, args, kwargs)
            return Outcome(results, self._handle_emitted(mine, results))
        finally:
            _leave(token)
            mine._state = None

    def _handle_emitted(self, mine: Context, results: list[dict[str, Any]]) -> tuple[Failure, ...]:
        """Handle what is in the queue until it is empty; return the failures of the whole dispatch."""
        cascade = cascade_of(mine)
        assert cascade is not None  # it ends in the caller's finally
        try:
            while (message := cascade.take(self._max_cascade)) is not None:
                route = self._route_of(message)
                if route is not None:
                    self._handle_one(route, message, mine, results)
        except BaseException:
            self._report_hidden(mine)
            raise
        return tuple(cascade.failures)

    def _handle_one(
        self,
        route: Route,
        message: Message,
        mine: Context,
        results: list[dict[str, Any]],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = {},
    ) -> None:
        for handler, call in zip(route.handlers, route.calls, strict=True):
            mark = emitted_so_far(mine)
            try:
                result = call(message, mine, *args, **kwargs)
                if type(result) is CoroutineType:
                    raise refused_coroutine(handler, result)
                settle(mine, self)
            except Exception as error:
                self._failed(route, handler, message, mine, mark, error)
            else:
                results.append({route.label: message, "result": result})
