"""What an observer is told, and how a bus tells several of them. Plain values; imports nothing of what it observes.

    bus.observe(metrics) ──► registering ─► writing ─► received ─► attempting ─► recording        (around, or after it)
                             leased, woken, out_of_reach, housekept, measured                     (facts)
                             loading, storing, saga                                                (event sourcing)

The buses, the write path, the delivery engine and the relay call it through `Observers`, which keeps what an observer
raises away from the messages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal
from uuid import UUID

logger: Final = logging.getLogger("message_bus.observability")

Around = AbstractContextManager[Any] | None
"""What is put around something: entered before, left after it, with its error if it raised. None: nothing."""

Verdict = Literal["delivered", "passed over", "held", "retrying", "dead"]
LeaseChange = Literal["claimed", "taken over", "lost", "released"]
Cause = Literal["commit", "notification", "poll", "timer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A message that is being put into an outbox. What an observer adds to `headers` is stored with the message."""

    id: UUID | Any
    type: str
    message: str
    key: str | None
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One partition of one subscription, and the log that it reads: "outbox" or "events".

    `handler`: the outbox handler, projection or process manager that works on it; None in what was read from the database.
    """

    subscription: str
    partition: int
    log: str
    handler: Any = field(default=None, compare=False, repr=False)


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at one message. `row` is an OutboxMessage: id, message (its type's name), key, headers, position, created_at.

    `number`: from 1. `waited`: seconds since the message was written, by the database's clock, as far as that is known
    without asking. `passed_over`: known when the attempt ends; it had no handler here.
    """

    part: Part
    row: Any
    number: int
    waited: float | None
    passed_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one commit records of one message; `error` if its attempt failed."""

    row: Any
    verdict: Verdict
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one commit records. `seconds`: since the first of its messages was begun."""

    part: Part
    outcomes: Sequence[Outcome]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionGauges:
    """How far one partition is. `lag`: messages behind the checkpoint, `lag_seconds`: age of the first of them; 0: none.

    `retrying`, `held`, `dead`: what is recorded now. None: it does not know where to start.
    """

    part: Part
    lag: int | None
    lag_seconds: float | None
    retrying: int = 0
    held: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What a relay has read from the database: the state of the logs it serves.

    `outbox_rows` is the distance from the oldest row to the last position: counting would read the whole table.
    `watermark_age`: by log, seconds for which a transaction has held back its readers.
    """

    partitions: Sequence[PartitionGauges]
    outbox_rows: int
    outbox_oldest_seconds: float
    delayed: int
    due: int
    watermark_age: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(slots=True, kw_only=True)
class SagaRun:
    """One run of a saga. `status`: known when the run ends: "completed", "compensated" or "failed"."""

    saga_type: str
    saga_id: str
    status: str | None = None


class Observer:
    """Is told what a bus, its outbox and the delivery engine do: derive from it, and override what you want to know.

    Every method does nothing by itself. They are called from any thread or task, while messages wait: be quick, block
    nowhere. What they raise is logged and changes nothing, but for `middleware`, which is part of the handlers' call.
    """

    wants_gauges: bool = False
    """Whether a relay is to read the state of its logs from the database from time to time, for `measured`."""

    def middleware(self, bus: Any) -> Any:
        """Return a middleware for this bus, an async one for an AsyncMessageBus; None for none."""
        return None

    def registering(self, registration: Registration) -> Around:
        """Around the registration of a message in an outbox, by a bus with this observer."""
        return None

    def writing(self, rows: Sequence[Any]) -> Around:
        """Around the INSERT of such messages, just before their transaction commits; `rows` are OutboxMessages."""
        return None

    def received(self, part: Part, rows: Sequence[Any], seconds: float) -> None:
        """New messages were read from the log; it took so many seconds."""

    def attempting(self, attempt: Attempt) -> Around:
        """Around one attempt at one message; left with the error of one that failed."""
        return None

    def recording(self, batch: Batch) -> Around:
        """Around the commit that records what became of messages. Left with an error, nothing of it is so."""
        return None

    def leased(self, part: Part, change: LeaseChange) -> None:
        """Called when the lease of a partition has changed. "taken over": from a worker that died or was silent too long."""

    def woken(self, part: Part, cause: Cause) -> None:
        """Called when a partition of a relay that waited has something to do.

        "commit": a transaction of this process; "notification": one elsewhere; "poll": found by looking; "timer": it was
        to be tried again.
        """

    def out_of_reach(self, part: Part, is_out: bool) -> None:
        """Something that a subscription needs went out of reach, or is back (G8)."""

    def housekept(self, promoted: int, pruned: int) -> None:
        """So many delayed messages have entered the outbox, so many old ones were removed."""

    def measured(self, gauges: Gauges) -> None:
        """Called when a relay has read the state of its logs (`wants_gauges`)."""

    def loading(self, aggregate_type: str) -> Around:
        """Around the loading of one aggregate."""
        return None

    def loaded(self, aggregate: Any) -> None:
        """Called when an aggregate was loaded. Whoever keeps it keeps it from being forgotten."""

    def storing(self, operation: str) -> Around:
        """Around one operation of an event store: "save", "load", "save_snapshot" ..."""
        return None

    def saga(self, run: SagaRun) -> Around:
        """Around a run of a saga, from its start or resumption to the status that it ends with."""
        return None


class Observers(Observer):
    """Several observers as one; what they raise is logged here and goes no further."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self.wants_gauges = any(each.wants_gauges for each in observers)

    def __iter__(self) -> Iterator[Observer]:
        """Those that it tells, in order."""
        return iter(self._observers)

    def registering(self, registration: Registration) -> Around:
        """Around the registration of a message."""
        return self._around("registering", registration)

    def writing(self, rows: Sequence[Any]) -> Around:
        """Around the INSERT of messages."""
        return self._around("writing", rows)

    def received(self, part: Part, rows: Sequence[Any], seconds: float) -> None:
        """Messages were read."""
        self._tell("received", part, rows, seconds)

    def attempting(self, attempt: Attempt) -> Around:
        """Around one attempt."""
        return self._around("attempting", attempt)

    def recording(self, batch: Batch) -> Around:
        """Around the commit that records."""
        return self._around("recording", batch)

    def leased(self, part: Part, change: LeaseChange) -> None:
        """A lease has changed."""
        self._tell("leased", part, change)

    def woken(self, part: Part, cause: Cause) -> None:
        """A partition has something to do."""
        self._tell("woken", part, cause)

    def out_of_reach(self, part: Part, is_out: bool) -> None:
        """An outage has begun, or ended."""
        self._tell("out_of_reach", part, is_out)

    def housekept(self, promoted: int, pruned: int) -> None:
        """The housekeeper has done something."""
        self._tell("housekept", promoted, pruned)

    def measured(self, gauges: Gauges) -> None:
        """The state of the logs was read."""
        self._tell("measured", gauges)

    def loading(self, aggregate_type: str) -> Around:
        """Around the loading of an aggregate."""
        return self._around("loading", aggregate_type)

    def loaded(self, aggregate: Any) -> None:
        """An aggregate was loaded."""
        self._tell("loaded", aggregate)

    def storing(self, operation: str) -> Around:
        """Around an operation of an event store."""
        return self._around("storing", operation)

    def saga(self, run: SagaRun) -> Around:
        """Around a run of a saga."""
        return self._around("saga", run)

    def _tell(self, name: str, *args: Any) -> None:
        for each in self._observers:
            try:
                getattr(each, name)(*args)
            except Exception as error:  # noqa: BLE001  (whatever an observer raises)
                _log(each, name, error)

    def _around(self, name: str, *args: Any) -> AbstractContextManager[Any]:
        guards: list[_Guard] = []
        for each in self._observers:
            try:
                around = getattr(each, name)(*args)
            except Exception as error:  # noqa: BLE001  (whatever an observer raises)
                _log(each, name, error)
                continue
            if around is not None:
                guards.append(_Guard(each, name, around))
        if not guards:
            return _NOTHING
        return guards[0] if len(guards) == 1 else _all(guards)


def guarded(observer: Observer | None) -> Observers | None:
    """The same observer, or a bus's own, such that what it raises goes no further; None stays None."""
    if observer is None or isinstance(observer, Observers):
        return observer
    return Observers((observer,))


class _Guard:
    """A context manager of an observer, whose own errors are logged, and which swallows none of anybody else."""

    __slots__ = ("_around", "_entered", "_name", "_observer")

    def __init__(self, observer: Observer, name: str, around: AbstractContextManager[Any]) -> None:
        self._observer = observer
        self._name = name
        self._around = around
        self._entered = False

    def __enter__(self) -> Any:
        try:
            entered = self._around.__enter__()
        except Exception as error:  # noqa: BLE001  (whatever an observer raises)
            _log(self._observer, self._name, error)
            return None
        self._entered = True
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        try:
            self._around.__exit__(kind, error, traceback)
        except BaseException as raised:
            if raised is error:
                return  # a generator lets the error through by raising it again
            if not isinstance(raised, Exception):
                raise
            _log(self._observer, self._name, raised)


@contextmanager
def _all(guards: Sequence[_Guard]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(each) for each in guards]


def _log(observer: Observer, name: str, error: BaseException) -> None:
    logger.error(
        "an observer failed (%s.%s); the messages are not touched by it",
        type(observer).__name__,
        name,
        exc_info=error,
    )


@contextmanager
def _nested(rows: Sequence[Any], observers: Sequence[Observer]) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in observers:
            around = observer.writing([row for row in rows if row.observer is observer])
            if around is not None:
                stack.enter_context(around)
        yield


def around_writing(rows: Sequence[Any]) -> AbstractContextManager[Any]:
    """What the observers of those who have registered these rows put around their INSERT."""
    observers: list[Observer] = []
    for row in rows:
        observer = row.observer
        if observer is not None and observer not in observers:
            observers.append(observer)
    return _nested(rows, observers) if observers else _NOTHING


_NOTHING: Final[AbstractContextManager[Any]] = nullcontext()


def nothing() -> AbstractContextManager[Any]:
    """Around something that nobody observes."""
    return _NOTHING
