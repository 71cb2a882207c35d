"""A message lives and dies with the transaction it was registered in (L1, L4, G1)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from message_bus.errors import InvalidOutboxMessage
from message_bus.repositories.late_writing import buffer, flush, pending
from message_bus.storage.tables import MessageBusTables
from tests.late_writing.conftest import Order, Room, message
from tests.late_writing.scenario import under_every_driver


@under_every_driver
def test_commit_writes_in_order_of_registration(room: Room) -> None:
    """G1, L1: what was registered is committed with the rest, positions in the order of registration."""
    with room.session() as session:
        session.add(Order(customer="c"))
        room.register(session, "A", "B", "C")
        assert pending(session) == 3
        session.commit()
        assert pending(session) == 0
    assert room.stored() == ["A", "B", "C"]
    assert room.orders() == 1


@under_every_driver
def test_nothing_is_written_before_the_commit(room: Room) -> None:
    """L2: until the commit the log is neither written nor locked, whatever the transaction does."""
    with room.session() as session:
        room.register(session, "A")
        session.add(Order(customer="c"))
        session.flush()
        with session.begin_nested():
            session.execute(sa.select(Order))
        assert room.seen_by(session) == []
        session.commit()
    assert room.stored() == ["A"]


@under_every_driver
@pytest.mark.parametrize("ending", ["rollback", "close", "invalidate", "reset"])
def test_no_other_end_of_the_transaction_writes(room: Room, ending: str) -> None:
    """L3: rollback, close, invalidate and reset drop what was registered; the next transaction knows nothing of it."""
    session = room.session()
    session.add(Order(customer="c"))
    session.flush()
    room.register(session, "lost with its transaction")
    getattr(session, ending)()
    assert pending(session) == 0
    session.add(Order(customer="d"))
    room.register(session, "kept")
    session.commit()
    session.close()
    assert room.stored() == ["kept"]
    assert room.orders() == 1


@under_every_driver
def test_close_after_registering_only_leaves_nothing_behind(room: Room) -> None:
    """L4: registering begins the transaction, so that a close before any SQL does not leak into the next one."""
    session = room.session()
    room.register(session, "leaked")
    assert session.in_transaction()
    session.close()
    session.add(Order(customer="c"))
    session.commit()
    session.close()
    assert room.stored() == []


@under_every_driver
def test_a_message_alone_is_committed(room: Room) -> None:
    """G1: a transaction that does nothing but register commits its message."""
    with room.session() as session:
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A"]


@under_every_driver
def test_a_session_serves_many_transactions(room: Room) -> None:
    """L1: nothing of one transaction is left in the session for the next, whether it committed or not."""
    with room.session() as session:
        for name in ("A", "B", "C"):
            room.register(session, name)
            session.commit()
            assert not [key for key in session.info if key.startswith("message_bus.waiting")]
            room.register(session, f"not {name}")
            session.rollback()
    assert room.stored() == ["A", "B", "C"]


@under_every_driver
def test_begin_as_context_manager(room: Room) -> None:
    """L1: `with session.begin()` commits what was registered inside, and drops it if the block raises."""
    with room.session() as session:
        with session.begin():
            room.register(session, "A")
        with contextlib.suppress(ZeroDivisionError), session.begin():
            room.register(session, "dropped")
            raise ZeroDivisionError
        with session.begin():
            room.register(session, "B")
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_without_autobegin(room: Room) -> None:
    """L4: a session without autobegin refuses a message outside a transaction, as it refuses `add()`."""
    with room.session(autobegin=False) as session:
        with pytest.raises(sa.exc.InvalidRequestError, match="Autobegin is disabled"):
            room.register(session, "A")
        assert pending(session) == 0
        with session.begin():
            room.register(session, "B")
    assert room.stored() == ["B"]


@under_every_driver
def test_without_autoflush(room: Room) -> None:
    """L2: autoflush is about queries; the commit writes all the same."""
    with room.session(autoflush=False) as session:
        session.add(Order(customer="c"))
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A"]


@under_every_driver
def test_one_buffer_and_one_order_for_all_repositories(room: Room) -> None:
    """L4: two sets of tables that name the same table share one order on one session."""
    other = MessageBusTables()
    with room.session() as session:
        buffer(session, room.tables, message("A"))
        buffer(session, other, message("B"))
        buffer(session, room.tables, message("C"))
        session.commit()
    assert room.stored() == ["A", "B", "C"]


@under_every_driver
def test_scoped_sessions_and_subclasses(room: Room) -> None:
    """L1, L4: the class listeners reach subclasses and the session behind a scoped_session."""

    class OwnSession(Session):
        pass

    factory = sessionmaker(room.engine, class_=OwnSession, info={"tenant": "t"})
    scoped: Any = scoped_session(factory)
    room.register(scoped(), "A")
    assert scoped.info["tenant"] == "t"
    scoped.commit()
    scoped.remove()
    assert room.stored() == ["A"]
    with factory.begin() as session:
        room.register(session, "B")
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_expunge_does_not_touch_messages(room: Room) -> None:
    """L1: messages are no entities; forgetting all entities forgets no message."""
    with room.session() as session:
        session.add(Order(customer="forgotten"))
        room.register(session, "A")
        session.expunge_all()
        session.commit()
    assert room.stored() == ["A"]
    assert room.orders() == 0


@under_every_driver
def test_an_early_flush_writes_and_a_rollback_undoes_it(room: Room) -> None:
    """L7: after flush() the rows are there for this transaction, and gone with it."""
    with room.session() as session:
        room.register(session, "A", "B")
        flush(session)
        assert pending(session) == 0
        assert room.seen_by(session) == ["A", "B"]
        room.register(session, "C")
        session.commit()
        room.register(session, "D")
        flush(session)
        session.rollback()
        session.commit()
    assert room.stored() == ["A", "B", "C"]


@under_every_driver
def test_a_failing_flush_of_the_application_takes_the_messages_along(room: Room) -> None:
    """G1: a failed commit is rolled back by SQLAlchemy; its messages are dropped, and the session goes on."""
    with room.session() as session:
        session.add(Order(id=1, customer="c"))
        session.commit()
        session.add(Order(id=1, customer="the same id"))
        room.register(session, "dropped")
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()
        session.rollback()
        assert pending(session) == 0
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A"]


@under_every_driver
def test_a_commit_that_failed_before_the_database_can_be_repeated(room: Room) -> None:
    """L6: a listener that stops the commit once loses nothing and writes nothing twice."""
    refusals = [ValueError("not yet")]

    def refuse_once(session: Session) -> None:
        if refusals:
            raise refusals.pop()

    with room.session() as session:
        sa.event.listen(session, "before_commit", refuse_once)
        room.register(session, "A")
        with pytest.raises(ValueError, match="not yet"):
            session.commit()
        room.register(session, "B")
        session.commit()
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_the_buffer_is_kept_until_the_insert_has_succeeded(room: Room) -> None:
    """L6: a failing INSERT leaves every message registered; the error names the id that is used twice."""
    twice = message("A")
    with room.session() as session:
        buffer(session, room.tables, twice)
        session.commit()
        buffer(session, room.tables, message("B"))
        buffer(session, room.tables, twice)
        with pytest.raises(InvalidOutboxMessage, match="used twice") as caught:
            session.commit()
        assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
        assert pending(session) == 2
        session.rollback()
        assert pending(session) == 0
        room.register(session, "C")
        session.commit()
    assert room.stored() == ["A", "C"]
