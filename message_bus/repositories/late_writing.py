"""Messages wait on the session and become rows just before it commits (L1-L6).

A row locks its log until the transaction ends, so the later it is written, the less readers wait. What a session has
registered hangs on its root transaction (`waiting.py`), in `session.info`; listeners on the class
`sqlalchemy.orm.Session` watch that transaction, and a gate on the engine stops a commit that would leave a message
behind. One colour: under AsyncSession the same listeners run inside SQLAlchemy's greenlet. The repositories and the
delivery engine call it; on a Core connection `connection_writing.py` does the same work.
"""

from __future__ import annotations

import weakref
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import concurrency

from message_bus.errors import UnwrittenMessages
from message_bus.repositories import bells
from message_bus.repositories.connection_writing import count_held
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.waiting import Bind, Entry, Waiting, clause_for, encoded
from message_bus.storage.tables import MessageBusTables

_KEY: Final = "message_bus.waiting"  # in Session.info
_HOLDER: Final = "message_bus.session"  # in Connection.info: which session has begun on it


def buffer(session: Session, tables: MessageBusTables, row: OutboxMessage) -> None:
    """Register a row on the session: validated and encoded now, written just before the commit.

    Transaction: begins the session's transaction if none is open, as `session.add()` does. Rolling back that
    transaction, or the savepoint that is open now, drops the row. While the commit is under way it is written at once.

    Raises: InvalidOutboxMessage for a row that does not fit, UnwrittenMessages if the transaction has already been
    committed or rolled back. Nothing is registered then.
    """
    record = encoded(row)
    _ensure_begun(session)
    waiting = _waiting_of(session)
    owner = waiting.innermost()
    if owner is waiting.ended:
        raise _too_late(row)
    bind = session.get_bind(clause=clause_for(tables.outbox))
    if isinstance(bind, sa.Connection):
        waiting.listen_to(bind)
    else:
        _put_gate(bind)
    entry = Entry(row, record, tables, bind, owner)
    waiting.entries.append(entry)
    if (waiting.closing or waiting.unwinding) and _may_write(bind):
        try:
            waiting.write()
        except InvalidRequestError as exc:  # the session takes no more SQL: prepared, committed
            waiting.drop(entry)
            raise _too_late(row) from exc
        except BaseException:
            waiting.drop(entry)
            raise


def flush(session: Session) -> None:
    """Write now what is registered on the session; its log stays locked for the rest of the transaction (L7)."""
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is not None:
        waiting.write()


def pending(session: Session) -> int:
    """How many messages are registered on the session, or on the connection it is bound to, and not yet written."""
    waiting: Waiting | None = session.info.get(_KEY)
    count = 0 if waiting is None else sum(1 for _ in waiting.unwritten())
    return count + (count_held(session.bind) if isinstance(session.bind, sa.Connection) else 0)


def waiting_rows(session: Session, tables: MessageBusTables) -> list[OutboxMessage]:
    """What is registered for these tables and not yet written, in order."""
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return []
    return [each.row for each in waiting.unwritten() if each.tables.qualified("") == tables.qualified("")]


def session_on(connection: sa.Connection) -> Session | None:
    """The session that has begun the transaction of this connection, if one has."""
    holder = connection.info.get(_HOLDER)
    if holder is None or holder[1]() is not connection:
        return None
    session: Session | None = holder[0]()
    return session


def _ensure_begun(session: Session) -> None:
    """As `session.add()` does (L4): otherwise a close() would leave the message for the next unit of work."""
    if session.in_transaction():
        return
    if not session.autobegin:
        raise InvalidRequestError(
            "Autobegin is disabled on this Session; please call session.begin() before you register messages"
        )
    session.begin()


def _waiting_of(session: Session) -> Waiting:
    """The messages of the transaction that is open now."""
    root = session.get_transaction()
    assert root is not None, "only called within a transaction"
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None or waiting.root is not root:
        waiting = session.info[_KEY] = Waiting(session, root)
    return waiting


def _may_write(bind: Bind) -> bool:
    """False outside the greenlet of an async session, where no I/O is possible.

    Then the commit is not under way but has failed before it reached the database; the next attempt writes the message.
    """
    return not bind.dialect.is_async or concurrency.in_greenlet()


# --- the session's transaction, watched -------------------------------------------------------------------------


def _before_commit(session: Session) -> None:
    """Fires when the root is about to commit, *and* when a savepoint is about to be released (L2).

    Committing over open savepoints announces the innermost of them twice: once for the outer transaction, once for
    itself. Nothing tells whether that outer one is the root, so what waits is written then, which is never wrong.
    """
    waiting = _waiting_of(session)
    nested = session.get_nested_transaction()
    again = nested is not None and (waiting.announced is nested or waiting.unwinding)
    waiting.announced = nested
    if nested is not None and not again and not waiting.closing:
        return
    if next(waiting.unwritten(), None) is not None:
        session.flush()  # its listeners may register more, and it may take long
        waiting.write()
    if nested is None:
        waiting.closing = True
    elif again:
        waiting.unwinding = True


def _after_commit(session: Session) -> None:
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        waiting.hand_over(nested)
        return
    waiting.ended = waiting.root
    if left := sum(1 for _ in waiting.unwritten()):
        raise _unwritten(left)
    if waiting.wrote:
        bells.ring()


def _after_rollback(session: Session) -> None:
    if session.get_transaction() is not None:
        waiting = _waiting_of(session)
        waiting.ended = waiting.innermost()


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """The only event of close(), invalidate() and of savepoints that an outer rollback takes along (L3)."""
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return
    if waiting.root is transaction:
        del session.info[_KEY]
        waiting.stop_listening()
    elif transaction.nested:
        waiting.undo(transaction)


def _after_begin(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    connection.info[_HOLDER] = (weakref.ref(session), weakref.ref(connection))


for _name, _listener in (
    ("before_commit", _before_commit),
    ("after_commit", _after_commit),
    ("after_rollback", _after_rollback),
    ("after_transaction_end", _after_transaction_end),
    ("after_begin", _after_begin),
):
    event.listen(Session, _name, _listener)


# --- the last gate ----------------------------------------------------------------------------------------------


def _put_gate(engine: sa.Engine) -> None:
    if _gate not in engine.dispatch.commit:  # a tenth of what event.contains() takes
        event.listen(engine, "commit", _gate)
        event.listen(engine, "prepare_twophase", _gate_twophase)


def _gate(connection: sa.Connection) -> None:
    """Stop a COMMIT that no before_commit has announced, e.g. `session.connection().commit()`."""
    session = session_on(connection)
    waiting: Waiting | None = None if session is None else session.info.get(_KEY)
    if waiting is None:
        return
    if left := sum(1 for each in waiting.unwritten() if each.bind is connection.engine):
        raise _unwritten(left)


def _gate_twophase(connection: sa.Connection, xid: object) -> None:
    _gate(connection)


def _too_late(row: OutboxMessage) -> UnwrittenMessages:
    return UnwrittenMessages(
        f"message {row.message!r} was registered in a transaction that has already been prepared, committed or rolled "
        "back (register it earlier, or in the next transaction)"
    )


def _unwritten(count: int) -> UnwrittenMessages:
    return UnwrittenMessages(
        f"the transaction was about to end without the {count} message(s) registered on its session, so it was stopped "
        "(commit with session.commit(), or call the repository's flush() first)"
    )
