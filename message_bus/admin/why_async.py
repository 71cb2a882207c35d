"""What has become of one message, and why. `message-bus why` only prints it.

    the message ──► its fates (checkpoints, delivery rows) ──► its history ──► what it has emitted

Nobody writes down when a message was delivered at its first attempt; whatever else has happened to it is in the history.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from message_bus._compat import on_sync_session_async
from message_bus.admin.delayed import uuids
from message_bus.admin.emitted import Family, Found, family_of, merged, tree_of
from message_bus.admin.ground import refuse_hidden
from message_bus.admin.history import HistoryEntry
from message_bus.admin.life import DELAYED, RECORDED, Fate, Life, Recorded, worst_of
from message_bus.admin.subscriptions_async import AsyncSubscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import history_statements
from message_bus.storage import status_statements as statements
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import EVENT, HELD, IDLE, MessageBusTables
from message_bus.storage.views import DELIVERED, WAITING
from message_bus.storage.watermark_async import AsyncWatermark

MOST_READ: Final = 5_000  # messages of one story, of each log


async def async_why(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    id: UUID | str,  # noqa: A002
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Life | None:
    """Tell the life of the message, or event, with this id, in the logs that it is in.

    None if it was never committed, was cancelled, or retention has taken it.

    Reads only, in the caller's transaction, which must be READ COMMITTED. No payload, no traceback. To find what the message
    has emitted it reads the outbox from its position on: on a long one that takes a moment (a second for a million rows or so).
    It tells of at most 200 of these messages, of 50 generations.

    Raises: SettingsError for an id that is no UUID; UnsupportedDatabase if rows are hidden from this role.
    """
    subscriptions = AsyncSubscriptions(session, tables=tables)
    target: Any = subscriptions.session
    (message_id,) = uuids("why", [id])
    await on_sync_session_async(target, refuse_hidden, tables)
    asked = {"id": message_id}
    row = (await target.execute(statements.message_at(tables), asked)).one_or_none()
    event = (await target.execute(statements.event_at(tables), asked)).one_or_none()
    delayed = None
    if row is None:
        delayed = (await target.execute(statements.message_delayed(tables), asked)).one_or_none()
    known = next((each for each in (row, event, delayed) if each is not None), None)
    if known is None:
        return None
    of_message: list[Fate] = []
    of_event: list[Fate] = []
    settled, recorded = False, None
    if event is not None:
        of_event, settled = await _fates(
            subscriptions, tables.of_log(EVENT_LOG), event.position, event.stream
        )
        recorded = Recorded(
            position=event.position,
            stream=event.stream,
            version=event.version,
            recorded_at=event.recorded_at,
            settled=settled,
        )
    if row is not None:
        of_message, settled = await _fates(subscriptions, tables.of_log(OUTBOX_LOG), row.position, row.key)
    family = await _family(
        target,
        tables,
        message_id,
        story=known.correlation_id or str(message_id),
        after={
            OUTBOX_LOG: 0 if row is None else row.position,
            EVENT_LOG: 0 if event is None else event.position,
        },
    )
    first: Any = row or delayed
    return Life(
        id=message_id,
        type=EVENT if first is None else first.type,
        message=known.message,
        key=known.stream if first is None else first.key,
        created_at=known.recorded_at if first is None else first.created_at,
        position=None if row is None else row.position,
        due_at=None if delayed is None else delayed.due_at,
        settled=settled and delayed is None,
        fates=(*of_message, *of_event),
        recorded=recorded,
        correlation_id=known.correlation_id,
        caused_by=known.caused_by,
        history=await _history(target, tables, message_id),
        emitted=tree_of(message_id, family, await _states(target, tables, family.members)),
        emitted_more=family.more,
    )


async def _history(target: Any, tables: MessageBusTables, message_id: UUID) -> tuple[HistoryEntry, ...]:
    found = await target.execute(history_statements.history_of(tables), {"id": message_id})
    return tuple(
        HistoryEntry(
            subscription=row.subscription,
            log=row.log,
            what=row.what,
            at=row.happened_at,
            attempt=row.attempt,
            error=row.error,
            behind=row.behind_id or row.behind_event,
            behind_position=row.behind,
            by=row.decided_by,
        )
        for row in found
    )


async def _family(
    target: Any, tables: MessageBusTables, message_id: UUID, *, story: str, after: dict[str, int]
) -> Family:
    """What the message has brought about: among those of its correlation id, in both logs and the schedule."""
    asked = {"story": story, "limit": MOST_READ}
    in_outbox = await target.execute(statements.outbox_story(tables), {**asked, "after": after[OUTBOX_LOG]})
    in_events = await target.execute(statements.event_story(tables), {**asked, "after": after[EVENT_LOG]})
    in_schedule = await target.execute(statements.schedule_story(tables), asked)
    places = [[Found(*row) for row in rows] for rows in (in_outbox, in_events, in_schedule)]
    family = family_of(message_id, merged(*places))
    cut = any(len(place) == MOST_READ for place in places)
    return Family(family.members, family.children, family.more or cut)


async def _states(target: Any, tables: MessageBusTables, members: tuple[Found, ...]) -> dict[UUID, str]:
    """What has become of each of them."""
    states: dict[UUID, list[str]] = {each.id: [] for each in members}
    for log in (OUTBOX_LOG, EVENT_LOG):
        places = {each.position if log == OUTBOX_LOG else each.recorded: each.id for each in members}
        places.pop(None, None)
        if places:
            found = await target.execute(
                statements.states_at(tables.of_log(log)), {"positions": list(places)}
            )
            for row in found:
                passed = DELIVERED if row.checkpoint >= row.position else WAITING
                states[places[row.position]].append(row.state or passed)
    return {each.id: _state_of(each, states[each.id]) for each in members}


def _state_of(member: Found, states: list[str]) -> str:
    if member.due_at is not None:
        return DELAYED
    return RECORDED if member.position is None and not states else worst_of(states)


async def _fates(
    subscriptions: AsyncSubscriptions, tables: MessageBusTables, position: int, key: str | None
) -> tuple[list[Fate], bool]:
    """What each subscription of this log has to do with its message at this position, and whether it is settled."""
    target: Any = subscriptions.session
    found = (await target.execute(statements.fates(tables), {"position": position})).all()
    fates: list[Fate] = []
    for each in found:
        blocker = None
        if each.state == HELD and key is not None:
            asked = {"subscription": each.name, "key": key, "position": position}
            blocker = (await target.execute(statements.in_the_way(tables), asked)).one_or_none()
        fates.append(_fate_of(each, tables.source_log, position, blocker))
    if any(each.checkpoint >= position and each.subscription_state != IDLE for each in found):
        return fates, True
    if not found and tables.source_log == EVENT_LOG:
        return fates, True  # nobody waits for it
    look = await AsyncWatermark(tables).look(await subscriptions.connection())
    return fates, position <= look.settled


def _fate_of(row: Row[Any], log: str, position: int, blocker: Row[Any] | None) -> Fate:
    passed = row.checkpoint >= position and row.subscription_state != IDLE
    return Fate(
        subscription=row.name,
        partition=row.partition,
        log=log,
        state=row.state or (DELIVERED if passed else WAITING),
        subscription_state=row.subscription_state,
        ahead=row.ahead,
        attempts=row.attempts or 0,
        crashes=row.crashes or 0,
        error=row.error,
        failed_at=row.failed_at,
        updated_at=row.updated_at,
        next_attempt_at=row.next_attempt_at,
        held_behind=None if blocker is None else blocker.id,
        held_behind_position=None if blocker is None else blocker.position,
    )
