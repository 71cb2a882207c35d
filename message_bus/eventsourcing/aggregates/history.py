"""What an aggregate knows of its own events. Pure; `AggregateRoot` and the repositories read and write it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Final
from uuid import UUID

from message_bus.messages import Event

_IMMUTABLE: Final = frozenset(
    {
        *(str, int, float, bool, bytes, type(None), Decimal, UUID),
        *(dt.datetime, dt.date, dt.time, dt.timedelta),
    }
)


@dataclass(slots=True, eq=False)
class History:
    """What an aggregate knows of its own events; its repository reads and writes it, too.

    `version`: events in the state. `stream`: where they are stored, None if nowhere yet. `snapshot_at`: the version of
    the newest snapshot that is known to be usable.
    """

    aggregate_id: str | None = None
    version: int = 0
    uncommitted: list[Event] = field(default_factory=list[Event])
    stream: str | None = None
    snapshot_at: int = 0
    is_applying: bool = False


def is_immutable(event: Event) -> bool:
    """Does it hold nothing that could be changed from outside? (Not: has it a class that is frozen.)"""
    values = getattr(event, "__dict__", None)
    if values is None:
        return False
    return all(type(value) in _IMMUTABLE or isinstance(value, Enum) for value in values.values())


__all__ = ["History", "is_immutable"]
