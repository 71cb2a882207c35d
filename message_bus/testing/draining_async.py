"""Delivers what a test has registered, inside the test's own transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import plain_session_async, result_of_async
from message_bus.delivery.ownership import refuse_fragile
from message_bus.delivery.process_async import process_outbox_async
from message_bus.delivery.report import OutboxReport
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo


async def drain_async(bus: Any, session: Any, *, only: Collection[str] | None = None) -> OutboxReport:
    """Commit the session and run `process_outbox` on it. What `message_bus.testing.drain` says, holds here."""
    repo = as_repo(session)
    if isinstance(repo, AsyncSQLAlchemyOutBoxRepo) and isinstance(repo.session, AsyncSession):
        refuse_fragile(plain_session_async(repo.session))
    await result_of_async(repo.save())
    return await process_outbox_async(bus, repo, only=only)
