"""What operators stand on: a session or connection of the right colour, and for a change a transaction.

The functions are called on the plain Session or Connection, in both colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus.errors import UnsupportedDatabase
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.logs import OUTBOX_LOG, quoted_name
from message_bus.storage.requirements import rows_hidden
from message_bus.storage.status_statements import GUARDED
from message_bus.storage.subscription_statements import logs_read
from message_bus.storage.tables import MessageBusTables

P = ParamSpec("P")
T = TypeVar("T")


def connection_of(target: Session | Connection, tables: MessageBusTables) -> Connection:
    """The connection that leads to the tables; of a session with several engines the one of the outbox."""
    if isinstance(target, Connection):
        return target
    return target.connection(bind_arguments={"clause": tables.outbox})


def on_connection(
    target: Session | Connection,
    tables: MessageBusTables,
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run `function(connection, ...)` on the connection that leads to the tables."""
    return function(connection_of(target, tables), *args, **kwargs)


def dialect_of(target: Session | Connection, tables: MessageBusTables) -> str:
    """The name of the dialect: "postgresql" or "sqlite"."""
    return connection_of(target, tables).dialect.name


def tables_of_logs(target: Session | Connection, tables: MessageBusTables) -> list[MessageBusTables]:
    """The tables for the readers of each log that has subscriptions; those of the outbox come first, always."""
    logs: list[str] = list(connection_of(target, tables).scalars(logs_read(tables)))
    return [tables.of_log(log) for log in (OUTBOX_LOG, *(log for log in logs if log != OUTBOX_LOG))]


def refuse_autocommit(
    target: Session | Connection, tables: MessageBusTables, what: str = "dead letters are decided about"
) -> None:
    """Raise UnsupportedDatabase on an AUTOCOMMIT connection: locks would end at once, and a change be half done (S3)."""
    connection = connection_of(target, tables)
    if database_of(connection.dialect).is_autocommit(connection):
        raise UnsupportedDatabase(
            f"{what} in a transaction, but this connection is in AUTOCOMMIT "
            "(use an engine or session that is not set to isolation_level='AUTOCOMMIT')"
        )


def refuse_hidden(target: Session | Connection, tables: MessageBusTables) -> None:
    """Raise UnsupportedDatabase if a policy may hide rows of our tables from this role (W9): half of them misleads.

    Asked for, not `SET row_security = off`: the transaction is the caller's, and so are policies on other tables.
    """
    connection = connection_of(target, tables)
    if connection.dialect.name != "postgresql":
        return
    names = [quoted_name(connection, table) for table in tables.all]
    guarded = connection.execute(GUARDED, {"names": names}).all()
    faults = [rows_hidden(row.name, row.role) for row in guarded if row.here]
    if faults:
        raise UnsupportedDatabase(f"operators must see every row: {'; '.join(faults)}")
