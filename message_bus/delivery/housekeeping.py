# Generated from housekeeping_async.py by tests/tools/unasync.py: do not edit.
"""What `process_outbox` does besides delivering: delayed messages that are due enter the outbox, old rows leave it.

Each step is a few short transactions, because rows written or deleted hold the watermark until their commit (W10).
One at a time per log, through the log's own row; whoever finds it taken leaves the work to the other (S4, S9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, text
from sqlalchemy.orm import Session

from message_bus._compat import on_sync_connection
from message_bus.storage import history_statements, housekeeping_statements, statements
from message_bus.storage.channel import notify
from message_bus.storage.logs import OUTBOX_LOG, quoted_name
from message_bus.storage.preconditions import reader_settings
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.delivery")

BATCH = 1_000  # rows


def promote_due(session: Session, tables: MessageBusTables) -> int:
    """Move delayed messages that are due into the outbox, by due time, then id (S9); how many."""
    promoted = 0
    while True:
        ids = session.scalars(housekeeping_statements.due_ids(tables), {"limit": BATCH}).all()
        if ids and _locked(session, tables):
            ids = session.scalars(housekeeping_statements.due_ids(tables), {"limit": BATCH}).all()
            if ids:
                dialect = session.connection().dialect.name
                entered: CursorResult[Any] = session.execute(  # type: ignore[assignment]
                    housekeeping_statements.promote(dialect, tables),
                    {"ids": ids},
                    execution_options={"preserve_rowcount": True},
                )
                session.execute(housekeeping_statements.unschedule(tables), {"ids": ids})
                if entered.rowcount < len(ids):
                    logger.warning(
                        "%d delayed messages were left out: messages with their ids are in the outbox already",
                        len(ids) - entered.rowcount,
                    )
                promoted += entered.rowcount
                _wake_relays(session, tables)
        else:
            ids = []
        session.commit()
        if len(ids) < BATCH:
            return promoted


def _wake_relays(session: Session, tables: MessageBusTables) -> None:
    """Notify them when this commits, as whoever writes messages does."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        outbox = on_sync_connection(connection, quoted_name, tables.outbox)
        session.execute(notify(), {"log_table": outbox})


def prune(
    session: Session,
    tables: MessageBusTables,
    *,
    older_than: timedelta,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Remove rows that every subscription has passed and that are older than `older_than` (G9); how many.

    Rows that are retrying, held or dead anywhere stay. Without any subscription nothing is removed (S4). Their history
    goes with them; that of events, which stay, goes when it is as old.
    """
    pruned = 0
    after = 0
    while True:
        if not _locked(session, tables):
            session.commit()
            return pruned
        for setting in reader_settings(session.connection().dialect.name):
            session.execute(text(setting))  # W9: hidden rows would not hold anything back
        # a later statement than the lock: a subscription made or rewound before it is seen (S4)
        passed = (
            session.execute(housekeeping_statements.passed_by_all(tables), {"log": OUTBOX_LOG})
        ).scalar_one()
        window = session.execute(
            housekeeping_statements.oldest_rows(tables),
            {"after": after, "passed": passed or 0, "age": -older_than.total_seconds(), "limit": BATCH},
        )
        rows = window.all()
        gone = [row for row in rows if row.old and not row.kept]
        # the log comes last: from then on the watermark is held (W10)
        forgotten: CursorResult[Any] = session.execute(  # type: ignore[assignment]
            history_statements.forget_old(tables), {"age": -older_than.total_seconds(), "limit": BATCH}
        )
        if gone:
            ids, positions = [row.id for row in gone], [row.position for row in gone]
            session.execute(history_statements.forget_pruned(tables), {"ids": ids})
            session.execute(housekeeping_statements.prune(tables), {"positions": positions})
            session.execute(
                housekeeping_statements.note_pruned(tables), {"of_log": OUTBOX_LOG, "to": positions[-1]}
            )
        session.commit()
        pruned += len(gone)
        if progress is not None:
            progress(pruned)
        is_over = len(rows) < BATCH or not rows[-1].old
        if is_over and forgotten.rowcount < BATCH:
            return pruned
        after = rows[-1].position if rows else after


def _locked(session: Session, tables: MessageBusTables) -> bool:
    dialect = session.connection().dialect.name
    session.execute(statements.insert_or_ignore(dialect, tables.log).values(log=OUTBOX_LOG))
    row = session.execute(statements.try_lock_log(tables), {"log": OUTBOX_LOG}).one_or_none()
    return row is not None
