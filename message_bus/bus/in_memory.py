"""The in-memory buses, `InMemoryMessageBus` and `InMemoryAsyncMessageBus`: subscribe, publish, and errors come back.

They are MessageBus and AsyncMessageBus with another rule for events: the error of a handler reaches who published. For
tests, prototypes and applications within one process; nothing is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from message_bus.bus.abc import C, E
from message_bus.bus.async_bus import AsyncMessageBus, awaited
from message_bus.bus.calling import Call
from message_bus.bus.context import Context, cascade_of
from message_bus.bus.dispatch import ALWAYS_RAISED, Route, failed
from message_bus.bus.middleware import AsyncMiddleware, Middleware
from message_bus.bus.outcome import Failure
from message_bus.bus.settling import settle
from message_bus.bus.sync_bus import MessageBus
from message_bus.messages.message import Message


class InMemoryMessageBus(MessageBus):
    """Runs handlers in the order of subscription; the first that fails stops the rest, and its error propagates.

        bus = InMemoryMessageBus()
        bus.subscribe(OrderCreated, send_mail)
        bus.publish(OrderCreated(order_id=1))

    What a handler publishes is handled at once, what it emits after this message. Thread safety: as MessageBus.
    """

    def __init__(
        self,
        event_handlers: Mapping[type[E], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[C], Any] | None = None,
        *,
        max_cascade: int = 1_000,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        super().__init__(event_handlers, command_handlers, max_cascade=max_cascade, middleware=middleware)

    def _failed(
        self, route: Route, handler: Any, message: Message, context: Context, mark: int, error: Exception
    ) -> None:
        raise error


class InMemoryAsyncMessageBus(AsyncMessageBus):
    """Runs the handlers of an event concurrently, waits for all, and then raises if any failed.

        bus = InMemoryAsyncMessageBus()
        bus.subscribe(OrderCreated, send_mail)
        await bus.publish(OrderCreated(order_id=1))

    One failure: that error is raised; several: an ExceptionGroup of all. What was emitted is not handled then. Results
    are in the order of subscription. Handlers run as tasks of their own, so they must not share an AsyncSession.
    Cancelling `publish` cancels all that run and waits for their end. Task safety: as AsyncMessageBus.
    """

    def __init__(
        self,
        event_handlers: Mapping[type[E], Sequence[Any]] | None = None,
        command_handlers: Mapping[type[C], Any] | None = None,
        *,
        max_cascade: int = 1_000,
        middleware: Sequence[AsyncMiddleware] = (),
    ) -> None:
        super().__init__(event_handlers, command_handlers, max_cascade=max_cascade, middleware=middleware)

    def _failed(
        self, route: Route, handler: Any, message: Message, context: Context, mark: int, error: Exception
    ) -> None:
        raise error

    async def _handle_one(
        self,
        route: Route,
        message: Message,
        mine: Context,
        results: list[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = {},
    ) -> None:
        if len(route.calls) == 1:
            await super()._handle_one(route, message, mine, results, args, kwargs)
            return

        async def run(call: Call) -> tuple[Any]:  # in a tuple, because a result may be an exception
            return (await awaited(call(message, mine, *args, **kwargs)),)

        cascade = cascade_of(mine)
        crowd = None if cascade is None else cascade.join_crowd(self._max_cascade, message)
        tasks = [asyncio.ensure_future(run(call)) for call in route.calls]
        try:
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        except (
            asyncio.CancelledError
        ):  # all have ended by now, some of them perhaps with an error of their own
            for handler, task in zip(route.handlers, tasks, strict=True):
                if not task.cancelled() and isinstance(error := task.exception(), Exception):
                    self._report(Failure(message, handler, error))
            raise
        finally:
            if crowd is not None:
                crowd.crowd -= 1
        errors = [
            (handler, each)
            for handler, each in zip(route.handlers, ended, strict=True)
            if isinstance(each, BaseException)
        ]
        if errors:
            raise self._one_of(message, errors)
        settle(mine, self)
        results += [each[0] for each in ended if not isinstance(each, BaseException)]

    def _one_of(self, message: Message, errors: Sequence[tuple[Any, BaseException]]) -> BaseException:
        """The error to raise for those of several handlers; the ordinary ones that it hides are logged."""
        ordinary: list[Failure] = []
        decisive: BaseException | None = None
        for handler, error in errors:
            if isinstance(error, Exception) and not isinstance(error, ALWAYS_RAISED):
                ordinary.append(Failure(message, handler, error))
            elif decisive is None or not isinstance(error, Exception):  # a handler was cancelled from within
                decisive = error
        if decisive is not None:
            for failure in ordinary:
                self._report(failure)
            return decisive
        return ordinary[0].error if len(ordinary) == 1 else failed(message, [each.error for each in ordinary])
