"""What the base classes with hooks share: a derived class defines `_handle`, or a `handle` of its own.

Called when a handler class is defined; the buses and the delivery engine only ever call `handle`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from message_bus.errors import WiringError

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:

    def abstract_here(method: F) -> F:
        """Type checkers cannot know that a `handle` of its own makes a class complete."""
        return method
else:
    abstract_here = abstractmethod


def allow_own_handle(cls: Any, base: Any) -> None:
    """Let a class with a `handle` of its own do without `_handle`, which nobody calls then."""
    if cls.handle is not base.handle and cls._handle is base._handle:
        cls._handle = _missing


def _missing(handler: object, *_: object, **__: object) -> NoReturn:
    raise WiringError(
        f"{type(handler).__name__!r} has a handle() of its own and no _handle() (define _handle, or do not call "
        "super().handle())"
    )
