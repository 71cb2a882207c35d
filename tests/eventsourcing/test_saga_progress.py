"""What a saga does next: tables of cases, and properties over every way in which steps can fail."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import FixedDelay, NoRetry, Reject, RetryLater, RetryPolicy, SettingsError
from message_bus.errors import SagaChanged
from message_bus.eventsourcing.sagas import saga_progress
from message_bus.eventsourcing.sagas.saga_progress import (
    Act,
    Announce,
    Done,
    End,
    Finish,
    Progress,
    Status,
    Undo,
    Wait,
    changed,
    once_more,
    restored,
    settled,
    stored,
    wait_after,
    what_next,
)
from message_bus.eventsourcing.sagas.saga_steps import SagaContext, SagaStep, checked, checked_async
from message_bus.storage.event_tables import SAGA_STATES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def step(name: str, **options: Any) -> SagaStep:
    """A step with a compensation."""
    return SagaStep(print, print, name=name, **options)


A, B, C = step("a"), step("b"), step("c")
OUTSIDE = step("out", transactional=False)
LASTING = SagaStep(print, name="lasting")


@pytest.mark.parametrize(
    ("progress", "steps", "expected"),
    [
        (Progress({}), [A, B], Act(A)),
        (Progress({}, done=(Done("a"),)), [A, B], Act(B)),
        (Progress({}, done=(Done("a"), Done("b"))), [A, B], Finish()),
        (Progress({}), [], Finish()),
        (Progress({}, status="completed"), [A], End()),
        (Progress({}, status="compensated"), [A], End()),
        (Progress({}, status="failed"), [A], End()),
        (Progress({}), [OUTSIDE], Announce(OUTSIDE)),
        (Progress({}, trying="out"), [OUTSIDE], Act(OUTSIDE)),
        (Progress({}, not_before=NOW + timedelta(seconds=5)), [A], Wait(timedelta(seconds=5))),
        (Progress({}, not_before=NOW), [A], Act(A)),
        (
            Progress({}, status="compensating", done=(Done("a"), Done("b"))),
            [A, B, C],
            Undo(B, Done("b")),
        ),
        (
            Progress({}, status="compensating", done=(Done("a", 1), Done("b", undone="yes"))),
            [A, B, C],
            Undo(A, Done("a", 1)),
        ),
        (
            Progress({}, status="compensating", done=(Done("a"), Done("lasting"))),
            [A, LASTING, C],
            Undo(A, Done("a")),
        ),
        (Progress({}, status="compensating", done=(Done("lasting"),)), [LASTING, C], Finish()),
        (Progress({}, status="compensating"), [A], Finish()),
        (
            Progress({}, status="compensating", done=(Done("a"),), not_before=NOW + timedelta(seconds=1)),
            [A, B],
            Wait(timedelta(seconds=1)),
        ),
    ],
)
def test_what_comes_next(progress: Progress, steps: Sequence[SagaStep], expected: object) -> None:
    """The next thing to do follows from the progress, the steps and the clock alone."""
    assert what_next(progress, steps, now=NOW) == expected


@pytest.mark.parametrize(
    ("progress", "status"),
    [
        (Progress({}, done=(Done("a"),)), "completed"),
        (Progress({}, status="compensating"), "compensated"),
        (Progress({}, status="compensating", done=(Done("a", undone="yes"),)), "compensated"),
        (Progress({}, status="compensating", done=(Done("a", undone="left"),)), "failed"),
        (Progress({}, status="compensating", done=(Done("a"),)), "compensating"),
    ],
)
def test_how_it_ends(progress: Progress, status: Status) -> None:
    """The status is honest: what was given up makes it failed, and nothing else does."""
    assert settled(progress, [A]).status == status


@pytest.mark.parametrize(
    ("error", "failures", "expected"),
    [
        (ValueError(), 1, 2.0),
        (ValueError(), 2, 2.0),
        (ValueError(), 3, None),
        (Reject(), 1, None),
        (TypeError(), 1, None),
        (AttributeError(), 1, None),
        (NameError(), 1, None),
        (KeyError(), 1, None),
        (SettingsError("x", ["y"]), 1, None),
        (RetryLater(7), 1, 7.0),
        (RetryLater(7), 99, 7.0),
        (RetryLater(), 1, 2.0),
    ],
)
def test_retrying_programming_errors(error: Exception, failures: int, expected: float | None) -> None:
    """An ancestor's fault: an error of the code is met again by every attempt, so there is no other one."""
    wait = wait_after(error, failures=failures, policy=FixedDelay(2.0), most=3, chance=1.0)
    assert wait == (None if expected is None else timedelta(seconds=expected))


def test_an_error_that_derives_from_one_of_the_code_may_speak_of_the_world() -> None:
    """A KeyError is a slip; what derives from it, such as an AggregateNotFound, may be true later."""

    class NotThereYet(KeyError):
        """Speaks of the world."""

    assert wait_after(NotThereYet(), failures=1, policy=FixedDelay(1), most=3, chance=1.0) is not None
    assert wait_after(ValueError(), failures=1, policy=NoRetry(), most=3, chance=1.0) is None


@pytest.mark.parametrize(
    ("progress", "steps", "fits"),
    [
        (Progress({}), [B, C], True),
        (Progress({}, done=(Done("a"),)), [A, C], True),
        (Progress({}, done=(Done("a"),)), [A], True),
        (Progress({}, done=(Done("a"),)), [B, A], False),
        (Progress({}, done=(Done("a"), Done("b"))), [A], False),
        (Progress({}, done=(Done("a"),), trying="b"), [A, B, C], True),
        (Progress({}, done=(Done("a"),), trying="b"), [A, C], False),
        (Progress({}, status="completed", done=(Done("a"),)), [B], True),
        (Progress({}, status="compensating", done=(Done("a"),)), [B], False),
    ],
)
def test_a_definition_that_was_changed(progress: Progress, steps: Sequence[SagaStep], fits: bool) -> None:
    """A saga goes on if what it has begun are the first steps of the new definition."""
    assert (changed(progress, steps) is None) is fits


def test_the_words_are_those_of_the_table() -> None:
    """The pure module's words for how a saga stands are the ones that its rows may hold."""
    assert set(get_args(Status)) == set(SAGA_STATES)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=5,
)


@given(JSON, JSON, st.sampled_from(get_args(Status)), st.booleans())
def test_progress_survives_storage(argument: Any, result: Any, status: Status, waiting: bool) -> None:
    """What is read back is what was stored."""
    progress = Progress(
        {"x": argument},
        status=status,
        done=(Done("a", result, undone="left", error="e"), Done("b")),
        trying="c",
        failures=3,
        not_before=NOW if waiting else None,
        failed_step="c",
        error="boom",
    )
    assert restored(stored(progress), status=status, error="boom") == progress


# --- properties: whatever fails, wherever, for however long -------------------------------------------------------------


def run(
    steps: Sequence[SagaStep], failing: Sequence[int], undo_failing: Sequence[int], crash: Sequence[bool]
) -> tuple[Progress, list[str]]:
    """Carry out what is decided; `failing` says how many attempts of each step fail, `crash` when a turn is lost."""
    progress, log = Progress({"order": 7}), list[str]()
    left, undo_left, crashes = list(failing), list(undo_failing), list(crash)
    now = NOW
    for _ in range(10_000):
        match what_next(progress, steps, now=now):
            case End():
                return progress, log
            case Finish():
                after = settled(progress, steps)
            case Wait(span=span):
                now += span
                continue
            case Announce(step=this):
                after = saga_progress.announced(progress, this)
            case Act(step=this):
                index = steps.index(this)
                if left[index]:
                    left[index] -= 1
                    after = saga_progress.failed(
                        progress, steps, this, ValueError(), text="no", now=now, chance=0.5
                    )
                else:
                    after = saga_progress.succeeded(progress, steps, this, index)
                    if not (crashes and crashes[0]):
                        log.append(f"do {this.name}")
            case Undo(step=this, done=done):
                index = steps.index(this)
                assert done.result == index
                if undo_left[index]:
                    undo_left[index] -= 1
                    after = saga_progress.undoing_failed(
                        progress, steps, this, ValueError(), text="no", now=now, chance=0.5
                    )
                else:
                    after = saga_progress.undone(progress, steps, this)
                    if not (crashes and crashes[0]):
                        log.append(f"undo {this.name}")
        if not (crashes and crashes.pop(0)):  # else the turn was rolled back, effects and all
            progress = restored(stored(after), status=after.status, error=after.error)
    raise AssertionError("it never ended")


@st.composite
def sagas(draw: st.DrawFn) -> tuple[list[SagaStep], list[int], list[int]]:
    """Up to five steps, with and without compensation, inside and outside of the database."""
    count = draw(st.integers(0, 5))
    policies: list[RetryPolicy] = [NoRetry(), FixedDelay(1.0)]
    steps = [
        SagaStep(
            print,
            print if draw(st.booleans()) else None,
            name=f"s{n}",
            transactional=draw(st.booleans()),
            retry=draw(st.sampled_from(policies)),
            max_attempts=draw(st.integers(1, 3)),
            compensation_retry=FixedDelay(1.0),
            max_compensation_attempts=2,
        )
        for n in range(count)
    ]
    failures = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    return steps, draw(failures), draw(failures)


@given(sagas(), st.lists(st.booleans(), max_size=20))
def test_any_failure_at_any_step(
    saga: tuple[list[SagaStep], list[int], list[int]], crash: list[bool]
) -> None:
    """It always ends: with every step done once, or with those that were done undone once, last first."""
    steps, failing, undo_failing = saga
    progress, log = run(steps, failing, undo_failing, crash)
    done = [line.removeprefix("do ") for line in log if line.startswith("do ")]
    undone = [line.removeprefix("undo ") for line in log if line.startswith("undo ")]
    names = [each.name for each in steps]
    assert done == names[: len(done)]
    by_name = {each.name: each for each in steps}
    to_undo = [name for name in reversed(done) if by_name[name].compensation is not None]
    match progress.status:
        case "completed":
            assert (done, undone, progress.left_undone) == (names, [], ())
        case "compensated":
            assert undone == to_undo
            assert progress.failed_step == names[len(done)]
            assert progress.failed_step not in undone
        case "failed":
            assert progress.left_undone
            assert undone == [name for name in to_undo if name not in progress.left_undone]
        case other:
            raise AssertionError(other)


@given(sagas())
def test_what_was_left_undone_can_be_tried_again(saga: tuple[list[SagaStep], list[int], list[int]]) -> None:
    """After `once_more` exactly the compensations that were given up are next; a saga without any stays as it is."""
    steps, failing, undo_failing = saga
    progress, _ = run(steps, failing, undo_failing, [])
    again = once_more(progress)
    if not progress.left_undone:
        assert again == progress
        return
    undone = set[str]()
    while isinstance(following := what_next(again, steps, now=NOW), Undo):
        undone.add(following.step.name)
        again = saga_progress.undone(again, steps, following.step)
    assert undone == set(progress.left_undone)
    assert again.status == "compensated"


def test_a_spoiled_step_is_undone_as_well() -> None:
    """A step that has happened outside, and whose result cannot be stored, is among those that are undone."""
    progress = saga_progress.spoiled(Progress({}, done=(Done("a"),)), [A, OUTSIDE], OUTSIDE, text="no")
    assert progress.status == "compensating"
    assert what_next(progress, [A, OUTSIDE], now=NOW) == Undo(OUTSIDE, Done("out"))
    last = saga_progress.spoiled(Progress({}), [OUTSIDE], OUTSIDE, text="no")
    assert (last.status, last.failed_step) == ("compensating", "out")


# --- definitions --------------------------------------------------------------------------------------------------------


async def is_async(context: SagaContext) -> None:
    """An async action."""


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([A, A], "more than one step is called 'a'"),
        ([SagaStep(lambda context: None)], "a step has no name"),
        ([SagaStep(print, 3, name="x")], "its compensation cannot be called"),  # type: ignore[arg-type]
        ([step("x", retry=FixedDelay)], "retry must be a RetryPolicy"),
        ([step("x", max_attempts=0)], "max_attempts must be a whole number >= 1"),
        ([step("x", max_compensation_attempts=True)], "max_compensation_attempts must be"),
        ([print], "is no step (write SagaStep(action, compensation))"),
        ([SagaStep(is_async)], "step 'is_async' is async (use AsyncSaga)"),
    ],
)
def test_definitions_that_are_refused(steps: list[Any], problem: str) -> None:
    """What is wrong with a step is said when the saga is put together."""
    with pytest.raises(SettingsError, match="Saga 's'") as caught:
        checked("s", steps)
    assert problem in str(caught.value)


def test_names_and_colours() -> None:
    """A step is called as its action; an AsyncSaga takes both kinds; a saga needs a name."""
    assert checked_async("s", [SagaStep(is_async), SagaStep(print)])[0].name == "is_async"
    with pytest.raises(SettingsError, match="has no name"):
        checked("", [A])


def test_idempotency_keys_are_of_one_step_alone() -> None:
    """Doing and undoing have different keys, and every attempt the same."""
    context = SagaContext(saga="s", saga_id="7", step="charge")
    assert context.idempotency_key == "s/7/charge"
    assert replace(context, attempt=2).idempotency_key == "s/7/charge"
    assert replace(context, compensating=True).idempotency_key == "s/7/charge/undo"


def test_the_error_can_be_rebuilt() -> None:
    """SagaChanged comes back with its attributes, as pickle would rebuild it."""
    again = copy.copy(SagaChanged("s", "7", "why"))
    assert (again.name, again.saga_id, again.reason, str(again)) == ("s", "7", "why", "saga 's', id '7': why")
