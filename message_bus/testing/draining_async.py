"""Delivers what a test has registered, inside the test's own transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from message_bus._compat import plain_session_async
from message_bus.delivery.process_async import process_outbox_async
from message_bus.delivery.report import OutboxReport
from message_bus.errors import SettingsError
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo


async def drain_async(bus: Any, session: Any, *, only: Collection[str] | None = None) -> OutboxReport:
    """Commit the session and run `process_outbox` on it. What `message_bus.testing.drain` says, holds here."""
    repo = as_repo(session)
    if isinstance(repo, AsyncSQLAlchemyOutBoxRepo) and isinstance(repo.session, AsyncSession):
        _refuse_fragile(repo.session)
    await repo.save()
    return await process_outbox_async(bus, repo, only=only)


def _refuse_fragile(session: AsyncSession) -> None:
    """A failing handler is rolled back: that must not take the test's own transaction along."""
    plain = plain_session_async(session)
    joined = isinstance(session.bind, AsyncConnection) and session.bind.in_transaction()
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
