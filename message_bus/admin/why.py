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
from message_bus.admin.life import Fate, Life
from message_bus.admin.subscriptions import Subscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import status_statements as statements
from message_bus.storage.tables import HELD, IDLE, MessageBusTables
from message_bus.storage.views import DELIVERED, WAITING
from message_bus.storage.watermark import Watermark


def why(
    session: Session | scoped_session[Any] | Connection,
    id: UUID | str,  # noqa: A002
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Life | None:
    """Tell the life of the message with this id; None if it was never committed, was cancelled, or retention has taken it.

    Reads only, in the caller's transaction, which must be READ COMMITTED. No payload, no traceback.

    Raises: SettingsError for an id that is no UUID; UnsupportedDatabase if rows are hidden from this role.
    """
    subscriptions = Subscriptions(session, tables=tables)
    target: Any = subscriptions.session
    (message_id,) = uuids("why", [id])
    on_sync_session(target, refuse_hidden, tables)
    row = target.execute(statements.message_at(tables), {"id": message_id}).one_or_none()
    if row is None:
        delayed = target.execute(statements.message_delayed(tables), {"id": message_id}).one_or_none()
        if delayed is None:
            return None
        return Life(**delayed._mapping, position=None, settled=False, fates=())
    look = Watermark(tables).look(subscriptions.connection())
    found = target.execute(statements.fates(tables), {"position": row.position}).all()
    fates: list[Fate] = []
    for each in found:
        blocker = None
        if each.state == HELD and row.key is not None:
            asked = {"subscription": each.name, "key": row.key, "position": row.position}
            blocker = target.execute(statements.in_the_way(tables), asked).one_or_none()
        fates.append(_fate_of(each, row.position, blocker))
    passed = any(each.checkpoint >= row.position and each.subscription_state != IDLE for each in found)
    return Life(
        **row._mapping, due_at=None, settled=passed or row.position <= look.settled, fates=tuple(fates)
    )


def _fate_of(row: Row[Any], position: int, blocker: Row[Any] | None) -> Fate:
    passed = row.checkpoint >= position and row.subscription_state != IDLE
    return Fate(
        subscription=row.name,
        partition=row.partition,
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
