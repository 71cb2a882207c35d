"""The channel by which those who write to a log wake the relays that read it (PostgreSQL's LISTEN and NOTIFY).

It is named after the table's OID, which is the same whatever schema, search_path or prefix led to it. A notification
carries nothing and is only a hint: what comes of it is read from the tables. Writers notify only while a relay is
asleep, which is what the log's `asleep_until` says.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Float, Select, Text, Update, bindparam, cast, func, select, update
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_after

ASLEEP: Final = timedelta(seconds=30)
"""How long writers notify for a relay that has gone to sleep; it says so again before that time is over."""

_PREFIX: Final = "message_bus_"


def channel_of(log_table: str) -> str:
    """SQL for the name of the channel of the log whose table has this quoted name; a constant to the server's planner."""
    name = log_table.replace("'", "''")
    return f"'{_PREFIX}' || '{name}'::regclass::oid"


def channel_name() -> Select[*tuple[Any, ...]]:
    """The name of the channel of the log whose table has the quoted name :log_table."""
    oid = cast(cast(bindparam("log_table", type_=Text()), REGCLASS), OID)
    return select(func.concat(_PREFIX, oid))


def notify() -> Select[*tuple[Any, ...]]:
    """Wake whoever listens for the log whose table has the quoted name :log_table."""
    return select(func.pg_notify(channel_name().scalar_subquery(), ""))


def fall_asleep(tables: MessageBusTables) -> Update:
    """From now on writers notify, for :asleep seconds."""
    t = tables.log
    return (
        update(t)
        .where(t.c.log == tables.source_log)
        .values(asleep_until=utc_after(bindparam("asleep", type_=Float())))
        .returning(t.c.asleep_until)
    )


def wake_up(tables: MessageBusTables) -> Update:
    """Writers need not notify any more: all have heard it that had gone to sleep by :seen; who did so later has not."""
    t = tables.log
    seen = bindparam("seen", type_=t.c.asleep_until.type)
    return update(t).where(t.c.log == tables.source_log, t.c.asleep_until <= seen).values(asleep_until=None)
