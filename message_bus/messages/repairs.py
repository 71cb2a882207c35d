"""What the class statement and `dataclass(slots=True)` leave undone for message classes.

Annotations of a class inside a function may name what only that function knows: they are evaluated while it
runs. `slots=True` makes a second class, whose methods' `super()` still means the first. Called by `finishing`
only.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any


def function_around(cls: type) -> types.FrameType | None:
    """Return the frame of the running function that defines `cls`; None for a class of a module."""
    function, local, _ = cls.__qualname__.rpartition(".<locals>.")
    frame = sys._getframe(1) if local else None
    while frame is not None and frame.f_code.co_qualname != function:
        frame = frame.f_back
    return frame


def resolve_local_annotations(cls: type) -> None:
    """Evaluate the annotations of a class inside a function. What cannot be found yet stays as it is."""
    frame = function_around(cls)
    own: dict[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063  (3.14 finds names by itself)
    if frame is None:
        return
    names = {**frame.f_locals, cls.__name__: cls, **cls.__dict__}
    for name, hint in own.items():
        if isinstance(hint, str):
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints = typing.get_type_hints(holder, frame.f_globals, names, include_extras=True)
            except (NameError, AttributeError, TypeError, SyntaxError):
                continue  # a name that comes later: definition_of() tries again, and says so
            own[name] = hints[name]


def point_super_at(cls: type) -> None:
    """Let `super()` in the methods of a class that was made again mean the new one. (Python 3.14 does.)"""
    for value in list(cls.__dict__.values()):
        for function in _functions_of(value):
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                if name == "__class__":
                    cell.cell_contents = cls


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    candidates: tuple[Any, ...] = (value,)
    if isinstance(value, property):
        candidates = (value.fget, value.fset, value.fdel)
    elif hasattr(value, "__func__"):
        candidates = (value.__func__,)
    for candidate in candidates:
        if isinstance(candidate, types.FunctionType):
            yield candidate
