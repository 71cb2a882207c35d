"""Column types and the database clock, the same on PostgreSQL and SQLite.

`UtcDateTime` stores aware instants; `utc_now()` and `utc_after(seconds)` read the database's own clock (not the
transaction's start time), so that no decision about leases or retries depends on a worker's clock (S2).
On SQLite instants are text of one fixed form, so that comparing the text compares the instants.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, String, cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

Position = BigInteger().with_variant(Integer, "sqlite")
"""A log position: bigint; SQLite wants the word INTEGER before it makes a rowid of it."""

_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now'{modifier}) || '000'"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware datetimes in, aware UTC datetimes out, on every database."""

    # Alembic's autogenerate writes a type as `module.repr`. Users' migrations are frozen history and must not import
    # this package, so this says what the column really is and the migration reads `sa.DateTime(timezone=True)`.
    __module__ = "sqlalchemy.types"

    impl = DateTime(timezone=True)
    cache_ok = True

    def __repr__(self) -> str:
        return "DateTime(timezone=True)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _utc_datetime, ()  # pickle would look the class up in __module__

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bind an aware instant as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no place in time (give it a timezone, e.g. datetime.UTC)")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read an instant as aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _utc_datetime() -> UtcDateTime:
    return UtcDateTime()


class utc_now(FunctionElement[datetime]):  # noqa: N801  (reads like the SQL function it is)
    """The database's clock at this very moment."""

    type = UtcDateTime()
    inherit_cache = True
    name = "utc_now"


class _UtcAfter(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True
    name = "utc_after"


def utc_after(seconds: ColumnElement[Any] | float) -> ColumnElement[datetime]:
    """The database's clock plus `seconds` (a number or a SQL expression; negative: before now)."""
    return _UtcAfter(seconds)


@compiles(utc_now)
def _now(element: utc_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(utc_now, "sqlite")
def _now_sqlite(element: utc_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({_SQLITE_NOW.format(modifier='')})"


@compiles(_UtcAfter)
def _after(element: _UtcAfter, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **kw)}))"


@compiles(_UtcAfter, "sqlite")
def _after_sqlite(element: _UtcAfter, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    modifier = compiler.process(cast(seconds, String), **kw) + " || ' seconds'"
    return f"({_SQLITE_NOW.format(modifier=', ' + modifier)})"
