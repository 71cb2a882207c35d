# Generated from draining_async.py by tests/tools/unasync.py: do not edit.
"""Delivers what a test has registered, inside the test's own transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.orm import Session

from message_bus._compat import plain_session, result_of
from message_bus.delivery.ownership import refuse_fragile
from message_bus.delivery.process import process_outbox
from message_bus.delivery.report import OutboxReport
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo


def drain(bus: Any, session: Any, *, only: Collection[str] | None = None) -> OutboxReport:
    """Commit the session and run `process_outbox` on it. What `message_bus.testing.drain` says, holds here."""
    repo = as_repo(session)
    if isinstance(repo, SQLAlchemyOutBoxRepo) and isinstance(repo.session, Session):
        refuse_fragile(plain_session(repo.session))
    result_of(repo.save())
    return process_outbox(bus, repo, only=only)
