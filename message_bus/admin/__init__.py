"""What operators do, as a Python API that the command line only wraps: so far the dead letters.

    dead_letters_async.py -> dead_letters.py   find, replay, discard, in the caller's transaction
    letters.py                                 the values: a letter, a selection, a report (pure)
    ground.py                                  what a change may stand on

Operators change what is recorded about deliveries only under the lock on the checkpoint rows (S3), and tell the worker
by adding two to their revision. They never handle a message: the worker that owns the subscription does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from message_bus.admin.dead_letters import DeadLetters
from message_bus.admin.letters import ChosenLetter, DeadLetter, DeadLetterReport

if TYPE_CHECKING:
    from message_bus.admin.dead_letters_async import AsyncDeadLetters

__all__ = ["AsyncDeadLetters", "ChosenLetter", "DeadLetter", "DeadLetterReport", "DeadLetters"]


def __getattr__(name: str) -> Any:
    if name == "AsyncDeadLetters":  # its imports need greenlet, which synchronous users need not have
        from message_bus.admin.dead_letters_async import AsyncDeadLetters

        return AsyncDeadLetters
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
