"""What every event store must do, as tests to inherit: `EventStoreContract` and `AsyncEventStoreContract`. Needs pytest.

class TestMyStore(EventStoreContract):
    capabilities = Capabilities(rolls_back=False)

    @pytest.fixture
    def stores(self):
        shared = MyDocuments()
        return lambda registry=None: nullcontext(MyEventStore(shared, registry=registry))
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from message_bus.bus.context import correlate
from message_bus.errors import (
    ConcurrencyError,
    DuplicateEvent,
    InvalidMessage,
    NotAMessage,
    SettingsError,
    UnknownEventType,
    WiringError,
)
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.envelope import new_envelope
from message_bus.messages.ids import uuid7
from message_bus.messages.registry import Registry
from message_bus.testing.capabilities import AsyncStores, Contract
from message_bus.testing.event_store_messages import (
    AccountOpened,
    Audited,
    Closed,
    Deposited,
    DepositedInCents,
    OpenAccount,
    PaidIn,
    Unheard,
    contract_registry,
    old_registry,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class _RolledBack(Exception):
    pass


class AsyncEventStoreContract(Contract):
    """The tests of an event store; each docstring says what is promised.

    To be given: a fixture `stores`. It returns a function that takes a Registry and opens a unit of work: a context
    manager whose value is a store, whose end commits and whose end by an error rolls back. All of one test stand on one
    log, which is empty at first. And `capabilities`, if it cannot roll back.
    """

    @pytest.fixture
    def stores(self) -> AsyncStores:
        """A function that opens a unit of work, always on the same log, which is empty at first. To be overridden."""
        raise WiringError(
            f"{type(self).__name__} does not say how a store is opened (give it a fixture stores)"
        )

    async def _saved(
        self, stores: AsyncStores, stream: str, *events: Any, expected: int | None = None
    ) -> Any:
        """Save in a unit of work of its own."""
        async with stores(contract_registry()) as store:
            return await store.save(stream, list(events), expected)

    async def _loaded(
        self, stores: AsyncStores, stream: str, from_version: int = 0, registry: Registry | None = None
    ) -> Any:
        """Load in a unit of work of its own."""
        async with stores(registry or contract_registry()) as store:
            return await store.load(stream, from_version)

    async def _read(self, stores: AsyncStores, *arguments: Any, **options: Any) -> Any:
        """Read in a unit of work of its own."""
        async with stores(contract_registry()) as store:
            return await store.read_all(*arguments, **options)

    # --- streams and versions

    async def test_an_unknown_stream_is_empty(self, stores: AsyncStores) -> None:
        """It has no events and the version 0."""
        async with stores(contract_registry()) as store:
            assert await store.load("nobody") == []
            assert await store.current_version("nobody") == 0

    async def test_events_come_back_equal_and_in_order(self, stores: AsyncStores) -> None:
        """What was saved is loaded by others, of its own class, in the order of saving; other streams are not."""
        events = [AccountOpened("Ada", ["new"]), Deposited(5), Deposited(7, "USD"), Closed()]
        await self._saved(stores, "a", *events[:1])
        await self._saved(stores, "b", Deposited(1))
        await self._saved(stores, "a", *events[1:])
        assert await self._loaded(stores, "a") == events
        assert [type(event) for event in await self._loaded(stores, "a")] == [type(event) for event in events]
        assert await self._loaded(stores, "b") == [Deposited(1)]

    async def test_a_version_is_a_number_of_events(self, stores: AsyncStores) -> None:
        """`current_version` counts; the recorded versions are 1, 2, 3 ..., across calls."""
        first = await self._saved(stores, "a", Deposited(1), Deposited(2))
        second = await self._saved(stores, "a", Deposited(3))
        assert [each.version for each in [*first, *second]] == [1, 2, 3]
        async with stores(contract_registry()) as store:
            assert await store.current_version("a") == 3

    async def test_from_version_means_after_that_version(self, stores: AsyncStores) -> None:
        """`load(id, from_version=v)` leaves out the first v events, so a snapshot's version is always right."""
        await self._saved(stores, "a", *[Deposited(cents) for cents in (1, 2, 3)])
        for version, left in [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (9, [])]:
            loaded = await self._loaded(stores, "a", version)
            assert [event.cents for event in loaded] == left

    async def test_many_events_at_once(self, stores: AsyncStores) -> None:
        """A thousand events in one call keep their order."""
        await self._saved(stores, "a", *[Deposited(cents) for cents in range(1_000)], expected=0)
        loaded = await self._loaded(stores, "a")
        assert [event.cents for event in loaded] == list(range(1_000))
        assert [event.envelope.version for event in loaded] == list(range(1, 1_001))

    async def test_nothing_to_save(self, stores: AsyncStores) -> None:
        """No events: nothing happens, but the expected version is still looked at."""
        assert await self._saved(stores, "a") == []
        assert await self._saved(stores, "a", expected=0) == []
        with pytest.raises(ConcurrencyError):
            await self._saved(stores, "a", expected=1)

    # --- expected versions (G12)

    async def test_the_expected_version_is_accepted(self, stores: AsyncStores) -> None:
        """0 for a new stream, then the number of events that were seen."""
        await self._saved(stores, "a", Deposited(1), Deposited(2), expected=0)
        await self._saved(stores, "a", Deposited(3), expected=2)
        await self._saved(stores, "a", Deposited(4))
        assert len(await self._loaded(stores, "a")) == 4

    @pytest.mark.parametrize("expected", [0, 1, 3])
    async def test_another_version_is_a_conflict(self, stores: AsyncStores, expected: int) -> None:
        """ConcurrencyError says which was expected and which is there; nothing of the call is saved."""
        await self._saved(stores, "a", Deposited(1), Deposited(2))
        with pytest.raises(ConcurrencyError) as caught:
            await self._saved(stores, "a", Deposited(3), Deposited(4), expected=expected)
        error = caught.value
        assert (error.aggregate_id, error.expected_version, error.actual_version) == ("a", expected, 2)
        assert len(await self._loaded(stores, "a")) == 2
        assert len(await self._read(stores)) == 2

    async def test_a_stream_that_is_not_there_has_no_version_but_0(self, stores: AsyncStores) -> None:
        """Expecting events where there are none is a conflict, and makes no stream."""
        with pytest.raises(ConcurrencyError) as caught:
            await self._saved(stores, "a", Deposited(1), expected=1)
        assert caught.value.actual_version == 0
        assert await self._loaded(stores, "a") == []

    async def test_of_two_who_have_seen_the_same_version_one_wins(self, stores: AsyncStores) -> None:
        """The update of the first is not lost (G12)."""
        await self._saved(stores, "a", Deposited(1))
        seen = [len(await self._loaded(stores, "a")) for _ in range(2)]
        await self._saved(stores, "a", Deposited(2), expected=seen[0])
        with pytest.raises(ConcurrencyError):
            await self._saved(stores, "a", Deposited(3), expected=seen[1])
        assert await self._loaded(stores, "a") == [Deposited(1), Deposited(2)]

    async def test_after_a_conflict_the_unit_of_work_goes_on(self, stores: AsyncStores) -> None:
        """What was saved before stays, and loading and saving again works in the same unit (G12)."""
        await self._saved(stores, "a", Deposited(1))
        async with stores(contract_registry()) as store:
            await store.save("b", [Deposited(10)])
            with pytest.raises(ConcurrencyError):
                await store.save("a", [Deposited(2)], 0)
            await store.save("a", [Deposited(3)], len(await store.load("a")))
        assert await self._loaded(stores, "a") == [Deposited(1), Deposited(3)]
        assert await self._loaded(stores, "b") == [Deposited(10)]

    async def test_a_unit_of_work_sees_what_it_has_saved(self, stores: AsyncStores) -> None:
        """Load and version answer with it at once."""
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(1)], 0)
            await store.save("a", [Deposited(2)], 1)
            assert await store.load("a") == [Deposited(1), Deposited(2)]
            assert await store.current_version("a") == 2

    async def test_what_is_rolled_back_was_never_saved(self, stores: AsyncStores) -> None:
        """Neither events nor versions nor snapshots are left (G1)."""
        self._needs("rolls_back")
        try:
            async with stores(contract_registry()) as store:
                await store.save("a", [Deposited(1)], 0)
                await store.save_snapshot(Snapshot("a", "Account", 1, {"cents": 1}))
                raise _RolledBack
        except _RolledBack:
            pass
        async with stores(contract_registry()) as store:
            assert await store.load("a") == []
            assert await store.current_version("a") == 0
            assert await store.load_snapshot("a") is None
            await store.save("a", [Deposited(2)], 0)
        assert [each.message for each in await self._read(stores)] == [Deposited(2)]

    # --- what is recorded

    async def test_save_tells_what_it_has_recorded(self, stores: AsyncStores) -> None:
        """Position, stream, version, id and time of each event, in order, the same as are read later."""
        before = datetime.now(UTC) - timedelta(minutes=5)  # the database's clock may be another
        recorded = await self._saved(stores, "a", AccountOpened("Ada"), Deposited(1))
        assert [each.message for each in recorded] == [AccountOpened("Ada"), Deposited(1)]
        assert [each.stream for each in recorded] == ["a", "a"]
        assert recorded[0].position < recorded[1].position
        assert recorded[0].id != recorded[1].id
        for each in recorded:
            assert each.timestamp.tzinfo is not None
            assert before < each.timestamp < before + timedelta(minutes=10)
        assert await self._read(stores) == recorded
        assert [event.envelope for event in await self._loaded(stores, "a")] == recorded

    async def test_loaded_events_know_where_they_come_from(self, stores: AsyncStores) -> None:
        """They offer `.envelope`, `.id` and `.timestamp`; a field of that name hides what we offer."""
        recorded = await self._saved(stores, "a", AccountOpened("Ada"), Audited(id=7, timestamp="noon"))
        opened, audited = await self._loaded(stores, "a")
        assert (opened.id, opened.timestamp) == (recorded[0].id, recorded[0].timestamp)
        assert (audited.id, audited.timestamp) == (7, "noon")
        assert (audited.envelope.id, audited.envelope.version) == (recorded[1].id, 2)

    async def test_an_envelope_keeps_its_id_meta_and_headers(self, stores: AsyncStores) -> None:
        """An event in an Envelope is recorded under its id, with its meta and headers."""
        meta = {"user": 7, "tags": ["a", None], "ü": {"deep": True}}
        headers = {"correlation_id": "c-1", "causation_id": "c-0", "traceparent": TRACEPARENT}
        envelope = new_envelope(Deposited(1), meta=meta, headers=headers)
        (recorded,) = await self._saved(stores, "a", envelope)
        (read,) = await self._read(stores)
        for each in (recorded, read):
            assert (each.id, each.meta, dict(each.headers)) == (envelope.id, meta, headers)
            assert (each.correlation_id, each.causation_id) == ("c-1", "c-0")
            assert each.message == Deposited(1)

    async def test_an_id_is_recorded_once(self, stores: AsyncStores) -> None:
        """The same id again, in another stream or in the same call, is refused; nothing of that call is saved."""
        taken = uuid7()
        await self._saved(stores, "a", new_envelope(Deposited(1), id=taken))
        for events in (
            [new_envelope(Deposited(2), id=taken)],
            [Deposited(3), new_envelope(Deposited(2), id=taken), Deposited(4)],
        ):
            with pytest.raises(DuplicateEvent) as caught:
                await self._saved(stores, "b", *events)
            assert (caught.value.aggregate_id, caught.value.event_id) == ("b", taken)
        again = uuid7()
        with pytest.raises(DuplicateEvent):
            await self._saved(stores, "b", *[new_envelope(Deposited(n), id=again) for n in (1, 2)])
        async with stores(contract_registry()) as store:
            assert await store.load("b") == []
            assert await store.current_version("b") == 0
        assert len(await self._read(stores)) == 1

    async def test_after_a_duplicate_the_unit_of_work_goes_on(self, stores: AsyncStores) -> None:
        """What was saved before in the same unit stays, and more can be saved."""
        taken = uuid7()
        await self._saved(stores, "a", new_envelope(Deposited(1), id=taken))
        async with stores(contract_registry()) as store:
            await store.save("b", [Deposited(2)], 0)
            with pytest.raises(DuplicateEvent):
                await store.save("b", [Deposited(3), new_envelope(Deposited(4), id=taken)], 1)
            await store.save("b", [Deposited(5)], 1)
        assert await self._loaded(stores, "b") == [Deposited(2), Deposited(5)]

    async def test_objects_are_not_shared(self, stores: AsyncStores) -> None:
        """Changing what was saved or loaded changes nothing in the store, nor what others have loaded."""
        event = AccountOpened("Ada", ["new"])
        await self._saved(stores, "a", event)
        event.tags.append("changed after saving")
        async with stores(contract_registry()) as store:
            for _ in range(2):
                (loaded,) = await store.load("a")
                assert loaded.tags == ["new"]
                loaded.tags.append("changed after loading")
        (read,) = await self._read(stores)
        assert read.message.tags == ["new"]

    # --- what cannot be saved

    async def test_only_events_are_saved(self, stores: AsyncStores) -> None:
        """Anything else is refused, with all of its call."""
        for other in (OpenAccount("Ada"), "text", new_envelope(OpenAccount("Ada"))):
            with pytest.raises(NotAMessage):
                await self._saved(stores, "a", Deposited(1), other)
        assert await self._loaded(stores, "a") == []

    async def test_an_event_that_could_not_be_loaded_is_refused(self, stores: AsyncStores) -> None:
        """InvalidMessage names the field, while its author is still there; nothing of the call is saved."""
        broken: Any = None
        with pytest.raises(InvalidMessage, match="cents"):
            await self._saved(stores, "a", Deposited(1), Deposited(broken))
        assert await self._loaded(stores, "a") == []

    @pytest.mark.parametrize("stream", ["", "a\0b", "\ud800", 7, None])
    async def test_an_aggregate_id_is_a_text(self, stores: AsyncStores, stream: Any) -> None:
        """What no database could store, or would store as something else, is refused by every store."""
        with pytest.raises(SettingsError, match="aggregate_id"):
            await self._saved(stores, stream, Deposited(1))
        assert await self._read(stores) == []

    async def test_any_text_is_an_aggregate_id(self, stores: AsyncStores) -> None:
        """Quotes, percent signs, spaces, non-ASCII and long ones; upper and lower case are two streams."""
        streams = ["order'7\"", "100%s", "  a  ", "Straße 🚲", "A", "a", "x" * 500]
        for number, stream in enumerate(streams):
            await self._saved(stores, stream, Deposited(number), expected=0)
        for number, stream in enumerate(streams):
            assert await self._loaded(stores, stream) == [Deposited(number)]

    # --- stories

    async def test_what_is_saved_together_is_one_story(self, stores: AsyncStores) -> None:
        """Without anything to inherit, the events of one call share a correlation id; each call begins anew."""
        first, second = await self._saved(stores, "a", Deposited(1), Deposited(2))
        (other,) = await self._saved(stores, "a", Deposited(3))
        assert first.correlation_id == second.correlation_id == str(first.id)
        assert other.correlation_id == str(other.id)
        assert first.causation_id is None

    async def test_correlate_gives_the_correlation(self, stores: AsyncStores) -> None:
        """Inside `correlate`, as at a web edge, events carry that id."""
        with correlate("request-7"):
            await self._saved(stores, "a", Deposited(1))
        (read,) = await self._read(stores)
        assert read.correlation_id == "request-7"

    async def test_a_trace_is_found_across_streams(self, stores: AsyncStores) -> None:
        """By correlation id or by the trace id of a W3C traceparent, in position order."""
        with correlate("request-7"):
            await self._saved(stores, "a", Deposited(1), Deposited(2))
            await self._saved(stores, "b", Deposited(3))
        await self._saved(stores, "a", Deposited(4))
        await self._saved(stores, "c", new_envelope(Deposited(5), headers={"traceparent": TRACEPARENT}))
        async with stores(contract_registry()) as store:
            assert await store.load_by_trace("request-7") == [Deposited(1), Deposited(2), Deposited(3)]
            assert await store.load_by_trace("0af7651916cd43dd8448eb211c80319c") == [Deposited(5)]
            assert await store.load_by_trace("unknown") == []
            (found,) = await store.load_by_trace("0af7651916cd43dd8448eb211c80319c")
            assert found.envelope.stream == "c"

    # --- the whole log

    async def test_all_events_are_read_in_position_order(self, stores: AsyncStores) -> None:
        """Of all streams, each once, positions ascending; a second reading gives the same (G4)."""
        for number in range(6):
            await self._saved(stores, "ab"[number % 2], Deposited(number))
        read = await self._read(stores)
        assert [each.message.cents for each in read] == list(range(6))
        positions = [each.position for each in read]
        assert positions == sorted(set(positions))
        assert await self._read(stores) == read

    async def test_reading_goes_on_after_a_position(self, stores: AsyncStores) -> None:
        """In steps of `limit`, from the position of the last one read, nothing is missed or doubled."""
        for number in range(7):
            await self._saved(stores, f"stream-{number % 3}", Deposited(number))
        seen: list[int] = []
        position = 0
        while batch := await self._read(stores, position, limit=3):
            assert len(batch) <= 3
            assert batch[0].position > position
            seen += [each.message.cents for each in batch]
            position = batch[-1].position
        assert seen == list(range(7))
        assert await self._read(stores, position) == []
        assert await self._read(stores, position + 1_000) == []

    async def test_only_some_types_are_read(self, stores: AsyncStores) -> None:
        """`types` chooses, also what was saved under a former name; `limit` counts what is chosen."""
        async with stores(old_registry()) as store:
            await store.save("a", [PaidIn(1)])
        await self._saved(stores, "a", AccountOpened("Ada"), Closed(), Deposited(2), Closed())
        read = await self._read(stores, types=[Deposited], limit=2)
        assert [each.message for each in read] == [Deposited(100, "DEM"), Deposited(2)]
        assert [each.message for each in await self._read(stores, types=[Closed], limit=1)] == [Closed()]
        assert await self._read(stores, types=[]) == []

    async def test_what_is_not_committed_is_not_read(self, stores: AsyncStores) -> None:
        """Not even by the transaction that has saved it: it is not settled before the commit."""
        self._needs("rolls_back")
        await self._saved(stores, "a", Deposited(1))
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(2)])
            assert [each.message for each in await store.read_all()] == [Deposited(1)]
        assert [each.message for each in await self._read(stores)] == [Deposited(1), Deposited(2)]

    # --- types

    async def test_old_payloads_are_upcast(self, stores: AsyncStores) -> None:
        """Former names and versions, over several steps; id, position, version, time and headers stay as they were."""
        async with stores(old_registry()) as store:
            before = await store.save("a", [PaidIn(1), DepositedInCents(250)])
        await self._saved(stores, "a", Deposited(300))
        read = await self._read(stores)
        assert [each.message for each in read] == [
            Deposited(100, "DEM"),
            Deposited(250, "DEM"),
            Deposited(300),
        ]
        assert await self._loaded(stores, "a") == [each.message for each in read]
        for old, new in zip(before, read, strict=False):
            assert (new.id, new.position, new.version) == (old.id, old.position, old.version)
            assert (new.timestamp, new.headers, new.stream) == (old.timestamp, old.headers, old.stream)
        with pytest.raises(
            UnknownEventType
        ):  # the log itself is as it was: the old program reads what it wrote
            await self._loaded(stores, "a", 2, old_registry())

    async def test_an_unknown_type_is_an_error(self, stores: AsyncStores) -> None:
        """UnknownEventType names it; the events before it are not returned as if they were all."""
        await self._saved(stores, "a", Deposited(1), Unheard())
        with pytest.raises(UnknownEventType, match=r"contract\.unheard"):
            await self._loaded(stores, "a")

    # --- snapshots

    async def test_a_snapshot_comes_back(self, stores: AsyncStores) -> None:
        """With everything that was saved of it; the time is the same instant."""
        taken = datetime(2024, 5, 1, 12, 30, 15, 250_000, tzinfo=UTC)
        snapshot = Snapshot(
            "a", "Account", 7, {"cents": 5, "ü": [1, None, {"x": 1.5}]}, taken, schema_version=3
        )
        async with stores(contract_registry()) as store:
            assert await store.load_snapshot("a") is None
            await store.save("a", [Deposited(cents) for cents in range(7)])
            await store.save_snapshot(snapshot)
        async with stores(contract_registry()) as store:
            assert await store.load_snapshot("a") == snapshot
            assert await store.load_snapshot("b") is None

    async def test_the_newest_snapshot_is_kept(self, stores: AsyncStores) -> None:
        """One of a higher or the same version takes its place; an older one, that comes late, does not."""
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(cents) for cents in range(5)])
            for version, cents in [(3, 30), (5, 50), (4, 40)]:
                await store.save_snapshot(Snapshot("a", "Account", version, {"cents": cents}))
        async with stores(contract_registry()) as store:
            kept = await store.load_snapshot("a")
            assert kept is not None
            assert (kept.version, kept.state) == (5, {"cents": 50})
            await store.save_snapshot(Snapshot("a", "Account", 5, {"cents": 55}, schema_version=2))
        async with stores(contract_registry()) as store:
            kept = await store.load_snapshot("a")
            assert kept is not None
            assert (kept.version, kept.state, kept.schema_version) == (5, {"cents": 55}, 2)

    async def test_the_state_of_a_snapshot_is_not_shared(self, stores: AsyncStores) -> None:
        """Changing what was saved or loaded changes nothing in the store."""
        state = {"items": [1]}
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(1)])
            await store.save_snapshot(Snapshot("a", "Account", 1, state))
            state["items"].append(2)
            for _ in range(2):
                kept = await store.load_snapshot("a")
                assert kept is not None
                assert kept.state == {"items": [1]}
                kept.state["items"].append(3)

    async def test_a_snapshot_beyond_its_stream_is_refused(self, stores: AsyncStores) -> None:
        """SettingsError says how many events there are; the one that is kept stays, and the store can be used on."""
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(1), Deposited(2)])
            await store.save_snapshot(Snapshot("a", "Account", 2, {"cents": 3}))
            with pytest.raises(SettingsError, match="version 3 is beyond its stream, which has 2"):
                await store.save_snapshot(Snapshot("a", "Account", 3, {"cents": 9}))
            for version in (0, 1):
                with pytest.raises(
                    SettingsError, match=f"version {version} is beyond its stream, which has 0"
                ):
                    await store.save_snapshot(Snapshot("b", "Account", version, {}))
            await store.save("a", [Deposited(3)], 2)
        async with stores(contract_registry()) as store:
            kept = await store.load_snapshot("a")
            assert kept is not None
            assert (kept.version, kept.state) == (2, {"cents": 3})
            assert await store.load_snapshot("b") is None

    async def test_a_state_that_is_no_json_is_refused(self, stores: AsyncStores) -> None:
        """SettingsError says so, and the snapshot that is there stays."""
        async with stores(contract_registry()) as store:
            await store.save("a", [Deposited(1), Deposited(2)])
            await store.save_snapshot(Snapshot("a", "Account", 1, {"cents": 1}))
            with pytest.raises(SettingsError, match="state cannot be stored"):
                await store.save_snapshot(Snapshot("a", "Account", 2, {"object": object()}))
            kept = await store.load_snapshot("a")
        assert kept is not None
        assert kept.version == 1
