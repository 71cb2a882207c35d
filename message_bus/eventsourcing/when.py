"""`@when(OrderPlaced)`: which method of a class takes which messages.

Aggregates, projections and process managers are told by it what to call. It only marks methods and reads the marks:
who calls them, with what and how often, is decided there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from message_bus.errors import NotAMessage, SettingsError
from message_bus.messages import Message

Handler = Callable[..., Any]
F = TypeVar("F", bound=Handler)

_MARK: Final = "__when__"


def when(*types: type[Message]) -> Callable[[F], F]:
    """Mark a method as the one that takes messages of these very types, not of types derived from them.

    A class inherits the marks of its bases. One that defines the method again, marked or not, has its own called; one that
    marks another method for the same type has that one called instead. `@when(A)` above `@when(B)` is `@when(A, B)`.

    Raises: SettingsError if no type is named, or what is marked is no method; NotAMessage for what is no message class.
    """
    if not types:
        raise SettingsError("@when", ["no message type is named (write @when(OrderPlaced))"])
    for cls in types:
        if not (isinstance(cls, type) and issubclass(cls, Message)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise NotAMessage(cls, _forgotten_types(cls))

    def mark(method: F) -> F:
        if not inspect.isfunction(method):
            problem = f"it stands above a {type(method).__name__} (put it directly above def)"
            raise SettingsError("@when", [problem])
        setattr(method, _MARK, (*types, *marks_of(method)))
        return cast("F", method)

    return mark


def marks_of(method: object) -> tuple[type[Message], ...]:
    """The types that a function, as it stands in a class, is marked with."""
    return cast("tuple[type[Message], ...]", getattr(method, _MARK, ()))


def handlers_of(cls: type) -> Mapping[type[Message], Handler]:
    """Return the function that takes each message type in this class, to be called as `function(instance, message, ...)`.

    Raises: SettingsError, naming all methods that claim a type which another of the same class claims as well.
    """
    names: dict[type[Message], str] = {}
    problems: list[str] = []
    for base in reversed(cls.__mro__):
        own = dict(_marked(base))
        if own:
            names = {message: name for message, name in names.items() if name not in own}
        claimed: dict[type[Message], str] = {}
        for name, types in own.items():
            for message in types:
                if claimed.setdefault(message, name) != name:
                    both = f"{claimed[message]!r} and {name!r}"
                    problems.append(f"{both} both take {message.__name__!r} (leave one)")
        names |= claimed
    if problems:
        raise SettingsError(f"class {cls.__name__!r}", problems)
    handlers = {message: getattr(cls, name) for message, name in names.items()}
    return MappingProxyType({message: call for message, call in handlers.items() if call is not None})


def can_take(function: Handler, count: int) -> bool:
    """Whether it can be called with so many positional arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # something built in: it has no signature
        return True
    return True


def _marked(cls: type) -> Iterator[tuple[str, tuple[type[Message], ...]]]:
    for name, value in vars(cls).items():
        if isinstance(value, staticmethod | classmethod) and marks_of(cast("Any", value).__func__):
            what = type(cast("Any", value)).__name__
            raise SettingsError(f"class {cls.__name__!r}", [f"{name!r} is a {what} (make it a plain method)"])
        if inspect.isfunction(value) and (types := marks_of(value)):
            yield name, types


def _forgotten_types(given: object) -> str | None:
    return (
        "was given to @when in place of a message type (write @when(OrderPlaced))"
        if callable(given)
        else None
    )


__all__ = ["Handler", "can_take", "handlers_of", "marks_of", "when"]
