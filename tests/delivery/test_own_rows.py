"""Repositories that users wrote themselves: list, handle, mark, save."""

from collections.abc import Callable
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from sqlalchemy import JSON, Boolean, String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Event,
    MessageBus,
    MessageBusTables,
    OutboxHandlerABC,
    OutBoxRepoABC,
    WiringError,
)


class Base(DeclarativeBase):
    pass


class OutBox(Base):
    """A user's own outbox model, as the ancestor's documents describe it."""

    __tablename__ = "outbox"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    meta: Mapped[dict[str, Any]] = mapped_column(JSON)
    processed: Mapped[bool] = mapped_column(Boolean, default=False)


class SAOutBoxRepo(OutBoxRepoABC):
    """The ancestor's repository, word for word but for the body of list_unprocessed."""

    def __init__(self, db_session: Session) -> None:
        self._db_session = db_session
        super().__init__()

    def get_model(self) -> type[OutBox]:
        """The model."""
        return OutBox

    def _add(self, outbox_message: OutBox) -> None:
        self._db_session.add(outbox_message)

    def list_unprocessed(self) -> list[OutBox]:
        """What is not processed."""
        return list(self._db_session.scalars(select(OutBox).where(~OutBox.processed).order_by(OutBox.id)))

    def save(self) -> None:
        """Commit."""
        self._db_session.commit()

    def rollback(self) -> None:
        """Roll back."""
        self._db_session.rollback()


class Happened(Event):
    n: int


class Send(OutboxHandlerABC):
    def __init__(self, do: Callable[[Any], object]) -> None:
        super().__init__()
        self.do = do

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        self.do(outbox_message)


@pytest.fixture
def sessions(session_factory: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions on a database that has the user's model."""
    with session_factory.begin() as session:
        Base.metadata.create_all(session.connection())
    return session_factory


def _register(bus: MessageBus, sessions: sessionmaker[Session], *numbers: int) -> None:
    with sessions() as session:
        for n in numbers:
            bus.register_outbox_message(SAOutBoxRepo(session), Happened(n=n), id=str(n), meta={"n": n})
        session.commit()


def _process(bus: MessageBus, sessions: sessionmaker[Session], **options: Any) -> Any:
    with sessions() as session:
        return bus.process_outbox(SAOutBoxRepo(session), **options)


def test_rows_are_handled_and_marked(sessions: sessionmaker[Session]) -> None:
    """Fault of the ancestor: nothing was ever marked as processed. Here each row is handled once."""
    seen: list[Any] = []
    bus = MessageBus()
    bus.set_outbox_handlers([Send(lambda row: seen.append((row.id, row.payload, row.meta)))])
    _register(bus, sessions, 1, 2)
    report = _process(bus, sessions)
    assert (report.delivered, report.ok) == (2, True)
    assert seen == [("1", {"n": 1}, {"n": 1}), ("2", {"n": 2}, {"n": 2})]
    assert _process(bus, sessions).delivered == 0


def test_the_envelope_of_a_row(sessions: sessionmaker[Session]) -> None:
    """Handlers of a model with no more than the five fields find id and message in `context.envelope`, too."""
    seen: list[Any] = []
    bus = MessageBus()
    bus.registry.register(Happened)

    class Look(Send):
        def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            seen.append((context.envelope.id, context.envelope.meta, context.envelope.message))

    bus.set_outbox_handlers([Look(lambda row: None)])
    _register(bus, sessions, 3)
    _process(bus, sessions)
    assert seen == [(uuid5(NAMESPACE_OID, "3"), {"n": 3}, Happened(n=3))]  # its id is no UUID


def test_the_buses_own_handlers_are_the_default(sessions: sessionmaker[Session]) -> None:
    """Without outbox handlers the rows are dispatched to the bus's command and event handlers."""
    seen: list[int] = []
    bus = MessageBus()
    bus.set_event_handlers(Happened, [lambda event: seen.append(event.n)])
    _register(bus, sessions, 1)
    assert _process(bus, sessions).delivered == 1
    assert seen == [1]


def test_a_failing_row_stops_no_other(sessions: sessionmaker[Session]) -> None:
    """Faults of the ancestor: no rollback after a database error, so the session was dead for the rest."""
    seen: list[str] = []
    broken = [True]

    def handle(row: Any) -> None:
        if row.id == "2" and broken:
            raise ValueError("boom")
        seen.append(row.id)

    bus = MessageBus()
    bus.set_outbox_handlers([Send(handle)])
    _register(bus, sessions, 1, 2, 3)
    report = _process(bus, sessions)
    assert (seen, report.delivered, report.retrying, report.ok) == (["1", "3"], 2, 1, False)
    broken.clear()
    assert _process(bus, sessions).ok
    assert seen == ["1", "3", "2"]


def test_a_row_is_marked_when_all_handlers_succeeded(sessions: sessionmaker[Session]) -> None:
    """Fault of the ancestor: marked by the first handler, failed by the second, lost with the next row's commit."""
    seen: list[str] = []
    broken = [True]

    def second(row: Any) -> None:
        if broken:
            raise ValueError("boom")
        seen.append(f"second {row.id}")

    class First(Send):
        pass

    bus = MessageBus()
    bus.set_outbox_handlers([First(lambda row: seen.append(f"first {row.id}")), Send(second)])
    _register(bus, sessions, 1)
    _process(bus, sessions)
    broken.clear()
    assert _process(bus, sessions).delivered
    assert seen == ["first 1", "first 1", "second 1"]


def test_limit_of_own_rows(sessions: sessionmaker[Session]) -> None:
    """`limit` is the number of rows that are tried."""
    bus = MessageBus()
    bus.set_outbox_handlers([Send(lambda row: None)])
    _register(bus, sessions, 1, 2, 3)
    assert [_process(bus, sessions, limit=2).delivered for _ in range(2)] == [2, 1]


def test_a_repository_that_lists_nothing(sessions: sessionmaker[Session]) -> None:
    """The ancestor's example leaves list_unprocessed empty: that is no rows."""

    class Lazy(SAOutBoxRepo):
        def list_unprocessed(self) -> Any:
            """Nothing."""

    bus = MessageBus()
    bus.set_outbox_handlers([Send(lambda row: None)])
    with sessions() as session:
        assert bus.process_outbox(Lazy(session)).delivered == 0


@pytest.mark.sqlite
async def test_the_session_of_the_other_colour_is_refused(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A Session on an AsyncMessageBus, and an AsyncSession on a MessageBus, are refused before anything is handled."""
    with session_factory() as session, pytest.raises(WiringError, match="AsyncSession"):
        await AsyncMessageBus().process_outbox(session)
    async with AsyncSession() as async_session:
        with pytest.raises(WiringError, match="not on AsyncSQLAlchemyOutBoxRepo"):
            MessageBus().process_outbox(async_session)
