"""The SQL of event stores, one builder per operation, and what differs between databases in appending.

Statements that run with every load are rendered once and go straight to the driver (`driver.Rendered`): columns come as
the driver makes them, JSON as text. Appending is written by hand, as the outbox's INSERT is. Called by `event_log.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import BigInteger, Text, bindparam, cast, delete, func, or_, select, type_coerce, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from message_bus.errors import UnsupportedDatabase
from message_bus.storage.channel import channel_of
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.statements import DECISION
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import UtcDateTime

COLUMNS: Final = (
    "id", "stream", "version", "message", "schema_version", "key_hash", "payload", "meta", "headers", "correlation_id",
    "trace_id",
)  # fmt: skip
"""What is written of an event; the database adds position and recorded_at."""

_LIST: Final = ", ".join(COLUMNS)
_JSON: Final = ("payload", "meta", "headers")


# --- streams ----------------------------------------------------------------------------------------------------


def advance(tables: MessageBusTables, *, dialect_name: str, checked: str) -> Any:
    """Move the version of :of_stream on by :count, holding its row until the end of the transaction: one row if it did.

    `checked`: "any" version will do, it must be "new", or be at :expected. Whoever comes second waits here, before a
    position is drawn, and then sees what the first has committed: that makes positions of a stream follow its versions.
    """
    t = tables.stream
    count = bindparam("count", type_=BigInteger())
    if checked == "at":
        return (
            update(t)
            .where(
                t.c.stream == bindparam("of_stream"), t.c.version == bindparam("expected", type_=BigInteger())
            )
            .values(version=t.c.version + count)
            .returning(t.c.version)
        )
    make: Any = postgresql.insert if dialect_name == "postgresql" else sqlite.insert
    statement = make(t).values(stream=bindparam("of_stream"), version=count)
    return statement.on_conflict_do_update(
        index_elements=[t.c.stream],
        set_={"version": t.c.version + statement.excluded.version},
        where=(t.c.version == 0) if checked == "new" else None,
    ).returning(t.c.version)


def take_back(tables: MessageBusTables) -> Any:
    """Move the version of :of_stream back by :count, in the transaction that has moved it on (SQLite)."""
    t = tables.stream
    return (
        update(t).where(t.c.stream == bindparam("of_stream")).values(version=t.c.version - bindparam("count"))
    )


def version_of(tables: MessageBusTables) -> Any:
    """The number of events of :of_stream."""
    t = tables.stream
    return select(t.c.version).where(t.c.stream == bindparam("of_stream"))


# --- appending --------------------------------------------------------------------------------------------------


class Names(NamedTuple):
    """Quoted names of the tables that appending touches."""

    event: str
    log: str


class Appending(ABC):
    """What differs between databases in appending events."""

    @abstractmethod
    def form(self, count: int) -> int:
        """The number of events that stands for this one: they have the same statement."""

    @abstractmethod
    def statement(self, names: Names, count: int) -> str:
        """The INSERT of that many events (a `form`); returns position, version and recorded_at of each.

        On PostgreSQL it notifies too, if a relay is asleep.
        """

    @abstractmethod
    def parameters(self, rows: Sequence[tuple[Any, ...]]) -> Any:
        """What the statement takes for these rows, each as COLUMNS says."""


class _PostgreSQL(Appending):
    _TYPES: Final = ("uuid", "text", "int8", "text", "int4", "int8", "text", "text", "text", "text", "text")

    def __init__(self, driver: str) -> None:
        self._numbered = driver == "asyncpg"
        self._array = "%b" if driver in ("psycopg", "psycopg_async") else "%s"

    def _placeholder(self, number: int, of_array: bool = False) -> str:
        return f"${number}" if self._numbered else self._array if of_array else "%s"

    def form(self, count: int) -> int:
        return min(count, 2)

    def statement(self, names: Names, count: int) -> str:
        # now() is when the transaction began, so a long one notifies once too often rather than not
        return (
            f"WITH written AS ({self._insert(names.event, many=count > 1)} RETURNING position, version, recorded_at), "  # noqa: S608
            f"told AS (SELECT pg_notify({channel_of(names.event)}, '') FROM {names.log} "
            f"WHERE log = '{EVENT_LOG}' AND asleep_until > now()) "
            "SELECT position, version, recorded_at FROM written LEFT JOIN told ON true"
        )

    def _insert(self, event: str, *, many: bool) -> str:
        target = f"{event} ({_LIST})"
        if not many:
            values = [self._placeholder(number) for number in range(1, len(COLUMNS) + 1)]
            return f"INSERT INTO {target} VALUES ({', '.join(values)})"  # noqa: S608  (names are quoted)
        arrays = ", ".join(
            f"{self._placeholder(number, True)}::{type_}[]" for number, type_ in enumerate(self._TYPES, 1)
        )
        chosen = ", ".join(f"{column}::json" if column in _JSON else column for column in COLUMNS)
        # the default of `position` is evaluated above the sort, so order of versions = order of positions
        return (
            f"INSERT INTO {target} SELECT {chosen} FROM unnest({arrays}) "  # noqa: S608  (names are quoted)
            f"AS appended ({_LIST}) ORDER BY version"
        )

    def parameters(self, rows: Sequence[tuple[Any, ...]]) -> Any:
        return rows[0] if len(rows) == 1 else tuple(map(list, zip(*rows, strict=True)))


class _SQLite(Appending):
    _MOST_VALUES: Final = 90  # rows: SQLite has a limit of parameters, 999 in the oldest versions

    def form(self, count: int) -> int:
        return min(count, self._MOST_VALUES + 1)

    def statement(self, names: Names, count: int) -> str:
        target = f"{names.event} ({_LIST})"
        returning = "RETURNING position, version, recorded_at"
        if count <= self._MOST_VALUES:
            values = ", ".join([f"({', '.join('?' * len(COLUMNS))})"] * count)
            return f"INSERT INTO {target} VALUES {values} {returning}"  # noqa: S608  (names are quoted)
        chosen = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(len(COLUMNS)))
        return f"INSERT INTO {target} SELECT {chosen} FROM json_each(?) ORDER BY key {returning}"  # noqa: S608

    def parameters(self, rows: Sequence[tuple[Any, ...]]) -> Any:
        plain = [(row[0].hex, *row[1:]) for row in rows]
        if len(plain) <= self._MOST_VALUES:
            return tuple(chain.from_iterable(plain))
        return (msgspec.json.encode(plain).decode(),)  # one parameter, however many rows


@lru_cache(maxsize=64)
def appending_of(dialect: sa.Dialect) -> Appending:
    """How to append on this dialect. Raises: UnsupportedDatabase for any other than PostgreSQL and SQLite."""
    if dialect.name not in ("postgresql", "sqlite"):
        raise UnsupportedDatabase(f"an event store lives in PostgreSQL or SQLite, not in {dialect.name!r}")
    database_of(dialect)
    return _PostgreSQL(dialect.driver) if dialect.name == "postgresql" else _SQLite()


# --- reading ----------------------------------------------------------------------------------------------------


def _events(tables: MessageBusTables, dialect_name: str) -> sa.Select[*tuple[Any, ...]]:
    """First what an event is decoded from: name, schema version, payload; then the rest, as the driver gives it.

    PostgreSQL packs the rest into one value, which hardly anybody will unpack: most of the time of a load goes into
    making Python objects of columns, half of it into those of ids and times alone.
    """
    c = tables.event.c
    rest: list[Any] = [
        c.position,
        c.stream,
        c.version,
        type_coerce(c.id, NullType()).label("id"),
        type_coerce(c.recorded_at, NullType()).label("recorded_at"),
        cast(c.headers, Text).label("headers"),
        cast(c.meta, Text).label("meta"),
    ]
    if dialect_name == "postgresql":
        rest = [func.record_send(func.row(*rest), type_=NullType()).label("packed")]
    return select(c.message, c.schema_version, cast(c.payload, Text).label("payload"), *rest)


def events_of(tables: MessageBusTables, dialect_name: str) -> sa.Select[*tuple[Any, ...]]:
    """The events of :of_stream after :after, in order."""
    c = tables.event.c
    return (
        _events(tables, dialect_name)
        .where(c.stream == bindparam("of_stream"), c.version > bindparam("after", type_=c.version.type))
        .order_by(c.version)
    )


def events_after(
    tables: MessageBusTables, dialect_name: str, names: Sequence[str] | None = None
) -> sa.Select[*tuple[Any, ...]]:
    """The next :limit events after :after, up to :settled, in position order; with `names` only those called so."""
    c = tables.event.c
    statement = _events(tables, dialect_name).where(
        c.position > bindparam("after", type_=BigInteger()),
        c.position <= bindparam("settled", type_=BigInteger()),
    )
    if names is not None:
        statement = statement.where(c.message.in_(names))
    return statement.order_by(c.position).limit(bindparam("limit", type_=BigInteger()))


def events_of_trace(tables: MessageBusTables, dialect_name: str) -> sa.Select[*tuple[Any, ...]]:
    """The events with :trace as correlation or trace id, in position order."""
    c = tables.event.c
    trace: Any = bindparam("trace", type_=Text())
    return (
        _events(tables, dialect_name)
        .where(or_(c.correlation_id == trace, c.trace_id == trace))
        .order_by(c.position)
    )


# --- snapshots --------------------------------------------------------------------------------------------------


def keep_snapshot(tables: MessageBusTables, dialect_name: str) -> Any:
    """Keep a snapshot, unless one of a higher version is kept, or its stream has fewer events: then there is no row.

    Its state is given as JSON text.
    """
    t, stream = tables.snapshot, tables.stream
    is_postgresql = dialect_name == "postgresql"
    make: Any = postgresql.insert if is_postgresql else sqlite.insert
    state = bindparam("state", type_=Text())
    row: dict[str, Any] = {
        "stream": stream.c.stream,
        "aggregate_type": bindparam("aggregate_type", type_=t.c.aggregate_type.type),
        "version": bindparam("version", type_=t.c.version.type),
        "schema_version": bindparam("schema_version", type_=t.c.schema_version.type),
        "state": state,
        "taken_at": bindparam("taken_at", type_=UtcDateTime()),
    }
    if is_postgresql:  # in a SELECT nothing else says of what type a parameter is
        types = {name: t.c[name].type for name in row} | {"state": postgresql.JSON()}
        chosen = [cast(value, types[name]).label(name) for name, value in row.items()]
    else:
        row["state"] = type_coerce(state, NullType())
        chosen = [value.label(name) for name, value in row.items()]
    there = select(*chosen).where(
        stream.c.stream == bindparam("of_stream"),
        stream.c.version >= bindparam("version", type_=t.c.version.type),
    )
    statement = make(t).from_select(list(row), there, include_defaults=False)
    kept = ("aggregate_type", "version", "schema_version", "state", "taken_at")
    return statement.on_conflict_do_update(
        index_elements=[t.c.stream],
        set_={name: statement.excluded[name] for name in kept},
        where=t.c.version <= statement.excluded.version,
    ).returning(t.c.version)


def snapshot_of(tables: MessageBusTables) -> sa.Select[*tuple[Any, ...]]:
    """The snapshot of :of_stream."""
    c = tables.snapshot.c
    return select(
        c.aggregate_type,
        c.version,
        cast(c.state, Text).label("state"),
        type_coerce(c.taken_at, NullType()).label("taken_at"),
        c.schema_version,
    ).where(c.stream == bindparam("of_stream"))


# --- deleting ---------------------------------------------------------------------------------------------------


def lift_guard(setting: str, stream: str) -> Any:
    """Let this transaction delete the events of a stream; "" ends that (PostgreSQL)."""
    return select(func.set_config(setting, stream, True))


def forget_stream(tables: MessageBusTables) -> list[Any]:
    """Delete :of_stream: its row first (whoever appends waits, and must begin anew), its snapshot, its events."""
    return [
        delete(table).where(table.c.stream == bindparam("of_stream"))
        for table in (tables.stream, tables.snapshot, tables.event)
    ]


def forget_failures(tables: MessageBusTables) -> list[Any]:
    """Delete what subscriptions have on record of events of :of_stream that failed or are held.

    Nobody could try them again. A worker that has read which keys are blocked is told that this is out of date.
    """
    s, d = tables.subscription, tables.delivery
    of_stream = d.c.key == bindparam("of_stream")
    readers = select(s.c.name).where(s.c.log == EVENT_LOG)
    return [
        update(s)
        .where(s.c.log == EVENT_LOG, s.c.name.in_(select(d.c.subscription).where(of_stream)))
        .values(revision=s.c.revision + DECISION),
        delete(d).where(of_stream, d.c.subscription.in_(readers)),
    ]
