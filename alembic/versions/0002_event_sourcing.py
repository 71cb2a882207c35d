"""Event sourcing: events, streams, snapshots, process managers, sagas, projections.

Frozen history: names no live table, so that it does tomorrow what it does today.

Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REFUSAL = (
    "the event log is append-only: no {operation} of an event (events are facts: append one that corrects it; "
    "delete_stream() removes a whole stream)"
)

# names are checked identifiers
GUARD = {
    "postgresql": (
        "CREATE OR REPLACE FUNCTION {place}event_guard() RETURNS trigger LANGUAGE plpgsql AS $guard$ BEGIN "
        "IF TG_OP = 'DELETE' THEN "
        "IF current_setting('message_bus.deleting_stream', true) = OLD.stream THEN RETURN OLD; END IF; "
        "END IF; "
        "RAISE EXCEPTION USING ERRCODE = 'restrict_violation', MESSAGE = '"
        + REFUSAL.format(operation="' || TG_OP || '")
        + "'; END $guard$",
        (
            "CREATE TRIGGER {prefix}event_no_update BEFORE UPDATE OR TRUNCATE ON {place}event "
            "FOR EACH STATEMENT EXECUTE FUNCTION {place}event_guard()"
        ),
        (
            "CREATE TRIGGER {prefix}event_no_delete BEFORE DELETE ON {place}event "
            "FOR EACH ROW EXECUTE FUNCTION {place}event_guard()"
        ),
    ),
    "sqlite": (
        (
            "CREATE TRIGGER {place}event_no_update BEFORE UPDATE ON {prefix}event "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL.format(operation='UPDATE')}'); END"
        ),
        (
            "CREATE TRIGGER {place}event_no_delete BEFORE DELETE ON {prefix}event "  # noqa: S608
            "WHEN EXISTS (SELECT 1 FROM {prefix}stream WHERE stream = OLD.stream) "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL.format(operation='DELETE')}'); END"
        ),
    ),
}

TABLES = ("event", "stream", "snapshot", "process", "saga", "projection")


def upgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    instant = sa.DateTime(timezone=True)
    clock = {
        "postgresql": "clock_timestamp()",
        "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    }
    now = sa.text(clock[op.get_context().dialect.name])

    def written(name: str) -> sa.Column:
        return sa.Column(name, instant, nullable=False, server_default=now)

    def schema_version(comment: str) -> sa.Column:
        return sa.Column(
            "schema_version", sa.Integer(), nullable=False, server_default=sa.text("1"), comment=comment
        )

    op.create_table(
        f"{prefix}event",
        sa.Column("position", position, sa.Identity(always=True), nullable=False, comment="order of the log"),
        sa.Column("id", sa.Uuid(), nullable=False, comment="event id"),
        sa.Column("stream", sa.Text(), nullable=False, comment="aggregate id"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="number of the event in its stream"),
        sa.Column("message", sa.Text(), nullable=False, comment="type name"),
        schema_version("of the payload's schema"),
        sa.Column("key_hash", sa.BigInteger(), nullable=False, comment="crc32 of stream, for partitions"),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("meta", sa.JSON(), comment="the user's own"),
        sa.Column("headers", sa.JSON(), comment="correlation, causation, trace context"),
        sa.Column("correlation_id", sa.Text(), comment="as in headers"),
        sa.Column("trace_id", sa.Text(), comment="as in headers"),
        written("recorded_at"),
        sa.PrimaryKeyConstraint("position", name=f"{prefix}event_pkey"),
        sa.UniqueConstraint("id", name=f"{prefix}event_id_key"),
        sa.UniqueConstraint("stream", "version", name=f"{prefix}event_stream_version_key"),
        sa.CheckConstraint("version > 0", name=f"{prefix}event_version_check"),
        sa.CheckConstraint("key_hash >= 0", name=f"{prefix}event_key_hash_check"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    for column in ("correlation_id", "trace_id"):
        op.create_index(f"{prefix}event_{column}_idx", f"{prefix}event", [column], schema=schema)

    op.create_table(
        f"{prefix}stream",
        sa.Column("stream", sa.Text(), nullable=False, comment="aggregate id"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="number of events"),
        written("created_at"),
        sa.PrimaryKeyConstraint("stream", name=f"{prefix}stream_pkey"),
        sa.CheckConstraint("version >= 0", name=f"{prefix}stream_version_check"),
        schema=schema,
    )

    op.create_table(
        f"{prefix}snapshot",
        sa.Column("stream", sa.Text(), nullable=False, comment="aggregate id"),
        sa.Column("aggregate_type", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="number of events it holds"),
        schema_version("of the state's schema"),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("taken_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("stream", name=f"{prefix}snapshot_pkey"),
        sa.CheckConstraint("version >= 0", name=f"{prefix}snapshot_version_check"),
        schema=schema,
    )

    op.create_table(
        f"{prefix}process",
        sa.Column("name", sa.Text(), nullable=False, comment="of the process manager"),
        sa.Column("key", sa.Text(), nullable=False, comment="what its messages are correlated by"),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'running'")),
        sa.Column("data", sa.JSON(), nullable=False),
        schema_version("of the data"),
        written("created_at"),
        written("updated_at"),
        sa.PrimaryKeyConstraint("name", "key", name=f"{prefix}process_pkey"),
        sa.CheckConstraint("state IN ('running', 'completed')", name=f"{prefix}process_state_check"),
        schema=schema,
    )

    op.create_table(
        f"{prefix}saga",
        sa.Column("name", sa.Text(), nullable=False, comment="of the saga's definition"),
        sa.Column("id", sa.Text(), nullable=False, comment="of this run of it"),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'running'")),
        sa.Column(
            "revision",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="grows with each change",
        ),
        sa.Column("data", sa.JSON(), nullable=False, comment="arguments, and the result of each step"),
        sa.Column("error", sa.Text(), comment="of the step that failed"),
        written("created_at"),
        written("updated_at"),
        sa.PrimaryKeyConstraint("name", "id", name=f"{prefix}saga_pkey"),
        sa.CheckConstraint(
            "state IN ('running', 'compensating', 'completed', 'compensated', 'failed')",
            name=f"{prefix}saga_state_check",
        ),
        schema=schema,
    )
    op.create_index(f"{prefix}saga_state_idx", f"{prefix}saga", ["state", "name"], schema=schema)

    op.create_table(
        f"{prefix}projection",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False, comment="0 first, one more for each rebuild"),
        sa.Column("version", sa.Integer(), nullable=False, comment="of the projection's code"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("subscription", sa.Text(), nullable=False, comment="what fills it"),
        sa.Column("tables", sa.JSON(), nullable=False, comment="short name to table name"),
        written("created_at"),
        sa.Column("swapped_at", instant, comment="when it became live"),
        sa.PrimaryKeyConstraint("name", "generation", name=f"{prefix}projection_pkey"),
        sa.CheckConstraint(
            "state IN ('live', 'building', 'retired')", name=f"{prefix}projection_state_check"
        ),
        schema=schema,
    )

    for statement in GUARD[op.get_context().dialect.name]:
        op.execute(statement.format(place=_qualified(schema, prefix), prefix=prefix))


def downgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    for name in reversed(TABLES):
        op.drop_table(f"{prefix}{name}", schema=schema)
    if op.get_context().dialect.name == "postgresql":  # triggers go with their table
        op.execute(f"DROP FUNCTION {_qualified(schema, prefix)}event_guard()")


def _qualified(schema: str | None, prefix: str) -> str:
    """Schema and prefix, checked identifiers both, as they begin a name in SQL."""
    return (
        f"{op.get_context().dialect.identifier_preparer.quote_schema(schema)}.{prefix}" if schema else prefix
    )
