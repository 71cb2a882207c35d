"""What a bus promises to those who send messages and handle them: one half of the contract of buses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from message_bus.command_handlers.base import AsyncCommandHandlerABC
from message_bus.errors import CascadeLimitExceeded, QueryNotSendable, WiringError
from message_bus.event_handlers.base import AsyncEventHandlerABC
from message_bus.messages.message import Message
from message_bus.repositories.in_memory_async import AsyncInMemoryOutBoxRepo
from message_bus.testing.bus_registering_async import AsyncBusRegisteringContract
from message_bus.testing.capabilities import entry_async
from message_bus.testing.contract_messages import (
    CancelOrder,
    GetOrder,
    OrderPaid,
    OrderPlaced,
    OrderShipped,
    PlaceOrder,
)


def _emitting(*messages: Message) -> Callable[..., Any]:
    """A handler that emits these and returns the name of what it was given."""

    async def handler(message: Message, context: Any) -> str:
        for each in messages:
            context.emit(each)
        return type(message).__name__

    return handler


async def _failing(message: Message) -> None:
    """A handler that raises."""
    raise RuntimeError(type(message).__name__)


class AsyncBusHandlingContract(AsyncBusRegisteringContract):
    """What handlers are given and what becomes of it. Inherit it through AsyncBusContract."""

    @pytest.fixture(autouse=True)
    def _handlers_are_run(self, request: pytest.FixtureRequest) -> None:
        """Skip the tests of this class on a dry run."""
        name = request.node.originalname
        if hasattr(AsyncBusHandlingContract, name) and not hasattr(AsyncBusRegisteringContract, name):
            self._needs("runs_handlers")

    def _entry(self, kind: Literal["command", "event", "query"], message: Message, result: object) -> Any:
        """What `handle` returns of one handler; to be overridden where a bus shows it otherwise."""
        return entry_async(kind, message, result)

    # --- handlers and results -------------------------------------------------------------------------------------

    async def test_a_command_has_one_result(self, bus: Any) -> None:
        """That of its one handler."""
        bus.set_command_handler(PlaceOrder, _emitting())
        assert await bus.handle(PlaceOrder(1)) == [self._entry("command", PlaceOrder(1), "PlaceOrder")]

    async def test_an_event_has_the_result_of_each_handler(self, bus: Any) -> None:
        """In the order in which they were registered."""

        async def other(event: OrderPlaced) -> int:
            return event.order_id

        bus.set_event_handlers(OrderPlaced, [_emitting(), other])
        assert await bus.handle(OrderPlaced(1)) == [
            self._entry("event", OrderPlaced(1), "OrderPlaced"),
            self._entry("event", OrderPlaced(1), 1),
        ]

    async def test_handlers_are_objects_or_functions(self, bus: Any) -> None:
        """The base classes, anything with `handle`, bound methods, lambdas."""

        class Place(AsyncCommandHandlerABC):
            async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> str:
                return "command handler"

        class Placed(AsyncEventHandlerABC):
            async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> str:
                return "event handler"

        class Duck:
            async def handle(self, event: OrderPlaced) -> str:
                return "duck"

            async def method(self, event: OrderPlaced, context: Any) -> str:
                return "method"

        bus.set_command_handler(PlaceOrder, Place())
        bus.set_event_handlers(OrderPlaced, [Placed(), Duck(), Duck().method, lambda event: "lambda"])
        assert await bus.handle(PlaceOrder(1)) == [self._entry("command", PlaceOrder(1), "command handler")]
        assert await bus.handle(OrderPlaced(1)) == [
            self._entry("event", OrderPlaced(1), each)
            for each in ("event handler", "duck", "method", "lambda")
        ]

    async def test_hooks_surround_an_event_handler(self, bus: Any) -> None:
        """`_before_handle`, `_handle`, and `_after_handle` even when `_handle` fails."""
        calls: list[str] = []

        class Hooked(AsyncEventHandlerABC):
            async def _before_handle(self, context: Any) -> None:
                calls.append("before")

            async def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
                calls.append("handle")
                raise RuntimeError("broken")

            async def _after_handle(self, context: Any) -> None:
                calls.append("after")

        bus.set_event_handlers(OrderPlaced, [Hooked()])
        try:
            await bus.handle(OrderPlaced(1))
        except RuntimeError:
            assert not self.capabilities.isolates_event_handlers
        assert calls == ["before", "handle", "after"]

    async def test_arguments_reach_the_handlers_of_the_message(self, bus: Any) -> None:
        """Positional and keyword ones, besides the context; and no handler of what is emitted."""
        seen: list[Any] = []

        async def first(event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))
            context.emit(OrderPaid(1))

        async def second(event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))

        bus.set_event_handlers(OrderPlaced, [first])
        bus.set_event_handlers(OrderPaid, [second])
        await bus.handle(OrderPlaced(1), 1, two=2)
        assert seen == [((1,), {"two": 2}), ((), {})]

    async def test_publish_returns_nothing(self, bus: Any) -> None:
        """It handles a message like `handle`, events and commands, what is emitted included."""
        seen: list[Any] = []
        bus.subscribe(PlaceOrder, _emitting(OrderPlaced(1)))
        bus.subscribe(OrderPlaced, seen.append)
        assert await bus.publish(PlaceOrder(1)) is None
        assert seen == [OrderPlaced(1)]

    async def test_ask_returns_the_bare_result(self, bus: Any) -> None:
        """Of a command and of a query; an event has no one result."""
        bus.set_command_handler(PlaceOrder, _emitting(OrderPlaced(1)))
        assert await bus.ask(PlaceOrder(1)) == "PlaceOrder"
        with pytest.raises(WiringError, match="OrderPlaced"):
            await bus.ask(OrderPlaced(1))

    async def test_a_query_is_answered(self, bus: Any) -> None:
        """By `ask` with the bare result, by `handle` as other messages; nobody emits one."""
        self._needs("queries")

        async def emit_query(command: PlaceOrder, context: Any) -> None:
            context.emit(GetOrder(1))

        bus.set_query_handler(GetOrder, _emitting())
        bus.set_command_handler(PlaceOrder, emit_query)
        assert await bus.ask(GetOrder(1)) == "GetOrder"
        assert await bus.handle(GetOrder(1)) == [self._entry("query", GetOrder(1), "GetOrder")]
        with pytest.raises(QueryNotSendable):
            await bus.handle(PlaceOrder(1))

    # --- cascades -------------------------------------------------------------------------------------------------

    async def test_what_is_emitted_is_handled_after_the_message(self, bus: Any) -> None:
        """Breadth first: all that one message emitted, before what those emit; their results follow."""
        bus.set_command_handler(PlaceOrder, _emitting(OrderPlaced(1), CancelOrder(2)))
        bus.set_event_handlers(OrderPlaced, [_emitting(OrderShipped(3)), _emitting()])
        bus.set_command_handler(CancelOrder, _emitting())
        bus.set_event_handlers(OrderShipped, [_emitting()])
        assert await bus.handle(PlaceOrder(1)) == [
            self._entry("command", PlaceOrder(1), "PlaceOrder"),
            self._entry("event", OrderPlaced(1), "OrderPlaced"),
            self._entry("event", OrderPlaced(1), "OrderPlaced"),
            self._entry("command", CancelOrder(2), "CancelOrder"),
            self._entry("event", OrderShipped(3), "OrderShipped"),
        ]

    async def test_emissions_belong_to_one_dispatch(self, bus: Any) -> None:
        """A handler object emits by `emit_message`; what it emitted before is not emitted again."""
        seen: list[Any] = []
        emitted: list[int] = []

        class Place(AsyncCommandHandlerABC):
            async def handle(self, cmd: Any, context: Any, *args: Any, **kwargs: Any) -> None:
                self.emit_message(OrderPlaced(cmd.order_id))
                self.emmit_message(OrderPaid(cmd.order_id))
                emitted.append(len(self.emitted_messages))

        bus.set_command_handler(PlaceOrder, Place())
        bus.set_event_handlers(OrderPlaced, [lambda event: seen.append(event.order_id)])
        for number in (1, 2, 3):
            await bus.handle(PlaceOrder(number))
        assert (seen, emitted) == ([1, 2, 3], [2, 2, 2])

    async def test_what_a_failing_handler_emitted_is_dropped(self, bus: Any) -> None:
        """It is not handled, not now and not by the next call."""
        seen: list[Any] = []

        async def emits_and_fails(message: Any, context: Any) -> None:
            context.emit(OrderPaid(1))
            raise RuntimeError("broken")

        bus.set_command_handler(PlaceOrder, emits_and_fails)
        bus.set_command_handler(CancelOrder, _emitting())
        bus.set_event_handlers(OrderPlaced, [emits_and_fails])
        bus.set_event_handlers(OrderPaid, [seen.append])
        with pytest.raises(RuntimeError):
            await bus.handle(PlaceOrder(1))
        try:
            await bus.handle(OrderPlaced(1))
        except RuntimeError:
            assert not self.capabilities.isolates_event_handlers
        await bus.handle(CancelOrder(1))
        assert seen == []

    async def test_an_endless_cascade_is_cut(self, bus: Any) -> None:
        """Handlers that feed each other end in an error, and the bus still works."""
        bus.set_event_handlers(OrderPlaced, [_emitting(OrderPlaced(1))])
        with pytest.raises(CascadeLimitExceeded, match="OrderPlaced"):
            await bus.handle(OrderPlaced(1))
        bus.set_event_handlers(OrderPlaced, [_emitting()])
        assert len(await bus.handle(OrderPlaced(1))) == 1

    async def test_subscribing_during_a_dispatch_is_for_the_next_one(self, bus: Any) -> None:
        """The handlers in hand are those with which the dispatch began."""
        seen: list[Any] = []

        async def subscribes(event: OrderPlaced) -> None:
            bus.subscribe(OrderPlaced, seen.append)

        bus.subscribe(OrderPlaced, subscribes)
        await bus.handle(OrderPlaced(1))
        assert seen == []
        await bus.handle(OrderPlaced(2))
        assert seen == [OrderPlaced(2)]

    # --- context --------------------------------------------------------------------------------------------------

    async def test_each_dispatch_has_a_context_of_its_own(self, bus: Any) -> None:
        """The bus's values and the caller's, which win; shared by its cascade; gone with it; neither dict is changed."""
        seen: list[dict[str, Any]] = []
        given = {"user": 2}

        async def place(command: PlaceOrder, context: Any) -> None:
            seen.append(dict(context))
            context["left"] = command.order_id
            context.emit(OrderPlaced(1))

        async def placed(event: OrderPlaced, context: Any) -> None:
            seen.append(dict(context))

        bus.context.update(tenant="a", user=1)
        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [placed])
        await bus.handle(PlaceOrder(7), context=given)
        await bus.handle(OrderPlaced(1))
        assert seen == [
            {"tenant": "a", "user": 2},
            {"tenant": "a", "user": 2, "left": 7},
            {"tenant": "a", "user": 1},
        ]
        assert (given, bus.context) == ({"user": 2}, {"tenant": "a", "user": 1})

    async def test_emitted_messages_inherit_the_correlation(self, bus: Any) -> None:
        """The envelope of an emitted message names the one that caused it, and the story of both."""
        envelopes: list[Any] = []

        async def place(command: PlaceOrder, context: Any) -> None:
            envelopes.append(context.envelope)
            context.emit(OrderPlaced(1))

        async def placed(event: OrderPlaced, context: Any) -> None:
            envelopes.append(context.envelope)

        bus.set_command_handler(PlaceOrder, place)
        bus.set_event_handlers(OrderPlaced, [placed])
        await bus.handle(PlaceOrder(1))
        first, second = envelopes
        assert second.causation_id == str(first.id)
        assert second.correlation_id == first.correlation_id

    # --- errors ---------------------------------------------------------------------------------------------------

    async def test_the_error_of_a_command_reaches_the_caller(self, bus: Any) -> None:
        """As it was raised, also out of a cascade."""
        bus.set_command_handler(CancelOrder, _failing)
        bus.set_event_handlers(OrderPlaced, [_emitting(CancelOrder(1))])
        for message in (CancelOrder(1), OrderPlaced(1)):
            with pytest.raises(RuntimeError, match=r"^CancelOrder$"):
                await bus.handle(message)

    async def test_a_failing_event_handler_stops_no_other(self, bus: Any) -> None:
        """The others run, the caller gets their results, and `dispatch` says what failed."""
        self._needs("isolates_event_handlers")
        seen: list[Any] = []
        bus.set_event_handlers(OrderPlaced, [_failing, seen.append])
        assert await bus.handle(OrderPlaced(1)) == [self._entry("event", OrderPlaced(1), None)]
        await bus.publish(OrderPlaced(2))
        assert seen == [OrderPlaced(1), OrderPlaced(2)]
        outcome = await bus.dispatch(OrderPlaced(3))
        assert [(each.message, each.handler) for each in outcome.failures] == [(OrderPlaced(3), _failing)]
        assert not outcome.ok

    async def test_the_error_of_an_event_handler_reaches_the_caller(self, bus: Any) -> None:
        """Where event handlers are not isolated, `handle` and `publish` raise what the handler raised."""
        if self.capabilities.isolates_event_handlers:
            pytest.skip(f"{type(self).__name__} isolates event handlers")
        bus.set_event_handlers(OrderPlaced, [_emitting(), _failing])
        for send in (bus.handle, bus.publish):
            with pytest.raises(RuntimeError, match=r"^OrderPlaced$"):
                await send(OrderPlaced(1))

    # --- middleware -----------------------------------------------------------------------------------------------

    async def test_middleware_surrounds_every_handler(self, bus: Any) -> None:
        """The first that was added is the outermost; it sees commands, events and what is emitted."""
        self._needs("middleware")
        calls: list[str] = []

        def named(name: str) -> Callable[..., Any]:
            async def middleware(message: Any, context: Any, call_next: Any) -> Any:
                calls.append(f"{name} {type(message).__name__}")
                result = await call_next(message, context)
                calls.append(f"/{name}")
                return f"{name}({result})"

            return middleware

        bus.set_command_handler(PlaceOrder, _emitting(OrderPlaced(1)))
        bus.add_middleware(named("outer"))
        bus.add_middleware(named("inner"))
        bus.set_event_handlers(OrderPlaced, [_emitting()])
        assert await bus.handle(PlaceOrder(1)) == [
            self._entry("command", PlaceOrder(1), "outer(inner(PlaceOrder))"),
            self._entry("event", OrderPlaced(1), "outer(inner(OrderPlaced))"),
        ]
        around = ["outer {0}", "inner {0}", "/inner", "/outer"]
        assert calls == [each.format(name) for name in ("PlaceOrder", "OrderPlaced") for each in around]

    async def test_middleware_decides_about_errors_and_repetitions(self, bus: Any) -> None:
        """It sees what the handler raised, may call it again, answer in its place, or raise something else."""
        self._needs("middleware")
        attempts: list[int] = []

        async def fails_once(command: PlaceOrder) -> str:
            attempts.append(command.order_id)
            if len(attempts) == 1:
                raise RuntimeError("broken")
            return "placed"

        async def twice(message: Any, context: Any, call_next: Any) -> Any:
            if isinstance(message, CancelOrder):
                return "skipped"
            try:
                return await call_next()
            except RuntimeError:
                return await call_next()

        bus.set_command_handler(PlaceOrder, fails_once)
        bus.set_command_handler(CancelOrder, _failing)
        bus.add_middleware(twice)
        assert await bus.ask(PlaceOrder(1)) == "placed"
        assert attempts == [1, 1]
        assert await bus.ask(CancelOrder(1)) == "skipped"

    # --- outbox ---------------------------------------------------------------------------------------------------

    async def test_what_is_emitted_goes_to_the_outbox_of_the_context(self, bus: Any) -> None:
        """With `context={"outbox": repo}` it is registered in place of being handled, and saved by the caller only."""
        self._needs("outbox")
        seen: list[Any] = []
        repo = AsyncInMemoryOutBoxRepo()
        bus.set_command_handler(PlaceOrder, _emitting(OrderPlaced(1)))
        bus.set_event_handlers(OrderPlaced, [seen.append])
        await bus.handle(PlaceOrder(1), context={"outbox": repo})
        assert seen == []
        assert [row.message for row in await repo.list_unprocessed()] == ["OrderPlaced"]
        await repo.rollback()
        assert await repo.list_unprocessed() == []

    async def test_the_outbox_is_processed(self, bus: Any) -> None:
        """Stored messages reach the handlers, middleware included; a failing event handler fails its message."""
        self._needs("outbox")
        seen: list[Any] = []
        broken = True

        async def fails(event: OrderPaid) -> None:
            if broken:
                raise RuntimeError("broken")
            seen.append(event)

        repo = AsyncInMemoryOutBoxRepo()
        bus.set_command_handler(PlaceOrder, _emitting(OrderPlaced(1)))
        bus.set_event_handlers(OrderPlaced, [seen.append])
        bus.set_event_handlers(OrderPaid, [fails])
        for message in (PlaceOrder(1), OrderPaid(1)):
            bus.register_outbox_message(repo, message)
        await repo.save()
        report = await bus.process_outbox(repo)
        assert (report.delivered, report.retrying, seen) == (2, 1, [OrderPlaced(1)])
        broken = False
        assert (await bus.process_outbox(repo)).ok
        assert seen == [OrderPlaced(1), OrderPaid(1)]
