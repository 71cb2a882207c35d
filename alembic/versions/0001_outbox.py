"""The outbox side: outbox, schedule, log, subscription, delivery, inbox, and the view outbox_delivery.

Frozen history: names no live table, so that it does tomorrow what it does today.

Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VIEW = """
CREATE VIEW {prefix}outbox_delivery AS
SELECT o.position, o.id, o.message, s.name AS subscription,
       coalesce(d.state, CASE WHEN (o.position <= s.position) THEN 'delivered' ELSE 'waiting' END) AS state
  FROM {prefix}outbox AS o
  JOIN {prefix}subscription AS s
    ON s.log = 'outbox' AND s.partition = coalesce(o.key_hash, o.position) % s.partitions
  LEFT OUTER JOIN {prefix}delivery AS d
    ON d.subscription = s.name AND d.position = o.position
"""


def upgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    instant = sa.DateTime(timezone=True)
    clock = {
        "postgresql": "clock_timestamp()",
        "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    }
    now = sa.text(clock[op.get_context().dialect.name])

    def message_columns(table: str) -> list[sa.Column | sa.CheckConstraint]:
        return [
            sa.Column("type", sa.String(7), nullable=False, comment="COMMAND or EVENT"),
            sa.Column("message", sa.Text(), nullable=False, comment="type name"),
            sa.Column(
                "version",
                sa.Integer(),
                nullable=False,
                server_default=sa.text("1"),
                comment="of the payload's schema",
            ),
            sa.Column("key", sa.Text(), comment="messages of one key are handled in order; null: no order"),
            sa.Column("key_hash", sa.BigInteger(), comment="crc32 of key, for partitions; null: no key"),
            sa.Column("payload", sa.JSON(), nullable=False),
            sa.Column("meta", sa.JSON(), comment="the user's own"),
            sa.Column("headers", sa.JSON(), comment="correlation, causation, trace context"),
            sa.Column("created_at", instant, nullable=False, server_default=now),
            sa.CheckConstraint("type IN ('COMMAND', 'EVENT')", name=f"{prefix}{table}_type_check"),
            sa.CheckConstraint("key_hash >= 0", name=f"{prefix}{table}_key_hash_check"),
        ]

    op.create_table(
        f"{prefix}outbox",
        sa.Column("position", position, sa.Identity(always=True), nullable=False, comment="order of the log"),
        sa.Column("id", sa.Uuid(), nullable=False, comment="message id"),
        *message_columns("outbox"),
        sa.PrimaryKeyConstraint("position", name=f"{prefix}outbox_pkey"),
        sa.UniqueConstraint("id", name=f"{prefix}outbox_id_key"),
        schema=schema,
        sqlite_autoincrement=True,
    )

    op.create_table(
        f"{prefix}schedule",
        sa.Column("id", sa.Uuid(), nullable=False, comment="message id"),
        sa.Column("due_at", instant, nullable=False, comment="when it enters the outbox"),
        *message_columns("schedule"),
        sa.PrimaryKeyConstraint("id", name=f"{prefix}schedule_pkey"),
        schema=schema,
    )
    op.create_index(f"{prefix}schedule_due_at_idx", f"{prefix}schedule", ["due_at", "id"], schema=schema)

    op.create_table(
        f"{prefix}log",
        sa.Column("log", sa.Text(), nullable=False, comment="outbox or events"),
        sa.Column(
            "pruned_to",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="rows up to here may be gone",
        ),
        sa.Column(
            "last_epoch",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="of dropped subscriptions",
        ),
        sa.Column("asleep_until", instant, comment="until then writers notify: a relay waits for it"),
        sa.PrimaryKeyConstraint("log", name=f"{prefix}log_pkey"),
        schema=schema,
    )

    op.create_table(
        f"{prefix}subscription",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("partitions", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'active'")),
        sa.Column(
            "position",
            sa.BigInteger(),
            nullable=False,
            comment="checkpoint: every row up to here is dealt with",
        ),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            nullable=False,
            comment="grows by one with every acquisition of the lease",
        ),
        sa.Column(
            "revision",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="grows with every commit of progress",
        ),
        sa.Column("owner", sa.Text(), comment="token of the lease's holder"),
        sa.Column("lease_until", instant),
        sa.Column("created_at", instant, nullable=False, server_default=now),
        sa.Column("seen_at", instant, nullable=False, server_default=now, comment="last acquisition"),
        sa.PrimaryKeyConstraint("name", "partition", name=f"{prefix}subscription_pkey"),
        sa.CheckConstraint("state IN ('active', 'idle', 'paused')", name=f"{prefix}subscription_state_check"),
        sa.CheckConstraint(
            "partition >= 0 AND partition < partitions", name=f"{prefix}subscription_partition_check"
        ),
        schema=schema,
    )

    op.create_table(
        f"{prefix}delivery",
        sa.Column("subscription", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("key_hash", sa.BigInteger()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "attempts", sa.Integer(), nullable=False, server_default=sa.text("0"), comment="that failed"
        ),
        sa.Column(
            "crashes",
            sa.Integer(),
            nullable=False,
            server_default=sa.text("0"),
            comment="that killed the worker",
        ),
        sa.Column("next_attempt_at", instant),
        sa.Column("error", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.Column("created_at", instant, nullable=False, server_default=now),
        sa.Column("updated_at", instant, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("subscription", "position", name=f"{prefix}delivery_pkey"),
        sa.CheckConstraint(
            "state IN ('retrying', 'trying', 'held', 'dead')", name=f"{prefix}delivery_state_check"
        ),
        sa.CheckConstraint("key_hash >= 0", name=f"{prefix}delivery_key_hash_check"),
        schema=schema,
    )
    for name, columns in {
        "state": ["subscription", "state", "next_attempt_at", "position"],
        "key": ["subscription", "key", "position"],
        "position": ["position"],
    }.items():
        op.create_index(f"{prefix}delivery_{name}_idx", f"{prefix}delivery", columns, schema=schema)

    op.create_table(
        f"{prefix}inbox",
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("received_at", instant, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("consumer", "message_id", name=f"{prefix}inbox_pkey"),
        schema=schema,
    )
    op.create_index(f"{prefix}inbox_received_at_idx", f"{prefix}inbox", ["received_at"], schema=schema)

    op.execute(VIEW.format(prefix=_qualified(schema, prefix)))


def downgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    op.execute(f"DROP VIEW IF EXISTS {_qualified(schema, prefix)}outbox_delivery")
    for name in ("inbox", "delivery", "subscription", "log", "schedule", "outbox"):
        op.drop_table(f"{prefix}{name}", schema=schema)


def _qualified(schema: str | None, prefix: str) -> str:
    """Schema and prefix, checked identifiers both, as they begin a table's name in SQL."""
    return (
        f"{op.get_context().dialect.identifier_preparer.quote_schema(schema)}.{prefix}" if schema else prefix
    )
