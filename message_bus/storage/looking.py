"""One look at a log: the statement, and what its answer means. Called by the watermark, which remembers and
locks.

On PostgreSQL one statement does it all, in one round trip on any driver. Its order is what counts: `high`
first, the writers after it (read the other way round, whoever draws a position in between is overlooked). The
order is not left to luck: the part that reads `pg_locks` takes `seen.high` as a parameter, so it cannot start
before `high` is known. `OFFSET 0` keeps the planner from merging the levels. `pg_locks` shows the lock table
as it is at that moment, not as of the statement's snapshot. That snapshot is older than the writers, so rows
must be read by a *later* statement.

On SQLite there is one writer at a time, and `sqlite_sequence` is part of the snapshot: all that is seen is
settled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Table, Text, bindparam, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from message_bus.errors import SchemaError, UnsupportedDatabase
from message_bus.storage.logs import POSITION, quoted_name, schema_of
from message_bus.storage.requirements import incarnation_hidden, old_snapshot, rows_hidden, usage_missing
from message_bus.storage.settled import Look, Remembered

LOOK: Final = text("""
SELECT seen.relation, seen.sequence_name, seen.usable, seen.high, seen.isolation, seen.hidden, seen.incarnation,
       current_user AS role, locks.others, locks.own
FROM (
    SELECT log.relation, log.database, log.sequence_name, log.usable,
           CASE WHEN log.usable THEN pg_sequence_last_value(log.sequence) END AS high,
           current_setting('transaction_isolation') AS isolation,
           row_security_active(log.relation) AS hidden,
           concat_ws(' ', log.database, log.relation, log.sequence,
                     extract(epoch FROM pg_postmaster_start_time()), control.checkpoint_lsn) AS incarnation
    FROM (
        SELECT named.relation, named.sequence_name, named.database,
               CAST(named.sequence_name AS regclass)::oid AS sequence,
               has_sequence_privilege(CAST(named.sequence_name AS regclass)::oid, 'USAGE, SELECT') AS usable
        FROM (
            SELECT to_regclass(:name)::oid AS relation,
                   CASE WHEN to_regclass(:name) IS NOT NULL
                        THEN pg_get_serial_sequence(:name, :position) END AS sequence_name,
                   (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
            OFFSET 0
        ) AS named
        OFFSET 0
    ) AS log
    CROSS JOIN pg_control_checkpoint() AS control
    OFFSET 0
) AS seen
CROSS JOIN LATERAL (
    SELECT array_agg(lock.virtualtransaction) FILTER (WHERE lock.pid IS DISTINCT FROM pg_backend_pid()) AS others,
           array_agg(lock.virtualtransaction) FILTER (WHERE lock.pid = pg_backend_pid()) AS own
    FROM pg_locks AS lock
    WHERE seen.high > :above
      AND lock.locktype = 'relation'
      AND lock.database = seen.database
      AND lock.relation = seen.relation
      AND lock.mode = 'RowExclusiveLock'
      AND lock.granted
) AS locks
""").bindparams(
    bindparam("name", type_=Text), bindparam("position", type_=Text), bindparam("above", type_=BigInteger)
)
"""W1: `pg_sequence_last_value`, not `SELECT last_value`, which can see a value that `nextval` writes only to
log ahead. W2: a prepared transaction has no pid, hence IS DISTINCT FROM. W6: with nothing above `:above` no
lock is looked at. Names are resolved each time (30 µs): a table dropped and made again, or another
search_path, is another incarnation."""

_CATCH_UP: Final = "SELECT setval('{sequence}', {{position}})"

_SQLITE_LOOK: Final = """
SELECT coalesce((SELECT max(position) FROM {table}), 0),
       coalesce((SELECT max(seq) FROM {master}sqlite_sequence WHERE name = :name), 0)
"""
_SQLITE_CATCH_UP: Final = "UPDATE {master}sqlite_sequence SET seq = {{position}} WHERE name = '{name}'"

_INSUFFICIENT_PRIVILEGE: Final = "42501"


class Seen(NamedTuple):
    """What one statement saw, in this order: the sequence, then the locks (none if they were not looked at)."""

    high: int
    incarnation: str
    sequence: str
    writers: frozenset[str]
    own: frozenset[str]


def take_look(
    connection: Connection, table: Table, remembered: Remembered, clock: Callable[[], float]
) -> Look:
    """Look once, and remember what was seen. Whoever shares `remembered` must keep other looks out meanwhile."""
    match connection.dialect.name:
        case "postgresql":
            return _look_at_postgresql(connection, table, remembered, clock)
        case "sqlite":
            return _look_at_sqlite(connection, table)
        case other:
            raise unknown_dialect(other)


def unknown_dialect(name: str) -> UnsupportedDatabase:
    """What to raise on a database that we do not know how to look at."""
    return UnsupportedDatabase(
        f"a log on dialect {name!r} cannot be read safely (use PostgreSQL 14.1+ or SQLite)"
    )


def see(connection: Connection, table: Table, *, above: int = -1) -> Seen:
    """Read the last position drawn and, if it is larger than `above`, who is writing. One round trip.

    Raises: UnsupportedDatabase if rows read in this transaction could be older than the locks, or hidden, or
    if the role may not see what it must; SchemaError if there is no such table.
    """
    name = quoted_name(connection, table)
    arguments = {"name": name, "position": POSITION, "above": above}
    with _missing_privilege_explained():
        row = connection.execute(LOOK, arguments).one()
    if row.relation is None:
        raise SchemaError([f"table {name} is missing, or not on the search_path of this connection"])
    if row.sequence_name is None:
        raise SchemaError([f"table {name}: column {POSITION!r} has no sequence of its own"])
    if not row.usable:
        raise UnsupportedDatabase(usage_missing(row.sequence_name, row.role))
    if row.hidden:
        raise UnsupportedDatabase(rows_hidden(name, row.role))
    if (fault := old_snapshot(row.isolation)) is not None:
        raise UnsupportedDatabase(fault)
    own = frozenset(row.own or ())
    return Seen(row.high or 0, row.incarnation, row.sequence_name, own.union(row.others or ()), own)


@contextmanager
def _missing_privilege_explained() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        # that one cannot be asked about in the same statement: the server checks it before it evaluates anything
        if getattr(
            error.orig, "sqlstate", None
        ) == _INSUFFICIENT_PRIVILEGE and "pg_control_checkpoint" in str(error.orig):
            raise UnsupportedDatabase(incarnation_hidden()) from error
        raise


def _look_at_postgresql(
    connection: Connection, table: Table, remembered: Remembered, clock: Callable[[], float]
) -> Look:
    above = remembered.settled
    seen = see(connection, table, above=above)
    if not remembered.recalls(seen.high, seen.incarnation):
        remembered.forget(seen.incarnation)
        if 0 < seen.high <= above:  # the locks were not looked at, for a reason that does not hold any more
            seen = see(connection, table, above=0)
    now = clock()
    settled = remembered.observe(seen.high, seen.writers, seen.incarnation, own=seen.own, now=now)
    return Look(
        settled=settled,
        high=seen.high,
        age=remembered.age(now, own=seen.own),
        catch_up=_CATCH_UP.format(sequence=seen.sequence.replace("'", "''")),
    )


def _look_at_sqlite(connection: Connection, table: Table) -> Look:
    schema = schema_of(connection, table)
    master = f"{connection.dialect.identifier_preparer.quote(schema)}." if schema else ""
    statement = text(_SQLITE_LOOK.format(table=quoted_name(connection, table), master=master))
    position, sequence = connection.execute(statement, {"name": table.name}).one()
    high = max(position, sequence)
    return Look(settled=high, high=high, catch_up=_SQLITE_CATCH_UP.format(master=master, name=table.name))
