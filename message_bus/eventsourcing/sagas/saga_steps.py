"""What a saga is made of: its steps, and what an action or a compensation is called with.

Plain values, checked when the saga is put together. Who runs them is `saga.py`; what comes next is decided in
`saga_progress.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from message_bus.delivery.retry import ExponentialBackoff, NoRetry, RetryPolicy
from message_bus.errors import SettingsError, names_of
from message_bus.eventsourcing.when import can_take

Action = Callable[["SagaContext"], Any]


class _Unsaid(int):
    """A number that is a default, told from the same one that is given."""


_ATTEMPTS: Final = _Unsaid(5)
_BACKOFF: Final[RetryPolicy] = ExponentialBackoff(initial_delay=0.1, max_delay=10.0)
_UNSAID: Final[RetryPolicy] = NoRetry()  # told from one that is given by its identity


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaContext:
    """What an action or a compensation is called with.

    `session`: its effects are committed together with the saga's own row; None in a step with outside effects. `outbox`:
    for `bus.register_outbox_message`; None there, too. `arguments`: what the saga was started with. `results`: what the
    earlier steps returned, by name. `result`: in a compensation, what its own step returned. `attempt`: from 1.

    `arguments` and results have been JSON: a UUID is a str again. They are copies, so changing them changes nothing.
    """

    saga: str
    saga_id: str
    step: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    result: Any = None
    session: Any = None
    outbox: Any = None
    attempt: int = 1
    compensating: bool = False

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of this step in this saga, and of nothing else: give it to whatever you call."""
        return f"{self.saga}/{self.saga_id}/{self.step}{'/undo' if self.compensating else ''}"


@dataclass(frozen=True, slots=True)
class SagaStep:
    """One step: `action(context)`, and `compensation(context)` which undoes it when a later step has failed.

    `compensation`: None says that there is nothing to undo. `name`: what the step is called in stored sagas and in `results`
    (default: that of the action's function); keep it when the function is renamed. `transactional`: the step's effects are
    written through `context.session` and happen exactly once (G5); False is for effects outside of the database, which
    happen at least once, with `context.idempotency_key`.

    `retry`, `max_attempts`: how often a failing action is tried before the saga is undone; by default once. One of them is
    enough: `max_attempts` alone waits 0.1 seconds first, then longer, up to 10; `retry` alone tries 5 times.
    `compensation_retry`, `max_compensation_attempts`: the same for the compensation, before it is left undone.
    """

    action: Action
    compensation: Action | None = None
    name: str = field(default="", kw_only=True)
    transactional: bool = field(default=True, kw_only=True)
    retry: RetryPolicy = field(default=_UNSAID, kw_only=True)
    max_attempts: int = field(default=_ATTEMPTS, kw_only=True)
    compensation_retry: RetryPolicy = field(default=_BACKOFF, kw_only=True)
    max_compensation_attempts: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.action, "__name__", ""))
        if self.retry is _UNSAID:
            is_once = isinstance(self.max_attempts, _Unsaid) or self.max_attempts == 1
            object.__setattr__(self, "retry", NoRetry() if is_once else _BACKOFF)
        if isinstance(self.max_attempts, _Unsaid):
            object.__setattr__(self, "max_attempts", int(self.max_attempts))


def checked_async(name: str, steps: Sequence[SagaStep]) -> tuple[SagaStep, ...]:
    """The steps of an AsyncSaga, whose actions may be async or not. Raises: SettingsError with every problem."""
    _refuse_one(f"AsyncSaga {name!r}", steps)
    return _checked(f"AsyncSaga {name!r}", name, steps, [])


def checked(name: str, steps: Sequence[SagaStep]) -> tuple[SagaStep, ...]:
    """The steps of a Saga, none of which is async. Raises: SettingsError with every problem."""
    _refuse_one(f"Saga {name!r}", steps)
    problems = [
        f"step {step.name!r} is async (use AsyncSaga)"
        for step in steps
        if isinstance(step, SagaStep) and any(map(_is_async, (step.action, step.compensation)))  # pyright: ignore[reportUnnecessaryIsInstance]
    ]
    return _checked(f"Saga {name!r}", name, steps, problems)


def _refuse_one(subject: str, steps: object) -> None:
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        given = type(steps).__name__
        raise SettingsError(
            subject, [f"its steps are a {given!r}, not a list (write [SagaStep(action, compensation)])"]
        )


def _checked(subject: str, name: str, steps: Sequence[SagaStep], problems: list[str]) -> tuple[SagaStep, ...]:
    if not name:
        problems.append("it has no name (its rows are found by it)")
    strangers = [step for step in steps if not isinstance(step, SagaStep)]  # pyright: ignore[reportUnnecessaryIsInstance]
    if strangers:
        problems.append(f"{type(strangers[0]).__name__!r} is no step (write SagaStep(action, compensation))")
        raise SettingsError(subject, problems)
    names = [step.name for step in steps]
    twice = {each for each in names if names.count(each) > 1}
    if twice:
        problems.append(f"more than one step is called {names_of(list(twice))} (give each a name=)")
    for step in steps:
        problems += _problems_of(step)
    if problems:
        raise SettingsError(subject, problems)
    return tuple(steps)


def _problems_of(step: SagaStep) -> list[str]:
    label = f"step {step.name!r}"
    problems: list[str] = []
    if not step.name or step.name == "<lambda>":
        problems.append("a step has no name (give it name=)")
    for what, call in (("action", step.action), ("compensation", step.compensation)):
        if call is not None and not callable(call):
            problems.append(f"{label}: its {what} cannot be called (give a function of the context)")
        elif call is not None and not can_take(call, 1):
            problems.append(f"{label}: its {what} must take (context), one SagaContext")
    for what, policy in (("retry", step.retry), ("compensation_retry", step.compensation_retry)):
        if isinstance(policy, type) or not callable(getattr(policy, "delay", None)):
            problems.append(f"{label}: {what} must be a RetryPolicy (an instance, such as FixedDelay(1.0))")
    for what, count in (
        ("max_attempts", step.max_attempts),
        ("max_compensation_attempts", step.max_compensation_attempts),
    ):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"{label}: {what} must be a whole number >= 1")
    return problems


def _is_async(call: object) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
