"""What is special to asyncio: registering needs no I/O, so it happens outside SQLAlchemy's greenlet (L1, L4, L5)."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, sessionmaker

from message_bus.errors import UnwrittenMessages, WiringError
from message_bus.repositories.late_writing import buffer, pending
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
from message_bus.storage.tables import MessageBusTables
from tests.late_writing.conftest import Base, Order, message

INSERT_ORDER = sa.insert(Order).values(customer="c")


@pytest.fixture
async def tables(async_engine: AsyncEngine, async_tables: MessageBusTables) -> MessageBusTables:
    """The message_bus tables, and the application's beside them."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return async_tables


async def stored(engine: AsyncEngine, tables: MessageBusTables) -> list[str]:
    """The messages that are committed, in the order of their positions."""
    async with engine.connect() as connection:
        outbox = tables.outbox
        return list(
            (await connection.execute(sa.select(outbox.c.message).order_by(outbox.c.position))).scalars()
        )


async def test_commit_rollback_and_close(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """G1, L3: AsyncSession commits, rolls back and closes what was registered like everything else."""
    async with AsyncSession(async_engine) as session:
        repo = AsyncSQLAlchemyOutBoxRepo(session, tables=tables)
        session.add(Order(customer="c"))
        repo.add(message("A"))
        repo.add(message("B"))
        await session.commit()
        repo.add(message("dropped"))
        await session.rollback()
        repo.add(message("C"))
        await repo.save()
        repo.add(message("dropped by close"))
    assert await stored(async_engine, tables) == ["A", "B", "C"]


async def test_savepoints(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L3: the savepoints of an AsyncSession decide about what was registered in them."""
    async with AsyncSession(async_engine) as session, session.begin():
        repo = AsyncSQLAlchemyOutBoxRepo(session, tables=tables)
        repo.add(message("A"))
        nested = await session.begin_nested()
        repo.add(message("rolled back"))
        await nested.rollback()
        async with session.begin_nested():
            repo.add(message("B"))
            await repo.flush()
        repo.add(message("C"))
    assert await stored(async_engine, tables) == ["A", "B", "C"]


async def test_listeners_run_inside_the_commit(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L2: what listeners of the inner Session register during the commit is written at once, with await done for them."""
    async with AsyncSession(async_engine) as session:
        repo = AsyncSQLAlchemyOutBoxRepo(session, tables=tables)

        def register(inner: Session, *args: Any) -> None:
            repo.add(message("in the commit"))

        sa.event.listen(session.sync_session, "before_commit", register)
        session.add(Order(customer="c"))
        await session.commit()
    assert await stored(async_engine, tables) == ["in the commit"]


async def test_listeners_of_a_sync_session_class(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L1, L2: the sessionmaker that AsyncSession is given for its inner sessions carries listeners, which never await."""
    inner = sessionmaker()

    @sa.event.listens_for(inner, "after_flush")
    def register(session: Session, flush_context: object) -> None:
        buffer(session, tables, message(f"{len(session.new)} new"))

    factory = async_sessionmaker(async_engine, sync_session_class=inner)
    async with factory.begin() as session:
        session.add_all([Order(customer="c"), Order(customer="d")])
    assert await stored(async_engine, tables) == ["2 new"]


async def test_registering_after_a_commit_that_failed_early(
    async_engine: AsyncEngine, tables: MessageBusTables
) -> None:
    """L2: a commit stopped by a listener leaves the session as closing; registering outside the greenlet still works."""
    refusals = [ValueError("not yet")]

    def refuse_once(inner: Session) -> None:
        if refusals:
            raise refusals.pop()

    async with AsyncSession(async_engine) as session:
        repo = AsyncSQLAlchemyOutBoxRepo(session, tables=tables)
        sa.event.listen(session.sync_session, "before_commit", refuse_once)
        repo.add(message("A"))
        with pytest.raises(ValueError, match="not yet"):
            await session.commit()
        repo.add(message("B"))
        assert pending(session.sync_session) == 1
        await session.commit()
    assert await stored(async_engine, tables) == ["A", "B"]


async def test_scoped_sessions_and_factories(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L4: async_sessionmaker, subclasses and async_scoped_session, whose session is looked up at every use."""

    class OwnSession(AsyncSession):
        pass

    factory = async_sessionmaker(async_engine, class_=OwnSession)
    scoped = async_scoped_session(factory, scopefunc=asyncio.current_task)
    repo = AsyncSQLAlchemyOutBoxRepo(scoped, tables=tables)
    repo.add(message("A"))
    assert isinstance(repo.session, OwnSession)
    await scoped.commit()
    await scoped.remove()

    async def in_another_task() -> None:
        repo.add(message("B"))
        await repo.save()
        await scoped.remove()

    await asyncio.create_task(in_another_task())
    assert await stored(async_engine, tables) == ["A", "B"]


async def test_a_session_on_an_outer_connection(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L5: the commit of an AsyncConnection takes along what an AsyncSession on it has registered; its rollback drops it."""
    async with async_engine.connect() as connection:
        for ending in ("commit", "rollback"):
            await connection.begin()
            session = AsyncSession(connection)
            await session.execute(INSERT_ORDER)
            AsyncSQLAlchemyOutBoxRepo(session, tables=tables).add(message(ending))
            await getattr(connection, ending)()
            assert pending(session.sync_session) == 0
            await session.close()
    assert await stored(async_engine, tables) == ["commit"]


async def test_a_repository_on_an_async_connection(
    async_engine: AsyncEngine, tables: MessageBusTables
) -> None:
    """L5: on a bare AsyncConnection the row waits for its commit; save, rollback and close do as they say."""
    async with async_engine.connect() as connection:
        repo = AsyncSQLAlchemyOutBoxRepo(connection, tables=tables)
        with pytest.raises(WiringError, match="without a transaction"):
            repo.add(message("too early"))
        async with connection.begin():
            repo.add(message("A"))
            async with AsyncSession(connection) as session:
                assert pending(session.sync_session) == 1  # what process_outbox looks at
            assert [row.message for row in await repo.list_unprocessed()] == ["A"]
            repo.add(message("B"))
        await connection.begin()
        repo.add(message("dropped"))
        await repo.rollback()
        await connection.begin()
        repo.add(message("C"))
        await repo.flush()
        await repo.save()
        await connection.begin()
        repo.add(message("dropped by close"))
    assert await stored(async_engine, tables) == ["A", "B", "C"]


@pytest.mark.parametrize("inner", ["commit", "rollback"])
@pytest.mark.parametrize("outer", ["commit", "rollback"])
async def test_savepoints_of_an_async_connection(
    async_engine: AsyncEngine, tables: MessageBusTables, inner: str, outer: str
) -> None:
    """L3, L5: on a bare AsyncConnection, too, savepoints decide about what was registered in them."""
    async with async_engine.connect() as connection, connection.begin():
        repo = AsyncSQLAlchemyOutBoxRepo(connection, tables=tables)
        repo.add(message("before"))
        first = await connection.begin_nested()
        repo.add(message("first"))
        second = await connection.begin_nested()
        repo.add(message("second"))
        await getattr(second, inner)()
        repo.add(message("between"))
        await getattr(first, outer)()
        repo.add(message("after"))
    kept = ["first", *(["second"] if inner == "commit" else []), "between"] if outer == "commit" else []
    assert await stored(async_engine, tables) == ["before", *kept, "after"]


async def test_the_gate(async_engine: AsyncEngine, tables: MessageBusTables) -> None:
    """L2: committing the connection behind an AsyncSession is stopped."""
    async with AsyncSession(async_engine) as session:
        await session.execute(INSERT_ORDER)
        AsyncSQLAlchemyOutBoxRepo(session, tables=tables).add(message("A"))
        connection: AsyncConnection = await session.connection()
        with pytest.raises(UnwrittenMessages):
            await connection.commit()
        await session.rollback()
    assert await stored(async_engine, tables) == []


# a connect that is cancelled half-way is the driver's to close; aiosqlite does not
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
async def test_a_cancelled_commit_commits_all_or_nothing(
    async_engine: AsyncEngine, tables: MessageBusTables
) -> None:
    """G1: a task cancelled in its commit has committed order and message, or neither."""

    async def place() -> None:
        async with AsyncSession(async_engine) as session:
            session.add(Order(customer="c"))
            AsyncSQLAlchemyOutBoxRepo(session, tables=tables).add(message("A"))
            await session.commit()

    for steps in range(12):
        task = asyncio.create_task(place())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with async_engine.connect() as connection:
        orders = (await connection.execute(sa.select(sa.func.count()).select_from(Order))).scalar_one()
    assert len(await stored(async_engine, tables)) == orders
    gc.collect()  # here, where the warning is ignored
