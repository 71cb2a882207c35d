"""The decorator that lets a test of the write path run under every driver."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def under_every_driver(test: Callable[..., None]) -> Callable[..., None]:
    """Run `test(room, …other fixtures)` with the fixture `play`; what follows `room` are fixtures as usual."""
    parameters = list(inspect.signature(test).parameters.values())

    @functools.wraps(test)
    def wrapper(play: Any, **fixtures: Any) -> None:
        play(lambda room: test(room, **fixtures))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    wrapper.__signature__ = inspect.Signature([inspect.Parameter("play", kind), *parameters[1:]])  # type: ignore[attr-defined]
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper
