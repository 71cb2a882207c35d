"""Aggregates by id: loaded from snapshot and events, saved with the version that they were loaded at.

    load ──► snapshot ──► events after it ──► aggregate ──► business methods ──► save ──► events, outbox, snapshot

The store decides about transactions: one on the caller's session leaves commit and rollback to the caller (G10). Not safe to
share between threads or tasks, where its store is not.
"""

from __future__ import annotations

import logging
from typing import Any, Generic, TypeVar

from message_bus.bus.context import correlate
from message_bus.errors import AggregateNotFound, InvalidSnapshot, SettingsError, WiringError
from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
from message_bus.eventsourcing.aggregates.pairing import (
    outbox_beside,
    refuse_unfit_class,
    refuse_unfit_store_async,
    savepoint_async,
)
from message_bus.eventsourcing.aggregates.snapshotting import is_due, is_usable, snapshot_of
from message_bus.eventsourcing.stores.store import AsyncEventStore, Snapshot
from message_bus.messages import Event, definition_of
from message_bus.messages.recorded import RecordedEvent
from message_bus.observability.observer import Observer, guarded, nothing
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.registering import register

A = TypeVar("A", bound=AggregateRoot)

logger = logging.getLogger("message_bus.eventsourcing")


class AsyncAggregateRepository(Generic[A]):
    """Loads and saves the aggregates of one class.

    `snapshot_every`: take a snapshot when that many events have come since the last one (None: take none; one that is
    there is used all the same). `outbox`: register each saved event there as well, in the same transaction: a
    repository, or the session that the store stands on. `observer`: is told of what is loaded; give the store its own.

    Raises: WiringError if store, class and outbox do not fit together, among it a store of the other colour;
    SettingsError for an `on_...` method that none of the events defined by now would reach.
    """

    def __init__(
        self,
        store: AsyncEventStore,
        aggregate_class: type[A],
        *,
        snapshot_every: int | None = None,
        outbox: Any = None,
        observer: Observer | None = None,
    ) -> None:
        refuse_unfit_class(aggregate_class)
        refuse_unfit_store_async(store)
        if snapshot_every is not None and (type(snapshot_every) is not int or snapshot_every < 1):
            raise SettingsError(type(self).__name__, ["snapshot_every is not a number from 1"])
        self._store = store
        self._class = aggregate_class
        self._snapshot_every = snapshot_every
        self._outbox = outbox_beside(store, outbox)
        self._observer = guarded(observer)

    async def load(self, aggregate_id: str) -> A:
        """Return the aggregate with this id: its newest snapshot and the events after it, in two statements.

        A snapshot of another `aggregate_type` or `snapshot_version`, or that cannot be read, is passed over.

        Raises: AggregateNotFound if it has no events; EventNotHandled, UnknownEventType, MessageDecodeError.
        """
        if self._observer is None:
            return await self._load(aggregate_id)
        with self._observer.loading(self._class.aggregate_type) or nothing():
            aggregate = await self._load(aggregate_id)
        self._observer.loaded(aggregate)
        return aggregate

    async def _load(self, aggregate_id: str) -> A:
        snapshot = await self._store.load_snapshot(aggregate_id)
        aggregate = self._restored(snapshot, aggregate_id)
        if aggregate is not None:
            aggregate.replay(await self._store.load(aggregate_id, aggregate.version))
            return aggregate
        events = await self._store.load(aggregate_id)
        if not events:
            raise AggregateNotFound(self._class.__name__, aggregate_id)
        return self._class.from_events(events, aggregate_id)

    async def save(self, aggregate: A) -> list[RecordedEvent]:
        """Store the uncommitted events, and return them as they were recorded; none: nothing happens.

        All are stored or none (G12): the store is told the version that the aggregate was loaded at. They go to the
        outbox in the same order, under the same ids, keyed by what their class says or else the aggregate's id, so that
        those of one aggregate are delivered in order (G3). Then they are no longer uncommitted. If the transaction rolls
        back afterwards, load the aggregate again.

        A snapshot that cannot be taken or stored is logged, and the events stay saved.

        Raises: ConcurrencyError if somebody else has saved meanwhile (the aggregate keeps its uncommitted events; load it
        again and repeat, see `retry_on_conflict`); WiringError for an aggregate of another class or without an id;
        InvalidMessage.
        """
        self._refuse_stranger(aggregate)
        history = aggregate._history
        events = aggregate.uncommitted_events
        if not events:
            return []
        aggregate_id = aggregate.aggregate_id
        keys = self._keys_of(events, aggregate_id)
        recorded = list(await self._store.save(aggregate_id, events, aggregate.stored_version))
        self._publish(events, keys, recorded)
        history.stream = aggregate_id
        aggregate.mark_committed()
        if is_due(last=history.snapshot_at, version=history.version, every=self._snapshot_every):
            await self._take_snapshot(aggregate)
        return recorded

    def _restored(self, snapshot: Snapshot | None, aggregate_id: str) -> A | None:
        if snapshot is None or not is_usable(snapshot, self._class, aggregate_id):
            return None
        try:
            aggregate = self._class.from_snapshot(snapshot)
        except Exception as error:  # noqa: BLE001  (from_snapshot may be the user's; the events tell everything)
            self._log("snapshot of %s cannot be read, all events are loaded: %s", aggregate_id, error)
            return None
        aggregate._came_from(snapshot)  # from_snapshot may be the user's own
        return aggregate

    def _refuse_stranger(self, aggregate: A) -> None:
        if not isinstance(aggregate, self._class):
            raise WiringError(
                f"a repository of {self._class.__name__!r} was given a {type(aggregate).__name__!r} (make one for its class)"
            )
        stream = aggregate._history.stream
        if stream is not None and stream != aggregate.aggregate_id:
            raise WiringError(
                f"the {self._class.__name__!r} of stream {stream!r} calls itself {aggregate.aggregate_id!r} (its events must "
                "stay in one stream: let aggregate_id be the id that it is loaded by)"
            )

    def _keys_of(self, events: list[Event], aggregate_id: str) -> list[str | None]:
        """What the outbox orders deliveries by; asked before anything is stored, for a key may be unreadable."""
        if self._outbox is None:
            return []
        model = self._outbox.get_model()
        has_keys = isinstance(model, type) and issubclass(model, OutboxMessage)
        return [
            definition_of(type(each)).key_of(each) or aggregate_id if has_keys else None for each in events
        ]

    def _publish(self, events: list[Event], keys: list[str | None], recorded: list[RecordedEvent]) -> None:
        if self._outbox is None:
            return
        if len(recorded) != len(events):
            raise WiringError(
                f"{type(self._store).__name__}.save() returned no RecordedEvent for each event, so the outbox would get other "
                "ids (roll back, and let it return them)"
            )
        for event, key, each in zip(events, keys, recorded, strict=True):
            with correlate(each.correlation_id or str(each.id)):  # what is in hand says the same, and wins
                register(self._outbox, event, id=each.id, meta=dict(each.meta) or None, key=key)

    async def _take_snapshot(self, aggregate: A) -> None:
        try:
            snapshot = snapshot_of(aggregate)
            async with savepoint_async(self._store):
                await self._store.save_snapshot(snapshot)
        except Exception as error:  # noqa: BLE001  (the events are what counts: whatever it is, they stay saved)
            self._log("no snapshot of %s was taken: %s", aggregate.aggregate_id, error)
        else:
            aggregate._history.snapshot_at = snapshot.version

    def _log(self, text: str, aggregate_id: str, error: Exception) -> None:
        name = self._class.__name__
        logger.warning(
            text,
            f"{name} {aggregate_id!r}",
            error if isinstance(error, InvalidSnapshot) else type(error).__name__,
            extra={"aggregate_type": name, "aggregate_id": aggregate_id},
        )


__all__ = ["AsyncAggregateRepository"]
