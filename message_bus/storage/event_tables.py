"""The tables of event sourcing: events and their streams, snapshots, process managers, sagas, projections.

The event table is the second log: `message_source` reads it with the columns that the delivery engine knows, the
stream being the key. Status strings of rows live here and in `tables.py`. Used by `MessageBusTables` only.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Subquery,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    literal_column,
    select,
    text,
)

from message_bus.storage.naming import Naming, one_of
from message_bus.storage.types import Position, UtcDateTime, utc_now

# process.state
RUNNING: Final = "running"
COMPLETED: Final = "completed"
PROCESS_STATES: Final = (RUNNING, COMPLETED)

# saga.state
COMPENSATING: Final = "compensating"
COMPENSATED: Final = "compensated"
FAILED: Final = "failed"  # something is left undone
SAGA_STATES: Final = (RUNNING, COMPENSATING, COMPLETED, COMPENSATED, FAILED)

# projection.state
LIVE: Final = "live"
BUILDING: Final = "building"
RETIRED: Final = "retired"  # was live before the last swap
PROJECTION_STATES: Final = (LIVE, BUILDING, RETIRED)


def event_table(naming: Naming) -> Table:
    """The event log. A stream's events have the versions 1, 2, 3, ... without a gap."""
    return Table(
        naming.name("event"),
        naming.metadata,
        Column("position", Position, Identity(always=True), comment="order of the log"),
        Column("id", Uuid, nullable=False, comment="event id"),
        Column("stream", Text, nullable=False, comment="aggregate id"),
        Column("version", BigInteger, nullable=False, comment="number of the event in its stream"),
        Column("message", Text, nullable=False, comment="type name"),
        Column(
            "schema_version",
            Integer,
            nullable=False,
            server_default=text("1"),
            comment="of the payload's schema",
        ),
        Column("key_hash", BigInteger, nullable=False, comment="crc32 of stream, for partitions"),
        Column("payload", JSON, nullable=False),
        Column("meta", JSON(none_as_null=True), comment="the user's own"),
        Column("headers", JSON(none_as_null=True), comment="correlation, causation, trace context"),
        Column("correlation_id", Text, comment="as in headers"),
        Column("trace_id", Text, comment="as in headers"),
        Column("recorded_at", UtcDateTime, nullable=False, server_default=utc_now()),
        PrimaryKeyConstraint("position", name=naming.constraint("event_pkey")),
        UniqueConstraint("id", name=naming.constraint("event_id_key")),
        UniqueConstraint("stream", "version", name=naming.constraint("event_stream_version_key")),
        CheckConstraint("version > 0", name=naming.constraint("event_version_check")),
        CheckConstraint("key_hash >= 0", name=naming.constraint("event_key_hash_check")),
        Index(naming.name("event_correlation_id_idx"), "correlation_id"),
        Index(naming.name("event_trace_id_idx"), "trace_id"),
        schema=naming.schema,
        sqlite_autoincrement=True,  # a position once used is never used again
    )


def message_source(event: Table) -> Subquery:
    """The events as messages: what the delivery engine reads. Databases see through it as through a view."""
    c = event.c
    return select(
        c.position,
        c.id,
        literal_column("'EVENT'", Text).label("type"),
        c.message,
        c.schema_version.label("version"),
        c.stream.label("key"),
        c.key_hash,
        c.payload,
        c.meta,
        c.headers,
        c.recorded_at.label("created_at"),
    ).subquery("events")


def stream_table(naming: Naming) -> Table:
    """One row a stream: its version makes `expected_version` a compare-and-set."""
    return Table(
        naming.name("stream"),
        naming.metadata,
        Column("stream", Text, nullable=False, comment="aggregate id"),
        Column("version", BigInteger, nullable=False, comment="number of events"),
        Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
        PrimaryKeyConstraint("stream", name=naming.constraint("stream_pkey")),
        CheckConstraint("version >= 0", name=naming.constraint("stream_version_check")),
        schema=naming.schema,
    )


def snapshot_table(naming: Naming) -> Table:
    """The newest snapshot of an aggregate."""
    return Table(
        naming.name("snapshot"),
        naming.metadata,
        Column("stream", Text, nullable=False, comment="aggregate id"),
        Column("aggregate_type", Text, nullable=False),
        Column("version", BigInteger, nullable=False, comment="number of events it holds"),
        Column(
            "schema_version",
            Integer,
            nullable=False,
            server_default=text("1"),
            comment="of the state's schema",
        ),
        Column("state", JSON, nullable=False),
        Column("taken_at", UtcDateTime, nullable=False),
        PrimaryKeyConstraint("stream", name=naming.constraint("snapshot_pkey")),
        CheckConstraint("version >= 0", name=naming.constraint("snapshot_version_check")),
        schema=naming.schema,
    )


def process_table(naming: Naming) -> Table:
    """The state of process managers, one row for each key."""
    return Table(
        naming.name("process"),
        naming.metadata,
        Column("name", Text, nullable=False, comment="of the process manager"),
        Column("key", Text, nullable=False, comment="what its messages are correlated by"),
        Column("state", Text, nullable=False, server_default=text(f"'{RUNNING}'")),
        Column("data", JSON, nullable=False),
        Column("schema_version", Integer, nullable=False, server_default=text("1"), comment="of the data"),
        Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
        Column("updated_at", UtcDateTime, nullable=False, server_default=utc_now()),
        PrimaryKeyConstraint("name", "key", name=naming.constraint("process_pkey")),
        CheckConstraint(one_of("state", PROCESS_STATES), name=naming.constraint("process_state_check")),
        schema=naming.schema,
    )


def saga_table(naming: Naming) -> Table:
    """How far each saga has come."""
    return Table(
        naming.name("saga"),
        naming.metadata,
        Column("name", Text, nullable=False, comment="of the saga's definition"),
        Column("id", Text, nullable=False, comment="of this run of it"),
        Column("state", Text, nullable=False, server_default=text(f"'{RUNNING}'")),
        Column(
            "revision", BigInteger, nullable=False, server_default=text("0"), comment="grows with each change"
        ),
        Column("data", JSON, nullable=False, comment="arguments, and the result of each step"),
        Column("error", Text, comment="of the step that failed"),
        Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
        Column("updated_at", UtcDateTime, nullable=False, server_default=utc_now()),
        PrimaryKeyConstraint("name", "id", name=naming.constraint("saga_pkey")),
        CheckConstraint(one_of("state", SAGA_STATES), name=naming.constraint("saga_state_check")),
        Index(naming.name("saga_state_idx"), "state", "name"),
        schema=naming.schema,
    )


def projection_table(naming: Naming) -> Table:
    """Which generation of a projection's tables is read, and which is being built."""
    return Table(
        naming.name("projection"),
        naming.metadata,
        Column("name", Text, nullable=False),
        Column("generation", Integer, nullable=False, comment="0 first, one more for each rebuild"),
        Column("version", Integer, nullable=False, comment="of the projection's code"),
        Column("state", Text, nullable=False),
        Column("subscription", Text, nullable=False, comment="what fills it"),
        Column("tables", JSON, nullable=False, comment="short name to table name"),
        Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
        Column("swapped_at", UtcDateTime, comment="when it became live"),
        PrimaryKeyConstraint("name", "generation", name=naming.constraint("projection_pkey")),
        CheckConstraint(one_of("state", PROJECTION_STATES), name=naming.constraint("projection_state_check")),
        schema=naming.schema,
    )
