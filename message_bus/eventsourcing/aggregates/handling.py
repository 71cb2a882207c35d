"""Which method of an aggregate's class takes an event, and what is wrong with a class whose methods none would reach.

`@when(OrderPlaced)` names the method; without it the method is `on_order_placed`, the event's class name in snake case.
A suffix `Event` may be dropped: `on_user_created` takes `UserCreatedEvent`, unless there is an `on_user_created_event`.
Pure; asked by `AggregateRoot` when a class is defined, when an event type is met first, and when a repository is made.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final, Union

from message_bus.eventsourcing.when import Handler, can_take, handlers_of, marks_of
from message_bus.messages import Event
from message_bus.messages.finishing import derived_from
from message_bus.messages.repairs import function_around

_SUFFIX: Final = "Event"
_SELF_AND_EVENT: Final = 2
_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def names_for(event: type) -> tuple[str, ...]:
    """What a method may be called to take this event, the exact name first."""
    name = event.__name__
    short = name.removesuffix(_SUFFIX)
    return tuple(f"on_{_snake(each)}" for each in dict.fromkeys((name, short)) if each)


def handler_for(cls: type, event: type[Event]) -> Handler | None:
    """The function of this class that takes the event; None if there is none."""
    marked = handlers_of(cls).get(event)
    if marked is not None:
        return marked
    return next((found for name in names_for(event) if (found := _method(cls, name)) is not None), None)


def similar_method(cls: type, event: type) -> str | None:
    """The method whose name looks like a misspelling of the one that would take this event."""
    names = [name for name, _ in _on_methods(cls)]
    near = [difflib.get_close_matches(name, names, n=1, cutoff=0.8) for name in names_for(event)]
    return next((found[0] for found in near if found), None)


def problems_of(cls: type) -> list[str]:
    """What can be told to be wrong when a class is defined: of the methods that this very class defines.

    An `on_...` method whose parameter is annotated with an event must be called after it. One without annotation cannot
    be judged yet: the event may be defined later.
    """
    problems: list[str] = []
    own = vars(cls)
    marked = handlers_of(cls)
    for message, function in marked.items():
        name = function.__name__
        problems += _not_callable(name, function)
        if own.get(name) is not function:
            continue
        if not issubclass(message, Event):
            problems.append(
                f"{name!r} takes {message.__name__!r}, which is no event (aggregates apply events)"
            )
        problems += _not_awaited(name, function)
        problems += [
            f"{name!r} and {other!r} both take {message.__name__!r} (leave one)"
            for other in names_for(message)
            if other != name and inspect.isfunction(own.get(other)) and not marks_of(own[other])
        ]
    for name, function in _on_methods(cls, inherited=False):
        events = _events_of(cls, function)
        if events:
            problems += _misnamed(name, events) + _not_awaited(name, function) + _not_callable(name, function)
    return problems


def unreachable(cls: type) -> list[str]:
    """The `on_...` methods that no event defined so far would reach: asked when all events are likely to be defined.

    Methods that take something other than one event, by number of parameters or annotation, are left alone.
    """
    names = {name for event in derived_from(Event) for name in names_for(event)}
    return [
        f"{name!r} is no known event's handler (correct its name, mark it with @when, or annotate its parameter)"
        for name, function in _on_methods(cls)
        if name not in names and _may_take_an_event(cls, function)
    ]


def _snake(name: str) -> str:
    return _WORDS.sub("_", name).lower()


def _method(cls: type, name: str) -> Handler | None:
    found = inspect.getattr_static(cls, name, None)
    return found if inspect.isfunction(found) and not marks_of(found) else None


def _on_methods(cls: type, *, inherited: bool = True) -> Iterator[tuple[str, Handler]]:
    names = dict.fromkeys(name for base in (cls.__mro__ if inherited else (cls,)) for name in vars(base))
    for name in names:
        if name.startswith("on_") and (function := _method(cls, name)) is not None:
            yield name, function


def _misnamed(name: str, events: tuple[type[Event], ...]) -> list[str]:
    wanted = [each for event in events for each in names_for(event)]
    classes = ", ".join(event.__name__ for event in events)
    if len(events) > 1:
        return [f"{name!r} takes several events (mark it with @when({classes}))"]
    if name in wanted:
        return []
    return [
        f"{name!r} would never be given a {classes!r} (call it {wanted[-1]!r}, or mark it with @when({classes}))"
    ]


def _not_awaited(name: str, function: Handler) -> list[str]:
    if not inspect.iscoroutinefunction(function):
        return []
    return [
        f"{name!r} is async (make it a plain def: a handler only changes the state, also when it is replayed)"
    ]


def _not_callable(name: str, function: Handler) -> list[str]:
    return [] if can_take(function, _SELF_AND_EVENT) else [f"{name!r} must take (self, event)"]


def _may_take_an_event(cls: type, function: Handler) -> bool:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    needed = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if len(needed) != 1:
        return False
    hint = _hint_of(cls, function)
    return hint is None or hint is Any or (isinstance(hint, type) and issubclass(hint, Event))


def _events_of(cls: type, function: Handler) -> tuple[type[Event], ...]:
    """The event types, as such or in a union, that the first parameter is annotated with."""
    hint = _hint_of(cls, function)
    united = typing.get_origin(hint) in (Union, types.UnionType)
    hints = typing.get_args(hint) if united else (hint,)
    return tuple(
        each for each in hints if isinstance(each, type) and issubclass(each, Event) and each is not Event
    )


def _hint_of(cls: type, function: Handler) -> Any:
    """The annotation of the first parameter; None if it has none, or one that cannot be evaluated (yet)."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    annotated: Mapping[str, Any] = getattr(function, "__annotations__", {})
    hint = annotated.get(parameters[0].name) if parameters else None
    if not isinstance(hint, str):
        return hint
    frame = function_around(cls)
    known = {} if frame is None else {**frame.f_locals}
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}), known)["hint"]
    except Exception:  # noqa: BLE001  (whatever evaluating somebody's annotation raises)
        return None


__all__ = ["handler_for", "names_for", "problems_of", "similar_method", "unreachable"]
