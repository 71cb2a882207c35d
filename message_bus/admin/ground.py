"""What an operator's change may stand on: a transaction. Called on the plain Session or Connection, in both colours."""

from __future__ import annotations

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus.errors import UnsupportedDatabase
from message_bus.storage.insert_dialects import database_of


def refuse_autocommit(target: Session | Connection) -> None:
    """Raise UnsupportedDatabase on an AUTOCOMMIT connection: locks would end at once, and a change be half done (S3)."""
    connection = target if isinstance(target, Connection) else target.connection()
    if database_of(connection.dialect).is_autocommit(connection):
        raise UnsupportedDatabase(
            "dead letters are decided about in a transaction, but this connection is in AUTOCOMMIT "
            "(use an engine or session that is not set to isolation_level='AUTOCOMMIT')"
        )
