"""The contract of event stores notices what it is for: stores that are broken in one way each, and the tests that say so."""

# ruff: noqa: D102  (the names of the classes say it)

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from message_bus.errors import ConcurrencyError
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.in_memory_store import InMemoryAsyncEventStore, InMemoryEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Event
from message_bus.messages.registry import Registry
from message_bus.testing.capabilities import AsyncStores, Capabilities, Stores
from message_bus.testing.event_store_contract import EventStoreContract
from message_bus.testing.event_store_contract_async import AsyncEventStoreContract
from tests.contracts.test_contracts_can_fail import failures


class Stored(EventStoreContract):
    """The contract, without being a test of this run."""

    capabilities = Capabilities(rolls_back=False)


class Transactional(EventStoreContract):
    """The same for what claims to roll back."""


class AsyncStored(AsyncEventStoreContract):
    """The same in the other colour."""

    capabilities = Capabilities(rolls_back=False)


def units(store_class: type[Any]) -> Callable[[], Any]:
    """What the fixture `stores` would give, anew for each test."""

    def stores() -> Stores | AsyncStores:
        store = store_class()

        def open_one(registry: Registry) -> Any:
            store._log._types = EventTypes(registry)
            return nullcontext(store)

        return open_one

    return stores


class LosesUpdates(InMemoryEventStore):
    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        return super().save(aggregate_id, events)


class AcceptsAnyVersionOfANewStream(InMemoryEventStore):
    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        if self.current_version(aggregate_id) == 0 and events:
            expected_version = None
        return super().save(aggregate_id, events, expected_version)


class StartsOneTooEarly(InMemoryEventStore):
    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        return super().load(aggregate_id, max(0, from_version - 1))


class StartsOneTooLate(InMemoryEventStore):
    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        return super().load(aggregate_id, from_version + 1)


class SharesItsObjects(InMemoryEventStore):
    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        kept: dict[int, Event] = self.__dict__.setdefault("kept", {})
        return [
            kept.setdefault(event.envelope.position, event)
            for event in super().load(aggregate_id, from_version)
        ]


class ReadsInNoOrder(InMemoryEventStore):
    def read_all(self, *arguments: Any, **options: Any) -> Any:
        return super().read_all(*arguments, **options)[::-1]


class LoadsByName(InMemoryEventStore):
    def load(self, aggregate_id: str, from_version: int = 0) -> list[Event]:
        return sorted(super().load(aggregate_id, from_version), key=lambda event: type(event).__name__)


class AcceptsDuplicates(InMemoryEventStore):
    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        self._log._ids.clear()
        return super().save(aggregate_id, events, expected_version)


class KeepsTheLastSnapshot(InMemoryEventStore):
    def save_snapshot(self, snapshot: Snapshot) -> None:
        super().save_snapshot(snapshot)
        if self._log._snapshots[snapshot.aggregate_id].snapshot.version > snapshot.version:
            del self._log._snapshots[snapshot.aggregate_id]
            super().save_snapshot(snapshot)


class SavesOneByOne(InMemoryEventStore):
    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        recorded = list(super().save(aggregate_id, [], expected_version))
        for event in events:
            recorded += super().save(aggregate_id, [event])
        return recorded


class GivesNewIds(InMemoryEventStore):
    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        plain = [each.message if isinstance(each, Envelope) else each for each in events]
        return super().save(aggregate_id, plain, expected_version)


class ForgetsTheLimit(InMemoryEventStore):
    def read_all(self, after_position: int = 0, *, limit: int = 1_000, types: Any = None) -> Any:
        return super().read_all(after_position, types=types)


class ReadsThePositionAgain(InMemoryEventStore):
    def read_all(self, after_position: int = 0, *, limit: int = 1_000, types: Any = None) -> Any:
        return super().read_all(max(0, after_position - 1), limit=limit, types=types)


class ForgetsFormerNames(InMemoryEventStore):
    def read_all(self, after_position: int = 0, *, limit: int = 1_000, types: Any = None) -> Any:
        read = super().read_all(after_position, types=types)
        names = {each.row.position: each.record.message for each in self._log._events}
        if types is not None:
            read = [each for each in read if names[each.position] != "contract.paid_in"]
        return read[:limit]


class IsUnusableAfterAConflict(InMemoryEventStore):
    broken = False

    def save(self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None) -> Any:
        if self.broken:
            raise RuntimeError("current transaction is aborted")
        try:
            return super().save(aggregate_id, events, expected_version)
        except ConcurrencyError:
            self.broken = True
            raise


class FindsNoTraceId(InMemoryEventStore):
    def load_by_trace(self, trace_id: str) -> list[Event]:
        return [
            event for event in super().load_by_trace(trace_id) if event.envelope.correlation_id == trace_id
        ]


BROKEN: dict[type[InMemoryEventStore], set[str]] = {
    LosesUpdates: {
        "test_of_two_who_have_seen_the_same_version_one_wins",
        "test_a_stream_that_is_not_there_has_no_version_but_0",
        "test_after_a_conflict_the_unit_of_work_goes_on",
        "test_nothing_to_save",
    },
    AcceptsAnyVersionOfANewStream: {"test_a_stream_that_is_not_there_has_no_version_but_0"},
    StartsOneTooEarly: {"test_from_version_means_after_that_version"},
    StartsOneTooLate: {
        "test_from_version_means_after_that_version",
        "test_events_come_back_equal_and_in_order",
    },
    SharesItsObjects: {"test_objects_are_not_shared"},
    ReadsInNoOrder: {"test_all_events_are_read_in_position_order", "test_reading_goes_on_after_a_position"},
    LoadsByName: {"test_events_come_back_equal_and_in_order"},
    AcceptsDuplicates: {"test_an_id_is_recorded_once", "test_after_a_duplicate_the_unit_of_work_goes_on"},
    KeepsTheLastSnapshot: {"test_the_newest_snapshot_is_kept"},
    SavesOneByOne: {
        "test_only_events_are_saved",
        "test_an_event_that_could_not_be_loaded_is_refused",
        "test_an_id_is_recorded_once",
    },
    GivesNewIds: {"test_an_envelope_keeps_its_id_meta_and_headers", "test_an_id_is_recorded_once"},
    ForgetsTheLimit: {"test_reading_goes_on_after_a_position", "test_only_some_types_are_read"},
    ReadsThePositionAgain: {"test_reading_goes_on_after_a_position"},
    ForgetsFormerNames: {"test_only_some_types_are_read"},
    IsUnusableAfterAConflict: {"test_after_a_conflict_the_unit_of_work_goes_on"},
    FindsNoTraceId: {"test_a_trace_is_found_across_streams"},
}


@pytest.mark.parametrize("store_class", BROKEN, ids=lambda each: each.__name__)
async def test_a_broken_store_fails(store_class: type[InMemoryEventStore]) -> None:
    """Each fault is met by the tests that are named after it."""
    failed = await failures(Stored(), units(store_class))
    assert BROKEN[store_class] <= failed, f"it fails only {sorted(failed)}"


async def test_a_store_that_cannot_roll_back_must_say_so() -> None:
    """Who claims to have transactions has them."""
    assert {
        "test_what_is_rolled_back_was_never_saved",
        "test_what_is_not_committed_is_not_read",
    } <= await failures(Transactional(), units(InMemoryEventStore))


async def test_the_whole_ones_pass() -> None:
    """It is the fault that fails, not the way it is tested here."""
    assert await failures(Stored(), units(InMemoryEventStore)) == set()
    assert await failures(AsyncStored(), units(InMemoryAsyncEventStore)) == set()


async def test_the_other_colour_fails_too() -> None:
    """The asynchronous contract is the same one."""

    class LosesUpdatesToo(InMemoryAsyncEventStore):
        async def save(
            self, aggregate_id: str, events: Sequence[Any], expected_version: int | None = None
        ) -> Any:
            return await super().save(aggregate_id, events)

    assert BROKEN[LosesUpdates] <= await failures(AsyncStored(), units(LosesUpdatesToo))
