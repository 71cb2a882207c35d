"""Lends a session to a handler and guards it: only the subscription ends the transaction (S10, G5).

While it is lent, `commit`, `rollback` and the like of that one Session object raise `SessionOwnedBySubscription`;
savepoints (`begin_nested`) work as ever. A listener refuses to commit the SessionTransaction itself; rolling that
back is found when the session comes back. One colour: it works on the Session, also on the one inside an AsyncSession.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from sqlalchemy import event
from sqlalchemy import inspect as inspect_entity
from sqlalchemy.orm import Session

from message_bus.errors import SessionOwnedBySubscription, UnflushedWork
from message_bus.repositories import late_writing

_LENT = "message_bus.lent"  # in Session.info
_ENDING = ("commit", "rollback", "close", "reset", "invalidate", "prepare")


def _refuser(operation: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise SessionOwnedBySubscription(operation)

    return refuse


@contextmanager
def lent(session: Session) -> Iterator[None]:
    """Lend the session: begins its transaction if none is open; raises if it comes back in another one."""
    if not session.in_transaction():
        session.begin()
    transaction = session.get_transaction()
    session.info[_LENT] = True
    for operation in _ENDING:
        session.__dict__[operation] = _refuser(operation)
    try:
        yield
    finally:
        for operation in _ENDING:
            del session.__dict__[operation]
        del session.info[_LENT]
    if session.get_transaction() is not transaction:
        raise SessionOwnedBySubscription("ending the transaction")


def _refuse_commit(session: Session) -> None:
    if session.info.get(_LENT) and session.get_nested_transaction() is None:
        raise SessionOwnedBySubscription("commit")


event.listen(Session, "before_commit", _refuse_commit, insert=True)


def write_everything(session: Session) -> None:
    """Flush entities and registered messages, so that the checkpoint is the last statement before COMMIT (S1)."""
    session.flush()
    late_writing.flush(session)


def refuse_unflushed(session: Session) -> None:
    """Raise UnflushedWork if committing this session would commit work that its user has not committed."""
    if session.new or session.dirty or session.deleted:
        raise UnflushedWork(
            "process_outbox commits, but the session has unflushed changes (commit or roll back first, "
            "or give it a session of its own)"
        )
    if late_writing.pending(session):
        raise UnflushedWork(
            "process_outbox commits, but messages registered on the session are not committed yet "
            "(commit or roll back first, or give it a session of its own)"
        )


def forget_loaded(session: Session) -> None:
    """Make the next handler read afresh what earlier ones loaded: with expire_on_commit=False nothing else does.

    Primary keys stay, so that entities the caller holds can still be identified without a query.
    """
    if session.expire_on_commit:
        return
    for entity in list(session.identity_map.values()):
        mapper = inspect_entity(entity).mapper
        keys = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
        session.expire(entity, [attribute.key for attribute in mapper.attrs if attribute.key not in keys])
