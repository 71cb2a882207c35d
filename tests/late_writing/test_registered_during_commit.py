"""What listeners register while a commit is under way is in that commit, or the commit fails (L2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, object_session

from message_bus.errors import UnwrittenMessages
from message_bus.repositories.late_writing import _before_commit, pending
from tests.late_writing.conftest import Order, Room
from tests.late_writing.scenario import under_every_driver

Listen = Callable[..., None]
ON_SESSION = ["before_commit", "before_flush", "after_flush", "after_flush_postexec"]
ON_MAPPER = ["before_insert", "after_insert"]


def registering(room: Room, name: str, times: int = 1) -> Any:
    """A listener that registers in the session at hand, `times` times."""
    left = [f"{name} {number}" for number in range(times)]

    def listener(*args: Any) -> None:
        session = args[0] if isinstance(args[0], Session) else object_session(args[2])
        if left:
            room.register(session, left.pop(0))

    return listener


@under_every_driver
@pytest.mark.parametrize("already", [True, False])
@pytest.mark.parametrize("name", ON_SESSION)
def test_session_listeners(room: Room, name: str, already: bool) -> None:
    """L2: registered in any event of the session during commit, after ours or before, with other messages or alone."""
    with room.session() as session:
        sa.event.listen(session, name, registering(room, name))
        if already:
            room.register(session, "first")
        session.add(Order(customer="c"))
        session.commit()
    assert room.stored() == [*(["first"] if already else []), f"{name} 0"]
    assert room.orders() == 1


@under_every_driver
@pytest.mark.parametrize("name", ON_MAPPER)
def test_mapper_listeners(room: Room, name: str, listen: Listen) -> None:
    """L2: registered in a mapper event of the flush that the commit does."""
    listen(Order, name, registering(room, name))
    with room.session() as session:
        session.add(Order(customer="c"))
        session.commit()
    assert room.stored() == [f"{name} 0"]


@under_every_driver
def test_class_listeners_before_and_after_ours(room: Room, listen: Listen) -> None:
    """L2: the order of listeners on the class does not matter."""
    listen(Session, "before_commit", registering(room, "before ours"), insert=True)
    listen(Session, "before_commit", registering(room, "after ours"))
    with room.session() as session:
        session.commit()
    assert room.stored() == ["before ours 0", "after ours 0"]


@under_every_driver
def test_listeners_that_call_each_other_up(room: Room) -> None:
    """L2: a message registered by a flush that a later listener of the commit causes is in the commit, too."""

    def add_an_order(session: Session) -> None:
        session.add(Order(customer="late"))

    with room.session() as session:
        sa.event.listen(session, "before_commit", add_an_order)
        sa.event.listen(session, "after_flush", registering(room, "after_flush", times=5))
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A", "after_flush 0"]


@under_every_driver
def test_what_waits_is_written_after_the_flush(room: Room) -> None:
    """L2: the commit's flush comes first, so that a long one does not hold the log; and its messages share the INSERT."""
    seen = room.statements()
    with room.session() as session:
        sa.event.listen(session, "before_flush", registering(room, "before_flush"))
        room.register(session, "A")
        session.add(Order(customer="c"))
        session.commit()
    written = [statement for statement in seen if "INSERT INTO" in statement]
    assert [("outbox" in statement) for statement in written] == [False, True]
    assert room.stored() == ["A", "before_flush 0"]


@under_every_driver
def test_a_listener_that_fails_at_once_fails_the_commit(room: Room) -> None:
    """L2, L6: a message that cannot be written at once raises where it is registered and is not left in the buffer."""
    from tests.late_writing.conftest import buffer, message

    twice = message("A")

    def register_again(session: Session) -> None:
        buffer(session, room.tables, twice)

    with room.session() as session:
        buffer(session, room.tables, twice)
        sa.event.listen(session, "before_commit", register_again)
        with pytest.raises(Exception, match="used twice"):
            session.commit()
        assert pending(session) == 0
        session.rollback()
    assert room.stored() == []


@under_every_driver
@pytest.mark.parametrize("name", ["after_commit", "after_rollback"])
def test_too_late_is_an_error(room: Room, name: str) -> None:
    """L2: a message registered after the commit or rollback would belong to nothing: it raises, it is not dropped."""
    caught: list[BaseException] = []

    def too_late(session: Session) -> None:
        try:
            room.register(session, "too late")
        except UnwrittenMessages as error:
            caught.append(error)

    with room.session() as session:
        sa.event.listen(session, name, too_late)
        session.add(Order(customer="c"))
        session.commit() if name == "after_commit" else session.rollback()
    assert len(caught) == 1
    assert room.stored() == []


@under_every_driver
def test_too_late_before_our_own_listener(room: Room, listen: Listen) -> None:
    """L2: a class listener of after_commit that comes before ours is found out, too."""

    def too_late(session: Session) -> None:
        room.register(session, "too late")

    listen(Session, "after_commit", too_late, insert=True)
    session = room.session()
    session.add(Order(customer="c"))
    with pytest.raises(UnwrittenMessages):
        session.commit()
    session.close()


@under_every_driver
def test_registered_for_the_next_transaction(room: Room) -> None:
    """L4: when a transaction has ended, a listener of that registers for the next one."""

    def register(session: Session, transaction: Any) -> None:
        if transaction.parent is None and pending(session) == 0:
            room.register(session, "next")

    with room.session() as session:
        sa.event.listen(session, "after_transaction_end", register)
        session.add(Order(customer="c"))
        session.commit()
        sa.event.remove(session, "after_transaction_end", register)
        assert room.stored() == []
        session.commit()
    assert room.stored() == ["next"]


@under_every_driver
def test_registered_as_the_transaction_begins_on_the_connection(room: Room) -> None:
    """L2: after_begin runs while the session is provisioning its connection; what is registered there waits."""

    def register(session: Session, *args: Any) -> None:
        if not session.in_nested_transaction():
            room.register(session, "after_begin")

    with room.session() as session:
        sa.event.listen(session, "after_begin", register)
        session.execute(sa.select(Order))
        session.commit()
    assert room.stored() == ["after_begin"]


# --- the last gate --------------------------------------------------------------------------------------------------


@under_every_driver
def test_committing_the_connection_behind_the_session(room: Room) -> None:
    """L2: `session.connection().commit()` announces itself to nobody; the gate on the engine stops it."""
    with room.session() as session:
        session.add(Order(customer="c"))
        session.flush()
        room.register(session, "A")
        with pytest.raises(UnwrittenMessages, match=r"without the 1 message\(s\)"):
            session.connection().commit()
        session.rollback()
    assert room.stored() == []
    assert room.orders() == 0


@under_every_driver
def test_the_gate_when_no_listener_of_ours_fires(room: Room) -> None:
    """L2: if before_commit never reaches us, for whatever reason, the commit raises and commits nothing."""
    sa.event.remove(Session, "before_commit", _before_commit)
    try:
        with room.session() as session:
            session.add(Order(customer="c"))
            room.register(session, "A")
            with pytest.raises(UnwrittenMessages):
                session.commit()
            session.rollback()
            room.register(session, "alone")
            with pytest.raises(UnwrittenMessages):
                session.commit()
            session.close()
    finally:
        sa.event.listen(Session, "before_commit", _before_commit)
    assert room.stored() == []
    assert room.orders() == 0


@under_every_driver
def test_the_gate_lets_others_pass(room: Room) -> None:
    """L2: the gate stops the transaction that would lose messages, not another one on the same pooled connection."""
    waiting = room.session()
    waiting.execute(sa.select(Order))
    waiting.commit()  # its connection goes back to the pool
    room.register(waiting, "A")
    with room.engine.begin() as connection:
        connection.execute(sa.insert(Order).values(customer="c"))
    waiting.commit()
    waiting.close()
    assert room.stored() == ["A"]
    assert room.orders() == 1
