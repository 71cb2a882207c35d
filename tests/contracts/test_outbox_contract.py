"""Every outbox of ours, and those that the documentation sketches, under one contract."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import JSON, String
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from message_bus import (
    AsyncInMemoryOutBoxRepo,
    AsyncOutBoxRepoABC,
    AsyncSQLAlchemyOutBoxRepo,
    InMemoryOutBox,
    InMemoryOutBoxRepo,
    MessageBusTables,
    OutBoxRepoABC,
    SQLAlchemyOutBoxRepo,
)
from message_bus.testing import AsyncOutboxContract, Capabilities, OutboxContract
from message_bus.testing.capabilities import AsyncUnits, Units
from tests.docs.pages import Walk

IN_MEMORY = Capabilities(order_per_key=False, dead_letters=False)
OWN = Capabilities(
    ids="text", keys=False, versions=False, headers=False, delays=False, order_per_key=False, dead_letters=False
)  # fmt: skip


class TestInMemory(OutboxContract):
    capabilities = IN_MEMORY

    @pytest.fixture
    def unit_of_work(self) -> Units:
        """Repositories that share an outbox."""
        outbox = InMemoryOutBox()
        return lambda: nullcontext(InMemoryOutBoxRepo(outbox))


class TestAsyncInMemory(AsyncOutboxContract):
    capabilities = IN_MEMORY

    @pytest.fixture
    def unit_of_work(self) -> AsyncUnits:
        """The same."""
        outbox = InMemoryOutBox()
        return lambda: nullcontext(AsyncInMemoryOutBoxRepo(outbox))


class TestSession(OutboxContract):
    @pytest.fixture
    def unit_of_work(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Units:
        """A session each."""

        @contextmanager
        def open_one() -> Iterator[SQLAlchemyOutBoxRepo]:
            with session_factory() as session:
                yield SQLAlchemyOutBoxRepo(session)

        return open_one


class TestScopedSession(OutboxContract):
    capabilities = Capabilities(several_units_of_work=False)

    @pytest.fixture
    def unit_of_work(self, session_factory: sessionmaker[Session], tables: MessageBusTables) -> Units:
        """One scoped session, removed after each unit of work."""
        scoped = scoped_session(session_factory)

        @contextmanager
        def open_one() -> Iterator[SQLAlchemyOutBoxRepo]:
            try:
                yield SQLAlchemyOutBoxRepo(scoped)
            finally:
                scoped.remove()

        return open_one


class OnConnections(OutboxContract):
    @pytest.fixture
    def unit_of_work(self, engine: sa.Engine, tables: MessageBusTables) -> Units:
        """A connection each, which writes at once."""

        @contextmanager
        def open_one() -> Iterator[SQLAlchemyOutBoxRepo]:
            with engine.connect() as connection:
                yield SQLAlchemyOutBoxRepo(connection)

        return open_one


@pytest.mark.postgresql
class TestConnection(OnConnections):
    """Each of them in a transaction of its own."""


@pytest.mark.sqlite
class TestSQLiteConnection(OnConnections):
    capabilities = Capabilities(several_units_of_work=False)  # the first one locks the database


class TestAsyncSession(AsyncOutboxContract):
    @pytest.fixture
    def unit_of_work(
        self, async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
    ) -> AsyncUnits:
        """A session each."""

        @asynccontextmanager
        async def open_one() -> AsyncIterator[AsyncSQLAlchemyOutBoxRepo]:
            async with async_session_factory() as session:
                yield AsyncSQLAlchemyOutBoxRepo(session)

        return open_one


# --- a user's own model -------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The application's own."""


class OutBox(Base):
    """A user's own outbox model, with `processed`."""

    __tablename__ = "own_outbox"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    meta: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    processed: Mapped[bool] = mapped_column(default=False)


class NumberedOutBox(Base):
    """Another one, whose ids the database draws."""

    __tablename__ = "numbered_outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    meta: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    processed: Mapped[bool] = mapped_column(default=False)


class OwnRepo(OutBoxRepoABC):
    """A repository on it, as users write it."""

    model: Any = OutBox
    order = "number"

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def get_model(self) -> Any:
        """The model."""
        return self.model

    def _add(self, outbox_message: Any) -> None:
        self.session.add(outbox_message)

    def get(self, id: Any) -> Any:  # noqa: A002
        """By id."""
        return self.session.scalars(sa.select(self.model).where(self.model.id == id)).one_or_none()

    def list_unprocessed(self) -> list[Any]:
        """What is not processed."""
        chosen = (
            sa.select(self.model)
            .where(self.model.processed.is_(False))
            .order_by(getattr(self.model, self.order))
        )
        return list(self.session.scalars(chosen))

    def save(self) -> None:
        """Commit."""
        self.session.commit()

    def rollback(self) -> None:
        """Roll back."""
        self.session.rollback()


class NumberedRepo(OwnRepo):
    """The same on the other model."""

    model = NumberedOutBox
    order = "id"


class AsyncOwnRepo(AsyncOutBoxRepoABC):
    """The same on an AsyncSession."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__()
        self.session = session

    def get_model(self) -> type[OutBox]:
        """The model."""
        return OutBox

    def _add(self, outbox_message: OutBox) -> None:
        self.session.add(outbox_message)

    async def get(self, id: str) -> OutBox | None:  # noqa: A002
        """By id."""
        return (await self.session.scalars(sa.select(OutBox).where(OutBox.id == id))).one_or_none()

    async def list_unprocessed(self) -> list[OutBox]:
        """What is not processed."""
        chosen = sa.select(OutBox).where(OutBox.processed.is_(False)).order_by(OutBox.number)
        return list(await self.session.scalars(chosen))

    async def save(self) -> None:
        """Commit."""
        await self.session.commit()

    async def rollback(self) -> None:
        """Roll back."""
        await self.session.rollback()


class TestOwnModel(OutboxContract):
    capabilities = OWN
    repository: type[OwnRepo] = OwnRepo

    @pytest.fixture
    def unit_of_work(self, engine: sa.Engine) -> Units:
        """A session each."""
        Base.metadata.create_all(engine)

        @contextmanager
        def open_one() -> Iterator[OwnRepo]:
            with Session(engine) as session:
                yield self.repository(session)

        return open_one


class TestOwnModelOfNumbers(TestOwnModel):
    capabilities = replace(OWN, ids="integer")
    repository = NumberedRepo


class TestAsyncOwnModel(AsyncOutboxContract):
    capabilities = OWN

    @pytest.fixture
    async def unit_of_work(self, async_engine: AsyncEngine) -> AsyncUnits:  # type: ignore[override]
        """A session each."""
        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        @asynccontextmanager
        async def open_one() -> AsyncIterator[AsyncOwnRepo]:
            async with AsyncSession(async_engine) as session:
                yield AsyncOwnRepo(session)

        return open_one


# --- those of docs/how-to/own-repositories.md ---------------------------------------------------------------------

page = ModuleType("own_repositories")
sys.modules[page.__name__] = page
Walk(Path(), page).follow("docs/how-to/own-repositories.md")


class TestDjangoLike(page.TestSQLOutBox):  # type: ignore[misc, name-defined]
    """The first repository of the page."""


class TestDocumentStore(page.TestDocumentOutBox):  # type: ignore[misc, name-defined]
    """The second one."""
