"""${message}.

Frozen history: names no live table, so that it does tomorrow what it does today. Expand first, contract in a later
release: the workers of the version before still run while this one is applied.

Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    schema, prefix = (op.get_context().config.attributes[name] for name in ("schema", "prefix"))
    ${downgrades if downgrades else "pass"}
