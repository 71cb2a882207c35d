# Generated from retention_async.py by tests/tools/unasync.py: do not edit.
"""Remove old messages by hand. `message-bus prune` only wraps this; `process_outbox` does the same with every run.

Not in the caller's transaction: it commits after each batch, because rows that are deleted hold the watermark until then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.orm import Session

from message_bus._compat import on_sync_session, plain_session
from message_bus.admin.ground import refuse_autocommit, refuse_hidden
from message_bus.delivery.housekeeping import prune as prune_batches
from message_bus.delivery.ownership import refuse_unflushed
from message_bus.errors import SettingsError
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import status_statements as statements
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.admin")


def prune(
    session: Session,
    older_than: timedelta,
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
    by: str | None = None,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Remove messages that are older and that every subscription has passed; return how many.

    It commits the session, batch by batch. What is retrying, held or dead anywhere stays, and so does everything while
    there is no subscription (G9). While somebody else prunes, nothing is done. `dry_run`: only count, commit nothing.
    `progress`: is told after each batch how many are removed.

    Raises: SettingsError for a negative age; UnflushedWork if the session has work that its user has not committed.
    """
    if older_than < timedelta(0):
        raise SettingsError("prune", ["older_than must not be negative"])
    if not dry_run:
        refuse_unflushed(plain_session(session))
    on_sync_session(session, refuse_hidden, tables)
    if dry_run:
        counted = session.execute(statements.count_prunable(tables), {"age": -older_than.total_seconds()})
        return int(counted.scalar_one())
    on_sync_session(session, refuse_autocommit, tables, "old messages are removed")
    pruned = prune_batches(session, tables, older_than=older_than, progress=progress)
    logger.warning(
        "prune of %d messages, by %s",
        pruned,
        by or "somebody who gave no name",
        extra={"action": "prune", "by": by, "count": pruned},
    )
    return pruned
