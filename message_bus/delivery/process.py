# Generated from process_async.py by tests/tools/unasync.py: do not edit.
"""`process_outbox`: the one step for cron. Promote what is due, run every subscription until nothing is left, prune, report.

It works on the caller's session and commits it: one short transaction after another. Two calls at once do not get in
each other's way: each claims the subscriptions it can get and reports the others as busy.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
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
from message_bus.delivery.starting import Standing, ensure_subscriptions
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.turns import Turns
from message_bus.delivery.worker import Worker
from message_bus.errors import LeaseLost, SettingsError, Unavailable, WiringError, names_of
from message_bus.observability.observer import Observers
from message_bus.repositories.registering import as_repo
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo
from message_bus.repositories.waiting import clause_for
from message_bus.storage import statements
from message_bus.storage.logs import OUTBOX_LOG
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
        _refuse_other_logs(chosen)
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
        read = {OUTBOX_LOG, *(str(handler.log) for handler, _ in chosen.values())}
        everyone = [
            (str(handler.log), each)
            for handler, each in zip(handlers, settings, strict=True)
            if handler.log in read
        ]
        try:
            return step.run(chosen, everyone, limit=limit)
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


def _refuse_other_logs(chosen: dict[str, tuple[Any, Subscription]]) -> None:
    """A user's own repository is an outbox and nothing else."""
    others = [name for name, (handler, _) in chosen.items() if handler.log != OUTBOX_LOG]
    if others:
        raise WiringError(
            f"{names_of(others)} read another log than the outbox, but an outbox of your own has no other "
            "(give process_outbox a session or one of our repositories)"
        )


def _check(session: Any, tables: MessageBusTables) -> None:
    """Refuse a database or a connection that would lose messages (W3, W7)."""
    connection = session.connection()
    check_reader(connection)
    check_log(connection, tables)


def _settings_of(handler: Any) -> Subscription:
    settings: Subscription = handler.subscription if handler.subscription is not None else Subscription()
    return settings.named(type(handler).__name__)


@dataclass(slots=True)
class _Result:
    """What one subscription has done so far; `busy`: some of it is in other hands."""

    tally: Tally = field(default_factory=Tally)
    busy: bool = False


@dataclass(slots=True)
class _Unit:
    """One partition of a subscription, as often as it comes round. `busy`: in other hands."""

    handler: Any
    settings: Subscription
    partition: int
    result: _Result
    ran: bool = False
    busy: bool = False


class _Step:
    """One call of process_outbox on one session."""

    def __init__(self, bus: Any, session: Session, tables: MessageBusTables, *, lease: timedelta) -> None:
        self._bus = bus
        self._session = session
        self._tables = tables
        self._lease_time = lease
        self._watermarks = {OUTBOX_LOG: Watermark(tables)}
        self._patience: dict[str, Patience] = {}  # a goal is a position of one log
        self._turns = Turns()
        self._began_at: datetime | None = None

    def run(
        self,
        chosen: dict[str, tuple[Any, Subscription]],
        everyone: Sequence[tuple[str, Subscription]],
        *,
        limit: int | None,
    ) -> OutboxReport:
        session = self._session
        idle: set[str] = set()
        waiting: set[str] = set()
        places: dict[str, tuple[int, ...]] = {}
        for log in dict.fromkeys((OUTBOX_LOG, *(log for log, _ in everyone))):
            standing = self._ensure(log, [settings for of_log, settings in everyone if of_log == log])
            idle |= standing.idle
            waiting |= standing.waiting
            places |= standing.places
        promoted = promote_due(session, self._tables)
        for name in idle & chosen.keys():
            logger.warning(
                "subscription %r is idle: it was added to a log with history, or paused (give Subscription(start=...))",
                name,
                extra={"subscription": name},
            )
        still = idle | waiting  # the latter for open writers; a later run begins
        results = {name: _Result() for name in chosen}
        units = [
            _Unit(handler, settings, partition, results[name])
            for name, (handler, settings) in chosen.items()
            if name not in still
            # who stands furthest behind comes first: with a limit, those after it may not come at all
            for partition in sorted(range(settings.partitions), key=places[name].__getitem__)
        ]
        self._until_nothing_is_left(units, limit=limit)
        reports = {name: self._report(name, result, idle=name in still) for name, result in results.items()}
        pruned = 0
        if not self._joined():  # a setting of the pruner would stay in the caller's transaction
            pruned = prune(session, self._tables, older_than=RETENTION)
        unsettled = 0
        for log in self._watermarks:
            look = self._look(log)
            unsettled += (
                session.execute(statements.count_after(self._tables.of_log(log)), {"settled": look.settled})
            ).scalar_one()
        session.commit()
        observers: Observers | None = getattr(self._bus, "observer", None)
        if observers is not None and (promoted or pruned):
            observers.housekept(promoted, pruned)
        return summed(reports, unsettled=unsettled, promoted=promoted, pruned=pruned)

    def _ensure(self, log: str, wanted: Sequence[Subscription]) -> Standing:
        """See that the log can be read, and that its subscriptions are there."""
        session, tables = self._session, self._tables.of_log(log)
        self._watermarks.setdefault(log, Watermark(tables))
        on_sync_session(session, _check, tables)
        look = self._look(log)
        standing = ensure_subscriptions(session, tables, wanted, settled=look.settled, high=look.high)
        session.commit()
        return standing

    def _look(self, log: str) -> Look:
        look = self._watermarks[log].look(self._session.connection())
        self._session.commit()
        return look

    def _until_nothing_is_left(self, units: Sequence[_Unit], *, limit: int | None) -> None:
        """Run one after the other until all have been idle since one has moved: it may have given others something to do."""
        idle = 0
        for unit in cycle(units):
            if idle >= len(units):
                return
            idle = 1 if self._moves(unit, limit=limit) else idle + 1

    def _moves(self, unit: _Unit, *, limit: int | None) -> bool:
        """Run one partition: was anything tried?"""
        result, settings = unit.result, unit.settings
        total = result.tally
        left = None if limit is None else limit - total.tried
        if left == 0 or unit.busy or total.unavailable or (total.suspicious and unit.ran):
            return False
        unit.ran = True
        worker = Worker(
            self._bus,
            unit.handler,
            settings,
            unit.partition,
            tables=self._tables.of_log(unit.handler.log),
            watermark=self._watermarks[unit.handler.log],
            lease=self._lease_time,
            stop=Stop(),
            turns=self._turns,
        )
        if not worker.claim(self._session):
            unit.busy = result.busy = True
            return False
        try:
            tally = self._one(worker, unit.handler.log, limit=left)
        except LeaseLost as lost:
            logger.warning("%s", lost, extra={"subscription": settings.name, "partition": unit.partition})
            worker.observed.leased("lost")
            unit.busy = result.busy = True
            return False
        total.delivered += tally.delivered
        total.passed_over += tally.passed_over
        total.tried += tally.tried
        total.outage = total.outage or tally.outage
        total.suspicious |= tally.suspicious
        return tally.tried > 0

    def _one(self, worker: Worker, log: str, *, limit: int | None) -> Tally:
        session = self._session
        patience = self._patience.setdefault(log, Patience())
        assert worker.lease is not None
        # what fails now is due in another run, however often this one comes round
        self._began_at = self._began_at or worker.lease.claimed_at
        worker.lease.claimed_at = self._began_at
        try:
            with worker.beating(session):
                tally = worker.run(session, limit=limit, patience=patience)
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

    def _report(self, name: str, result: _Result, *, idle: bool) -> SubscriptionReport:
        found = self._session.execute(statements.failed_counts(self._tables), {"subscription": name})
        counts = {state: count for state, count in found}
        self._session.commit()
        tally = result.tally
        return SubscriptionReport(
            name=name,
            delivered=tally.delivered,
            passed_over=tally.passed_over,
            retrying=counts.get(RETRYING, 0) + counts.get(TRYING, 0),
            held=counts.get(HELD, 0),
            dead=counts.get(DEAD, 0),
            busy=result.busy,
            unavailable=tally.unavailable,
            suspicious=tally.suspicious,
            idle=idle,
        )
