"""One builder per operation that records what became of a message in the delivery table: SQL as values.

They run behind the lock on the partition's row (S3), and name the state that they expect: no row means that somebody else
has decided meanwhile. Builders take the tables and return a statement with named parameters.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Delete, Float, Insert, Update, bindparam, delete, insert, update

from message_bus.storage.building import built_once
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_after, utc_now


@built_once
def record_new_failure(tables: MessageBusTables) -> Insert:
    """A row for a message that failed at its first attempt; :delay seconds from now (null: dead)."""
    return insert(tables.delivery).values(
        subscription=bindparam("subscription"),
        position=bindparam("position"),
        key=bindparam("key"),
        key_hash=bindparam("key_hash"),
        state=bindparam("state"),
        attempts=bindparam("attempts"),
        next_attempt_at=utc_after(bindparam("delay", type_=Float())),
        error=bindparam("error"),
        traceback=bindparam("traceback"),
    )


@built_once
def record_failure(tables: MessageBusTables) -> Update:
    """The same for a message that was in the delivery table already."""
    t = tables.delivery
    return (
        update(t)
        .where(*_this_row(tables))
        .values(
            state=bindparam("new_state"),
            attempts=bindparam("new_attempts"),
            next_attempt_at=utc_after(bindparam("delay", type_=Float())),
            error=bindparam("new_error"),
            traceback=bindparam("new_traceback"),
            updated_at=utc_now(),
        )
    )


def _this_row(tables: MessageBusTables) -> list[ColumnElement[bool]]:
    t = tables.delivery
    return [
        t.c.subscription == bindparam("of_subscription"),
        t.c.position == bindparam("at_position"),
        t.c.state == bindparam("was"),
    ]


@built_once
def hold(tables: MessageBusTables) -> Insert:
    """Rows for messages whose key is blocked: untried."""
    return insert(tables.delivery)


@built_once
def set_state(tables: MessageBusTables) -> Update:
    """Record an attempt before it is made (:new_state is trying), or take it back (S6)."""
    t = tables.delivery
    return update(t).where(*_this_row(tables)).values(state=bindparam("new_state"), updated_at=utc_now())


@built_once
def record_crash(tables: MessageBusTables) -> Update:
    """A worker has died with this message alone in hand, for the :new_crashes-th time."""
    t = tables.delivery
    return (
        update(t)
        .where(*_this_row(tables))
        .values(
            state=bindparam("new_state"),
            crashes=bindparam("new_crashes"),
            next_attempt_at=utc_after(bindparam("delay", type_=Float())),
            error=bindparam("new_error"),
            traceback=None,
            updated_at=utc_now(),
        )
    )


@built_once
def forget(tables: MessageBusTables) -> Delete:
    """Take a message that was retrying or held out of the delivery table: it was handled."""
    return delete(tables.delivery).where(*_this_row(tables))
