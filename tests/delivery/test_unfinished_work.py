"""G10: `process_outbox` commits the session that it is given, so it refuses one with work that is not committed."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session

from message_bus import UnflushedWork
from message_bus.delivery.ownership import refuse_unflushed
from message_bus.testing import drain
from tests.delivery.test_async import AsyncWorld
from tests.delivery.test_async import world as async_world  # noqa: F401  (a fixture)
from tests.delivery.world import EFFECT, Noted, World


class _Base(DeclarativeBase):
    pass


class _Note(_Base):
    """The effect table as an entity."""

    __table__ = EFFECT.to_metadata(_Base.metadata)


def _flush(session: Session) -> None:
    session.add(_Note(note="mine"))
    session.flush()


WRITING: dict[str, Any] = {
    "flush": _flush,
    "bulk insert": lambda session: session.bulk_insert_mappings(_Note, [{"note": "mine"}]),
    "bulk update": lambda session: session.execute(sa.update(_Note).values(note="mine")),
    "legacy update": lambda session: session.query(_Note).update({"note": "mine"}),
    "bulk delete": lambda session: session.execute(sa.delete(_Note)),
    "insert of entities": lambda session: session.execute(sa.insert(_Note), [{"note": "mine"}]),
    "Core": lambda session: session.execute(sa.insert(EFFECT).values(note="mine")),
    "SQL": lambda session: session.execute(sa.text("INSERT INTO effect (note) VALUES ('mine')")),
    "its connection": lambda session: session.connection().execute(sa.insert(EFFECT).values(note="mine")),
}


@pytest.mark.parametrize("write", WRITING.values(), ids=WRITING.keys())
def test_written_work_is_refused(world: World, write: Any) -> None:
    """However it was written; after a rollback or commit the session is welcome again."""
    world.write(sa.insert(EFFECT).values(note="there"))
    with world.sessions() as session:
        write(session)
        with pytest.raises(UnflushedWork, match=r"process_outbox commits, but .*written"):
            world.bus.process_outbox(session)
        session.rollback()
        assert world.bus.process_outbox(session).ok
        write(session)
        session.commit()
        assert world.bus.process_outbox(session).ok


def test_a_session_inside_of_begin_is_refused(world: World) -> None:
    """SQLAlchemy would raise behind the block, when all is committed; `begin()` without a block is fine."""
    with (
        pytest.raises(UnflushedWork, match=r"process_outbox commits, but .*with session.begin"),
        world.sessions.begin() as session,
    ):
        world.bus.process_outbox(session)
    with world.sessions() as session:
        session.begin()
        assert world.bus.process_outbox(session).ok


def test_a_session_that_only_read_is_welcome(world: World) -> None:
    """Nothing of the caller's would be committed."""
    world.register(Noted(n=1))
    with world.sessions() as session:
        session.scalars(sa.select(_Note)).all()
        session.execute(sa.text("SELECT 1"))
        session.flush()
        assert world.bus.process_outbox(session).delivered == 1


def test_a_session_in_an_outer_transaction_that_has_written(world: World) -> None:
    """What the outer transaction wrote before is not the session's; what the session flushed is."""
    with world.sessions.kw["bind"].connect() as connection:
        outer = connection.begin()
        connection.execute(sa.insert(EFFECT).values(note="outer"))
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.scalars(sa.select(_Note)).all()
            world.bus.register_outbox_message(session, Noted(n=1))
            session.commit()
            session.scalars(sa.select(_Note)).all()
            assert world.bus.process_outbox(session).delivered == 1
            _flush(session)
            with pytest.raises(UnflushedWork, match="written"):
                world.bus.process_outbox(session)
            assert drain(world.bus, session).ok  # which commits on purpose
        outer.rollback()


async def test_written_work_is_refused_on_an_async_session(async_world: AsyncWorld) -> None:  # noqa: F811
    """A flush and bulk methods are seen, other statements where the session may do I/O; reading is fine."""
    async with async_world.sessions() as session:
        await session.scalars(sa.select(_Note))
        assert (await async_world.bus.process_outbox(session)).ok
        for write in (_flush, WRITING["bulk insert"]):
            await session.run_sync(write)
            with pytest.raises(UnflushedWork, match="written"):
                await async_world.bus.process_outbox(session)
            await session.rollback()
        for name in ("insert of entities", "Core", "SQL"):
            await session.run_sync(WRITING[name])
            with pytest.raises(UnflushedWork, match="written"):
                await session.run_sync(refuse_unflushed)
            await session.rollback()
    with pytest.raises(UnflushedWork, match=r"with session.begin"):
        async with async_world.sessions.begin() as session:
            await async_world.bus.process_outbox(session)
