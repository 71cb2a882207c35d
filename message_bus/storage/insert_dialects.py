"""What differs between databases in writing outbox rows: the statement, its parameters, and what errors mean.

One small object per database behind one interface; a third database is one more such object. `writer.py` is the only
caller. PostgreSQL takes several rows as arrays (`INSERT … SELECT … FROM unnest(…)`), SQLite by executemany.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import exc

from message_bus.errors import UnsupportedDatabase
from message_bus.storage.channel import channel_of
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.record import Record

SECONDS: Final = "__seconds__"
"""Stands in `due` for the delay, until a placeholder or a column takes its place."""

_COLUMNS: Final = Record._fields[:-1]
_LIST: Final = ", ".join(_COLUMNS)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Target(NamedTuple):
    """Where a statement writes, as quoted names. `outbox` and `log` are those that belong to `table`."""

    table: str
    outbox: str
    log: str


class Database(ABC):
    """What differs between databases in writing a row."""

    @abstractmethod
    def statement(self, target: Target, due: str | None, *, many: bool) -> str:
        """The INSERT of one row or of many; with `due`, an expression over SECONDS, into the schedule.

        On PostgreSQL it notifies too, if a relay is asleep: a NOTIFY in every commit would make all commits wait for
        each other (a lock of the whole cluster is held across their fsync).
        """

    @abstractmethod
    def parameters(self, records: Sequence[Record], delayed: bool) -> Any:
        """What the statement takes for these rows; a list means executemany."""

    @abstractmethod
    def is_autocommit(self, connection: sa.Connection) -> bool:
        """Would a row be committed by itself? Answered from the driver's own state, without a round trip."""

    @abstractmethod
    def names_id(self, error: exc.IntegrityError, table: sa.Table) -> bool:
        """Is it the message id that is there already?"""

    @abstractmethod
    def find_taken(
        self, error: exc.IntegrityError, connection: sa.Connection, table: sa.Table, ids: Sequence[UUID]
    ) -> str | None:
        """Which of these ids it is."""

    @abstractmethod
    def misses_table(self, error: exc.DBAPIError) -> bool:
        """Is there no such table?"""


class _PostgreSQL(Database):
    """Arrays in binary form where the driver lets us choose; asyncpg sends everything in binary anyway."""

    _TYPES: Final = ("uuid", "text", "text", "int4", "text", "int8", "text", "text", "text", "float8")

    def __init__(self, driver: str) -> None:
        self._numbered = driver == "asyncpg"
        self._array = "%b" if driver in ("psycopg", "psycopg_async") else "%s"

    def _placeholder(self, number: int, of_array: bool = False) -> str:
        return f"${number}" if self._numbered else self._array if of_array else "%s"

    def statement(self, target: Target, due: str | None, *, many: bool) -> str:
        # now() is when the transaction began, so a long one notifies once too often rather than not
        return (
            f"WITH written AS ({self._insert(target.table, due, many=many)}) "  # noqa: S608  (names are quoted)
            f"SELECT pg_notify({channel_of(target.outbox)}, '') FROM {target.log} "
            f"WHERE log = '{OUTBOX_LOG}' AND asleep_until > now()"
        )

    def _insert(self, table: str, due: str | None, *, many: bool) -> str:
        width = len(_COLUMNS) + (due is not None)
        target = f"{table} ({_LIST}{', due_at' if due else ''})"
        if not many:
            values = [self._placeholder(number + 1) for number in range(width)]
            if due:
                values[-1] = due.replace(SECONDS, values[-1])
            return f"INSERT INTO {target} VALUES ({', '.join(values)})"  # noqa: S608  (names are quoted)
        arrays = ", ".join(f"{self._placeholder(n + 1, True)}::{self._TYPES[n]}[]" for n in range(width))
        chosen = [
            f"{column}::json" if column in ("payload", "meta", "headers") else column for column in _COLUMNS
        ]
        if due:
            chosen.append(due.replace(SECONDS, "seconds"))
        # the default of `position` is evaluated above the sort, so order of registration = order of position
        return (
            f"INSERT INTO {target} SELECT {', '.join(chosen)} FROM unnest({arrays}) WITH ORDINALITY "  # noqa: S608
            f"AS registered ({_LIST}{', seconds' if due else ''}, ordinality) ORDER BY ordinality"
        )

    def parameters(self, records: Sequence[Record], delayed: bool) -> Any:
        width = len(_COLUMNS) + delayed
        if len(records) == 1:
            return records[0][:width]
        return tuple(map(list, zip(*records, strict=True)))[:width]

    def is_autocommit(self, connection: sa.Connection) -> bool:
        return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))

    def names_id(self, error: exc.IntegrityError, table: sa.Table) -> bool:
        names = [
            str(constraint.name)
            for constraint in table.constraints
            if isinstance(constraint, sa.UniqueConstraint | sa.PrimaryKeyConstraint)
            and constraint.columns.keys() == ["id"]
        ]
        return _sqlstate(error) == "23505" and any(name in str(error.orig) for name in names)

    def find_taken(
        self, error: exc.IntegrityError, connection: sa.Connection, table: sa.Table, ids: Sequence[UUID]
    ) -> str | None:
        driver = (
            error.orig.__cause__ if error.orig is not None else None
        )  # asyncpg keeps the detail to itself
        found = _UUID.search(f"{error.orig} {getattr(driver, 'detail', '')}")
        return found.group() if found else None

    def misses_table(self, error: exc.DBAPIError) -> bool:
        return _sqlstate(error) == "42P01"


class _SQLite(Database):
    """UUIDs as SQLAlchemy's Uuid stores them here: 32 hex digits."""

    _MAX_VARIABLES: Final = 999  # of one statement, in the oldest versions

    def statement(self, target: Target, due: str | None, *, many: bool) -> str:
        values = ["?"] * len(_COLUMNS) + ([due.replace(SECONDS, "?")] if due else [])
        columns = f"{_LIST}{', due_at' if due else ''}"
        return f"INSERT INTO {target.table} ({columns}) VALUES ({', '.join(values)})"  # noqa: S608  (names are quoted)

    def parameters(self, records: Sequence[Record], delayed: bool) -> Any:
        width = len(_COLUMNS) + delayed
        rows = [(record.id.hex, *record[1:width]) for record in records]
        return rows if len(rows) > 1 else rows[0]

    def is_autocommit(self, connection: sa.Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            return False
        return driver.isolation_level is None or getattr(driver, "autocommit", None) is True

    def names_id(self, error: exc.IntegrityError, table: sa.Table) -> bool:
        return f"UNIQUE constraint failed: {table.name}.id" in str(error.orig)

    def find_taken(
        self, error: exc.IntegrityError, connection: sa.Connection, table: sa.Table, ids: Sequence[UUID]
    ) -> str | None:
        # executemany has stored what came before the failing row; the row that was there already has the lowest rowid
        asked = ids[: self._MAX_VARIABLES]
        query = (
            sa.select(table.c.id).where(table.c.id.in_(asked)).order_by(sa.literal_column("rowid")).limit(1)
        )
        found = connection.execute(query).scalar()
        return None if found is None else str(found)

    def misses_table(self, error: exc.DBAPIError) -> bool:
        return "no such table" in str(error.orig)


def _sqlstate(error: exc.DBAPIError) -> str | None:
    code: str | None = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code


@lru_cache(maxsize=64)
def database_of(dialect: sa.Dialect) -> Database:
    """What to do for this dialect. Raises: UnsupportedDatabase for any other than PostgreSQL and SQLite."""
    if dialect.name == "postgresql":
        return _PostgreSQL(dialect.driver)
    if dialect.name == "sqlite":
        return _SQLite()
    raise UnsupportedDatabase(f"the outbox lives in PostgreSQL or SQLite, not in {dialect.name!r}")
