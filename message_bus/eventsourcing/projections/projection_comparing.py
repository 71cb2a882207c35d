"""Are two tables equal? Rows are counted, and those that only one of them has.

Called on a plain Session in the transaction whose snapshot is to be compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session

from message_bus.eventsourcing.projections.projection_state import Comparison
from message_bus.eventsourcing.projections.projection_tables import compared_columns
from message_bus.storage.projection_statements import difference


def compare(
    session: Session, pairs: Mapping[str, tuple[Table, Table]], *, only_count: bool = False
) -> list[Comparison]:
    """Compare each pair, live and rebuilt, column by column but for what the database itself makes."""
    return [_compare(session, name, *pair, only_count=only_count) for name, pair in pairs.items()]


def _compare(session: Session, name: str, live: Table, rebuilt: Table, *, only_count: bool) -> Comparison:
    columns = [] if only_count else compared_columns(live)

    def count(table: Table) -> int:
        return int(session.execute(select(func.count()).select_from(table)).scalar_one())

    def missing(one: Table, other: Table) -> int | None:
        if not columns:
            return None
        return int(session.execute(difference(one, other, columns)).scalar_one())

    return Comparison(
        table=name,
        live_rows=count(live),
        rebuilt_rows=count(rebuilt),
        only_live=missing(live, rebuilt),
        only_rebuilt=missing(rebuilt, live),
        columns=tuple(columns),
    )
