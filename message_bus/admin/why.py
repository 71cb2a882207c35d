# Generated from why_async.py by tests/tools/unasync.py: do not edit.
"""What has become of one message, and why. `message-bus why` only prints it.

Everything is computed from checkpoints and delivery rows; nobody writes down when a message was delivered.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.delayed import uuids
from message_bus.admin.ground import refuse_hidden
from message_bus.admin.life import Fate, Life, Recorded
from message_bus.admin.subscriptions import Subscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import status_statements as statements
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.tables import EVENT, HELD, IDLE, MessageBusTables
from message_bus.storage.views import DELIVERED, WAITING
from message_bus.storage.watermark import Watermark


def why(
    session: Session | scoped_session[Any] | Connection,
    id: UUID | str,  # noqa: A002
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Life | None:
    """Tell the life of the message, or event, with this id, in the logs that it is in.

    None if it was never committed, was cancelled, or retention has taken it.

    Reads only, in the caller's transaction, which must be READ COMMITTED. No payload, no traceback.

    Raises: SettingsError for an id that is no UUID; UnsupportedDatabase if rows are hidden from this role.
    """
    subscriptions = Subscriptions(session, tables=tables)
    target: Any = subscriptions.session
    (message_id,) = uuids("why", [id])
    on_sync_session(target, refuse_hidden, tables)
    asked = {"id": message_id}
    outbox, events = tables.of_log(OUTBOX_LOG), tables.of_log(EVENT_LOG)
    row = target.execute(statements.message_at(tables), asked).one_or_none()
    event = target.execute(statements.event_at(tables), asked).one_or_none()
    delayed = None
    if row is None:
        delayed = target.execute(statements.message_delayed(tables), asked).one_or_none()
    fates: list[Fate] = []
    settled, recorded = False, None
    if event is not None:
        of_event, readable = _fates(subscriptions, events, event.position, event.stream)
        fates += of_event
        recorded = Recorded(
            position=event.position,
            stream=event.stream,
            version=event.version,
            recorded_at=event.recorded_at,
            settled=readable,
        )
        settled = readable
    if row is not None:
        of_message, settled = _fates(subscriptions, outbox, row.position, row.key)
        fates = [*of_message, *fates]
        return Life(**row._mapping, due_at=None, settled=settled, fates=tuple(fates), recorded=recorded)
    if delayed is not None:
        return Life(**delayed._mapping, position=None, settled=False, fates=tuple(fates), recorded=recorded)
    if event is None:
        return None
    return Life(
        id=event.id,
        type=EVENT,
        message=event.message,
        key=event.stream,
        created_at=event.recorded_at,
        position=None,
        due_at=None,
        settled=settled,
        fates=tuple(fates),
        recorded=recorded,
    )


def _fates(
    subscriptions: Subscriptions, tables: MessageBusTables, position: int, key: str | None
) -> tuple[list[Fate], bool]:
    """What each subscription of this log has to do with its message at this position, and whether it is settled."""
    target: Any = subscriptions.session
    found = target.execute(statements.fates(tables), {"position": position}).all()
    fates: list[Fate] = []
    for each in found:
        blocker = None
        if each.state == HELD and key is not None:
            asked = {"subscription": each.name, "key": key, "position": position}
            blocker = target.execute(statements.in_the_way(tables), asked).one_or_none()
        fates.append(_fate_of(each, tables.source_log, position, blocker))
    if any(each.checkpoint >= position and each.subscription_state != IDLE for each in found):
        return fates, True
    if not found and tables.source_log == EVENT_LOG:
        return fates, True  # nobody waits for it
    look = Watermark(tables).look(subscriptions.connection())
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
