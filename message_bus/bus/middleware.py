"""Middleware: functions that the bus puts around every call of every handler. Composed at registration, free if unused.

    first ──► second ──► handler          middleware=[first, second]: the first is the outermost
      ◄────────◄───────────┘              result or error

One shape for all: `(message, context, call_next) -> result`. It holds wherever a handler runs: `handle`, `publish`, `ask`,
what handlers emit, and behind the outbox. What a middleware raises counts as raised by the handler.

A `call_next()` that raises takes with it what was emitted inside of it, and nothing else: a middleware that calls again, or
returns something in place of the error, does not send what the failed attempt had emitted. A middleware that brings an
`outbox` in its context finds registered there what the handler has emitted, before it commits.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Token
from types import CoroutineType
from typing import Any, NamedTuple, TypeAlias

from message_bus.bus.calling import Call, handler_name, is_async
from message_bus.bus.context import Context, cascade_of, current_attempt
from message_bus.bus.dispatch import Attempt
from message_bus.errors import AsyncHandlerOnSyncBus, SettingsError
from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Message

Send: TypeAlias = Callable[[Any, Sequence[Message], Envelope], None]
"""Puts what was emitted into an outbox: `send(outbox, messages, parent)`."""


class _Next:
    """What both colours know of the call that a middleware is put around."""

    __slots__ = ("_args", "_call", "_context", "_kwargs", "_message", "_outbox", "_send", "handler")

    def __init__(
        self,
        handler: Any,
        call: Call,
        message: Message,
        context: Context,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        send: Send,
    ) -> None:
        self.handler = handler
        self._send = send
        self._call = call
        self._message = message
        self._context = context
        self._outbox = context.outbox
        self._args = args
        self._kwargs = kwargs

    @property
    def handler_name(self) -> str:
        """What the handler is called in logs."""
        return handler_name(self.handler)

    def _begin(self, message: Message | None, context: Mapping[str, Any] | None) -> _Attempt:
        """Begin an attempt; a context of the middleware's own belongs to the dispatch as long as that lasts."""
        inner, lent = self._context, False
        if context is not None and context is not inner:
            inner = context if isinstance(context, Context) else Context(context)
            if getattr(inner, "_state", None) is None:
                inner._state, lent = cascade_of(self._context), True
        attempt = Attempt(current_attempt.get())
        return _Attempt(
            self._message if message is None else message, inner, lent, attempt, current_attempt.set(attempt)
        )

    def _go(self, attempt: _Attempt) -> Any:
        return self._call(attempt.message, attempt.context, *self._args, **self._kwargs)

    def _succeeded(self, attempt: _Attempt) -> None:
        """Register what was emitted, if the middleware has brought an outbox: it may commit when this has returned."""
        outbox = attempt.context.outbox
        cascade = cascade_of(self._context)
        if outbox is not None and outbox is not self._outbox and cascade is not None:
            messages = cascade.take_of(attempt.id)
            self._send(outbox, messages, self._context.envelope)

    def _failed(self, attempt: _Attempt) -> None:
        cascade = cascade_of(self._context)
        if cascade is not None:
            cascade.forget(attempt.id)

    def _end(self, attempt: _Attempt) -> None:
        if attempt.lent:
            attempt.context._state = None
        try:  # noqa: SIM105  (suppress() in a finally would hide where an error comes from)
            current_attempt.reset(attempt.token)
        except ValueError:
            pass  # an abandoned coroutine is being closed from somewhere else: nothing to put back here


class _Attempt(NamedTuple):
    message: Message
    context: Context
    lent: bool
    id: Attempt
    token: Token[Attempt | None]


class CallNext(_Next):
    """The rest of the way to a handler; `handler` is that handler as it was registered."""

    __slots__ = ()

    def __call__(self, message: Message | None = None, context: Mapping[str, Any] | None = None) -> Any:
        """Run what is further inside and return its result; without arguments on the same message and context.

        It may be called again (to retry), or not at all (to skip the handler). If it raises, what was emitted inside of
        it is dropped; what was written to a session is not (use a savepoint).
        """
        attempt = self._begin(message, context)
        try:
            result = self._go(attempt)
            if type(result) is CoroutineType:
                raise refused_coroutine(self.handler, result)
            self._succeeded(attempt)
            return result
        except BaseException:
            self._failed(attempt)
            raise
        finally:
            self._end(attempt)


class AsyncCallNext(_Next):
    """The rest of the way to a handler of an AsyncMessageBus; `handler` is that handler as it was registered."""

    __slots__ = ()

    async def __call__(self, message: Message | None = None, context: Mapping[str, Any] | None = None) -> Any:
        """Run what is further inside and return its result; without arguments on the same message and context.

        It may be called again (to retry), or not at all (to skip the handler). If it raises, what was emitted inside of
        it is dropped; what was written to a session is not (use a savepoint).
        """
        attempt = self._begin(message, context)
        try:
            result = self._go(attempt)
            if hasattr(type(result), "__await__"):
                result = await result
            self._succeeded(attempt)
            return result
        except BaseException:
            self._failed(attempt)
            raise
        finally:
            self._end(attempt)


Middleware: TypeAlias = Callable[[Any, Context, CallNext], Any]
"""`def middleware(message, context, call_next): return call_next()`"""
AsyncMiddleware: TypeAlias = Callable[[Any, Context, AsyncCallNext], Awaitable[Any]]
"""`async def middleware(message, context, call_next): return await call_next()`"""


def around(middleware: Sequence[Any], handler: Any, call: Call, send: Send) -> Call:
    """`call` with all of `middleware` around it, for a MessageBus; `send` puts what is emitted inside into an outbox."""
    for each in reversed(middleware):
        call = _layer(each, handler, call, send)
    return call


def around_async(middleware: Sequence[Any], handler: Any, call: Call, send: Send) -> Call:
    """`call` with all of `middleware` around it, for an AsyncMessageBus; `send` puts what is emitted inside into an outbox."""
    for each in reversed(middleware):
        call = _async_layer(each, handler, call, send)
    return call


def _layer(middleware: Middleware, handler: Any, inner: Call, send: Send) -> Call:
    return lambda message, context, *args, **kwargs: middleware(
        message, context, CallNext(handler, inner, message, context, args, kwargs, send)
    )


def _async_layer(middleware: AsyncMiddleware, handler: Any, inner: Call, send: Send) -> Call:
    async def call(message: Message, context: Context, *args: Any, **kwargs: Any) -> Any:
        result = await middleware(
            message, context, AsyncCallNext(handler, inner, message, context, args, kwargs, send)
        )
        # Somebody may have written `return call_next()`.
        return await result if hasattr(type(result), "__await__") else result

    return call


def check_middleware(middleware: Any) -> None:
    """Raise unless a MessageBus can run it. Raises: SettingsError; AsyncHandlerOnSyncBus."""
    _check_callable(middleware)
    if is_async(middleware):
        raise AsyncHandlerOnSyncBus(handler_name(middleware))


def check_async_middleware(middleware: Any) -> None:
    """Raise unless an AsyncMessageBus can await it. Raises: SettingsError."""
    _check_callable(middleware)
    if not is_async(middleware):
        raise SettingsError(
            f"middleware {handler_name(middleware)!r}",
            ["is not async, so what it does behind call_next() would run before the handler (async def)"],
        )


def _check_callable(middleware: Any) -> None:
    if isinstance(middleware, type) or not callable(middleware):
        name = middleware.__name__ if isinstance(middleware, type) else type(middleware).__name__
        raise SettingsError(
            f"middleware {name!r}", ["must be a function (message, context, call_next), or such an object"]
        )
    name = handler_name(middleware)
    if any(
        inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each)
        for each in (middleware, type(middleware).__call__)
    ):
        raise SettingsError(
            f"middleware {name!r}",
            ["is a generator, which nobody would run (return call_next() instead of yield)"],
        )
    try:
        signature = inspect.signature(middleware)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise SettingsError(
            f"middleware {name!r}",
            [f"takes ({', '.join(signature.parameters)}), but is called with (message, context, call_next)"],
        ) from None


def refused_coroutine(handler: Any, coroutine: CoroutineType[Any, Any, Any]) -> AsyncHandlerOnSyncBus:
    """The error for a handler that turned out to be async; its coroutine is closed."""
    coroutine.close()
    return AsyncHandlerOnSyncBus(handler_name(handler))
