# Generated from process_async.py by tests/tools/unasync.py: do not edit.
"""`process_outbox`: the one step for cron. Promote what is due, run every subscription, prune, report.

It works on the caller's session and commits it: one short transaction after another. Two calls at once do not get in
each other's way: each claims the subscriptions it can get and reports the others as busy.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from message_bus._compat import (
    bound_to,
    on_sync_session,
    plain_session,
)
from message_bus.delivery.housekeeping import promote_due, prune
from message_bus.delivery.jobs import Stop, Tally
from message_bus.delivery.own_rows import process_own_rows
from message_bus.delivery.ownership import refuse_fragile, refuse_unflushed
from message_bus.delivery.patience import Patience
from message_bus.delivery.report import OutboxReport, SubscriptionReport, summed
from message_bus.delivery.starting import ensure_subscriptions
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.worker import Worker
from message_bus.errors import LeaseLost, SettingsError, Unavailable, WiringError, names_of
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.repositories.waiting import clause_for
from message_bus.storage import statements
from message_bus.storage.outages import is_outage
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.settled import Look
from message_bus.storage.tables import DEAD, HELD, RETRYING, TRYING, MessageBusTables
from message_bus.storage.watermark import Watermark

logger = logging.getLogger("message_bus.delivery")

RETENTION = timedelta(days=7)


def process_outbox(
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
    if not isinstance(repo, SQLAlchemyOutBoxRepo):
        _refuse_other_colour(bus, repo)
        return process_own_rows(bus, repo, chosen, limit=limit)
    with ExitStack() as stack:
        session = repo.session
        if isinstance(session, Connection):
            joined = session.in_transaction()  # the caller's: a failing handler must not roll it back
            session = stack.enter_context(
                Session(
                    session,
                    join_transaction_mode="create_savepoint" if joined else "conditional_savepoint",
                )
            )
        stack.enter_context(bound_to(session, clause_for(repo.tables.outbox)))
        on_sync_session(session, refuse_unflushed)
        if not session.in_transaction():  # else what its connection is in may be its own
            refuse_fragile(plain_session(session))
        step = _Step(bus, session, repo.tables, lease=lease)
        try:
            return step.run(chosen, settings, limit=limit)
        except Exception as error:
            session.rollback()
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
            f"{type(bus).__name__}.process_outbox() works on a repository or session of {Session.__name__}, not on "
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


class _Step:
    """One call of process_outbox on one session."""

    def __init__(self, bus: Any, session: Session, tables: MessageBusTables, *, lease: timedelta) -> None:
        self._bus = bus
        self._session = session
        self._tables = tables
        self._lease_time = lease
        self._watermark = Watermark(tables)
        self._patience = Patience()

    def run(
        self,
        chosen: dict[str, tuple[Any, Subscription]],
        everyone: Sequence[Subscription],
        *,
        limit: int | None,
    ) -> OutboxReport:
        session = self._session
        on_sync_session(session, _check, self._tables)
        look = self._look()
        standing = ensure_subscriptions(session, self._tables, everyone, settled=look.settled, high=look.high)
        session.commit()
        promoted = promote_due(session, self._tables)
        reports: dict[str, SubscriptionReport] = {}
        for name, (handler, settings) in chosen.items():
            if name in standing.waiting:  # for open writers; a later run begins
                reports[name] = self._report(name, Tally(), busy=False, idle=True)
            elif name in standing.idle:
                logger.warning(
                    "subscription %r is idle: it was added to a log with history, or paused (give Subscription(start=...))",
                    name,
                    extra={"subscription": name},
                )
                reports[name] = self._report(name, Tally(), busy=False, idle=True)
            else:
                tally, busy = self._partitions(handler, settings, limit=limit)
                reports[name] = self._report(name, tally, busy=busy, idle=False)
        pruned = 0
        if not self._joined():  # a setting of the pruner would stay in the caller's transaction
            pruned = prune(session, self._tables, older_than=RETENTION)
        look = self._look()
        unsettled = (
            session.execute(statements.count_after(self._tables), {"settled": look.settled})
        ).scalar_one()
        session.commit()
        return summed(reports, unsettled=unsettled, promoted=promoted, pruned=pruned)

    def _look(self) -> Look:
        look = self._watermark.look(self._session.connection())
        self._session.commit()
        return look

    def _partitions(self, handler: Any, settings: Subscription, *, limit: int | None) -> tuple[Tally, bool]:
        total = Tally()
        busy = False
        for partition in range(settings.partitions):
            left = None if limit is None else limit - total.tried
            if left == 0 or total.unavailable:
                break
            worker = Worker(
                self._bus,
                handler,
                settings,
                partition,
                tables=self._tables,
                watermark=self._watermark,
                lease=self._lease_time,
                stop=Stop(),
            )
            if not worker.claim(self._session):
                busy = True
                continue
            try:
                tally = self._one(worker, limit=left)
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

    def _one(self, worker: Worker, *, limit: int | None) -> Tally:
        session = self._session
        try:
            with worker.beating(session):
                tally = worker.run(session, limit=limit, patience=self._patience)
        except Exception:
            # the batch in hand was rolled back and nobody died of it: waiting for the lease to end would help nobody
            worker.release(session, or_leave=True)
            raise
        # only with no batch in hand: after KeyboardInterrupt and the like the lease is left to expire (S6)
        worker.release(session)
        return tally

    def _joined(self) -> bool:
        """Whether the session is part of somebody's transaction (a test that is rolled back, say)."""
        return isinstance(plain_session(self._session).bind, Connection)

    def _report(self, name: str, tally: Tally, *, busy: bool, idle: bool) -> SubscriptionReport:
        found = self._session.execute(statements.failed_counts(self._tables), {"subscription": name})
        counts = {state: count for state, count in found}
        self._session.commit()
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
