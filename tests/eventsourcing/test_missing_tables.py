"""Sagas and projections on a database without message_bus's tables say which are missing, and what makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from message_bus import AsyncProjections, AsyncSaga, Projections, Saga, SagaStep, SchemaError
from tests.eventsourcing.projecting import EventTotals

MISSING = r"message-bus db upgrade(?s:.*)table 'message_bus_{}'"


def nothing(context: Any) -> None:
    """A step."""


SAGA = Saga("s", [SagaStep(nothing)])
ASYNC_SAGA = AsyncSaga("s", [SagaStep(nothing)])


def started(engine: sa.Engine) -> None:
    """Record a saga in a transaction of the caller."""
    with Session(engine) as session:
        SAGA.start(session, "1", {})


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: SAGA.run(engine, "1"),
        lambda engine: SAGA.run(engine, "1", {"order": 1}),
        started,
        SAGA.resume_unfinished,
        lambda engine: SAGA.outcome(engine, "1"),
        lambda engine: SAGA.compensate_again(engine, "1"),
    ],
    ids=["run", "run with arguments", "start", "resume_unfinished", "outcome", "compensate_again"],
)
def test_sagas_say_that_their_table_is_missing(engine: sa.Engine, call: Callable[[sa.Engine], Any]) -> None:
    """Every way into a saga ends in SchemaError, on both databases."""
    with pytest.raises(SchemaError, match=MISSING.format("saga")):
        call(engine)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: Projections(engine).list(),
        lambda engine: Projections(engine).rebuild(EventTotals()),
        lambda engine: Projections(engine).verify(EventTotals()),
        lambda engine: Projections(engine).swap(EventTotals()),
        lambda engine: Projections(engine).drop("x"),
    ],
    ids=["list", "rebuild", "verify", "swap", "drop"],
)
def test_projections_say_that_their_table_is_missing(
    engine: sa.Engine, call: Callable[[sa.Engine], Any]
) -> None:
    """Every step of operating a projection ends in SchemaError, on both databases."""
    with pytest.raises(SchemaError, match=MISSING.format("projection")):
        call(engine)


def test_so_do_those_who_ask_how_far_it_is(engine: sa.Engine) -> None:
    """`lag` and `wait_for` of a projection."""
    for ask in (
        lambda session: EventTotals().lag(session),
        lambda session: EventTotals().wait_for(session, 1, 0.1),
    ):
        with (
            Session(engine) as session,
            pytest.raises(SchemaError, match=MISSING.format("subscription")),
        ):
            ask(session)


async def test_the_async_ones_do_the_same(async_engine: AsyncEngine) -> None:
    """One source: on every driver the error is told in the same words."""
    with pytest.raises(SchemaError, match=MISSING.format("saga")):
        await ASYNC_SAGA.run(async_engine, "1")
    with pytest.raises(SchemaError, match=MISSING.format("saga")):
        await ASYNC_SAGA.resume_unfinished(async_engine)
    with pytest.raises(SchemaError, match=MISSING.format("projection")):
        await AsyncProjections(async_engine).drop("x")
    async with AsyncSession(async_engine) as session:
        with pytest.raises(SchemaError, match=MISSING.format("saga")):
            await ASYNC_SAGA.start(session, "1", {})


def test_a_missing_table_of_a_step_is_the_steps_own(engine: sa.Engine, tables: Any) -> None:
    """What a step does not find is no fault of the schema: the saga is undone, and names the step."""
    saga = Saga(
        "s", [SagaStep(lambda context: context.session.execute(sa.text("SELECT 1 FROM nope")), name="look")]
    )
    outcome = saga.run(engine, "1")
    assert (outcome.status, outcome.failed_step) == ("compensated", "look")
