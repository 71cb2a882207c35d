"""Runs a function in a Python whose clocks are wrong: `python -m tests.faults.clocks OFFSET SWING module:function ARGS...`

The wall clock is OFFSET seconds off and jumps back and forth by SWING seconds, each second; `time.monotonic` is off by
OFFSET, too, but never jumps. All is in place before anything else is imported. `main` is for the nursery: it becomes
such a Python.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from importlib import import_module
from typing import Any, Final

_NANO: Final = 1_000_000_000


def main(arguments: list[str]) -> None:
    """Become such a process."""
    os.execv(sys.executable, [sys.executable, "-m", __name__, *arguments])  # noqa: S606


def shift(offset: float, swing: float) -> None:
    """Put the clocks of this process wrong."""
    true_time, true_ns = time.time, time.time_ns
    true_monotonic, true_monotonic_ns = time.monotonic, time.monotonic_ns
    true_datetime = dt.datetime

    def wrong() -> float:
        return offset + swing * (int(true_time()) % 2)

    class IsDatetime(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, true_datetime)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, true_datetime)

    class Datetime(true_datetime, metaclass=IsDatetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return true_datetime.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return true_datetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)

    time.time = lambda: true_time() + wrong()
    time.time_ns = lambda: true_ns() + int(wrong() * _NANO)
    time.monotonic = lambda: true_monotonic() + offset
    time.monotonic_ns = lambda: true_monotonic_ns() + int(offset * _NANO)
    dt.datetime = Datetime  # type: ignore[misc]


if __name__ == "__main__":
    shift(float(sys.argv[1]), float(sys.argv[2]))
    module, _, name = sys.argv[3].partition(":")
    getattr(import_module(module), name)(sys.argv[4:])
