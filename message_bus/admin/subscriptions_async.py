"""List, start, pause, move, rename, drop and repartition subscriptions. `message-bus subscriptions` only wraps this.

    idle ──start──► active ──pause──► paused ──resume──► active          any ──reset──► elsewhere in the log

A change locks the log's row and then the checkpoint rows (S4, S3), and reads behind these locks. It handles no message and
waits for no worker. Epochs go on where they were, also when a subscription is dropped and made again (S2).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from message_bus._compat import on_sync_session_async
from message_bus.admin.ground import dialect_of, refuse_autocommit, refuse_hidden
from message_bus.admin.partitions import (
    MOST_HELD,
    PartitionStatus,
    Place,
    SubscriptionChange,
    placed,
    refuse_apart,
    refuse_count,
    refuse_leased,
    refuse_name,
    refuse_place,
    unknown,
)
from message_bus.delivery.patience_async import AsyncPatience
from message_bus.errors import SettingsError, WiringError
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import starting_statements
from message_bus.storage import statements as engine_statements
from message_bus.storage import subscription_statements as statements
from message_bus.storage.logs import OUTBOX_LOG
from message_bus.storage.settled import Look
from message_bus.storage.tables import ACTIVE, IDLE, PAUSED, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark

logger = logging.getLogger("message_bus.admin")

Statuses = list[PartitionStatus]  # inside the class `list` is the method


@dataclass(frozen=True, slots=True)
class _Found:
    """The partitions of one subscription, and how far its log was pruned, as they are behind the locks."""

    name: str
    rows: tuple[Row[Any], ...]
    pruned_to: int

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
    to commit, and pruning, new subscriptions and other operators wait, too: keep it short. `by`: who decides, for the log.
    `dry_run`: say what would be done; nothing is locked. `force`: also while a worker has the lease. It can commit nothing
    any more (G6), and nobody takes its place before the lease ends. Not task-safe: neither is a session.

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
        rows = await self.session.execute(statements.statuses(self.tables, None if name is None else (name,)))
        return [
            PartitionStatus(
                subscription=row.name,
                partition=row.partition,
                partitions=row.partitions,
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
            for row in rows
        ]

    async def start(
        self, name: str, at: Place = "beginning", *, by: str | None = None, dry_run: bool = False
    ) -> SubscriptionChange:
        """Let an idle subscription begin: at the "beginning" (of what is kept), "now", after a position, at a time.

        Idle is one that was added to a log with history and told no place to start from.
        """
        refuse_place(at)
        seen = await self._look()
        found = await self._find(name, dry_run=dry_run)
        if found.state != IDLE:
            remedy = "reset moves it" if found.state == ACTIVE else "resume lets it go on, reset moves it"
            raise SettingsError("start", [f"subscription {name!r} is {found.state}, not idle ({remedy})"])
        to = await self._place(at, found, seen)
        if not dry_run:
            await self._write(statements.place(self.tables), subscription=name, to=to, becomes=ACTIVE)
            await self._write(
                statements.remove_deliveries(self.tables), subscription=name
            )  # it waited for these
        return self._done("start", found, position=to, by=by, dry_run=dry_run)

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
        their errors. A paused one stays paused, an idle one becomes active.
        """
        refuse_place(to)
        seen = await self._look()
        found = await self._find(name, dry_run=dry_run)
        refuse_leased("reset", found.rows, force=force)
        position = await self._place(to, found, seen)
        removed = await self._deliveries(name)
        if not dry_run:
            becomes = PAUSED if found.state == PAUSED else ACTIVE
            await self._write(statements.place(self.tables), subscription=name, to=position, becomes=becomes)
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
        await self._write(statements.note_epoch(self.tables), epoch=found.highest_epoch + 1)
        await self._write(statements.rename_subscription(self.tables), subscription=old, new_name=new)
        await self._write(statements.rename_deliveries(self.tables), of_subscription=old, new_name=new)
        return self._done("rename", found, name=new, by=by)

    async def drop(
        self, name: str, *, force: bool = False, by: str | None = None, dry_run: bool = False
    ) -> SubscriptionChange:
        """Forget it: its place, its retries and its dead letters. Retention waits for it no longer.

        An application that still has it makes it anew, idle, with its next run.
        """
        await self._lock(dry_run=dry_run)
        rows = await self._rows(name, locked=not dry_run)
        removed = await self._deliveries(name)
        if not rows and not removed:
            raise await self._unknown(name)
        refuse_leased("drop", rows, force=force)
        found = _Found(name, tuple(rows), 0)
        if not dry_run:
            if rows:
                await self._write(statements.note_epoch(self.tables), epoch=found.highest_epoch)
            await self._write(statements.remove_subscription(self.tables), subscription=name)
            await self._write(statements.remove_deliveries(self.tables), subscription=name)
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
        await self._glance()  # for its refusals: rows that are hidden from this role would be lost (W9)
        found = await self._find(name, dry_run=dry_run)
        if len(found.rows) == partitions:
            return self._done("repartition", found, by=by, changed=False, dry_run=dry_run)
        refuse_leased("repartition", found.rows, force=force)
        to, behind = max(found.positions), 0
        if min(found.positions) != to:
            counted = await self.session.execute(
                statements.count_between(self.tables, types), {"subscription": name, "to": to}
            )
            behind = int(counted.scalar_one())
            if to > (await self._glance()).high:
                raise SettingsError(
                    "repartition",
                    [
                        f"subscription {name!r} is ahead of its log (`message-bus doctor` says how to repair it)"
                    ],
                )
            refuse_apart(name, found.positions, behind, hold=hold, most=most)
        if not dry_run:
            if behind:
                await self._write(statements.hold_between(self.tables, types), subscription=name, to=to)
            await self._write(statements.note_epoch(self.tables), epoch=found.highest_epoch)
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
                    "log": found.rows[0].log,
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

    async def _look(self) -> _Seen:
        """Where the log stands. Before anything is locked: it may wait a little for open writers (W6)."""
        watermark, patience = AsyncWatermark(self.tables), AsyncPatience()
        look = await watermark.look(await self.connection())
        goal = look.high
        while look.settled < goal and await patience.wait(look):
            look = await watermark.look(await self.connection())
        return _Seen(goal, look)

    async def _glance(self) -> Look:
        return await AsyncWatermark(self.tables).look(await self.connection())

    async def _refuse_hidden(self) -> None:
        session: Any = self.session
        await on_sync_session_async(session, refuse_hidden, self.tables)

    async def _lock(self, *, dry_run: bool = False) -> int:
        """Lock the log's row, first of all (S4), unless it is a dry run. How far the log was pruned."""
        session: Any = self.session
        await self._refuse_hidden()
        if dry_run:
            row = (await session.execute(statements.log_row(self.tables))).one_or_none()
            return 0 if row is None else int(row.pruned_to)
        await on_sync_session_async(session, refuse_autocommit, self.tables, "subscriptions are changed")
        dialect = await on_sync_session_async(session, dialect_of, self.tables)
        await session.execute(
            engine_statements.insert_or_ignore(dialect, self.tables.log).values(log=OUTBOX_LOG)
        )
        locked = await session.execute(engine_statements.lock_log(self.tables), {"log": OUTBOX_LOG})
        return int(locked.one().pruned_to)

    async def _find(self, name: str, *others: str, dry_run: bool = False) -> _Found:
        """The subscription of this name, locked unless it is a dry run; so are the `others`, if they exist."""
        pruned_to = await self._lock(dry_run=dry_run)
        rows = await self._rows(name, *others, locked=not dry_run)
        mine = tuple(row for row in rows if row.name == name)
        if not mine:
            raise await self._unknown(name)
        return _Found(name, mine, pruned_to)

    async def _rows(self, *names: str, locked: bool = False) -> tuple[Row[Any], ...]:
        found = await self.session.execute(
            statements.partitions(self.tables, locked=locked), {"names": names}
        )
        return tuple(found)

    async def _unknown(self, name: str) -> SettingsError:
        known = await self.session.scalars(statements.names_of_subscriptions(self.tables))
        return unknown(name, known.all())

    async def _place(self, at: Place, found: _Found, seen: _Seen) -> int:
        if at == "beginning":
            return found.pruned_to
        furthest = await self.session.execute(statements.furthest(self.tables), {"high": seen.look.high})
        known = max(seen.look.settled, int(furthest.scalar_one()))
        match at:
            case "now":
                wanted = seen.goal
            case datetime() as time:
                before = await self.session.execute(
                    starting_statements.position_before_time(self.tables),
                    {"time": time, "settled": seen.goal},
                )
                wanted = int(before.scalar_one())
                if (
                    known >= seen.goal
                ):  # what is still being written may be older than the first row after that time
                    wanted = min(wanted, known)
            case position:
                wanted = int(position)
        return placed(wanted, known=known, pruned_to=found.pruned_to, open_writers=known < seen.goal)

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
