"""Tells an unreachable, overloaded or restarting database from a failure of the work itself (G8, S7).

An outage burns no attempt: the same work will do once the database is back, or once its turn has come. Pure: it looks
at SQLSTATE codes, SQLite's result codes and class names, and imports no driver. The delivery engine calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_READ_ONLY: Final = (
    "25006"  # read_only_sql_transaction: after a failover we are still connected to the old primary
)
_CODES: Final = frozenset({
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "57P01",  # admin_shutdown, also pg_terminate_backend
    "57P02",  # crash_shutdown
    "25P03",  # idle_in_transaction_session_timeout: this process was silent for too long
    "57P05",  # idle_session_timeout
    "57P03",  # cannot_connect_now: starting up or shutting down
    _READ_ONLY,
})  # fmt: skip
_CLASSES: Final = frozenset({
    "08",  # connection exception
    "53",  # insufficient resources: too many connections, out of memory, disk full
})  # fmt: skip
_SQLITE: Final = frozenset({
    5,  # SQLITE_BUSY: another connection writes
    6,  # SQLITE_LOCKED: the same, within a shared cache
    10,  # SQLITE_IOERR
    13,  # SQLITE_FULL
    14,  # SQLITE_CANTOPEN
})  # fmt: skip
_LOST: Final = ("closed", "lost", "does not exist")


def is_read_only(error: BaseException) -> bool:
    """Does it say that the server takes no writes, as one that was the primary until a failover?"""
    return any(_code(each) == _READ_ONLY for each in _chain(error))


def is_outage(error: BaseException) -> bool:
    """Is it the database's fault, so that nothing needs to change before the next attempt?

    Looks through what wraps the driver's error: SQLAlchemy's `orig`, the cause of `raise … from …`, exception groups.
    """
    return any(_says_outage(each) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, getattr(each, "orig", None)]
            if isinstance(each, BaseExceptionGroup):
                # after an outage the other handlers of an event fail of it
                waiting += each.exceptions


def _says_outage(error: BaseException) -> bool:
    if getattr(error, "connection_invalidated", False) or isinstance(error, ConnectionError):
        return True
    code = _code(error)
    if isinstance(code, str):
        return code in _CODES or code[:2] in _CLASSES
    sqlite = getattr(error, "sqlite_errorcode", None)
    if isinstance(sqlite, int):
        return sqlite & 0xFF in _SQLITE  # the low byte: extended codes say more than we need
    return _has_no_connection(error)


def _code(error: BaseException) -> object:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _has_no_connection(error: BaseException) -> bool:
    """Without a code only the kind of error is left: the server did not answer, or the connection is gone."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    if ("psycopg", "OperationalError") in kinds or ("psycopg2", "OperationalError") in kinds:
        return True
    if ("sqlalchemy", "TimeoutError") in kinds:  # the pool has no connection to give
        return True
    if not any(name == "InterfaceError" for _, name in kinds):
        return False
    text = str(error)  # an InterfaceError is also what drivers say of wrong arguments
    return "connection" in text and any(word in text for word in _LOST)
