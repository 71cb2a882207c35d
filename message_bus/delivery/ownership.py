"""Lends a session to a handler and guards it: only the subscription ends the transaction (S10, G5).

While it is lent, `commit`, `rollback` and the like of that one Session object raise `SessionOwnedBySubscription`;
savepoints (`begin_nested`) work as ever. Listeners refuse to commit the SessionTransaction or the connection itself;
rolling these back is found when the session comes back. One colour: the Session inside an AsyncSession is lent, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy import inspect as inspect_entity
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin
from sqlalchemy.util import concurrency

from message_bus.errors import SessionOwnedBySubscription, SettingsError, UnflushedWork
from message_bus.repositories import late_writing

_LENT = "message_bus.lent"  # in Session.info
_WRITTEN = (
    "message_bus.written"  # in Session.info: the root transaction that a flush or bulk method has written in
)
_CHANGES = "message_bus.changes"  # in Session.info: SQLite connections, and how much each had written before
_ENDING = ("commit", "rollback", "close", "reset", "invalidate", "prepare")


def _refuser(operation: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise SessionOwnedBySubscription(operation)

    return refuse


_REFUSERS = {operation: _refuser(operation) for operation in _ENDING}


@contextmanager
def lent(session: Session) -> Iterator[None]:
    """Lend the session: begins its transaction if none is open; raises if it comes back in another one."""
    if not session.in_transaction():
        session.begin()
    bind = session.bind
    if isinstance(bind, Engine) and _refuse_commit_of_connection not in bind.dispatch.commit:
        event.listen(bind, "commit", _refuse_commit_of_connection)
    transaction = session.get_transaction()
    session.info[_LENT] = True
    session.__dict__.update(_REFUSERS)
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


def _refuse_commit_of_connection(connection: Connection) -> None:
    """`session.connection().commit()` goes past the session: effects would stay without their checkpoint."""
    session = late_writing.session_on(connection)
    if session is not None and session.info.get(_LENT):
        raise SessionOwnedBySubscription("commit")


def write_everything(session: Session) -> None:
    """Flush entities and registered messages, so that the checkpoint is the last statement before COMMIT (S1)."""
    session.flush()
    late_writing.flush(session)


def refuse_unflushed(session: Session) -> None:
    """Raise UnflushedWork if committing this session would commit work that its user has not committed.

    Flushes, `bulk_insert_mappings()` and the like, and Query.update() are always seen. Other statements are on SQLite
    by the rows that they changed. On PostgreSQL the server is asked whether the transaction has written or locked rows;
    not where it is part of somebody's outer transaction, which may have written before, and not outside of the greenlet
    of an async session.
    """
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

    if getattr(session, "_trans_context_manager", None) is not None:
        raise UnflushedWork(
            "process_outbox commits, but the session is inside of `with session.begin()`, which commits itself "
            "(call it behind that block, or give it a session of its own)"
        )
    if session.in_transaction() and _has_written(session):
        raise UnflushedWork(
            "process_outbox commits, but the session's open transaction has written something that is not committed "
            "yet (commit or roll back first, or give it a session of its own)"
        )


def _has_written(session: Session) -> bool:
    if session.info.get(_WRITTEN) is session.get_transaction():
        return True
    for driver_connection, before in session.info.get(_CHANGES, ()):
        if driver_connection.total_changes != before:
            return True
    dialect = session.get_bind().dialect
    if dialect.name != "postgresql" or isinstance(session.bind, Connection):
        return False
    if dialect.is_async and not concurrency.in_greenlet():
        return False
    try:
        return session.connection().scalar(sa.text("SELECT txid_current_if_assigned()")) is not None
    except DBAPIError:  # out of reach, or the transaction has failed: the first step will say so
        return False


def _note_writing(session: Session) -> None:
    session.info[_WRITTEN] = session.get_transaction()


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if (
        transaction.origin is SessionTransactionOrigin.SUBTRANSACTION
    ):  # a flush, or bulk_insert_mappings() and the like
        _note_writing(session)


def _after_bulk(change: Any) -> None:
    _note_writing(change.session)


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        driver_connection: Any = connection.connection.driver_connection
        known = session.info.setdefault(_CHANGES, [])
        if not any(each is driver_connection for each, _ in known):  # begun again for a savepoint
            known.append((driver_connection, driver_connection.total_changes))


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_WRITTEN, None)
        session.info.pop(_CHANGES, None)


for _name, _listener in (
    ("after_transaction_create", _after_transaction_create),
    ("after_bulk_update", _after_bulk),
    ("after_bulk_delete", _after_bulk),
    ("after_begin", _after_begin),
    ("after_transaction_end", _after_transaction_end),
):
    event.listen(Session, _name, _listener)


def refuse_fragile(session: Session) -> None:
    """Raise SettingsError if rolling a failing handler back would take somebody else's transaction along."""
    bind, mode = session.bind, session.join_transaction_mode
    if not isinstance(bind, Connection) or not bind.in_transaction() or mode == "create_savepoint":
        return
    if mode != "conditional_savepoint" or not bind.in_nested_transaction():
        raise SettingsError(
            "the session",
            [
                (
                    "it takes part in a transaction that a failing handler would roll back "
                    '(make it with join_transaction_mode="create_savepoint")'
                )
            ],
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
