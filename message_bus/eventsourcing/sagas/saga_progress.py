"""What a saga does next, given how far it has come: pure decisions over plain values.

    running ──every step done──► completed
       └─a step failed──► compensating ──the steps that are done, last first──► compensated
                              └── a compensation failed for good: left undone ──► failed

The step that failed is not undone: it has not happened. `saga.py` carries out what is decided here, and stores the progress
after each step. No database, no clock, no randomness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from message_bus.delivery.retry import RetryPolicy
from message_bus.errors import Reject, RetryLater, WiringError
from message_bus.eventsourcing.sagas.saga_steps import SagaStep

Status = Literal["running", "compensating", "completed", "compensated", "failed"]
ENDED: Final = frozenset({"completed", "compensated", "failed"})

# Errors of the code, not of the world: the next attempt would meet them again. The second tuple by exact type, since
# what derives from these may well speak of the world.
_OF_THE_CODE: Final = (
    WiringError, Reject, TypeError, AttributeError, NameError, AssertionError, NotImplementedError, ImportError,
)  # fmt: skip
_OF_THE_CODE_EXACTLY: Final = (KeyError, IndexError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Done:
    """A step that has happened. `undone`: whether its compensation has, too, or was given up, with `error`."""

    name: str
    result: Any = None
    undone: Literal["no", "yes", "left"] = "no"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a saga has come. `trying`: a step with outside effects that was begun, and may have happened."""

    arguments: Mapping[str, Any]
    status: Status = "running"
    done: tuple[Done, ...] = ()
    trying: str | None = None
    failures: int = 0
    not_before: datetime | None = None
    failed_step: str | None = None
    error: str | None = None

    @property
    def results(self) -> dict[str, Any]:
        """What the steps that are done returned, by name."""
        return {done.name: done.result for done in self.done}

    @property
    def left_undone(self) -> tuple[str, ...]:
        """The steps that are done, and could not be undone."""
        return tuple(done.name for done in self.done if done.undone == "left")


@dataclass(frozen=True, slots=True)
class SagaOutcome:
    """What became of a saga.

    `status`: "completed"; "compensated": a step failed, and what had been done is undone; "failed": `left_undone` names the
    steps whose compensations failed for good. Or, if it has not ended yet, "running" or "compensating".
    """

    name: str
    id: str
    status: Status
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    failed_step: str | None = None
    error: str | None = None
    left_undone: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do."""
        return self.status in ENDED

    @property
    def ok(self) -> bool:
        """Whether every step is done."""
        return self.status == "completed"


# --- what comes next --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """Nothing."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing but to record how it has ended."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Let this time pass."""

    span: timedelta


@dataclass(frozen=True, slots=True)
class Announce:
    """Record that the step will be tried: it has effects outside of the database."""

    step: SagaStep


@dataclass(frozen=True, slots=True)
class Act:
    """Call the step's action."""

    step: SagaStep


@dataclass(frozen=True, slots=True)
class Undo:
    """Call the step's compensation."""

    step: SagaStep
    done: Done


Next = End | Finish | Wait | Announce | Act | Undo


def what_next(progress: Progress, steps: Sequence[SagaStep], *, now: datetime) -> Next:
    """Say what a saga with this progress does now."""
    if progress.status in ENDED:
        return End()
    if settled(progress, steps).status != progress.status:
        return Finish()
    if progress.not_before is not None and progress.not_before > now:
        return Wait(progress.not_before - now)
    if progress.status == "compensating":
        return next(_to_undo(progress, steps))
    step = steps[len(progress.done)]
    if not step.transactional and progress.trying != step.name:
        return Announce(step)
    return Act(step)


def changed(progress: Progress, steps: Sequence[SagaStep]) -> str | None:
    """Say why a saga with this progress cannot go on with these steps; None if it can.

    It can if the steps that are done, and the one that may be, are the first of them.
    """
    begun = [done.name for done in progress.done]
    if progress.trying is not None:
        begun.append(progress.trying)
    names = [step.name for step in steps]
    if progress.status in ENDED or names[: len(begun)] == begun:
        return None
    return f"it has begun with the steps {', '.join(begun)}, but is now defined as {', '.join(names) or 'nothing'}"


# --- what has happened --------------------------------------------------------------------------------------------------


def announced(progress: Progress, step: SagaStep) -> Progress:
    """The step is about to be tried."""
    return replace(progress, trying=step.name)


def succeeded(progress: Progress, steps: Sequence[SagaStep], step: SagaStep, result: Any) -> Progress:
    """The step's action has returned `result`."""
    done = (*progress.done, Done(step.name, result))
    return settled(_next_one(replace(progress, done=done, error=None)), steps)


def spoiled(progress: Progress, steps: Sequence[SagaStep], step: SagaStep, *, text: str) -> Progress:
    """The step has happened outside of the database, but the saga cannot go on: the step is undone, too."""
    progress = succeeded(progress, steps, step, None)
    given_up = replace(progress, status="compensating", failed_step=step.name, error=text)
    return settled(given_up, steps)


def failed(
    progress: Progress, steps: Sequence[SagaStep], step: SagaStep, error: Exception, *,
    text: str, now: datetime, chance: float,
) -> Progress:  # fmt: skip
    """The step's action has raised `error`: it is tried again later, or what was done before it is undone."""
    failures = progress.failures + 1
    wait = wait_after(error, failures=failures, policy=step.retry, most=step.max_attempts, chance=chance)
    if wait is not None:
        return replace(progress, failures=failures, not_before=now + wait, error=text)
    given_up = replace(progress, status="compensating", failed_step=step.name, error=text)
    return settled(_next_one(given_up), steps)


def undone(progress: Progress, steps: Sequence[SagaStep], step: SagaStep) -> Progress:
    """The step's compensation has returned."""
    return settled(_next_one(_marked(progress, step.name, undone="yes", error=None)), steps)


def undoing_failed(
    progress: Progress, steps: Sequence[SagaStep], step: SagaStep, error: Exception, *,
    text: str, now: datetime, chance: float,
) -> Progress:  # fmt: skip
    """The step's compensation has raised `error`: it is tried again later, or left, and the earlier steps are undone."""
    failures = progress.failures + 1
    wait = wait_after(
        error,
        failures=failures,
        policy=step.compensation_retry,
        most=step.max_compensation_attempts,
        chance=chance,
    )
    if wait is not None:
        return replace(progress, failures=failures, not_before=now + wait)
    return settled(_next_one(_marked(progress, step.name, undone="left", error=text)), steps)


def once_more(progress: Progress) -> Progress:
    """What was left undone is to be tried again."""
    if not progress.left_undone:
        return progress
    for name in progress.left_undone:
        progress = _marked(progress, name, undone="no", error=None)
    return replace(progress, status="compensating")


def settled(progress: Progress, steps: Sequence[SagaStep]) -> Progress:
    """The same progress, ended if nothing is left to do."""
    if progress.status == "running" and len(progress.done) >= len(steps):
        return replace(progress, status="completed")
    if progress.status == "compensating" and next(_to_undo(progress, steps), None) is None:
        return replace(progress, status="failed" if progress.left_undone else "compensated")
    return progress


def wait_after(
    error: Exception, *, failures: int, policy: RetryPolicy, most: int, chance: float
) -> timedelta | None:
    """Say how long to wait after the `failures`th failure; None: do not try again."""
    if isinstance(error, RetryLater):
        delay = error.delay or policy.delay(failures, chance=chance) or timedelta(seconds=1)
        return max(delay, timedelta(0))
    if isinstance(error, _OF_THE_CODE) or type(error) in _OF_THE_CODE_EXACTLY or failures >= most:
        return None
    return policy.delay(failures, chance=chance)


def _to_undo(progress: Progress, steps: Sequence[SagaStep]) -> Iterator[Undo]:
    for step, done in reversed(list(zip(steps, progress.done, strict=False))):
        if step.compensation is not None and done.undone == "no":
            yield Undo(step, done)


def _marked(
    progress: Progress, name: str, *, undone: Literal["no", "yes", "left"], error: str | None
) -> Progress:
    done = tuple(
        replace(each, undone=undone, error=error) if each.name == name else each for each in progress.done
    )
    return replace(progress, done=done)


def _next_one(progress: Progress) -> Progress:
    """Nothing is known yet of what comes next."""
    return replace(progress, trying=None, failures=0, not_before=None)


# --- as it is stored ----------------------------------------------------------------------------------------------------


def stored(progress: Progress) -> dict[str, Any]:
    """The progress as JSON would give it back, without what the row has columns for."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(progress))
    return {name: value for name, value in data.items() if name not in ("status", "error")}


def restored(data: Mapping[str, Any], *, status: str, error: str | None) -> Progress:
    """The progress that was stored."""
    return msgspec.convert({**data, "status": status, "error": error}, Progress)
