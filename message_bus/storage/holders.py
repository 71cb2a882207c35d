"""Who is in the way of the watermark: the transactions that hold it back, for metrics, status and doctor
(W10).

Not only writers of messages: UPDATE and DELETE on the log, `LOCK TABLE ... IN ROW EXCLUSIVE MODE`, a commit
that waits for a synchronous standby and a forgotten prepared transaction hold the same lock. Diagnosis only:
nothing decides by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Text, bindparam, text
from sqlalchemy.engine import Connection

from message_bus.storage.logs import quoted_name
from message_bus.storage.tables import MessageBusTables

# A prepared transaction is nobody's session: the xid that its virtual transaction has locked leads to its name.
_HOLDERS: Final = text("""
SELECT lock.virtualtransaction AS transaction, lock.pid, activity.application_name, activity.state,
       nullif(activity.query, '<insufficient privilege>') AS query, prepared.gid AS prepared,
       extract(epoch FROM clock_timestamp() - coalesce(activity.xact_start, prepared.prepared)) AS seconds
FROM pg_locks AS lock
LEFT JOIN pg_stat_activity AS activity ON activity.pid = lock.pid
LEFT JOIN pg_locks AS xid
       ON lock.pid IS NULL AND xid.pid IS NULL AND xid.locktype = 'transactionid'
      AND xid.virtualtransaction = lock.virtualtransaction AND xid.mode = 'ExclusiveLock'
LEFT JOIN pg_prepared_xacts AS prepared ON prepared.transaction = xid.transactionid
WHERE lock.locktype = 'relation'
  AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND lock.relation = to_regclass(:name)
  AND lock.mode = 'RowExclusiveLock'
  AND lock.granted
  AND lock.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY seconds DESC NULLS LAST, transaction
""").bindparams(bindparam("name", type_=Text))


@dataclass(frozen=True, slots=True)
class Holder:
    """One transaction that holds the watermark. `pid` is None for a prepared one, whose name is `prepared`.

    `age`: since it began, or was prepared; with the query None if this role may not see it.
    """

    transaction: str
    pid: int | None
    age: timedelta | None
    application_name: str | None
    state: str | None
    query: str | None
    prepared: str | None = None

    def __str__(self) -> str:
        age = f"open for {self.age.total_seconds():.1f} s" if self.age is not None else "of unknown age"
        if self.pid is None:
            name = (self.prepared or "").replace("'", "''")
            return f"prepared transaction {self.prepared!r}, {age} (COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}')"
        query = (
            self.query if self.query is not None else "(query hidden: grant pg_read_all_stats to this role)"
        )
        return (
            f"pid {self.pid}, application {self.application_name or '?'}, {age}, {self.state or '?'}: {query}"
        )


def holders(connection: Connection, tables: MessageBusTables) -> list[Holder]:
    """Who else holds the log's watermark right now, the oldest first; empty on SQLite, where nobody can."""
    if connection.dialect.name != "postgresql":
        return []
    name = quoted_name(connection, tables.log_table(tables.source_log))
    return [
        Holder(
            transaction=row.transaction,
            pid=row.pid,
            age=timedelta(seconds=max(0.0, float(row.seconds))) if row.seconds is not None else None,
            application_name=row.application_name,
            state=row.state,
            query=row.query,
            prepared=row.prepared,
        )
        for row in connection.execute(_HOLDERS, {"name": name})
    ]
