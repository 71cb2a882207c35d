"""When a snapshot is taken, and which one is used. Pure; asked by the repositories.

A snapshot is only a short cut: one that does not fit is passed over, for the events tell everything.
"""

from __future__ import annotations

from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
from message_bus.eventsourcing.stores.store import Snapshot


def is_usable(snapshot: Snapshot, cls: type[AggregateRoot], aggregate_id: str) -> bool:
    """Was it taken of this aggregate, by a class with the same form of state?"""
    return (
        snapshot.aggregate_id == aggregate_id
        and snapshot.aggregate_type == cls.aggregate_type
        and snapshot.schema_version == cls.snapshot_version
    )


def is_due(*, last: int, version: int, every: int | None) -> bool:
    """Has the aggregate passed a multiple of `every` events since its last usable snapshot, at version `last`?"""
    return every is not None and version // every > last // every


def snapshot_of(aggregate: AggregateRoot) -> Snapshot:
    """The state of an aggregate as it is now. Raises: InvalidSnapshot."""
    return Snapshot(
        aggregate_id=aggregate.aggregate_id,
        aggregate_type=type(aggregate).aggregate_type,
        version=aggregate.version,
        state=aggregate.to_dict(),
        schema_version=type(aggregate).snapshot_version,
    )


__all__ = ["is_due", "is_usable", "snapshot_of"]
