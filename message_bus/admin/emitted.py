"""What a message has brought about, as a tree of plain values. No database, no clock.

    found ──► family (who belongs to it, generation by generation, as many as are told) ──► tree

A message that is registered while another is in hand has that one's id as its causation id. `why` finds all that have the
same correlation id; which of them descend from the message is decided here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

MOST_EMITTED: Final = 200  # messages told of
MOST_GENERATIONS: Final = 50  # a message that registers its successor, again and again, would have no end


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """A message that was registered while another was handled, and what it has brought about itself.

    `position`: in the outbox; `recorded`: in the event log; both, if an aggregate has put its event into both; none while it
    is delayed, until `due_at`. `state`: as that of a `Life`. `emitted`: in the order of time.
    """

    id: UUID
    type: str
    message: str
    key: str | None
    state: str
    created_at: datetime
    position: int | None
    recorded: int | None
    due_at: datetime | None
    emitted: tuple[Emitted, ...]


class Found(NamedTuple):
    """A message of the same story, as the logs and the schedule have it."""

    id: UUID
    type: str
    message: str
    key: str | None
    created_at: datetime
    caused_by: str | None
    position: int | None = None
    recorded: int | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """The descendants of a message: by the id of whoever brought them about. `more`: there are others that are not here."""

    members: tuple[Found, ...]
    children: Mapping[str, Sequence[Found]]
    more: bool


def merged(*places: Iterable[Found]) -> list[Found]:
    """One for each message, wherever it was found; those of later places add where else it is."""
    found: dict[UUID, Found] = {}
    for each in (each for place in places for each in place):
        known = found.get(each.id)
        found[each.id] = (
            each
            if known is None
            else known._replace(
                position=known.position or each.position, recorded=known.recorded or each.recorded
            )
        )
    return list(found.values())


def family_of(message_id: UUID, found: Iterable[Found]) -> Family:
    """Those that descend from the message, the nearest generations first."""
    by_cause: dict[str, list[Found]] = defaultdict(list)
    for each in sorted(found, key=lambda each: (each.created_at, each.position or each.recorded or 0)):
        if each.caused_by is not None:
            by_cause[each.caused_by].append(each)
    members: list[Found] = []
    children: dict[str, Sequence[Found]] = {}
    seen = {str(message_id)}
    parents, more = [str(message_id)], False
    for _ in range(MOST_GENERATIONS):
        generation: list[Found] = []
        for parent in parents:
            new = [each for each in by_cause.get(parent, ()) if str(each.id) not in seen]
            told = new[: MOST_EMITTED - len(members) - len(generation)]
            more |= len(told) < len(new)
            seen.update(str(each.id) for each in told)
            children[parent] = told
            generation += told
        members += generation
        parents = [str(each.id) for each in generation]
    more |= any(by_cause.get(parent) for parent in parents)
    return Family(tuple(members), children, more)


def tree_of(message_id: UUID, family: Family, states: Mapping[UUID, str]) -> tuple[Emitted, ...]:
    """What the message has brought about. `states`: what has become of each member."""
    return tuple(
        Emitted(
            id=each.id,
            type=each.type,
            message=each.message,
            key=each.key,
            state=states[each.id],
            created_at=each.created_at,
            position=each.position,
            recorded=each.recorded,
            due_at=each.due_at,
            emitted=tree_of(each.id, family, states),
        )
        for each in family.children.get(str(message_id), ())
    )
