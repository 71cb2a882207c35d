"""A saga of five steps in a process that kills itself where it is told to; the tests of crashes start it.

Each step writes down that it was done, and its compensation that it was undone; nothing is unique, so doing it twice shows.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import FixedDelay, MessageBusTables, configure_sqlite
from message_bus.eventsourcing.sagas.saga import Saga
from message_bus.eventsourcing.sagas.saga_steps import SagaContext, SagaStep
from message_bus.eventsourcing.sagas.saga_turns import SagaTurns
from message_bus.storage.types import Position

NAME: Final = "five"
STEPS: Final = ("s1", "s2", "s3", "s4", "s5")
FAILS: Final = "fails"  # in the id of a saga: its last step does
EFFECT: Final = sa.Table(
    "saga_effect",
    sa.MetaData(),
    sa.Column("id", Position, primary_key=True),
    sa.Column("saga_id", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)


def engine_for(url: str) -> sa.Engine:
    """An engine on the test's database."""
    engine = sa.create_engine(url)
    return configure_sqlite(engine) if engine.dialect.name == "sqlite" else engine


def turns(saga_id: str) -> list[str]:
    """The notes of a saga that is not disturbed, one a turn; "" for a turn that only records a failure."""
    if FAILS not in saga_id:
        return list(STEPS)
    return [*STEPS[:-1], "", *(f"undo {name}" for name in reversed(STEPS[:-1]))]


def expected(saga_id: str) -> list[str]:
    """What must be written down in the end, in this order."""
    return [note for note in turns(saga_id) if note]


def moments(saga_id: str) -> list[tuple[str, int]]:
    """Every place to die at: (what, number of the turn)."""
    numbers = range(1, len(turns(saga_id)) + 1)
    inside = [("in the step", number) for number in numbers if turns(saga_id)[number - 1]]
    return inside + [
        (what, number) for number in numbers for what in ("before the COMMIT", "after the COMMIT")
    ]


def made(come_to: Callable[[str], None] = lambda moment: None) -> Saga:
    """The saga, which says when it has done what a step does."""
    return Saga(NAME, [_step(name, come_to) for name in STEPS])


def _step(name: str, come_to: Callable[[str], None]) -> SagaStep:
    def write(context: SagaContext, note: str) -> None:
        context.session.execute(sa.insert(EFFECT).values(saga_id=context.saga_id, note=note))
        come_to("in the step")

    def action(context: SagaContext) -> str:
        if name == STEPS[-1] and FAILS in context.saga_id:
            raise ValueError("it fails")
        write(context, name)
        return f"result of {name}"

    def compensation(context: SagaContext) -> None:
        assert context.result == f"result of {name}"
        assert context.arguments == {"id": context.saga_id}
        write(context, f"undo {name}")

    return SagaStep(action, compensation, name=name, compensation_retry=FixedDelay(0))


def die() -> NoReturn:
    """End at once, as if the power had failed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives that")


def run_and_die(arguments: Sequence[str]) -> None:
    """url, saga_id, moment, number of the turn, "apart" to save the state in another transaction than the effects."""
    url, saga_id, doom, number, *options = arguments
    turn = 1

    def come_to(moment: str) -> None:
        if (moment, turn) == (doom, int(number)):
            die()

    class Dying(SagaTurns):
        """Dies around its commits; counts its turns."""

        def _commit(self, session: Session) -> None:
            nonlocal turn
            come_to("before the COMMIT")
            super()._commit(session)
            come_to("after the COMMIT")
            turn += 1

        def _call(self, session: Session, found: Any, following: Any) -> Any:
            result = super()._call(session, found, following)
            if "apart" in options:
                session.commit()
            return result

    engine = engine_for(url)
    saga, tables = made(come_to), MessageBusTables()
    saga._turns = Dying(NAME, saga.steps, saga._rows, tables)
    saga.run(engine, saga_id, {"id": saga_id})


def run_many(arguments: Sequence[str]) -> None:
    """url, ids...: run them in any order, and then whatever is left."""
    url, *ids = arguments
    engine, saga = engine_for(url), made()
    random.shuffle(ids)
    for saga_id in ids:
        saga.run(engine, saga_id, {"id": saga_id})
    saga.resume_unfinished(engine)
