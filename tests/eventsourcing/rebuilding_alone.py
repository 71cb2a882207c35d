"""A process that rebuilds the projection in batches of 100: `python -m tests.eventsourcing.rebuilding_alone URL LOG AFTER`.

With AFTER above 0 it kills itself with SIGKILL in the handler of that event of the rebuild, in the middle of a batch.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from message_bus import MessageBusTables, configure_sqlite
from message_bus.eventsourcing.projections import rebuilding
from message_bus.eventsourcing.projections.projections_admin import Projections
from tests.eventsourcing.projecting import Totals, projection_of

LEASE = timedelta(seconds=20)


def main(arguments: list[str]) -> None:
    """Rebuild, or die."""
    url, log, after = arguments
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    rebuilding.BATCH = 100  # type: ignore[misc]
    projection = projection_of(log)
    if int(after):
        _doom(type(projection), int(after))
    Projections(engine, tables=MessageBusTables(), lease=LEASE).rebuild(projection)
    engine.dispose()


def _doom(cls: type[Totals], after: int) -> None:
    original, left = cls._add, [after]

    def add(self: Totals, *args: Any) -> None:
        original(self, *args)
        if self.generation is not None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    cls._add = add  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1:])
