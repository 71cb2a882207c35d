"""What a bus promises to those who wire it: one half of the contract of buses. Runs no handler."""

from __future__ import annotations

from typing import Any

import pytest

from message_bus.errors import (
    HandlerNotFound,
    InvalidMessage,
    NotAMessage,
    QueryNotSendable,
    SettingsError,
    WiringError,
)
from message_bus.messages.message import Command
from message_bus.repositories.in_memory_async import AsyncInMemoryOutBoxRepo
from message_bus.testing.capabilities import Contract
from message_bus.testing.contract_messages import CancelOrder, GetOrder, OrderPaid, OrderPlaced, PlaceOrder


async def first_handler(message: Any) -> None:
    """A handler."""


async def second_handler(message: Any) -> None:
    """Another one."""


class AsyncBusRegisteringContract(Contract):
    """How handlers get in, and what is refused. Inherit it through AsyncBusContract."""

    @pytest.fixture
    def bus(self) -> Any:
        """A fresh bus without handlers. To be overridden."""
        raise WiringError(f"{type(self).__name__} does not say how its bus is made (give it a fixture bus)")

    async def test_handlers_are_read_back_as_they_were_set(self, bus: Any) -> None:
        """The very objects, in their order; unknown types have none; changing the list changes nothing."""
        bus.set_event_handlers(OrderPlaced, [first_handler, second_handler])
        bus.set_command_handler(PlaceOrder, first_handler)
        bus.get_event_handlers(OrderPlaced).clear()
        assert bus.get_event_handlers(OrderPlaced) == [first_handler, second_handler]
        assert bus.get_command_handler(PlaceOrder) is first_handler
        assert (bus.get_event_handlers(OrderPaid), bus.get_command_handler(CancelOrder)) == ([], None)

    async def test_setting_replaces(self, bus: Any) -> None:
        """What is set takes the place of what was there."""
        for handler in (first_handler, second_handler):
            bus.set_event_handlers(OrderPlaced, [handler])
            bus.set_command_handler(PlaceOrder, handler)
        assert bus.get_event_handlers(OrderPlaced) == [second_handler]
        assert bus.get_command_handler(PlaceOrder) is second_handler

    async def test_subscribing_appends(self, bus: Any) -> None:
        """An event gets one more handler; a command has one, and a second one is an error."""
        for handler in (first_handler, second_handler):
            bus.subscribe(OrderPlaced, handler)
        assert bus.get_event_handlers(OrderPlaced) == [first_handler, second_handler]
        bus.subscribe(PlaceOrder, first_handler)
        with pytest.raises(SettingsError, match="PlaceOrder"):
            bus.subscribe(PlaceOrder, second_handler)
        assert bus.get_command_handler(PlaceOrder) is first_handler

    async def test_decorators_register_and_return_the_function(self, bus: Any) -> None:
        """`@bus.command_handler(...)` and `@bus.event_handler(...)` leave the function as it is."""
        self._needs("decorators")
        assert bus.command_handler(PlaceOrder)(first_handler) is first_handler
        assert bus.event_handler(OrderPlaced, OrderPaid)(second_handler) is second_handler
        assert bus.get_command_handler(PlaceOrder) is first_handler
        assert bus.get_event_handlers(OrderPlaced) == bus.get_event_handlers(OrderPaid) == [second_handler]

    async def test_a_query_has_one_handler(self, bus: Any) -> None:
        """It is set, subscribed or decorated, and read back; a second one is an error; unknown ones have none."""
        self._needs("queries")
        assert bus.get_query_handler(GetOrder) is None
        bus.subscribe(GetOrder, first_handler)
        assert bus.get_query_handler(GetOrder) is first_handler
        with pytest.raises(SettingsError, match="GetOrder"):
            bus.subscribe(GetOrder, second_handler)
        bus.set_query_handler(GetOrder, second_handler)
        assert bus.get_query_handler(GetOrder) is second_handler

    async def test_message_types_and_handlers_must_fit(self, bus: Any) -> None:
        """An event has no command handler, a command no list of them, a string none at all; one handler is no list."""
        with pytest.raises(SettingsError, match="OrderPlaced"):
            bus.set_command_handler(OrderPlaced, first_handler)
        with pytest.raises(SettingsError, match="PlaceOrder"):
            bus.set_event_handlers(PlaceOrder, [first_handler])
        with pytest.raises(NotAMessage):
            bus.set_event_handlers("OrderPlaced", [first_handler])
        with pytest.raises(SettingsError, match="list"):
            bus.set_event_handlers(OrderPlaced, first_handler)

    @pytest.mark.parametrize("handler", [None, 5, "handler"])
    async def test_what_cannot_handle_is_refused(self, bus: Any, handler: Any) -> None:
        """Then nothing is registered, and what was there before stays."""
        bus.set_event_handlers(OrderPlaced, [first_handler])
        with pytest.raises(SettingsError):
            bus.set_event_handlers(OrderPlaced, [second_handler, handler])
        with pytest.raises(SettingsError):
            bus.set_command_handler(PlaceOrder, handler)
        assert bus.get_event_handlers(OrderPlaced) == [first_handler]
        assert bus.get_command_handler(PlaceOrder) is None

    async def test_a_command_without_handler_is_an_error(self, bus: Any) -> None:
        """`HandlerNotFound` names it; it is a KeyError and an AssertionError as well."""
        with pytest.raises(HandlerNotFound, match="PlaceOrder") as caught:
            await bus.handle(PlaceOrder(1))
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, AssertionError)

    async def test_a_query_without_handler_is_an_error(self, bus: Any) -> None:
        """As for a command."""
        self._needs("queries")
        with pytest.raises(HandlerNotFound, match="GetOrder"):
            await bus.ask(GetOrder(1))

    async def test_an_event_without_handlers_is_nothing(self, bus: Any) -> None:
        """No result and no error."""
        assert await bus.handle(OrderPlaced(1)) == []

    @pytest.mark.parametrize("thing", ["PlaceOrder", None, 5, PlaceOrder, Command])
    async def test_what_is_no_message_is_refused(self, bus: Any, thing: Any) -> None:
        """`NotAMessage` is a TypeError; a class is no message either."""
        with pytest.raises(NotAMessage) as caught:
            await bus.handle(thing)
        assert isinstance(caught.value, TypeError)

    async def test_a_message_is_registered_in_an_outbox(self, bus: Any) -> None:
        """With its id and meta, in the unit of work of the repository: nothing is saved. No handler is needed."""
        self._needs("outbox")
        repo = AsyncInMemoryOutBoxRepo()
        row = bus.register_outbox_message(
            repo, OrderPlaced(1), id="0190a6f2-0000-7000-8000-000000000001", meta={"n": 1}
        )
        assert (row.type, row.message, row.payload, row.meta) == (
            "EVENT",
            "OrderPlaced",
            {"order_id": 1},
            {"n": 1},
        )
        other = AsyncInMemoryOutBoxRepo(repo.outbox)
        assert await other.get(row.id) is None
        await repo.save()
        assert (await other.list_unprocessed())[0].id == row.id

    async def test_what_cannot_be_stored_is_refused_when_it_is_registered(self, bus: Any) -> None:
        """A field that does not fit its type, or a query: nothing is registered then."""
        self._needs("outbox")
        repo = AsyncInMemoryOutBoxRepo()
        with pytest.raises(InvalidMessage, match="order_id"):
            bus.register_outbox_message(repo, OrderPlaced(None))  # type: ignore[arg-type]
        with pytest.raises(QueryNotSendable, match="GetOrder"):
            bus.register_outbox_message(repo, GetOrder(1))
        assert await repo.list_unprocessed() == []
