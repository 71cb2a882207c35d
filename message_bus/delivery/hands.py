# Generated from hands_async.py by tests/tools/unasync.py: do not edit.
"""How many messages a process has in hand: any number, or, while one is handled carefully, that one alone (S6).

A message that kills the process would else take the blame of an innocent one beside it. One object is shared by all
workers of a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from message_bus._compat import Condition


class Hands:
    """Lets many in side by side, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._busy = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait until nobody is, or wants to be, alone; then have something in hand beside others."""
        with self._changed:
            while self._alone or self._waiting:
                self._changed.wait()
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody has anything in hand; then be the only one who has."""
        with self._changed:
            self._waiting += 1
            try:
                while self._alone or self._busy:
                    self._changed.wait()
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
