"""The asynchronous bus: awaits handlers, one after another, in the caller's task.

A thin shell: `dispatch.py` decides what comes next, `wired.py` holds the handlers. It never commits, rolls back or closes
a session (G10), and keeps nothing of a message once `handle` has returned, raised or been cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextvars import Token
from datetime import timedelta
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from message_bus.bus.abc import LEASE, AsyncMessageBusABC
from message_bus.bus.calling import Call, is_async, is_base_handle, target_of
from message_bus.bus.context import Context, cascade_of, current_context
from message_bus.bus.dispatch import Route
from message_bus.bus.middleware import AsyncMiddleware, around_async, check_async_middleware
from message_bus.bus.outcome import Failure, Outcome
from message_bus.bus.settling import emitted_so_far, settle, settle_delivery
from message_bus.bus.wired import WiredBus, refuse_ask
from message_bus.errors import SettingsError
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC
from message_bus.messages.message import Command, Message, Query

if TYPE_CHECKING:
    from message_bus.delivery.report import OutboxReport

R = TypeVar("R")

_in_hand = current_context.get
_enter = current_context.set


def _leave(token: Token[Context | None]) -> None:
    try:  # noqa: SIM105  (contextlib.suppress costs more than all the rest)
        current_context.reset(token)
    except ValueError:
        pass  # an abandoned coroutine is being closed from somewhere else: nothing to put back here


def _cancellations() -> int:
    """How often this task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def awaited(result: Any) -> Any:
    """What a handler returned, awaited if it can be."""
    return await result if hasattr(type(result), "__await__") else result


class AsyncMessageBus(WiredBus[AsyncMiddleware], AsyncMessageBusABC):
    """Hands commands to their one handler and events to all of theirs; whatever can be awaited is awaited.

    Handlers that are not async run inline, in the event loop's thread. The handlers of an event run one after another,
    because they may share an AsyncSession.

    `on_event_error`: a failing event handler never stops the others. "log" logs it with its traceback, to the logger
    "message_bus"; "raise" makes `handle` raise an ExceptionGroup after all have run. `max_cascade`: how many emitted
    messages one dispatch may handle. `max_payload`: what is larger, in bytes, is not registered in an outbox (1 MiB, which
    also holds where no bus is at hand). `middleware`: async functions around every call of a handler, the first outermost
    (`add_middleware`).

    Task and thread safety: register handlers first; then any number of tasks, also in several event loops, may handle
    messages on one bus. Cancelling `handle` cancels the handler in hand; no others are started.
    """

    async def handle(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Handle a message and, breadth first, all that its handlers emit.

        Returns what the handlers returned, in handling order: one value for a command and one for each handler of an
        event that succeeded. `args` and `kwargs` reach the handlers of this message, not of emitted ones. The handlers
        share a fresh context, `{**bus.context, **context}`.

        Raises: HandlerNotFound, NotAMessage, CascadeLimitExceeded; what a command handler raises, at once; an
        ExceptionGroup if event handlers failed and `on_event_error="raise"`.
        """
        try:
            route = self._routes[type(message)]
        except KeyError:
            return await self._handle(message, args, kwargs, context)
        only = route.only
        if only is None or args or kwargs or context or _in_hand() is not None:
            return await self._handle(message, args, kwargs, context)
        # One handler, nothing extra, nothing around it: the same in a straight line, for speed.
        mine = Context()
        if self.context:
            mine.update(self.context)
        mine._state = message
        token = _enter(mine)
        try:
            try:
                result = only(message, mine)
                if type(result) is CoroutineType or hasattr(type(result), "__await__"):
                    result = await result
                if mine._state is message:  # nothing was emitted, nobody asked for the envelope
                    return [result]
                settle(mine, self)
            except Exception as error:
                self._failed(route, route.handlers[0], message, mine, 0, error)
                results = []
            else:
                results = [result]
            self._raise_failures(message, await self._handle_emitted(mine, results))
            return results
        finally:
            _leave(token)
            mine._state = None

    async def dispatch(
        self, message: Message, *args: Any, context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Outcome:
        """Do what `handle` does, and return what failed beside the results.

        Event handlers that failed are in `.failures`, whatever `on_event_error` says; the rest raises as in `handle`.
        """
        return await self._dispatch(message, args, kwargs, context)

    @overload
    async def ask(self, query: Query[R], *, context: Mapping[str, Any] | None = None) -> R: ...

    @overload
    async def ask(self, query: Command, *, context: Mapping[str, Any] | None = None) -> Any: ...

    async def ask(self, query: Message, *, context: Mapping[str, Any] | None = None) -> Any:
        """Handle a query (or a command) and return its handler's result.

        Raises: as `handle`; WiringError for an event.
        """
        refuse_ask(query)
        return (await self._handle(query, (), {}, context))[0]

    @overload
    async def batch_handle(
        self,
        messages: Iterable[Message],
        max_concurrency: int = 5,
        *,
        return_exceptions: Literal[False] = False,
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list[Any]]: ...

    @overload
    async def batch_handle(
        self,
        messages: Iterable[Message],
        max_concurrency: int = 5,
        *,
        return_exceptions: bool,
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list[Any] | BaseException]: ...

    async def batch_handle(
        self,
        messages: Iterable[Message],
        max_concurrency: int = 5,
        *,
        return_exceptions: bool = False,
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Handle messages, at most `max_concurrency` at a time, each with a context of its own.

        Returns one entry per message, in their order: what `handle` returned; with `return_exceptions`, the exception
        in its place if it raised.

        Without `return_exceptions` a failure starts nothing new: the messages in hand are awaited to their end, then
        the first error (in the order of the messages) is raised and further ones are logged. Cancelling the batch
        cancels what is in hand and waits for it. Nothing is left running in any case.

        Messages in hand at the same time must not share an AsyncSession through the context.

        Raises: SettingsError; as `handle`.
        """
        if not isinstance(max_concurrency, int) or isinstance(max_concurrency, bool) or max_concurrency < 1:
            raise SettingsError("batch_handle", ["max_concurrency must be a whole number >= 1"])
        pending = list(messages)
        entries: list[Any] = [None] * len(pending)
        errors: dict[int, BaseException] = {}
        waiting = iter(enumerate(pending))

        async def work() -> None:
            for index, message in waiting:
                try:
                    entries[index] = await self.handle(message, context=context, **kwargs)
                except (Exception, asyncio.CancelledError) as error:
                    task = asyncio.current_task()
                    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                        raise
                    errors[index] = entries[index] = error
                if errors and not return_exceptions:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_concurrency, len(pending))):
                group.create_task(work())
        if errors and not return_exceptions:
            first, *others = sorted(errors)
            for index in others:
                self._report_batch_error(pending[index], errors[index])
            raise errors[first]
        return entries

    async def deliver(self, message: Message, context: Context) -> int:
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
        failures: list[Failure] = []
        asked = _cancellations()
        try:
            for handler, call in zip(route.handlers, route.calls, strict=True):
                try:
                    result = call(message, context)
                    if type(result) is CoroutineType or hasattr(type(result), "__await__"):
                        await result
                except Exception as error:
                    failures.append(Failure(message, handler, error))
                if _cancellations() > asked:
                    raise asyncio.CancelledError
            if failures:
                raise self._decisive(message, failures)
            if context._state is not message:
                settle_delivery(context, self)
        finally:
            _leave(token)
            context._state = None
        return len(route.calls)

    async def process_outbox(
        self,
        outbox_repo: Any,
        *,
        limit: int | None = None,
        only: Collection[str] | None = None,
        lease: timedelta = LEASE,
    ) -> OutboxReport:
        """Deliver what is in the outbox until nothing is left, or `limit` messages of each subscription; return what was done.

        It commits the session behind `outbox_repo` (also an AsyncSession or AsyncConnection), and refuses one with
        unflushed work. Handlers' failures do not raise: they are retried by later calls and end as dead letters
        (G2, G3, G5, G7). Two calls at once do not hurt: each claims subscriptions, and reports those taken elsewhere as
        busy. With a `limit` the partition that stands furthest behind comes first. `only`: names of subscriptions. `lease`:
        how long this process may be silent (killed, frozen) before another one takes its place.

        Raises: UnflushedWork; SettingsError for a name in `only` that does not exist.
        """
        from message_bus.delivery.process_async import process_outbox_async

        return await process_outbox_async(self, outbox_repo, limit=limit, only=only, lease=lease)

    # -------------------------------------------------------------------------------------------------------------

    def _refuse(self, handler: Any, target: Call) -> None:
        """This bus runs everything."""

    def _check_middleware(self, middleware: Any) -> None:
        check_async_middleware(middleware)

    def _around(self, handler: Any, call: Call) -> Call:
        return around_async(self._middleware, handler, call, self._send)

    def _target_of(self, handler: Any) -> Call:
        # A synchronous base class whose `_handle` is async: its own `handle` would run the last hook too early.
        target = target_of(handler)
        if isinstance(handler, EventHandlerABC) and is_base_handle(handler) and is_async(handler.handle):
            return MethodType(AsyncEventHandlerABC.handle, handler)
        return target

    async def _handle(
        self,
        message: Message,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Mapping[str, Any] | None,
    ) -> list[Any]:
        outcome = await self._dispatch(message, args, kwargs, context)
        self._raise_failures(message, outcome.failures)
        return outcome.results

    async def _dispatch(
        self,
        message: Message,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Mapping[str, Any] | None,
    ) -> Outcome:
        route = self._route_of(message)
        if route is None:
            return Outcome([])
        results: list[Any] = []
        mine = self._context_for(message, context)
        token = _enter(mine)
        try:
            await self._handle_one(route, message, mine, results, args, kwargs)
            return Outcome(results, await self._handle_emitted(mine, results))
        finally:
            _leave(token)
            mine._state = None

    async def _handle_emitted(self, mine: Context, results: list[Any]) -> tuple[Failure, ...]:
        """Handle what is in the queue until it is empty; return the failures of the whole dispatch."""
        cascade = cascade_of(mine)
        assert cascade is not None  # it ends in the caller's finally
        try:
            while (message := cascade.take(self._max_cascade)) is not None:
                route = self._route_of(message)
                if route is not None:
                    await self._handle_one(route, message, mine, results)
        except BaseException:
            self._report_hidden(mine)
            raise
        return tuple(cascade.failures)

    async def _handle_one(
        self,
        route: Route,
        message: Message,
        mine: Context,
        results: list[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = {},
    ) -> None:
        asked = _cancellations()
        for handler, call in zip(route.handlers, route.calls, strict=True):
            mark = emitted_so_far(mine)
            try:
                result = call(message, mine, *args, **kwargs)
                if type(result) is CoroutineType or hasattr(type(result), "__await__"):
                    result = await result
                settle(mine, self)
            except Exception as error:
                self._failed(route, handler, message, mine, mark, error)
            else:
                results.append(result)
            if _cancellations() > asked:  # the handler has kept it for itself
                raise asyncio.CancelledError
