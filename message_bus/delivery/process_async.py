"""`process_outbox`: the one step for cron. Promote what is due, run every subscription, prune, report.

It works on the caller's session and commits it: one short transaction after another. Two calls at once do not get in
each other's way: each claims the subscriptions it can get and reports the others as busy.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from message_bus._compat import (
    bound_to_async,
    on_sync_session_async,
    plain_session_async,
)
from message_bus.delivery.housekeeping_async import promote_due_async, prune_async
from message_bus.delivery.jobs import Stop, Tally
from message_bus.delivery.own_rows_async import process_own_rows_async
from message_bus.delivery.ownership import refuse_fragile, refuse_unflushed
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.delivery.report import OutboxReport, SubscriptionReport, summed
from message_bus.delivery.starting_async import ensure_subscriptions_async
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.worker_async import AsyncWorker
from message_bus.errors import LeaseLost, SettingsError, Unavailable, WiringError, names_of
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo
from message_bus.repositories.waiting import clause_for
from message_bus.storage import statements
from message_bus.storage.outages import is_outage
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.settled import Look
from message_bus.storage.tables import DEAD, HELD, RETRYING, TRYING, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.delivery")

RETENTION = timedelta(days=7)


async def process_outbox_async(
    bus: Any,
    outbox: Any,
    *,
    limit: int | None = None,
    only: Collection[str] | None = None,
    lease: timedelta = timedelta(seconds=30),
) -> OutboxReport:
    """Deliver what is in the outbox. What `MessageBus.process_outbox` says, holds here.

    `lease`: how long this process may be silent (killed, frozen) before another one takes its place.
    """
    if limit is not None and limit < 1:
        raise SettingsError("process_outbox", ["limit must be at least 1 (None: until nothing is left)"])
    handlers: Sequence[Any] = bus.outbox_handlers
    settings = [_settings_of(handler) for handler in handlers]
    names = [str(each.name) for each in settings]
    unknown = set(only or ()) - set(names)
    if unknown:
        raise SettingsError(
            "process_outbox",
            [f"only= names {names_of(list(unknown))}, but the subscriptions are {names_of(names)}"],
        )
    chosen = {
        name: (handler, each)
        for name, handler, each in zip(names, handlers, settings, strict=True)
        if only is None or name in only
    }
    repo = as_repo(outbox)
    if not isinstance(repo, AsyncSQLAlchemyOutBoxRepo):
        _refuse_other_colour(bus, repo)
        return await process_own_rows_async(bus, repo, chosen, limit=limit)
    async with AsyncExitStack() as stack:
        session = repo.session
        if isinstance(session, AsyncConnection):
            joined = session.in_transaction()  # the caller's: a failing handler must not roll it back
            session = await stack.enter_async_context(
                AsyncSession(
                    session,
                    join_transaction_mode="create_savepoint" if joined else "conditional_savepoint",
                )
            )
        stack.enter_context(bound_to_async(session, clause_for(repo.tables.outbox)))
        await on_sync_session_async(session, refuse_unflushed)
        if not session.in_transaction():  # else what its connection is in may be its own
            refuse_fragile(plain_session_async(session))
        step = _AsyncStep(bus, session, repo.tables, lease=lease)
        try:
            return await step.run(chosen, settings, limit=limit)
        except Exception as error:
            await session.rollback()
            if is_outage(error):
                raise Unavailable(
                    f"the database is out of reach ({type(error).__name__}); nothing is lost, run again"
                ) from error
            raise


def _refuse_other_colour(bus: Any, repo: Any) -> None:
    """Our own repository, but not the one for this bus: marking its rows as processed would change nothing.

    That is so for those over SQLAlchemy and what is derived from them; in memory a mark is stored.
    """
    if any(each.__module__.startswith("message_bus.repositories.sqlalchemy") for each in type(repo).__mro__):
        raise WiringError(
            f"{type(bus).__name__}.process_outbox() works on a repository or session of {AsyncSession.__name__}, not on "
            f"{type(repo).__name__} (give the other bus, or the other kind of session)"
        )


def _check(session: Any, tables: MessageBusTables) -> None:
    """Refuse a database or a connection that would lose messages (W3, W7)."""
    connection = session.connection()
    check_reader(connection)
    check_log(connection, tables)


def _settings_of(handler: Any) -> Subscription:
    settings: Subscription = handler.subscription if handler.subscription is not None else Subscription()
    return settings.named(type(handler).__name__)


class _AsyncStep:
    """One call of process_outbox on one session."""

    def __init__(
        self, bus: Any, session: AsyncSession, tables: MessageBusTables, *, lease: timedelta
    ) -> None:
        self._bus = bus
        self._session = session
        self._tables = tables
        self._lease_time = lease
        self._watermark = AsyncWatermark(tables)
        self._patience = AsyncPatience()

    async def run(
        self,
        chosen: dict[str, tuple[Any, Subscription]],
        everyone: Sequence[Subscription],
        *,
        limit: int | None,
    ) -> OutboxReport:
        session = self._session
        await on_sync_session_async(session, _check, self._tables)
        look = await self._look()
        standing = await ensure_subscriptions_async(
            session, self._tables, everyone, settled=look.settled, high=look.high
        )
        await session.commit()
        promoted = await promote_due_async(session, self._tables)
        reports: dict[str, SubscriptionReport] = {}
        for name, (handler, settings) in chosen.items():
            if name in standing.waiting:  # for open writers; a later run begins
                reports[name] = await self._report(name, Tally(), busy=False, idle=True)
            elif name in standing.idle:
                logger.warning(
                    "subscription %r is idle: it was added to a log with history, or paused (give Subscription(start=...))",
                    name,
                    extra={"subscription": name},
                )
                reports[name] = await self._report(name, Tally(), busy=False, idle=True)
            else:
                tally, busy = await self._partitions(handler, settings, limit=limit)
                reports[name] = await self._report(name, tally, busy=busy, idle=False)
        pruned = 0
        if not self._joined():  # a setting of the pruner would stay in the caller's transaction
            pruned = await prune_async(session, self._tables, older_than=RETENTION)
        look = await self._look()
        unsettled = (
            await session.execute(statements.count_after(self._tables), {"settled": look.settled})
        ).scalar_one()
        await session.commit()
        return summed(reports, unsettled=unsettled, promoted=promoted, pruned=pruned)

    async def _look(self) -> Look:
        look = await self._watermark.look(await self._session.connection())
        await self._session.commit()
        return look

    async def _partitions(
        self, handler: Any, settings: Subscription, *, limit: int | None
    ) -> tuple[Tally, bool]:
        total = Tally()
        busy = False
        for partition in range(settings.partitions):
            left = None if limit is None else limit - total.tried
            if left == 0 or total.unavailable:
                break
            worker = AsyncWorker(
                self._bus,
                handler,
                settings,
                partition,
                tables=self._tables,
                watermark=self._watermark,
                lease=self._lease_time,
                stop=Stop(),
            )
            if not await worker.claim(self._session):
                busy = True
                continue
            try:
                tally = await self._one(worker, limit=left)
            except LeaseLost as lost:
                logger.warning("%s", lost, extra={"subscription": settings.name, "partition": partition})
                busy = True
                continue
            total.delivered += tally.delivered
            total.passed_over += tally.passed_over
            total.tried += tally.tried
            total.outage = total.outage or tally.outage
            total.suspicious |= tally.suspicious
        return total, busy

    async def _one(self, worker: AsyncWorker, *, limit: int | None) -> Tally:
        session = self._session
        try:
            async with worker.beating(session):
                tally = await worker.run(session, limit=limit, patience=self._patience)
        except Exception:
            # the batch in hand was rolled back and nobody died of it: waiting for the lease to end would help nobody
            await worker.release(session, or_leave=True)
            raise
        # only with no batch in hand: after KeyboardInterrupt and the like the lease is left to expire (S6)
        await worker.release(session)
        return tally

    def _joined(self) -> bool:
        """Whether the session is part of somebody's transaction (a test that is rolled back, say)."""
        return isinstance(plain_session_async(self._session).bind, Connection)

    async def _report(self, name: str, tally: Tally, *, busy: bool, idle: bool) -> SubscriptionReport:
        found = await self._session.execute(statements.failed_counts(self._tables), {"subscription": name})
        counts = {state: count for state, count in found}
        await self._session.commit()
        return SubscriptionReport(
            name=name,
            delivered=tally.delivered,
            passed_over=tally.passed_over,
            retrying=counts.get(RETRYING, 0) + counts.get(TRYING, 0),
            held=counts.get(HELD, 0),
            dead=counts.get(DEAD, 0),
            busy=busy,
            unavailable=tally.unavailable,
            suspicious=tally.suspicious,
            idle=idle,
        )
