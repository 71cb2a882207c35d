"""What a dispatch decides, without running anything: which message is next, when a circle is cut, which error counts.

    handle(message) ──► in hand ──► handlers ──emit──► queue ──► in hand ──► ...      breadth first

The queue is local to one call of `handle`. Both buses are thin shells around it: they call or await the handlers.
Pure: no clock, no threads, no asyncio, no logging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from message_bus.bus.outcome import Failure
from message_bus.errors import (
    AsyncHandlerOnSyncBus,
    CascadeLimitExceeded,
    MessageDefinitionError,
    Reject,
    RetryLater,
    Unavailable,
)
from message_bus.messages.definition import definition_of
from message_bus.messages.envelope import Envelope, new_envelope
from message_bus.messages.message import Message

MAX_NESTING = 64  # calls of handle() inside handle(): each takes some frames of Python's own limit of 1,000
UNCOUNTED_DEPTH = 4  # a handler may well publish thousands of events at once; deeper down that is a circle


ALWAYS_RAISED = (CascadeLimitExceeded, AsyncHandlerOnSyncBus)
"""Errors that are nobody's business but the programmer's: they leave a dispatch even through event handlers."""


class Attempt:
    """One call of a handler by a middleware, which may catch its error; `outer`: the attempt that it is part of."""

    __slots__ = ("outer",)

    def __init__(self, outer: Attempt | None) -> None:
        self.outer = outer

    def includes(self, attempt: Attempt | None) -> bool:
        """Whether `attempt` is this one or a part of it."""
        while attempt is not None and attempt is not self:
            attempt = attempt.outer
        return attempt is self


class Emission:
    """A message of a dispatch: who emitted it, and what was in hand then. Its envelope is made when first asked for."""

    __slots__ = ("attempt", "emitter", "envelope", "message", "parent")

    def __init__(
        self,
        message: Message,
        *,
        parent: Emission | None = None,
        emitter: object = None,
        envelope: Envelope | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        self.attempt = attempt
        self.message = message
        self.parent = parent
        self.emitter = emitter
        self.envelope = envelope


class Cascade:
    """The local state of one dispatch: its queue, which of its messages is in hand, and what failed."""

    __slots__ = ("correlation_id", "crowd", "depth", "emissions", "failures", "in_hand", "outermost", "taken")

    def __init__(
        self,
        root: Emission | None,
        *,
        depth: int = 0,
        correlation_id: str | None = None,
        outer: Cascade | None = None,
    ) -> None:
        self.in_hand = root
        self.outermost: Cascade | None = None if outer is None else outer.outermost or outer
        self.crowd: float = 0
        self.depth = depth
        self.correlation_id = correlation_id
        self.emissions: list[Emission] = []
        self.taken = 0
        self.failures: list[Failure] = []

    def emit(self, message: Message, emitter: object = None, attempt: Attempt | None = None) -> None:
        """Put a message at the end of the queue."""
        self.emissions.append(Emission(message, parent=self.in_hand, emitter=emitter, attempt=attempt))

    def take(self, limit: int) -> Message | None:
        """Take the next message in hand; None when the queue is empty.

        Raises: CascadeLimitExceeded if it would be more than `limit`.
        """
        if self.taken == len(self.emissions):
            return None
        emission = self.emissions[self.taken]
        if self.taken >= limit:
            raise CascadeLimitExceeded(limit, name_of(emission.message))
        self.taken += 1
        self.in_hand = emission
        return emission.message

    def take_all(self) -> list[Message]:
        """Empty the queue at once; what is in hand stays in hand."""
        messages = [emission.message for emission in self.emissions[self.taken :]]
        self.taken = len(self.emissions)
        return messages

    def take_of(self, attempt: Attempt) -> list[Message]:
        """Take what was emitted in `attempt` out of the queue."""
        mine = [each for each in self.emissions[self.taken :] if attempt.includes(each.attempt)]
        rest = [each for each in self.emissions[self.taken :] if each not in mine]
        self.emissions[self.taken :] = mine + rest
        self.taken += len(mine)
        return [each.message for each in mine]

    def drop(self, mark: int) -> None:
        """Forget what was emitted since there were `mark` emissions: its handler failed."""
        del self.emissions[mark:]
        self.taken = min(self.taken, mark)

    def forget(self, attempt: Attempt) -> None:
        """Forget what was emitted in `attempt`: it failed. Others, which may run at the same time, keep theirs."""
        for emission in self.emissions[self.taken :]:
            if attempt.includes(emission.attempt):
                self.emissions.remove(emission)

    def emitted(self, emitter: object = None) -> list[Message]:
        """What was emitted so far: by `emitter`, or by anybody."""
        return [each.message for each in self.emissions if emitter is None or each.emitter is emitter]

    def join_crowd(self, limit: int, message: Message) -> Cascade | None:
        """Count a dispatch deep inside of another one, whose handlers run at once; return where `crowd` is to be lowered.

        A circle of handlers that run at once doubles on every level, so that memory ends before its depth does.

        Raises: CascadeLimitExceeded beyond `limit`, and for the outermost dispatch from then on.
        """
        if self.outermost is None or self.depth <= UNCOUNTED_DEPTH:
            return None
        if self.outermost.crowd >= limit:
            self.outermost.crowd = inf
            raise CascadeLimitExceeded(limit, name_of(message))
        self.outermost.crowd += 1
        return self.outermost

    def envelope(self) -> Envelope | None:
        """The envelope of the message in hand, and with it those of its ancestors that have none yet."""
        unmade: list[Emission] = []
        emission = self.in_hand
        while emission is not None and emission.envelope is None:
            unmade.append(emission)
            emission = emission.parent
        envelope = None if emission is None else emission.envelope
        for emission in reversed(unmade):
            headers = (
                {"correlation_id": self.correlation_id} if envelope is None and self.correlation_id else None
            )
            envelope = emission.envelope = new_envelope(emission.message, parent=envelope, headers=headers)
            emission.parent = None
        return envelope


@dataclass(frozen=True, slots=True)
class Route:
    """What is to be run for one message type, composed when its handlers were registered.

    `label`: what kind of message it is, and its key in the sync bus's results. `handlers`: as they were given. `calls`:
    one `call(message, context, *args, **kwargs)` for each of them. `only`: `call(message, context)` if there is exactly
    one handler, else None: the straight line of `handle`.
    """

    label: Literal["command", "event", "query"]
    handlers: tuple[Any, ...]
    calls: tuple[Any, ...]
    only: Any


def nesting(outer: Cascade | None, message: Message, limit: int) -> int:
    """How deep a dispatch inside `outer` is.

    Raises: CascadeLimitExceeded beyond `limit`, or beyond what Python's stack carries.
    """
    depth = 0 if outer is None else outer.depth + 1
    limit = min(limit, MAX_NESTING)
    if depth > limit:
        raise CascadeLimitExceeded(limit, name_of(message))
    return depth


def decisive(message: Message, errors: Sequence[Exception]) -> Exception:
    """The one error that a message's failed handlers come to (G8: an outage outweighs a verdict about the message)."""
    if len(errors) == 1:
        return errors[0]
    for family in (Unavailable, Reject, RetryLater):
        for error in errors:
            if isinstance(error, family):
                return error
    return failed(message, errors)


def failed(message: Message, errors: Sequence[Exception]) -> ExceptionGroup[Exception]:
    """The errors of several event handlers as one."""
    plural = "s" if len(errors) > 1 else ""
    return ExceptionGroup(f"{len(errors)} event handler{plural} failed handling {name_of(message)!r}", errors)


def name_of(message: Message | type[Message]) -> str:
    """The type name of a message or message class, for texts."""
    cls = message if isinstance(message, type) else type(message)
    try:
        return definition_of(cls).name
    except MessageDefinitionError:
        return cls.__name__
