"""Makes the rows of subscriptions that are new, and says where they start (S4).

    new ──beginning, a position──► active
     ├─ now, a time ──nothing open──► active
     │        └─ somebody writes ──► idle, what is not visible held ──settled──► active
     └─ nothing said, a log with history ──► idle ──start= or an operator──► as above

"now" is the look at the log: what is committed then is not delivered. What appears later at a position below it is: these
positions are recorded as held, and the subscription begins when everybody who was writing has ended.

`process_outbox` calls it at each step, the relay's housekeeper at each round. An existing subscription is left as it is,
but for one that is idle and is now told where to start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, Row
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus.delivery.patience_async import AsyncPatience
from message_bus.delivery.subscription import Subscription
from message_bus.errors import SettingsError
from message_bus.storage import starting_statements, statements, subscription_statements
from message_bus.storage.tables import ACTIVE, IDLE, MessageBusTables
from message_bus.storage.watermark_async import AsyncWatermark


@dataclass(frozen=True, slots=True)
class Standing:
    """Which subscriptions do not run, and where each stands.

    `idle` or paused, or `waiting` for those who write to end (it begins soon); `places`: the position of each partition.
    """

    idle: frozenset[str]
    waiting: frozenset[str]
    places: Mapping[str, tuple[int, ...]]


async def ensure_subscriptions_async(
    session: AsyncSession,
    tables: MessageBusTables,
    wanted: Sequence[Subscription],
    *,
    settled: int,
    high: int,
) -> Standing:
    """Make the rows of subscriptions that are missing (S4), and say which do not run.

    A new subscription starts at the beginning if its log has no history or no other subscription; else where
    `start` says; else it is idle. Leaves the transaction open: the caller commits.

    Raises: SettingsError if the database has another number of partitions, or a subscription of this name to another log.
    """
    known = await _made(session, tables, wanted, settled=settled, high=high)
    late = await _late(session, tables, wanted, known)
    if late:
        await session.commit()  # first: where they start is where the log was when they were made
        goal = max(known[str(settings.name)][0].position for settings in late)
        settled = max(settled, await _look_until(session, tables, goal))
        for settings in late:
            await _begin(session, tables, settings, settled=settled, high=high)
        known = await _known(session, tables, wanted)
        late = await _late(session, tables, late, known)
    for settings in wanted:
        row = known[str(settings.name)][0]
        if row.partitions != settings.partitions:
            raise SettingsError(
                f"Subscription {settings.name!r}",
                [
                    (
                        f"partitions is {settings.partitions}, but the database has {row.partitions} "
                        f"(set it to {row.partitions})"
                    )
                ],
            )
        if row.log != tables.source_log:
            raise SettingsError(
                f"Subscription {settings.name!r}",
                [
                    (
                        f"it reads the log {tables.source_log!r}, but in the database it reads {row.log!r} "
                        "(give it another name, or drop the old one)"
                    )
                ],
            )
    waiting = frozenset(str(settings.name) for settings in late)
    idle = {name for name, rows in known.items() if any(row.state != ACTIVE for row in rows)}
    places = {name: tuple(row.position for row in rows) for name, rows in known.items()}
    return Standing(idle=frozenset(idle) - waiting, waiting=waiting, places=places)


async def _made(
    session: AsyncSession,
    tables: MessageBusTables,
    wanted: Sequence[Subscription],
    *,
    settled: int,
    high: int,
) -> dict[str, list[Row[Any]]]:
    known = await _known(session, tables, wanted)
    missing = [settings for settings in wanted if str(settings.name) not in known]
    waking = [
        settings
        for settings in wanted
        if settings.start is not None
        and any(row.state == IDLE for row in known.get(str(settings.name), ()))
        and not await _waits(session, tables, settings)
    ]
    if not missing and not waking:
        return known
    log = await _lock_log(session, tables)  # in a later statement: what others have made meanwhile
    others = await session.execute(statements.log_has_subscriptions(tables), {"log": tables.source_log})
    free_choice = high == 0 or not others.scalar_one()
    bounds = _Bounds(log.pruned_to, await _settled_for_others(session, tables, settled, high), high)
    epoch = (await session.execute(starting_statements.highest_epoch(tables))).scalar_one() if missing else 0
    for settings in missing:
        start = await _start_position(session, tables, settings, bounds)
        late = await _mark_late(session, tables, settings, start, bounds)
        begins = (free_choice or settings.start is not None) and not late
        state = ACTIVE if begins else IDLE
        await _create(session, tables, settings, state=state, start=start, epoch=epoch)
    for settings in waking:
        start = await _start_position(session, tables, settings, bounds)
        late = await _mark_late(session, tables, settings, start, bounds)
        becomes = IDLE if late else ACTIVE
        await session.execute(
            starting_statements.start_idle(tables),
            {"subscription": settings.name, "start": start, "becomes": becomes},
        )
    return await _known(session, tables, wanted)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """How far a log is gone, settled, and drawn."""

    pruned_to: int
    settled: int
    high: int


async def _settled_for_others(
    session: AsyncSession, tables: MessageBusTables, settled: int, high: int
) -> int:
    """Settled is also what another subscription has passed: a fresh look at a log with open writers knows nothing."""
    found = await session.execute(subscription_statements.furthest(tables), {"high": high})
    return max(settled, int(found.scalar_one()))


async def _waits(session: AsyncSession, tables: MessageBusTables, settings: Subscription) -> bool:
    found = await session.execute(starting_statements.has_late(tables), {"subscription": settings.name})
    return bool(found.scalar_one())


async def _late(
    session: AsyncSession,
    tables: MessageBusTables,
    wanted: Sequence[Subscription],
    known: dict[str, list[Row[Any]]],
) -> list[Subscription]:
    """Those that know where they start, but not yet what of it was committed later."""
    return [
        settings
        for settings in wanted
        if all(row.state == IDLE for row in known[str(settings.name)])
        and await _waits(session, tables, settings)
    ]


async def _mark_late(
    session: AsyncSession, tables: MessageBusTables, settings: Subscription, start: int, bounds: _Bounds
) -> bool:
    """Record what may still appear at or before the start; False if nothing can."""
    known = max(bounds.settled, bounds.pruned_to)
    if settings.start in (None, "beginning") or isinstance(settings.start, int) or start <= known:
        return False
    marked: CursorResult[Any] = await session.execute(  # type: ignore[assignment]
        starting_statements.mark_late(tables),
        {"subscription": settings.name, "known": known, "to": start},
        execution_options={"preserve_rowcount": True},
    )
    return marked.rowcount > 0


async def _look_until(session: AsyncSession, tables: MessageBusTables, goal: int) -> int:
    """What is settled, once `goal` is or it has taken too long (W6)."""
    watermark, patience = AsyncWatermark(tables), AsyncPatience()
    while True:
        look = await watermark.look(await session.connection())
        await session.commit()
        if look.settled >= goal or not await patience.wait(look):
            return look.settled


async def _begin(
    session: AsyncSession, tables: MessageBusTables, settings: Subscription, *, settled: int, high: int
) -> None:
    """Let one that waits for open writers begin, if they have ended. Also another process may just do so."""
    await _lock_log(session, tables)
    rows = (await _known(session, tables, [settings])).get(str(settings.name), [])
    bound = await _settled_for_others(session, tables, settled, high)
    if rows and all(row.state == IDLE and row.position <= bound for row in rows):
        mine = {"of_subscription": settings.name}
        await session.execute(starting_statements.forget_gaps(tables), mine)
        await session.execute(starting_statements.complete_late(tables), mine)
        await session.execute(starting_statements.activate(tables), {"subscription": settings.name})
    await session.commit()


async def _known(
    session: AsyncSession, tables: MessageBusTables, wanted: Sequence[Subscription]
) -> dict[str, list[Row[Any]]]:
    names = [settings.name for settings in wanted]
    known: dict[str, list[Row[Any]]] = {}
    for row in await session.execute(statements.partitions_of(tables), {"names": names}):
        known.setdefault(row.name, []).append(row)
    return known


async def _lock_log(session: AsyncSession, tables: MessageBusTables) -> Row[Any]:
    dialect = (await session.connection()).dialect.name
    await session.execute(statements.insert_or_ignore(dialect, tables.log).values(log=tables.source_log))
    row: Row[Any] = (await session.execute(statements.lock_log(tables), {"log": tables.source_log})).one()
    return row


async def _create(
    session: AsyncSession,
    tables: MessageBusTables,
    settings: Subscription,
    *,
    state: str,
    start: int,
    epoch: int,
) -> None:
    dialect = (await session.connection()).dialect.name
    await session.execute(
        statements.insert_or_ignore(dialect, tables.subscription),
        [
            {
                "name": settings.name,
                "partition": partition,
                "partitions": settings.partitions,
                "log": tables.source_log,
                "state": state,
                "position": start,
                "epoch": epoch,
            }
            for partition in range(settings.partitions)
        ],
    )


async def _start_position(
    session: AsyncSession, tables: MessageBusTables, settings: Subscription, bounds: _Bounds
) -> int:
    match settings.start:
        case None | "beginning":
            return bounds.pruned_to
        case "now":
            return max(bounds.high, bounds.pruned_to)
        case datetime() as time:
            found = await session.execute(
                starting_statements.position_before_time(tables), {"time": time, "settled": bounds.high}
            )
            return max(min(int(found.scalar_one()), bounds.high), bounds.pruned_to)
        case position:
            return max(int(position), bounds.pruned_to)
