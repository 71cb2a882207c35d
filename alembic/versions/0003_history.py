"""What has happened to messages: failures, holds, crashes, decisions.

Frozen history: names no live table, so that it does tomorrow what it does today.

Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    clock = {
        "postgresql": "clock_timestamp()",
        "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    }
    now = sa.text(clock[op.get_context().dialect.name])
    op.create_table(
        f"{prefix}history",
        sa.Column(
            "id",
            position,
            sa.Identity(always=True),
            nullable=False,
            comment="order in which it happened",
        ),
        sa.Column("subscription", sa.Text(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False, comment="that the subscription reads"),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="of the message in that log"),
        sa.Column("message_id", sa.Uuid(), comment="null: the message was gone already"),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), comment="its number; of a crash: how many there were"),
        sa.Column("behind", sa.BigInteger(), comment="position of the message that it is held behind"),
        sa.Column("error", sa.Text()),
        sa.Column("decided_by", sa.Text(), comment="the operator, if one has decided it and said so"),
        sa.Column("happened_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name=f"{prefix}history_pkey"),
        sa.CheckConstraint(
            "what IN ('failed', 'dead', 'held', 'crashed', 'delivered', 'passed over', 'unwanted', 'revived', 'replayed',"
            " 'discarded', 'reset', 'repartitioned')",
            name=f"{prefix}history_what_check",
        ),
        schema=schema,
    )
    for column in ("message_id", "happened_at"):
        op.create_index(f"{prefix}history_{column}_idx", f"{prefix}history", [column], schema=schema)


def downgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    op.drop_table(f"{prefix}history", schema=schema)
