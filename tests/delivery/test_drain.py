"""`message_bus.testing.drain`: delivery inside a test's own transaction."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import SettingsError
from message_bus.testing import drain
from tests.delivery.world import EFFECT, Noted, World


def test_drain_in_a_transaction_that_is_rolled_back(world: World) -> None:
    """Register, drain, look, roll back: nothing is left, and the next test starts at the beginning again."""
    for _ in range(2):
        with world.sessions.kw["bind"].connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                world.before["1"] = lambda context: context.emit(Noted(n=2))
                world.bus.register_outbox_message(session, Noted(n=1))
                report = drain(world.bus, session)
                assert (report.delivered, report.ok) == (2, True)
                assert session.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)).all() == ["1", "2"]
            outer.rollback()
        assert world.effects() == []


def test_drain_keeps_what_the_test_wrote_when_a_handler_fails(world: World) -> None:
    """A failing handler is rolled back alone; the test's own rows stay."""
    world.fail("1", 1)
    with world.sessions.kw["bind"].connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.execute(sa.insert(EFFECT).values(note="mine"))
            world.bus.register_outbox_message(session, Noted(n=1))
            assert drain(world.bus, session).retrying == 1
            assert session.scalars(sa.select(EFFECT.c.note)).all() == ["mine"]
        outer.rollback()


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully"])
def test_drain_refuses_a_session_whose_rollback_would_end_the_test(world: World, mode: str) -> None:
    """A rollback that would take the test's transaction along is refused before anything is done."""
    with world.sessions.kw["bind"].connect() as connection:
        connection.begin()
        session = Session(connection, join_transaction_mode=mode)  # type: ignore[arg-type]
        with session, pytest.raises(SettingsError, match="create_savepoint"):
            drain(world.bus, session)


def test_drain_on_an_ordinary_session(world: World) -> None:
    """Without an outer transaction drain commits for real."""
    with world.sessions() as session:
        world.bus.register_outbox_message(session, Noted(n=1))
        assert drain(world.bus, session).delivered == 1
    assert world.effects() == ["1"]
