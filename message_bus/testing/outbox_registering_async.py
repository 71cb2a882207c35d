"""What an outbox promises to those who put messages in: one half of the contract of outboxes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import pytest

from message_bus import AsyncMessageBus
from message_bus._compat import result_of_async
from message_bus.bus.context import correlate
from message_bus.errors import InvalidOutboxMessage, WiringError
from message_bus.messages.ids import uuid7
from message_bus.messages.message import Message
from message_bus.testing.capabilities import AsyncUnits, Contract
from message_bus.testing.contract_messages import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


async def found(repo: Any, message_id: Any) -> Any:
    """The row with this id, whether or not `get` is async."""
    return await result_of_async(repo.get(message_id))


async def listed(repo: Any) -> list[Any]:
    """The ids of what is not processed, in the repository's order."""
    rows = await result_of_async(repo.list_unprocessed())
    return [row.id for row in rows or ()]


async def save(repo: Any) -> None:
    """Commit, whether or not `save` is async."""
    await result_of_async(repo.save())


async def roll_back(repo: Any) -> None:
    """Roll back, whether or not `rollback` is async."""
    await result_of_async(repo.rollback())


class AsyncRegisteringContract(Contract):
    """How rows get in and are found. Inherit it through AsyncOutboxContract."""

    @pytest.fixture
    def unit_of_work(self) -> AsyncUnits:
        """A function that opens a unit of work, always on the same outbox, which is empty at first. To be overridden."""
        raise WiringError(
            f"{type(self).__name__} does not say how a unit of work is opened (give it a fixture unit_of_work)"
        )

    def _ids(self, count: int) -> list[Any]:
        """New ids as this outbox wants them, ascending."""
        match self.capabilities.ids:
            case "uuid":
                return [uuid7() for _ in range(count)]
            case "text":
                return [str(uuid7()) for _ in range(count)]
            case "integer":
                numbers = self.__dict__.setdefault("_numbers", itertools.count(1_000))
                return list(itertools.islice(numbers, count))  # far from what the database draws itself

    async def _saved(self, unit_of_work: AsyncUnits, *messages: Message) -> list[Any]:
        """Register messages in one unit of work, save it, and return the ids."""
        ids = self._ids(len(messages))
        async with unit_of_work() as repo:
            for message_id, message in zip(ids, messages, strict=True):
                AsyncMessageBus.register_outbox_message(repo, message, id=message_id)
            await save(repo)
        return ids

    async def test_what_was_saved_is_found_by_its_id(self, unit_of_work: AsyncUnits) -> None:
        """`get` returns the row with this id, and None for an id that is unknown."""
        first, second = await self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2))
        async with unit_of_work() as repo:
            assert (await found(repo, first)).id == first
            assert (await found(repo, second)).id == second
            assert await found(repo, self._ids(3)[-1]) is None

    async def test_a_row_carries_what_was_registered(self, unit_of_work: AsyncUnits) -> None:
        """Type, message name and payload are those of the message; a command is told from an event."""
        event, command = await self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2))
        async with unit_of_work() as repo:
            row = await found(repo, event)
            assert (row.type, row.message) == ("EVENT", "OrderPlaced")
            assert payload_of(row) == {"order_id": 1}
            row = await found(repo, command)
            assert (row.type, row.message) == ("COMMAND", "PlaceOrder")
            assert payload_of(row) == {"order_id": 2}

    async def test_a_message_comes_back_equal(self, unit_of_work: AsyncUnits) -> None:
        """Decimals, times, UUIDs, tuples, None and all of Unicode survive the outbox."""
        message = OrderPaid(order_id=1)
        (message_id,) = await self._saved(unit_of_work, message)
        async with unit_of_work() as repo:
            assert OrderPaid.deserialize(dict(payload_of(await found(repo, message_id)))) == message

    async def test_meta_is_kept(self, unit_of_work: AsyncUnits) -> None:
        """What was given as `meta` is on the row, nested and in its own types."""
        self._needs("meta")
        (message_id,) = self._ids(1)
        meta = {"user": 7, "tags": ["a", None], "ü": {"deep": True}}
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id, meta=meta)
            await save(repo)
        async with unit_of_work() as repo:
            stored = (await found(repo, message_id)).meta
            assert (json.loads(stored) if isinstance(stored, str | bytes) else stored) == meta

    async def test_the_key_is_kept(self, unit_of_work: AsyncUnits) -> None:
        """The key is that of the message's class, unless another one is given."""
        self._needs("keys")
        ids = self._ids(3)
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=ids[0])
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=ids[1], key="other")
            AsyncMessageBus.register_outbox_message(repo, OrderPaid(1), id=ids[2])
            await save(repo)
        async with unit_of_work() as repo:
            assert [(await found(repo, each)).key for each in ids] == ["1", "other", None]

    async def test_the_version_is_kept(self, unit_of_work: AsyncUnits) -> None:
        """The version is that of the message's class."""
        self._needs("versions")
        ids = await self._saved(unit_of_work, OrderShipped(1), OrderPlaced(2))
        async with unit_of_work() as repo:
            assert [(await found(repo, each)).version for each in ids] == [3, 1]

    async def test_headers_are_kept(self, unit_of_work: AsyncUnits) -> None:
        """The correlation id of the place where a message was registered goes with it."""
        self._needs("headers")
        (message_id,) = self._ids(1)
        async with unit_of_work() as repo:
            with correlate("story 1"):
                AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            await save(repo)
        async with unit_of_work() as repo:
            assert (await found(repo, message_id)).headers["correlation_id"] == "story 1"

    async def test_ids_of_the_caller_are_kept(self, unit_of_work: AsyncUnits) -> None:
        """An id that was given is the row's id, also one that is falsy."""
        (ordinary,) = self._ids(1)
        falsy = {"uuid": UUID(int=0), "text": "", "integer": 0}[self.capabilities.ids]
        async with unit_of_work() as repo:
            for message_id in (ordinary, falsy):
                AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            await save(repo)
        async with unit_of_work() as repo:
            assert (await found(repo, falsy)).id == falsy
            assert set(await listed(repo)) == {ordinary, falsy}

    async def test_a_row_without_a_given_id_gets_one(self, unit_of_work: AsyncUnits) -> None:
        """Each row has an id of its own, and is found by it."""
        async with unit_of_work() as repo:
            for number in (1, 2):
                AsyncMessageBus.register_outbox_message(repo, OrderPlaced(number))
            await save(repo)
        async with unit_of_work() as repo:
            first, second = await listed(repo)
            assert first != second
            assert None not in (first, second)
            assert payload_of(await found(repo, first)) == {"order_id": 1}

    async def test_an_id_is_taken_once(self, unit_of_work: AsyncUnits) -> None:
        """Adding or saving a second row with an id that is taken fails, and the first one stays as it is."""
        (message_id,) = await self._saved(unit_of_work, OrderPlaced(1))
        async with unit_of_work() as repo:
            with pytest.raises(Exception):  # noqa: B017, PT011, PT012  (the database's own error, at add or at save)
                AsyncMessageBus.register_outbox_message(repo, OrderPlaced(2), id=message_id)
                await save(repo)
            await roll_back(repo)
        async with unit_of_work() as repo:
            assert await listed(repo) == [message_id]
            assert payload_of(await found(repo, message_id)) == {"order_id": 1}

    async def test_add_validates(self, unit_of_work: AsyncUnits) -> None:
        """A row that is no row, or of an unknown type, is refused by `add`, and nothing of it is stored."""
        async with unit_of_work() as repo:
            row = AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1))
            await roll_back(repo)
        row.type = "QUERY"
        async with unit_of_work() as repo:
            for wrong in (row, object()):
                with pytest.raises(InvalidOutboxMessage):
                    repo.add(wrong)
            await save(repo)
        async with unit_of_work() as repo:
            assert await listed(repo) == []

    async def test_what_was_not_saved_is_gone(self, unit_of_work: AsyncUnits) -> None:
        """A unit of work that ends without `save` leaves nothing: adding is not committing (G1)."""
        (message_id,) = self._ids(1)
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
        async with unit_of_work() as repo:
            assert await listed(repo) == []
            assert await found(repo, message_id) is None

    async def test_others_see_nothing_before_save(self, unit_of_work: AsyncUnits) -> None:
        """What one unit of work has added is seen by another one after `save`, and not before (G1)."""
        self._needs("several_units_of_work")
        (message_id,) = self._ids(1)
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            async with unit_of_work() as other:
                assert await listed(other) == []
                assert await found(other, message_id) is None
            await save(repo)
            async with unit_of_work() as other:
                assert await listed(other) == [message_id]

    async def test_rollback_drops_what_was_added(self, unit_of_work: AsyncUnits) -> None:
        """After `rollback` a `save` stores nothing of what was added before, and all that is added afterwards (G1)."""
        dropped, kept = self._ids(2)
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=dropped)
            await roll_back(repo)
            await save(repo)
            assert await listed(repo) == []
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(2), id=kept)
            await save(repo)
        async with unit_of_work() as repo:
            assert await listed(repo) == [kept]
            assert await found(repo, dropped) is None

    async def test_a_change_that_was_rolled_back_is_not_stored(self, unit_of_work: AsyncUnits) -> None:
        """Rows that were read are the reader's own: what it changes in them and rolls back changes nothing."""
        (message_id,) = await self._saved(unit_of_work, OrderPlaced(1))
        async with unit_of_work() as repo:
            for row in [*await result_of_async(repo.list_unprocessed()), await found(repo, message_id)]:
                row.message = "Changed"
                if hasattr(row, "processed"):
                    row.processed = True
            await roll_back(repo)
            await save(repo)
        async with unit_of_work() as repo:
            assert await listed(repo) == [message_id]
            assert (await found(repo, message_id)).message == "OrderPlaced"

    async def test_rows_are_listed_in_order(self, unit_of_work: AsyncUnits) -> None:
        """`list_unprocessed` gives the rows of one commit before those of the next, and as they were added."""
        ids = await self._saved(unit_of_work, OrderPlaced(3), PlaceOrder(1), OrderPlaced(2))
        ids += await self._saved(unit_of_work, OrderPlaced(1))
        ids += await self._saved(unit_of_work, OrderPaid(5), OrderPlaced(4))
        async with unit_of_work() as repo:
            assert await listed(repo) == ids

    async def test_two_units_of_work_add_at_once(self, unit_of_work: AsyncUnits) -> None:
        """Both keep what they have added, each in its own order, whichever saves first."""
        self._needs("several_units_of_work", "concurrent_writers")
        a, b, c = self._ids(3)
        async with unit_of_work() as first, unit_of_work() as second:
            AsyncMessageBus.register_outbox_message(first, OrderPlaced(1), id=a)
            AsyncMessageBus.register_outbox_message(second, OrderPlaced(2), id=b)
            AsyncMessageBus.register_outbox_message(first, OrderPlaced(3), id=c)
            await save(second)
            await save(first)
        async with unit_of_work() as repo:
            order = await listed(repo)
            assert sorted(order) == [a, b, c]
            assert order.index(a) < order.index(c)

    async def test_a_delayed_message_waits(self, unit_of_work: AsyncUnits) -> None:
        """A delayed message is found by its id at once, and listed and delivered when it is due."""
        self._needs("delays")
        later, soon = self._ids(2)
        async with unit_of_work() as repo:
            AsyncMessageBus.register_outbox_message(repo, OrderPlaced(1), id=later, delay=timedelta(days=1))
            AsyncMessageBus.register_outbox_message(
                repo, OrderPlaced(2), id=soon, delay=timedelta(milliseconds=10)
            )
            await save(repo)
        async with unit_of_work() as repo:
            assert (await found(repo, later)).id == later
            assert (await found(repo, soon)).id == soon
        seen: list[Any] = []
        bus = AsyncMessageBus({OrderPlaced: [seen.append]})
        give_up = monotonic() + 10
        while not seen and monotonic() < give_up:
            async with unit_of_work() as repo:
                await bus.process_outbox(repo)
        assert seen == [OrderPlaced(2)]
        async with unit_of_work() as repo:
            assert later not in await listed(repo)


def payload_of(row: Any) -> Mapping[str, Any]:
    """The payload, which a model may keep as JSON text."""
    value: Mapping[str, Any] = (
        json.loads(row.payload) if isinstance(row.payload, str | bytes) else row.payload
    )
    return value
