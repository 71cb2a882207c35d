"""What metrics want to know of the logs, read every few seconds: so nothing here counts a whole log.

Builders are about the log that their tables are made for (`tables.of_log`), unless they say which. They read only.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Select, and_, case, func, literal, select

from message_bus.storage.building import built_once
from message_bus.storage.subscription_statements import failures_by_partition
from message_bus.storage.tables import IDLE, MessageBusTables
from message_bus.storage.types import utc_now
from message_bus.storage.views import partition_of

MOST_COUNTED: Final = 100_000
"""So many messages behind a checkpoint are counted; beyond, positions say how many there are, gaps and all."""


@built_once
def partitions(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """Every partition that reads the log: how far it is, what lies behind, up to MOST_COUNTED, and since when."""
    s, o = tables.subscription, tables.source
    behind = and_(o.c.position > s.c.position, partition_of(o, s.c.partitions) == s.c.partition)
    some = select(literal(1)).select_from(o).where(behind).limit(MOST_COUNTED).correlate(s).subquery("some")
    first = (
        select(o.c.created_at).where(behind).order_by(o.c.position).limit(1).correlate(s).scalar_subquery()
    )
    high = select(func.max(o.c.position)).scalar_subquery()
    failures = failures_by_partition(tables)
    return (
        select(
            s.c.name,
            s.c.partition,
            s.c.partitions,
            s.c.state,
            s.c.position,
            case(
                (s.c.state == IDLE, None), else_=select(func.count()).select_from(some).scalar_subquery()
            ).label("lag"),
            first.label("first_at"),
            failures.c.retrying,
            failures.c.held,
            failures.c.dead,
            func.coalesce(high, 0).label("high"),
            utc_now().label("now"),
        )
        .join(failures, and_(failures.c.name == s.c.name, failures.c.partition == s.c.partition))
        .where(s.c.log == tables.source_log)
    )


@built_once
def outbox_span(tables: MessageBusTables) -> Select[*tuple[Any, ...]]:
    """The first and the last position of the outbox, when its oldest row was written, and the time now."""
    t = tables.outbox
    oldest = select(t.c.created_at).order_by(t.c.position).limit(1).scalar_subquery()
    first = select(func.min(t.c.position)).scalar_subquery()
    last = select(func.max(t.c.position)).scalar_subquery()
    return select(first.label("first"), last.label("last"), oldest.label("oldest_at"), utc_now().label("now"))
