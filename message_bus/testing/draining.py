# Generated from draining_async.py by tests/tools/unasync.py: do not edit.
"""Delivers what a test has registered, inside the test's own transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus._compat import plain_session
from message_bus.delivery.process import process_outbox
from message_bus.delivery.report import OutboxReport
from message_bus.errors import SettingsError
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo


def drain(bus: Any, session: Any, *, only: Collection[str] | None = None) -> OutboxReport:
    """Commit the session and run `process_outbox` on it. What `message_bus.testing.drain` says, holds here."""
    repo = as_repo(session)
    if isinstance(repo, SQLAlchemyOutBoxRepo) and isinstance(repo.session, Session):
        _refuse_fragile(repo.session)
    repo.save()
    return process_outbox(bus, repo, only=only)


def _refuse_fragile(session: Session) -> None:
    """A failing handler is rolled back: that must not take the test's own transaction along."""
    plain = plain_session(session)
    joined = isinstance(session.bind, Connection) and session.bind.in_transaction()
    if joined and plain.join_transaction_mode != "create_savepoint":
        raise SettingsError(
            "drain",
            [
                (
                    "the session takes part in a transaction that a failing handler would roll back "
                    '(make it with join_transaction_mode="create_savepoint")'
                )
            ],
        )
