"""`Recorder`: a handler for tests that remembers what it was given. On both buses, for messages of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from message_bus.messages.envelope import Envelope
from message_bus.messages.message import Message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call: the message, copies of context and envelope as they were then, and further arguments."""

    message: Any
    context: Mapping[str, Any]
    envelope: Envelope | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Recorder:
    """A handler that records what it is given, and then returns `result` or raises `error`.

        recorder = Recorder()
        bus.set_event_handlers(OrderPlaced, [recorder])
        ...
        assert recorder.of(OrderPlaced) == [OrderPlaced(1)]

    Handles commands, events and queries, on MessageBus and AsyncMessageBus. To see what reaches the other handlers, put it
    around them: `bus.add_middleware(recorder.middleware)`, on an AsyncMessageBus `recorder.async_middleware`; an event
    with two handlers is then recorded twice. `error`: an exception or its class. `result` and `error` may be changed
    between calls. Safe for threads and tasks.
    """

    def __init__(
        self, *, result: Any = None, error: BaseException | type[BaseException] | None = None
    ) -> None:
        self.result = result
        self.error = error
        self.calls: list[Recorded] = []

    def __call__(self, message: Any, context: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Record the call; return `result`, or raise `error`."""
        self._record(message, context, args, kwargs)
        if self.error is not None:
            raise self.error
        return self.result

    def middleware(self, message: Any, context: Any, call_next: Any) -> Any:
        """Record the call and go on, for a MessageBus."""
        self._record(message, context)
        return call_next()

    async def async_middleware(self, message: Any, context: Any, call_next: Any) -> Any:
        """Record the call and go on, for an AsyncMessageBus."""
        self._record(message, context)
        return await call_next()

    @property
    def messages(self) -> list[Any]:
        """The messages, in the order of the calls."""
        return [call.message for call in self.calls]

    @property
    def contexts(self) -> list[Mapping[str, Any]]:
        """The contexts, as they were at each call."""
        return [call.context for call in self.calls]

    @property
    def envelopes(self) -> list[Envelope | None]:
        """The envelopes; None where a test has called the recorder itself."""
        return [call.envelope for call in self.calls]

    def of(self, message_type: type[M]) -> list[M]:
        """Return the messages of this type."""
        return [call.message for call in self.calls if isinstance(call.message, message_type)]

    def clear(self) -> None:
        """Forget all calls."""
        self.calls.clear()

    def _record(
        self, message: Any, context: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        given: Mapping[str, Any] = context if isinstance(context, Mapping) else {}
        envelope = given.get("envelope")
        if isinstance(envelope, Envelope):
            envelope = replace(envelope, meta=deepcopy(dict(envelope.meta)), headers=dict(envelope.headers))
        else:
            envelope = None
        seen = {**given, "envelope": envelope} if "envelope" in given else dict(given)
        self.calls.append(Recorded(message, seen, envelope, args, dict(kwargs or {})))
