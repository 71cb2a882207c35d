# ruff: noqa: D102, RUF012  (what the tests are made of)
"""Mistakes that are easily made: each is told with the thing's name and what to write in its place, not as a TypeError."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AggregateRoot,
    AsyncProjections,
    AsyncRelay,
    AsyncSaga,
    Event,
    ExponentialBackoff,
    FixedDelay,
    InMemoryEventStore,
    LinearBackoff,
    MessageBus,
    ProcessManager,
    Projection,
    Projections,
    Relay,
    Saga,
    SagaStep,
    SettingsError,
    SQLAlchemyEventStore,
    retry_on_conflict,
    when,
)
from message_bus.testing.given_when_then import AggregateScenario

ROWS = sa.Table("mistake_rows", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
SECOND = timedelta(seconds=1)


class Opened(Event, name="mistakes.Opened"):
    """An event."""

    id: int = 1


class Rows(Projection):
    """A projection."""

    tables = {"rows": ROWS}

    @when(Opened)
    def opened(self, event: Opened) -> None: ...


class Account(AggregateRoot):
    """An aggregate."""

    def on_opened(self, event: Opened) -> None: ...


def step(context: Any) -> None:
    """A step."""


def refused(call: Callable[[], Any], text: str) -> None:
    """It is told as SettingsError."""
    with pytest.raises(SettingsError, match=text):
        call()


def test_read_all_of_one_class() -> None:
    """`types=` wants a collection, in every store."""
    text = r"types: is a class, not a list of classes \(write types=\[Opened\]\)"
    refused(lambda: InMemoryEventStore().read_all(types=Opened), text)  # type: ignore[arg-type]
    refused(lambda: SQLAlchemyEventStore(Session()).read_all(types=Opened), text)  # type: ignore[arg-type]


def test_a_relay_of_one_projection() -> None:
    """`projections=` and `process_managers=` want a list."""
    options: Any = {"projections": Rows(), "process_managers": 3}
    text = r"projections is a 'Rows', not a list \(write projections=\[...\]\); process_managers is a 'int'"
    refused(lambda: Relay(MessageBus(), sa.create_engine("sqlite://"), **options), text)
    refused(lambda: AsyncRelay(MessageBus(), create_async_engine("sqlite+aiosqlite://"), **options), text)


@pytest.mark.parametrize("given", [[Opened()], Opened(), [Opened]])
def test_plain_events_for_an_inline_projection(given: Any) -> None:
    """It needs what the store has recorded: they have ids and positions, plain ones have none."""
    text = r"projection 'Rows': apply was given a '.+' .*apply\(session, store.save\(...\)\)"
    refused(lambda: Rows(inline=True).apply(Session(), given), text)


def test_one_recorded_event_for_an_inline_projection() -> None:
    """It takes the whole list."""
    [recorded] = InMemoryEventStore().save("a", [Opened()])
    refused(lambda: Rows(inline=True).apply(Session(), recorded), "apply was given a 'single RecordedEvent'")


@pytest.mark.parametrize("call", ["rebuild", "verify", "swap"])
@pytest.mark.parametrize(
    ("given", "text"), [(Rows, r"the class 'Rows' .*: Rows\(\)\)"), ("rows", "'str' is no projection")]
)
async def test_operating_on_a_class_or_a_name(
    call: str, given: Any, text: str, engine: sa.Engine, async_engine: AsyncEngine
) -> None:
    """The object is wanted that a relay would be given."""
    refused(lambda: getattr(Projections(engine), call)(given), text)
    with pytest.raises(SettingsError, match=text):
        await getattr(AsyncProjections(async_engine), call)(given)


def test_waiting_for_a_timedelta() -> None:
    """Seconds are a number here, as for `asyncio.wait_for`."""
    text = r"timeout is a timedelta, not a number of seconds \(of a timedelta: .total_seconds\(\)\)"
    refused(lambda: Rows().wait_for(Session(), 1, timeout=SECOND), text)  # type: ignore[call-overload]


@pytest.mark.parametrize("policy", [ExponentialBackoff, LinearBackoff])
@pytest.mark.parametrize("option", ["initial_delay", "max_delay"])
def test_backing_off_for_a_timedelta(policy: Any, option: str) -> None:
    """The delays of back-off policies are seconds."""
    refused(lambda: policy(**{option: SECOND}), f"{option} is a timedelta, not a number of seconds")


def test_other_numbers_of_back_off_policies() -> None:
    """The only option of FixedDelay, and the one that is no time."""
    refused(lambda: FixedDelay(SECOND), "seconds is a timedelta")  # type: ignore[arg-type]
    refused(lambda: ExponentialBackoff(multiplier="x"), "multiplier is a str, not a number")  # type: ignore[arg-type]


@pytest.mark.parametrize("saga", [Saga, AsyncSaga])
def test_a_saga_of_one_step(saga: Any) -> None:
    """Steps are a list, even if there is one."""
    text = r"its steps are a 'SagaStep', not a list \(write \[SagaStep\(action, compensation\)\]\)"
    refused(lambda: saga("x", SagaStep(step)), text)


async def test_starting_a_saga_without_a_session() -> None:
    """`start` joins a transaction of the caller's; a factory of sessions has none."""
    engine, async_engine = sa.create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")
    for given in (sessionmaker(engine), engine):
        text = f"start works in a transaction of yours, not on a '{type(given).__name__}' .*open Session, or call run"
        refused(lambda given=given: Saga("x", [SagaStep(step)]).start(given, "1"), text)  # type: ignore[misc]
    others: list[Any] = [async_sessionmaker(async_engine), async_engine, Session()]
    for other in others:
        with pytest.raises(SettingsError, match=f"not on a '{type(other).__name__}' .*open AsyncSession"):
            await AsyncSaga("x", [SagaStep(step)]).start(other, "1")


def test_timeouts_that_are_one_class() -> None:
    """A process manager names them in a tuple."""

    def define() -> None:
        class Opening(ProcessManager):
            correlate = {Opened: "id"}
            timeouts = Opened  # type: ignore[assignment]

            @when(Opened)
            def opened(self, event: Opened) -> None: ...

    refused(define, r"timeouts is a class, not a tuple of classes \(write timeouts = \(Opened,\)\)")


@pytest.mark.parametrize("given", [Opened(), Opened, None])
def test_a_scenario_with_an_event_in_when(given: Any) -> None:
    """`given` takes events, `when` a call."""
    refused(
        lambda: AggregateScenario(Account).when(given), "when was given .*, not a function of the aggregate"
    )


def test_repeating_what_cannot_be_called() -> None:
    """`retry_on_conflict` wants a function."""
    text = r"retry_on_conflict: a 'str' cannot be called \(give a function without arguments\)"
    refused(lambda: retry_on_conflict("x"), text)  # type: ignore[call-overload]
