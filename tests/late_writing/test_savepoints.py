"""Savepoints decide about the messages registered inside them, and about no others (L2, L3)."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from message_bus.errors import UnwrittenMessages
from message_bus.repositories.late_writing import flush, pending
from tests.late_writing.conftest import Order, Room
from tests.late_writing.scenario import under_every_driver

ENDINGS = list(itertools.product(("commit", "rollback", "close"), repeat=2))


@under_every_driver
def test_releasing_a_savepoint_does_not_write(room: Room) -> None:
    """L2: before_commit also fires for a savepoint; writing then would lock the log for the rest of the transaction."""
    with room.session() as session:
        with session.begin_nested():
            session.add(Order(customer="c"))
            room.register(session, "A")
        assert room.seen_by(session) == []
        assert pending(session) == 1
        session.commit()
    assert room.stored() == ["A"]


@under_every_driver
@pytest.mark.parametrize(("inner", "outer"), ENDINGS)
def test_two_levels_ended_in_every_way(room: Room, inner: str, outer: str) -> None:
    """L3: a message is kept if and only if every savepoint around its registration was released."""
    expected = ["before"]
    with room.session() as session:
        room.register(session, "before")
        first = session.begin_nested()
        room.register(session, "first")
        second = session.begin_nested()
        room.register(session, "second")
        getattr(second, inner)()
        room.register(session, "between")
        getattr(first, outer)()
        room.register(session, "after")
        session.commit()
    if outer == "commit":
        expected += ["first", *(["second"] if inner == "commit" else []), "between"]
    assert room.stored() == [*expected, "after"]


@under_every_driver
@pytest.mark.parametrize(("inner", "outer"), ENDINGS)
def test_the_same_with_an_early_flush_inside(room: Room, inner: str, outer: str) -> None:
    """L3, L7: flush() inside a savepoint writes its parents' messages too; rolled back with it, they are written again."""
    kept = {"before", "after"}
    with room.session() as session:
        room.register(session, "before")
        first = session.begin_nested()
        room.register(session, "first")
        second = session.begin_nested()
        room.register(session, "second")
        flush(session)
        assert pending(session) == 0
        getattr(second, inner)()
        room.register(session, "between")
        getattr(first, outer)()
        room.register(session, "after")
        session.commit()
    if outer == "commit":
        kept |= {"first", "between"} | ({"second"} if inner == "commit" else set())
    assert sorted(room.stored()) == sorted(kept)


@under_every_driver
@pytest.mark.parametrize("ending", ["rollback", "close", "invalidate"])
def test_ending_the_root_takes_open_savepoints_along(room: Room, ending: str) -> None:
    """L3: rollback, close and invalidate of the whole drop what open savepoints had registered."""
    session = room.session()
    room.register(session, "root")
    session.begin_nested()
    session.execute(sa.select(Order))
    room.register(session, "nested")
    session.begin_nested()
    room.register(session, "deeper")
    getattr(session, ending)()
    assert pending(session) == 0
    room.register(session, "A")
    session.commit()
    session.close()
    assert room.stored() == ["A"]


@under_every_driver
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("with_sql", [True, False])
def test_committing_the_root_over_open_savepoints(room: Room, depth: int, with_sql: bool) -> None:
    """L2: `with session.begin()` that leaves savepoints open fires before_commit inside them only: nothing is lost."""
    with room.session() as session:
        with session.begin():
            room.register(session, "root")
            for level in range(depth):
                session.begin_nested()
                room.register(session, f"level {level}")
                if with_sql:
                    session.execute(sa.select(Order))
        assert not session.in_transaction()
    assert room.stored() == ["root", *(f"level {level}" for level in range(depth))]


@under_every_driver
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["before_commit", "before_flush", "after_flush"])
def test_listeners_that_register_while_the_root_is_committed_over_savepoints(
    room: Room, name: str, depth: int
) -> None:
    """L2: whatever listeners register at every step of such a commit is in it."""
    registered: list[str] = []

    def register(session: Session, *args: object) -> None:
        registered.append(f"{name} {len(registered)}")
        room.register(session, registered[-1])

    with room.session() as session:
        sa.event.listen(session, name, register)
        with session.begin():
            for level in range(depth):
                session.begin_nested()
                session.add(Order(customer=f"c{level}"))
    assert registered
    assert sorted(room.stored()) == sorted(registered)


@under_every_driver
def test_releasing_an_outer_savepoint_over_an_inner_one(room: Room) -> None:
    """L2, L3: an outer savepoint released over an open inner one looks like a commit; rolled back later, all is undone."""
    with room.session() as session:
        outermost = session.begin_nested()
        room.register(session, "A")
        outer = session.begin_nested()
        room.register(session, "B")
        session.begin_nested()
        room.register(session, "C")
        outer.commit()
        room.register(session, "D")
        outermost.rollback()
        room.register(session, "kept")
        session.commit()
    assert room.stored() == ["kept"]


@under_every_driver
def test_after_such_a_release_messages_wait_again(room: Room) -> None:
    """L2: once the outer savepoint is released, registration waits for the commit as ever."""
    with room.session() as session:
        outer = session.begin_nested()
        session.begin_nested()
        room.register(session, "A")
        outer.commit()
        room.register(session, "B")
        assert pending(session) == 1
        session.commit()
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_a_savepoint_inside_before_commit(room: Room) -> None:
    """L2: a listener of the commit may use savepoints, and what it registers in them follows them."""

    def use_savepoints(session: Session) -> None:
        if session.in_nested_transaction():
            return
        with session.begin_nested():
            room.register(session, "released")
        nested = session.begin_nested()
        room.register(session, "rolled back")
        nested.rollback()
        session.begin_nested()
        room.register(session, "left open")

    with room.session() as session:
        sa.event.listen(session, "before_commit", use_savepoints)
        room.register(session, "A")
        session.commit()
    assert room.stored() == ["A", "released", "left open"]


@under_every_driver
def test_a_savepoint_whose_flush_failed(room: Room) -> None:
    """L3: the failed savepoint's messages go with it; until it is closed it takes no more."""
    with room.session() as session:
        session.add(Order(id=1, customer="c"))
        room.register(session, "A")
        session.flush()
        nested = session.begin_nested()
        room.register(session, "dropped")
        session.add(Order(id=1, customer="the same id"))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        with pytest.raises(UnwrittenMessages, match="rolled back"):
            room.register(session, "too late")
        nested.rollback()
        room.register(session, "B")
        session.commit()
    assert room.stored() == ["A", "B"]


@under_every_driver
def test_a_savepoint_opened_during_a_flush(room: Room) -> None:
    """L3: the parent of such a savepoint is the flush's own transaction; its messages go to the boundary around that."""
    opened: list[SessionTransaction] = []

    def use_savepoint(session: Session, *args: object) -> None:
        nested = session.begin_nested()
        opened.append(nested)
        room.register(session, f"in flush {len(opened)}")
        nested.commit() if len(opened) == 1 else nested.rollback()

    with room.session() as session:
        sa.event.listen(session, "after_flush", use_savepoint)
        session.add(Order(customer="c"))
        session.flush()
        session.add(Order(customer="d"))
        session.flush()
        opened.clear()
        around = session.begin_nested()
        session.add(Order(customer="e"))
        session.flush()
        assert pending(session) == 2
        around.rollback()
        session.commit()
    assert room.stored() == ["in flush 1"]


@under_every_driver
def test_registered_after_the_release_of_a_savepoint(room: Room) -> None:
    """L3: an after_commit listener of a savepoint registers for the transaction around it."""

    def register(session: Session) -> None:
        if session.in_nested_transaction():
            room.register(session, "after the release")

    with room.session() as session:
        sa.event.listen(session, "after_commit", register)
        with session.begin_nested():
            session.add(Order(customer="c"))
        session.commit()
    assert room.stored() == ["after the release"]
