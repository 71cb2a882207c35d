"""The moments between fetch and commit at which a process of the fault suite kills or freezes itself.

The package knows nothing of them: in the process that is to die the method of that name is wrapped before the relay is
made, so a method that is renamed is an error here, and production code pays nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, Final

IN_A_HANDLER: Final = "in a handler"

_METHODS: Final = {
    "the claim": ("message_bus.delivery.worker", "Worker", "claim"),
    "the look": ("message_bus.storage.watermark", "Watermark", "look"),
    "the reading": ("message_bus.delivery.reading", "Reader", "new"),
    "the handler": ("message_bus.delivery.attempts", "Attempts", "_call"),
    "the recording": ("message_bus.delivery.changes", "Recorder", "commit"),
    "the delivery rows": ("message_bus.delivery.changes", "Recorder", "_write"),
    "the checkpoint": ("message_bus.delivery.reading", "Reader", "advance"),
    "the COMMIT": ("message_bus.delivery.changes", "Recorder", "_commit"),
    "the careful reading": ("message_bus.delivery.reading", "Reader", "whole"),
    "a renewal": ("message_bus.delivery.lease", "Lease", "renew"),
    "the release": ("message_bus.delivery.worker", "Worker", "release"),
}
MOMENTS: Final = (*(f"{when} {what}" for what in _METHODS for when in ("before", "after")), IN_A_HANDLER)


@dataclass(frozen=True)
class Doom:
    """The `count`th time that the process comes to this moment it sends itself this signal."""

    moment: str
    count: int = 1
    signal: int = signal.SIGKILL


class _Armed:
    """What is to happen in this process, if anything is."""

    doom: Doom | None = None
    left = 0


def arm(doom: Doom | None, *, asynchronous: bool) -> None:
    """Make this process do it: wrap the method, in the colour of the application."""
    _Armed.doom = doom
    if doom is None:
        return
    assert doom.moment in MOMENTS, doom.moment
    _Armed.left = doom.count
    when, _, what = doom.moment.partition(" ")
    if what not in _METHODS:
        return
    module, name, method = _METHODS[what]
    owner = getattr(
        import_module(f"{module}_async" if asynchronous else module), f"Async{name}" if asynchronous else name
    )
    setattr(
        owner,
        method,
        (_wrapped_async if asynchronous else _wrapped)(getattr(owner, method), doom.moment, when),
    )


def come_to(moment: str) -> None:
    """This moment has come: die, or freeze, if it is the one."""
    doom = _Armed.doom
    if doom is not None and doom.moment == moment:
        _Armed.left -= 1
        if _Armed.left == 0:
            # to this thread: a signal to the process may be taken by another one, and this one would go on meanwhile
            signal.pthread_kill(threading.get_ident(), doom.signal)


def _wrapped(method: Callable[..., Any], moment: str, when: str) -> Callable[..., Any]:
    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            come_to(moment)
        result = method(*args, **kwargs)
        if when == "after":
            come_to(moment)
        return result

    return wrapper


def _wrapped_async(method: Callable[..., Any], moment: str, when: str) -> Callable[..., Any]:
    @wraps(method)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            come_to(moment)
        result = await method(*args, **kwargs)
        if when == "after":
            come_to(moment)
        return result

    return wrapper
