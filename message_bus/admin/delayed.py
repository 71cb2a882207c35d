"""Delayed messages as plain values. Pure. `schedule` reads and cancels them; the command line prints them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from message_bus.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ScheduledMessage:
    """A message that enters the outbox when it is due.

    `type`: "COMMAND" or "EVENT". `message`: the type's name. `payload` and `meta` are there only if they were asked for,
    as they are stored: a payload may hold secrets.
    """

    id: UUID
    type: str
    message: str
    key: str | None
    due_at: datetime
    created_at: datetime
    payload: Any = field(default=None, repr=False)
    meta: Any = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class CancelReport:
    """What `cancel` took out of the schedule; with `dry_run`, what it would have taken.

    `missing`: ids that are not delayed, or no longer: they have entered the outbox, or were cancelled, or never existed.
    """

    messages: tuple[ScheduledMessage, ...]
    missing: tuple[UUID, ...] = ()
    dry_run: bool = False

    @property
    def count(self) -> int:
        """How many messages."""
        return len(self.messages)


def uuids(subject: str, ids: Collection[UUID | str] | UUID | str) -> tuple[UUID, ...]:
    """Return ids of messages as UUIDs, each once.

    Raises: SettingsError naming every one that is no UUID.
    """
    given = (ids,) if isinstance(ids, str | UUID) else tuple(ids)
    found: dict[UUID, None] = {}
    problems: list[str] = []
    for each in given:
        try:
            found[each if isinstance(each, UUID) else UUID(each)] = None
        except (ValueError, AttributeError, TypeError):
            problems.append(f"{each!r} is no message id (ids are UUIDs)")
    if problems:
        raise SettingsError(subject, problems)
    return tuple(found)
