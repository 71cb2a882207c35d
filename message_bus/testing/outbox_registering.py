# Generated from outbox_registering_async.py by tests/tools/unasync.py: do not edit.
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

from message_bus import MessageBus
from message_bus._compat import result_of
from message_bus.bus.context import correlate
from message_bus.errors import InvalidOutboxMessage, WiringError
from message_bus.messages.ids import uuid7
from message_bus.messages.message import Message
from message_bus.testing.capabilities import Contract, Units
from message_bus.testing.contract_messages import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


def found(repo: Any, message_id: Any) -> Any:
    """The row with this id, whether or not `get` is async."""
    return result_of(repo.get(message_id))


def listed(repo: Any) -> list[Any]:
    """The ids of what is not processed, in the repository's order."""
    rows = result_of(repo.list_unprocessed())
    return [row.id for row in rows or ()]


def save(repo: Any) -> None:
    """Commit, whether or not `save` is async."""
    result_of(repo.save())


def roll_back(repo: Any) -> None:
    """Roll back, whether or not `rollback` is async."""
    result_of(repo.rollback())


class RegisteringContract(Contract):
    """How rows get in and are found. Inherit it through OutboxContract."""

    @pytest.fixture
    def unit_of_work(self) -> Units:
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

    def _saved(self, unit_of_work: Units, *messages: Message) -> list[Any]:
        """Register messages in one unit of work, save it, and return the ids."""
        ids = self._ids(len(messages))
        with unit_of_work() as repo:
            for message_id, message in zip(ids, messages, strict=True):
                MessageBus.register_outbox_message(repo, message, id=message_id)
            save(repo)
        return ids

    def test_what_was_saved_is_found_by_its_id(self, unit_of_work: Units) -> None:
        """`get` returns the row with this id, and None for an id that is unknown."""
        first, second = self._saved(unit_of_work, OrderPlaced(1), OrderPlaced(2))
        with unit_of_work() as repo:
            assert found(repo, first).id == first
            assert found(repo, second).id == second
            assert found(repo, self._ids(3)[-1]) is None

    def test_a_row_carries_what_was_registered(self, unit_of_work: Units) -> None:
        """Type, message name and payload are those of the message; a command is told from an event."""
        event, command = self._saved(unit_of_work, OrderPlaced(1), PlaceOrder(2))
        with unit_of_work() as repo:
            row = found(repo, event)
            assert (row.type, row.message) == ("EVENT", "OrderPlaced")
            assert payload_of(row) == {"order_id": 1}
            row = found(repo, command)
            assert (row.type, row.message) == ("COMMAND", "PlaceOrder")
            assert payload_of(row) == {"order_id": 2}

    def test_a_message_comes_back_equal(self, unit_of_work: Units) -> None:
        """Decimals, times, UUIDs, tuples, None and all of Unicode survive the outbox."""
        message = OrderPaid(order_id=1)
        (message_id,) = self._saved(unit_of_work, message)
        with unit_of_work() as repo:
            assert OrderPaid.deserialize(dict(payload_of(found(repo, message_id)))) == message

    def test_meta_is_kept(self, unit_of_work: Units) -> None:
        """What was given as `meta` is on the row, nested and in its own types."""
        self._needs("meta")
        (message_id,) = self._ids(1)
        meta = {"user": 7, "tags": ["a", None], "ü": {"deep": True}}
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id, meta=meta)
            save(repo)
        with unit_of_work() as repo:
            stored = found(repo, message_id).meta
            assert (json.loads(stored) if isinstance(stored, str | bytes) else stored) == meta

    def test_the_key_is_kept(self, unit_of_work: Units) -> None:
        """The key is that of the message's class, unless another one is given."""
        self._needs("keys")
        ids = self._ids(3)
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=ids[0])
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=ids[1], key="other")
            MessageBus.register_outbox_message(repo, OrderPaid(1), id=ids[2])
            save(repo)
        with unit_of_work() as repo:
            assert [found(repo, each).key for each in ids] == ["1", "other", None]

    def test_the_version_is_kept(self, unit_of_work: Units) -> None:
        """The version is that of the message's class."""
        self._needs("versions")
        ids = self._saved(unit_of_work, OrderShipped(1), OrderPlaced(2))
        with unit_of_work() as repo:
            assert [found(repo, each).version for each in ids] == [3, 1]

    def test_headers_are_kept(self, unit_of_work: Units) -> None:
        """The correlation id of the place where a message was registered goes with it."""
        self._needs("headers")
        (message_id,) = self._ids(1)
        with unit_of_work() as repo:
            with correlate("story 1"):
                MessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            save(repo)
        with unit_of_work() as repo:
            assert found(repo, message_id).headers["correlation_id"] == "story 1"

    def test_ids_of_the_caller_are_kept(self, unit_of_work: Units) -> None:
        """An id that was given is the row's id, also one that is falsy."""
        (ordinary,) = self._ids(1)
        falsy = {"uuid": UUID(int=0), "text": "", "integer": 0}[self.capabilities.ids]
        with unit_of_work() as repo:
            for message_id in (ordinary, falsy):
                MessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            save(repo)
        with unit_of_work() as repo:
            assert found(repo, falsy).id == falsy
            assert set(listed(repo)) == {ordinary, falsy}

    def test_a_row_without_a_given_id_gets_one(self, unit_of_work: Units) -> None:
        """Each row has an id of its own, and is found by it."""
        with unit_of_work() as repo:
            for number in (1, 2):
                MessageBus.register_outbox_message(repo, OrderPlaced(number))
            save(repo)
        with unit_of_work() as repo:
            first, second = listed(repo)
            assert first != second
            assert None not in (first, second)
            assert payload_of(found(repo, first)) == {"order_id": 1}

    def test_an_id_is_taken_once(self, unit_of_work: Units) -> None:
        """Adding or saving a second row with an id that is taken fails, and the first one stays as it is."""
        (message_id,) = self._saved(unit_of_work, OrderPlaced(1))
        with unit_of_work() as repo:
            with pytest.raises(Exception):  # noqa: B017, PT011, PT012  (the database's own error, at add or at save)
                MessageBus.register_outbox_message(repo, OrderPlaced(2), id=message_id)
                save(repo)
            roll_back(repo)
        with unit_of_work() as repo:
            assert listed(repo) == [message_id]
            assert payload_of(found(repo, message_id)) == {"order_id": 1}

    def test_add_validates(self, unit_of_work: Units) -> None:
        """A row that is no row, or of an unknown type, is refused by `add`, and nothing of it is stored."""
        with unit_of_work() as repo:
            row = MessageBus.register_outbox_message(repo, OrderPlaced(1))
            roll_back(repo)
        row.type = "QUERY"
        with unit_of_work() as repo:
            for wrong in (row, object()):
                with pytest.raises(InvalidOutboxMessage):
                    repo.add(wrong)
            save(repo)
        with unit_of_work() as repo:
            assert listed(repo) == []

    def test_what_was_not_saved_is_gone(self, unit_of_work: Units) -> None:
        """A unit of work that ends without `save` leaves nothing: adding is not committing (G1)."""
        (message_id,) = self._ids(1)
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
        with unit_of_work() as repo:
            assert listed(repo) == []
            assert found(repo, message_id) is None

    def test_others_see_nothing_before_save(self, unit_of_work: Units) -> None:
        """What one unit of work has added is seen by another one after `save`, and not before (G1)."""
        self._needs("several_units_of_work")
        (message_id,) = self._ids(1)
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=message_id)
            with unit_of_work() as other:
                assert listed(other) == []
                assert found(other, message_id) is None
            save(repo)
            with unit_of_work() as other:
                assert listed(other) == [message_id]

    def test_rollback_drops_what_was_added(self, unit_of_work: Units) -> None:
        """After `rollback` a `save` stores nothing of what was added before, and all that is added afterwards (G1)."""
        dropped, kept = self._ids(2)
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=dropped)
            roll_back(repo)
            save(repo)
            assert listed(repo) == []
            MessageBus.register_outbox_message(repo, OrderPlaced(2), id=kept)
            save(repo)
        with unit_of_work() as repo:
            assert listed(repo) == [kept]
            assert found(repo, dropped) is None

    def test_a_change_that_was_rolled_back_is_not_stored(self, unit_of_work: Units) -> None:
        """Rows that were read are the reader's own: what it changes in them and rolls back changes nothing."""
        (message_id,) = self._saved(unit_of_work, OrderPlaced(1))
        with unit_of_work() as repo:
            for row in [*result_of(repo.list_unprocessed()), found(repo, message_id)]:
                row.message = "Changed"
                if hasattr(row, "processed"):
                    row.processed = True
            roll_back(repo)
            save(repo)
        with unit_of_work() as repo:
            assert listed(repo) == [message_id]
            assert found(repo, message_id).message == "OrderPlaced"

    def test_rows_are_listed_in_order(self, unit_of_work: Units) -> None:
        """`list_unprocessed` gives the rows of one commit before those of the next, and as they were added."""
        ids = self._saved(unit_of_work, OrderPlaced(3), PlaceOrder(1), OrderPlaced(2))
        ids += self._saved(unit_of_work, OrderPlaced(1))
        ids += self._saved(unit_of_work, OrderPaid(5), OrderPlaced(4))
        with unit_of_work() as repo:
            assert listed(repo) == ids

    def test_two_units_of_work_add_at_once(self, unit_of_work: Units) -> None:
        """Both keep what they have added, each in its own order, whichever saves first."""
        self._needs("several_units_of_work", "concurrent_writers")
        a, b, c = self._ids(3)
        with unit_of_work() as first, unit_of_work() as second:
            MessageBus.register_outbox_message(first, OrderPlaced(1), id=a)
            MessageBus.register_outbox_message(second, OrderPlaced(2), id=b)
            MessageBus.register_outbox_message(first, OrderPlaced(3), id=c)
            save(second)
            save(first)
        with unit_of_work() as repo:
            order = listed(repo)
            assert sorted(order) == [a, b, c]
            assert order.index(a) < order.index(c)

    def test_a_delayed_message_waits(self, unit_of_work: Units) -> None:
        """A delayed message is found by its id at once, and listed and delivered when it is due."""
        self._needs("delays")
        later, soon = self._ids(2)
        with unit_of_work() as repo:
            MessageBus.register_outbox_message(repo, OrderPlaced(1), id=later, delay=timedelta(days=1))
            MessageBus.register_outbox_message(
                repo, OrderPlaced(2), id=soon, delay=timedelta(milliseconds=10)
            )
            save(repo)
        with unit_of_work() as repo:
            assert found(repo, later).id == later
            assert found(repo, soon).id == soon
        seen: list[Any] = []
        bus = MessageBus({OrderPlaced: [seen.append]})
        give_up = monotonic() + 10
        while not seen and monotonic() < give_up:
            with unit_of_work() as repo:
                bus.process_outbox(repo)
        assert seen == [OrderPlaced(2)]
        with unit_of_work() as repo:
            assert later not in listed(repo)


def payload_of(row: Any) -> Mapping[str, Any]:
    """The payload, which a model may keep as JSON text."""
    value: Mapping[str, Any] = (
        json.loads(row.payload) if isinstance(row.payload, str | bytes) else row.payload
    )
    return value
