"""List, start, pause, move, rename, drop and repartition subscriptions. `message-bus subscriptions` only wraps this.

    idle ──start──► active ──pause──► paused ──resume──► active          any ──reset──► elsewhere in the log

A change locks the row of the log that the subscription reads, then the checkpoint rows (S4, S3), and reads behind these
locks. It handles no message and waits for no worker. Epochs go on where they were, also when a subscription is dropped and
made again (S2).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from message_bus._compat import on_sync_session_async
from message_bus.admin.ground import dialect_of, refuse_autocommit, refuse_hidden, tables_of_logs
from message_bus.admin.partitions import (
    MOST_HELD,
    PartitionStatus,
    Place,
    SubscriptionChange,
    refuse_apart,
    refuse_beyond,
    refuse_count,
    refuse_leased,
    refuse_name,
    refuse_place,
    unknown,
)
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.errors import SettingsError, WiringError
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import history_statements, starting_statements
from message_bus.storage import statements as engine_statements
from message_bus.storage import subscription_statements as statements
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.settled import Look
from message_bus.storage.tables import ACTIVE, IDLE, PAUSED, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.admin")

Statuses = list[PartitionStatus]  # inside the class `list` is the method
Rows = list[Row[Any]]


@dataclass(frozen=True, slots=True)
class _Found:
    """The partitions of one subscription, and how far its log was pruned, as they are behind the locks.

    `tables`: for whoever reads its log.
    """

    name: str
    rows: tuple[Row[Any], ...]
    pruned_to: int
    tables: MessageBusTables

    @property
    def state(self) -> str:
        return str(self.rows[0].state)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(row.position for row in self.rows)

    @property
    def highest_epoch(self) -> int:
        return max(int(row.epoch) for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What looking at the log has shown: what was drawn at first, what is settled at last."""

    goal: int
    look: Look


class AsyncSubscriptions:
    """The subscriptions of one set of tables, on the caller's session or connection.

    The caller owns the transaction (G10): nothing happens before it commits. Until then workers of that subscription wait
    to commit, and pruning, new subscriptions and other operators wait, too: keep it short. `by`: who decides, for the log
    and for `why`. `dry_run`: say what would be done; nothing is locked. `force`: also while a worker has the lease. It can
    commit nothing any more (G6), and nobody takes its place before the lease ends. Not task-safe: neither is a session.

    Raises: WiringError for a session of the other colour, or anything else. Every method: SettingsError with the remedy
        for what makes no sense; a change: UnsupportedDatabase on an AUTOCOMMIT connection.
    """

    def __init__(
        self,
        session_or_connection: AsyncSession | async_scoped_session[Any] | AsyncConnection,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None:
        if not isinstance(session_or_connection, AsyncSession | async_scoped_session | AsyncConnection):
            raise WiringError(
                f"{type(self).__name__} works on {AsyncSession.__name__} or {AsyncConnection.__name__}, not on "
                f"{type(session_or_connection).__name__!r} (give sync ones to Subscriptions, async ones to "
                "AsyncSubscriptions)"
            )
        self._given = session_or_connection
        self.tables = tables

    @property
    def session(self) -> AsyncSession | AsyncConnection:
        """The session or connection; behind a scoped session the one of this moment."""
        return self._given() if isinstance(self._given, async_scoped_session) else self._given

    async def list(self, name: str | None = None) -> Statuses:
        """Return every partition of every subscription, or of the one with this name, by name and partition.

        Counts the messages behind each checkpoint: on a log with millions of them that takes a moment.
        """
        await self._refuse_hidden()
        session: Any = self.session
        rows: Rows = []
        for tables in await on_sync_session_async(session, tables_of_logs, self.tables):
            names = None if name is None else (name,)
            rows += await session.execute(statements.statuses(tables, names))
        return [
            PartitionStatus(
                subscription=row.name,
                partition=row.partition,
                partitions=row.partitions,
                log=row.log,
                state=row.state,
                position=row.position,
                lag=row.lag,
                owner=row.owner,
                lease_until=row.lease_until,
                retrying=row.retrying,
                held=row.held,
                dead=row.dead,
                seen_at=min(row.alive_until, row.now),
            )
            for row in sorted(rows, key=lambda row: (row.name, row.partition))
        ]

    async def start(
        self, name: str, at: Place = "beginning", *, by: str | None = None, dry_run: bool = False
    ) -> SubscriptionChange:
        """Let an idle subscription begin: at the "beginning" (of what is kept), "now", after a position, at a time.

        Idle is one that was added to a log with history and told no place to start from. "Now", or a time, is not known
        before everybody who is writing has ended: until then it stays idle, with what may appear recorded as `held`, and the
        first run after them lets it begin.
        """
        refuse_place(at)
        tables = await self._tables_of(name)
        look = await self._glance(tables)
        found = await self._find(name, tables=tables, dry_run=dry_run)
        if found.state != IDLE:
            remedy = "reset moves it" if found.state == ACTIVE else "resume lets it go on, reset moves it"
            raise SettingsError("start", [f"subscription {name!r} is {found.state}, not idle ({remedy})"])
        known = await self._known(found, look)
        to = max(await self._wanted(at, found, look.high), found.pruned_to)
        late = 0
        if to > max(known, found.pruned_to):
            if isinstance(at, int):
                refuse_beyond(to, known=known, open_writers=known < look.high)
            late = await self._count_late(found, known=known, to=to)
        if not dry_run:
            await self._write(
                statements.remove_deliveries(self.tables), subscription=name
            )  # it waited for these
            if late:  # counted anew: since then they may have ended
                late = await self._mark_late(found, known=known, to=to)
            becomes = IDLE if late else ACTIVE
            await self._write(statements.place(self.tables), subscription=name, to=to, becomes=becomes)
        return self._done("start", found, position=to, held=late, by=by, dry_run=dry_run)

    async def pause(self, name: str, *, by: str | None = None) -> SubscriptionChange:
        """Let nobody work on it. A worker that has its lease finishes what it has in hand, and gives the lease back.

        Retention waits for a paused subscription (G9). Pausing one that is paused changes nothing.
        """
        found = await self._find(name)
        if found.state == IDLE:
            raise SettingsError(
                "pause", [f"subscription {name!r} is idle: nothing is running (start begins it)"]
            )
        changed = found.state == ACTIVE
        if changed:
            await self._write(
                statements.set_state(self.tables), subscription=name, was=ACTIVE, becomes=PAUSED
            )
        return self._done("pause", found, by=by, changed=changed)

    async def resume(self, name: str, *, by: str | None = None) -> SubscriptionChange:
        """Let a paused one go on from where it is. Resuming an active one changes nothing."""
        found = await self._find(name)
        if found.state == IDLE:
            raise SettingsError(
                "resume", [f"subscription {name!r} is idle: it has no place yet (start begins it)"]
            )
        changed = found.state == PAUSED
        if changed:
            await self._write(
                statements.set_state(self.tables), subscription=name, was=PAUSED, becomes=ACTIVE
            )
        return self._done("resume", found, by=by, changed=changed)

    async def reset(
        self,
        name: str,
        to: Place,
        *,
        force: bool = False,
        by: str | None = None,
        dry_run: bool = False,
    ) -> SubscriptionChange:
        """Move it: back, so that messages are delivered once more, or forward, so that they never are.

        `to`: the "beginning" (of what is kept), "now", a position that it goes on after, or a time. What retention may
        have taken is passed over. Everything that is recorded about its messages goes: retries, and dead letters with
        their tracebacks; `why` still tells what has happened to them. A paused one stays paused, an idle one becomes active.
        """
        refuse_place(to)
        tables = await self._tables_of(name)
        seen = await self._look(tables)
        found = await self._find(name, tables=tables, dry_run=dry_run)
        refuse_leased("reset", found.rows, force=force)
        position = await self._place(to, found, seen)
        removed = await self._deliveries(name)
        if not dry_run:
            becomes = PAUSED if found.state == PAUSED else ACTIVE
            await self._write(statements.place(self.tables), subscription=name, to=position, becomes=becomes)
            if removed:
                await self._write(
                    history_statements.remember_reset(found.tables), of_subscription=name, by=by
                )
            await self._write(statements.remove_deliveries(self.tables), subscription=name)
        return self._done("reset", found, position=position, removed=removed, by=by, dry_run=dry_run)

    async def rename(
        self, old: str, new: str, *, force: bool = False, by: str | None = None
    ) -> SubscriptionChange:
        """Give it another name, with all it knows. Do it while no worker runs: the old code would make the old name anew."""
        refuse_name(new)
        found = await self._find(old, new)
        refuse_leased("rename", found.rows, force=force)
        if await self._rows(new) or await self._deliveries(new):
            raise SettingsError("rename", [f"there is a subscription {new!r} already (drop it first)"])
        await self._write(statements.note_epoch(found.tables), epoch=found.highest_epoch + 1)
        await self._write(statements.rename_subscription(self.tables), subscription=old, new_name=new)
        await self._write(statements.rename_deliveries(self.tables), of_subscription=old, new_name=new)
        await self._write(history_statements.rename_history(self.tables), of_subscription=old, new_name=new)
        return self._done("rename", found, name=new, by=by)

    async def drop(
        self, name: str, *, force: bool = False, by: str | None = None, dry_run: bool = False
    ) -> SubscriptionChange:
        """Forget it: its place, its retries, its dead letters and its history. Retention waits for it no longer.

        An application that still has it makes it anew, idle, with its next run.
        """
        tables = await self._tables_of(name, missing_ok=True)
        await self._lock(tables, dry_run=dry_run)
        rows = await self._rows(name, locked=not dry_run)
        self._refuse_moved(name, tables, rows)
        removed = await self._deliveries(name)
        if not rows and not removed:
            raise await self._unknown(name)
        refuse_leased("drop", rows, force=force)
        found = _Found(name, tuple(rows), 0, tables)
        if not dry_run:
            if rows:
                await self._write(statements.note_epoch(tables), epoch=found.highest_epoch)
            await self._write(statements.remove_subscription(self.tables), subscription=name)
            await self._write(statements.remove_deliveries(self.tables), subscription=name)
            await self._write(history_statements.remove_history(self.tables), subscription=name)
        return self._done("drop", found, removed=removed, by=by, dry_run=dry_run)

    async def repartition(
        self,
        name: str,
        partitions: int,
        *,
        hold: bool = False,
        types: Collection[str] | None = None,
        most: int = MOST_HELD,
        force: bool = False,
        by: str | None = None,
        dry_run: bool = False,
    ) -> SubscriptionChange:
        """Divide it by another number. Workers must have the same number in their settings: they refuse any other.

        All partitions must stand at one position (S5), as they do when nothing is left to deliver. Under load they stand
        apart: with `hold` the messages that some have reached and others have not (at most `most`) are recorded as
        held, and come first with the next run, in the order of their key (G3). `types`: the names of the message types that
        it reads, if its settings say so; else those of other types reach its handler, too.
        """
        refuse_count(partitions)
        types = (types,) if isinstance(types, str) else types
        tables = await self._tables_of(name)
        await self._glance(tables)  # for its refusals: rows that are hidden from this role would be lost (W9)
        found = await self._find(name, tables=tables, dry_run=dry_run)
        if len(found.rows) == partitions:
            return self._done("repartition", found, by=by, changed=False, dry_run=dry_run)
        refuse_leased("repartition", found.rows, force=force)
        to, behind = max(found.positions), 0
        if min(found.positions) != to:
            counted = await self.session.execute(
                statements.count_between(found.tables, types), {"subscription": name, "to": to}
            )
            behind = int(counted.scalar_one())
            if to > (await self._glance(found.tables)).high:
                raise SettingsError(
                    "repartition",
                    [
                        f"subscription {name!r} is ahead of its log (`message-bus doctor` says how to repair it)"
                    ],
                )
            refuse_apart(name, found.positions, behind, hold=hold, most=most)
        if not dry_run:
            if behind:
                await self._write(statements.hold_between(found.tables, types), subscription=name, to=to)
                remember = history_statements.remember_repartition(found.tables, types)
                await self._write(remember, subscription=name, to=to, by=by)
            await self._write(statements.note_epoch(found.tables), epoch=found.highest_epoch)
            await self._write(statements.remove_subscription(self.tables), subscription=name)
            await self._add_partitions(found, partitions, to)
        return self._done(
            "repartition", found, position=to, partitions=partitions, held=behind, by=by, dry_run=dry_run
        )

    async def _add_partitions(self, found: _Found, count: int, to: int) -> None:
        """The epochs go on from the highest; a lease that was taken away keeps others out until it ends (G3)."""
        owned = [row for row in found.rows if row.owner is not None]
        last = max(owned, key=lambda row: row.lease_until, default=None)
        await self.session.execute(
            statements.add_partition(self.tables),
            [
                {
                    "name": found.name,
                    "partition": partition,
                    "partitions": count,
                    "log": found.tables.source_log,
                    "state": found.state,
                    "position": to,
                    "epoch": found.highest_epoch + 1,
                    "revision": max(row.revision for row in found.rows) + engine_statements.DECISION,
                    "owner": None if last is None else last.owner,
                    "lease_until": None if last is None else last.lease_until,
                    "created_at": min(row.created_at for row in found.rows),
                    "seen_at": max(row.seen_at for row in found.rows),
                }
                for partition in range(count)
            ],
        )

    # --- what the methods share ---

    async def connection(self) -> AsyncConnection:
        """Return the connection that leads to the tables, in the session's transaction."""
        session = self.session
        if isinstance(session, AsyncConnection):
            return session
        return await session.connection(bind_arguments={"clause": self.tables.outbox})

    async def _tables_of(self, name: str, *, missing_ok: bool = False) -> MessageBusTables:
        """The tables for whoever reads the log of this subscription; what nobody knows any more is taken to be the outbox's."""
        await self._refuse_hidden()
        log = await self.session.scalar(statements.log_of(self.tables), {"subscription": name})
        if log is None and not missing_ok:
            raise await self._unknown(name)
        return self.tables.of_log(log or OUTBOX_LOG)

    async def _look(self, tables: MessageBusTables) -> _Seen:
        """Where the log stands. Before anything is locked: it may wait a little for open writers (W6)."""
        watermark, patience = AsyncWatermark(tables), AsyncPatience()
        look = await watermark.look(await self.connection())
        goal = look.high
        while look.settled < goal and await patience.wait(look):
            look = await watermark.look(await self.connection())
        return _Seen(goal, look)

    async def _glance(self, tables: MessageBusTables) -> Look:
        return await AsyncWatermark(tables).look(await self.connection())

    async def _refuse_hidden(self) -> None:
        session: Any = self.session
        await on_sync_session_async(session, refuse_hidden, self.tables)

    async def _lock(self, tables: MessageBusTables, *, dry_run: bool = False) -> int:
        """Lock the log's row, first of all (S4), unless it is a dry run. How far the log was pruned."""
        session: Any = self.session
        if dry_run:
            row = (await session.execute(statements.log_row(tables))).one_or_none()
            return 0 if row is None else int(row.pruned_to)
        await on_sync_session_async(session, refuse_autocommit, self.tables, "subscriptions are changed")
        dialect = await on_sync_session_async(session, dialect_of, self.tables)
        log = tables.source_log
        await session.execute(engine_statements.insert_or_ignore(dialect, tables.log).values(log=log))
        locked = await session.execute(engine_statements.lock_log(tables), {"log": log})
        return int(locked.one().pruned_to)

    async def _find(
        self, name: str, *others: str, tables: MessageBusTables | None = None, dry_run: bool = False
    ) -> _Found:
        """The subscription of this name, locked unless it is a dry run; so are the `others`, if they exist."""
        tables = tables or await self._tables_of(name)
        pruned_to = await self._lock(tables, dry_run=dry_run)
        rows = await self._rows(name, *others, locked=not dry_run)
        mine = tuple(row for row in rows if row.name == name)
        if not mine:
            raise await self._unknown(name)
        self._refuse_moved(name, tables, mine)
        return _Found(name, mine, pruned_to, tables)

    def _refuse_moved(self, name: str, tables: MessageBusTables, rows: Sequence[Row[Any]]) -> None:
        if any(row.log != tables.source_log for row in rows):
            raise SettingsError(
                "subscriptions",
                [f"subscription {name!r} was made anew, on another log, at this moment (try again)"],
            )

    async def _rows(self, *names: str, locked: bool = False) -> tuple[Row[Any], ...]:
        found = await self.session.execute(
            statements.partitions(self.tables, locked=locked), {"names": names}
        )
        return tuple(found)

    async def _unknown(self, name: str) -> SettingsError:
        known = await self.session.scalars(statements.names_of_subscriptions(self.tables))
        return unknown(name, known.all())

    async def _known(self, found: _Found, look: Look) -> int:
        """Up to where nothing will appear any more: what others have passed is settled, too."""
        furthest = await self.session.execute(statements.furthest(found.tables), {"high": look.high})
        return max(look.settled, int(furthest.scalar_one()))

    async def _wanted(self, at: Place, found: _Found, high: int) -> int:
        match at:
            case "beginning":
                return found.pruned_to
            case "now":
                return high
            case datetime() as time:
                before = await self.session.execute(
                    starting_statements.position_before_time(found.tables), {"time": time, "settled": high}
                )
                return min(int(before.scalar_one()), high)
            case position:
                return int(position)

    async def _place(self, at: Place, found: _Found, seen: _Seen) -> int:
        if at == "beginning":
            return found.pruned_to
        known = await self._known(found, seen.look)
        wanted = await self._wanted(at, found, seen.goal)
        refuse_beyond(wanted, known=known, open_writers=known < seen.goal)
        return max(wanted, found.pruned_to)

    async def _count_late(self, found: _Found, *, known: int, to: int) -> int:
        """At how many positions something may still appear: those that were drawn, and at which nothing can be seen."""
        known = max(known, found.pruned_to)
        seen = await self.session.execute(statements.count_seen(found.tables), {"known": known, "to": to})
        return to - known - int(seen.scalar_one())

    async def _mark_late(self, found: _Found, *, known: int, to: int) -> int:
        """Record them as held, until their writers have ended; the next run sees to it."""
        marked: CursorResult[Any] = await self.session.execute(  # type: ignore[assignment]
            starting_statements.mark_late(found.tables),
            {"subscription": found.name, "known": max(known, found.pruned_to), "to": to},
            execution_options={"preserve_rowcount": True},
        )
        return marked.rowcount

    async def _deliveries(self, name: str) -> dict[str, int]:
        counts = await self.session.execute(statements.count_deliveries(self.tables), {"subscription": name})
        return {state: count for state, count in counts}

    async def _write(self, statement: Any, **parameters: Any) -> None:
        await self.session.execute(statement, parameters)

    def _done(self, action: Any, found: _Found, *, by: str | None = None, **what: Any) -> SubscriptionChange:
        what.setdefault("name", found.name)
        what.setdefault("partitions", len(found.rows))
        change = SubscriptionChange(action=action, subscription=found.name, before=found.positions, **what)
        if change.changed and not change.dry_run:
            logger.warning(
                "%s of subscription %r, by %s: in force when its transaction commits",
                action,
                found.name,
                by or "somebody who gave no name",
                extra={"action": action, "by": by, "subscription": found.name, "position": change.position},
            )
        return change
