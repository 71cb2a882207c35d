"""Several engines behind one session: `Session(binds=...)`, with or without a default bind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from message_bus import (
    AsyncMessageBus,
    AsyncSQLAlchemyOutBoxRepo,
    DispatchOutboxHandler,
    Event,
    MessageBus,
    MessageBusTables,
    RetryLater,
    SQLAlchemyOutBoxRepo,
    Subscription,
    configure_sqlite,
)
from tests.delivery.world import EFFECT


class Counted(Event):
    n: int


ELSEWHERE = sa.Table("elsewhere", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


def in_both(event: Counted, context: Any) -> list[Any]:
    """What a handler writes, one statement for each database."""
    return [sa.insert(EFFECT).values(note=str(event.n)), sa.insert(ELSEWHERE).values(n=event.n)]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[sa.Engine]:
    """A second database."""
    made = configure_sqlite(sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}"))
    ELSEWHERE.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.mark.parametrize("default", [True, False], ids=["a default bind", "binds only"])
def test_a_session_over_two_databases(
    engine: sa.Engine, other: sa.Engine, tables: MessageBusTables, default: bool
) -> None:
    """The outbox is read where it is bound, heartbeat and all; handlers reach both; the session's bind is as before."""
    EFFECT.metadata.create_all(engine)
    binds = {EFFECT: engine, ELSEWHERE: other}
    if not default:
        binds |= dict.fromkeys(tables.all, engine)

    def handle(event: Counted, context: Any) -> None:
        for statement in in_both(event, context):
            context.db_session.execute(statement)

    bus = MessageBus()
    bus.set_event_handlers(Counted, [handle])
    for n in (1, 2):
        with Session(engine if default else None, binds=binds) as session:
            repo = SQLAlchemyOutBoxRepo(session, tables=tables)
            bus.register_outbox_message(repo, Counted(n=n))
            session.commit()
            assert bus.process_outbox(repo).delivered == 1
            assert session.bind is (engine if default else None)
            assert session.scalars(sa.select(EFFECT.c.note)).all() == [str(m) for m in range(1, n + 1)]
            assert session.scalars(sa.select(ELSEWHERE.c.n)).all() == list(range(1, n + 1))


async def test_an_async_session_over_two_databases(
    async_engine: AsyncEngine, async_tables: MessageBusTables, tmp_path: Path
) -> None:
    """The same for AsyncSession."""
    second = configure_sqlite(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"))
    async with second.begin() as connection:
        await connection.run_sync(ELSEWHERE.metadata.create_all)
    async with async_engine.begin() as connection:
        await connection.run_sync(EFFECT.metadata.create_all)

    async def handle(event: Counted, context: Any) -> None:
        for statement in in_both(event, context):
            await context.db_session.execute(statement)

    bus = AsyncMessageBus()
    bus.set_event_handlers(Counted, [handle])
    binds = {EFFECT: async_engine, ELSEWHERE: second, **dict.fromkeys(async_tables.all, async_engine)}
    async with AsyncSession(binds=binds) as session:
        repo = AsyncSQLAlchemyOutBoxRepo(session, tables=async_tables)
        bus.register_outbox_message(repo, Counted(n=1))
        await session.commit()
        assert (await bus.process_outbox(repo)).delivered == 1
        assert (session.bind, session.sync_session.bind) == (None, None)
        assert (await session.scalars(sa.select(EFFECT.c.note))).all() == ["1"]
        assert (await session.scalars(sa.select(ELSEWHERE.c.n))).all() == [1]
    await second.dispose()


def test_the_factory_of_concurrent_mode(
    engine: sa.Engine, other: sa.Engine, tables: MessageBusTables
) -> None:
    """`context.sessions` is a sessionmaker over the same databases, with the class of the session in hand."""
    EFFECT.metadata.create_all(engine)
    classes: list[type] = []

    class OwnSession(Session):
        pass

    def handle(event: Counted, context: Any) -> None:
        with context.sessions.begin() as session:
            classes.append(type(session))
            for statement in in_both(event, context):
                session.execute(statement)

    bus = MessageBus()
    settings = Subscription(name="counted", mode="concurrent")
    bus.set_outbox_handlers([DispatchOutboxHandler(handlers={Counted: [handle]}, subscription=settings)])
    binds = {EFFECT: engine, ELSEWHERE: other, **dict.fromkeys(tables.all, engine)}
    with OwnSession(binds=binds) as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=tables)
        bus.register_outbox_message(repo, Counted(n=1))
        session.commit()
        assert bus.process_outbox(repo).delivered == 1
        assert session.scalars(sa.select(EFFECT.c.note)).all() == ["1"]
        assert session.scalars(sa.select(ELSEWHERE.c.n)).all() == [1]
    assert issubclass(classes[0], OwnSession)


def test_the_factory_for_a_session_that_cannot_be_made_alone(
    engine: sa.Engine, tables: MessageBusTables
) -> None:
    """A class that wants more than a bind, as that of Flask-SQLAlchemy does, is left to its extension."""

    class ByExtension(Session):
        def __init__(self, extension: Any, **options: Any) -> None:
            super().__init__(**options)
            self.extension = extension

        def get_bind(self, mapper: Any = None, *, clause: Any = None, **kw: Any) -> Any:
            return self.extension

    found: list[Any] = []

    def handle(event: Counted, context: Any) -> None:
        with context.sessions() as session:
            found.append((type(session), session.connection().engine))

    bus = MessageBus()
    settings = Subscription(name="counted", mode="concurrent")
    bus.set_outbox_handlers([DispatchOutboxHandler(handlers={Counted: [handle]}, subscription=settings)])
    with ByExtension(engine) as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=tables)
        bus.register_outbox_message(repo, Counted(n=1))
        session.commit()
        assert bus.process_outbox(repo).delivered == 1
    [(kind, used)] = found
    assert (ByExtension in kind.__mro__, used) == (False, engine)


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_test_transaction_over_binds(engine: sa.Engine, tables: MessageBusTables, outcome: str) -> None:
    """A session whose binds are the test's own connections takes part in their transaction."""
    EFFECT.metadata.create_all(engine)

    def handle(event: Counted, context: Any) -> None:
        context.db_session.execute(sa.insert(EFFECT).values(note=str(event.n)))

    bus = MessageBus()
    bus.set_event_handlers(Counted, [handle])
    with engine.connect() as connection:
        outer = connection.begin()
        binds = dict.fromkeys((EFFECT, *tables.all), connection)
        with Session(binds=binds, join_transaction_mode="create_savepoint") as session:
            repo = SQLAlchemyOutBoxRepo(session, tables=tables)
            bus.register_outbox_message(repo, Counted(n=1))
            session.commit()
            assert bus.process_outbox(repo).delivered == 1
        getattr(outer, outcome)()
    with engine.connect() as connection:
        left = connection.scalars(sa.select(EFFECT.c.note)).all()
    assert left == (["1"] if outcome == "commit" else [])


@pytest.mark.postgresql
def test_a_two_phase_session(engine: sa.Engine, tables: MessageBusTables) -> None:
    """With twophase=True checkpoint and effects in two databases are prepared and committed together; a failure undoes both."""
    second = sa.create_engine(engine.url)
    EFFECT.metadata.create_all(engine)
    ELSEWHERE.metadata.create_all(engine)
    attempts: list[int] = []

    def handle(event: Counted, context: Any) -> None:
        for statement in in_both(event, context):
            context.db_session.execute(statement)
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise RetryLater(0)

    bus = MessageBus()
    bus.set_event_handlers(Counted, [handle])
    with Session(engine, binds={ELSEWHERE: second}, twophase=True) as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=tables)
        bus.register_outbox_message(repo, Counted(n=1))
        session.commit()
        assert bus.process_outbox(repo).retrying == 1
        assert session.scalars(sa.select(ELSEWHERE.c.n)).all() == []
        session.commit()
        assert bus.process_outbox(repo).delivered == 1
        assert session.scalars(sa.select(EFFECT.c.note)).all() == ["1"]
        assert session.scalars(sa.select(ELSEWHERE.c.n)).all() == [1]
    assert attempts == [1, 2]
    second.dispose()
