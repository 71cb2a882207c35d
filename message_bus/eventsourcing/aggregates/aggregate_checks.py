"""What is wrong with the class of an aggregate, as far as its class statement shows it. Pure; called by `AggregateRoot`."""

from __future__ import annotations

from typing import Any, Final

from message_bus.eventsourcing.aggregates.handling import handler_for
from message_bus.messages import Event
from message_bus.messages.annotations import own_fields

_OWN: Final = ("version", "stored_version", "uncommitted_events")


def problems_of(cls: type[Any]) -> list[str]:
    """All of it but what concerns handlers, which is told by `handling`."""
    declared = dict(own_fields(cls))
    problems = [
        f"{name!r} is what AggregateRoot has for itself (choose another name)"
        for name in _OWN
        if name in declared or name in vars(cls)
    ]
    problems += [
        f"{name} = {type(value).__name__}(...) would be shared by all instances (set it in __init__, or decorate the class "
        f"with @dataclass and write field(default_factory={type(value).__name__}))"
        for name in declared
        if isinstance(value := vars(cls).get(name), list | dict | set)
    ]
    if type(cls.snapshot_version) is not int or cls.snapshot_version < 1:
        problems.append("snapshot_version is not a number from 1")
    if not isinstance(cls.aggregate_type, str) or not cls.aggregate_type:
        problems.append("aggregate_type is not a name")
    ignored: Any = vars(cls).get("ignores", ())
    if not isinstance(ignored, tuple | list | set | frozenset):
        return [*problems, "ignores is no sequence (write ignores = (OrderViewed,))"]
    for event in ignored:
        if not (isinstance(event, type) and issubclass(event, Event)):
            problems.append("ignores holds something that is no event class")
        elif handler_for(cls, event) is not None:
            problems.append(f"{event.__name__!r} is ignored, but has a handler (leave one)")
    return problems


__all__ = ["problems_of"]
