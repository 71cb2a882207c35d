"""`Health`: what a relay says about itself, for probes and metrics. A plain frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a relay is.

    `live`: its threads (tasks) are all there, and no handler runs for longer than its `handler_timeout`; if not, restart the
    process. `ready`: the database is in reach, and the
    subscriptions are there. `lag`: how many positions the slowest subscription is behind its log. `watermark_age`: for
    how long a transaction that writes to a log has held back its readers. `partitions`: what each is doing, by
    "name[partition]": starting, standby (another worker has it), idle (paused, or no place to start from), working,
    waiting (for messages), unavailable (what its handler needs is out of reach). `error`: why the relay has stopped.
    """

    live: bool
    ready: bool
    lag: int = 0
    watermark_age: timedelta = timedelta(0)
    partitions: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


def health_of(lines: Sequence[Any], *, live: bool, error: BaseException | None) -> Health:
    """What the lines of a relay of either colour say."""
    boards = [line.board for line in lines]
    stations = [station for line in lines for station in line.stations]
    behind = [
        board.signs.high - part.position
        for board in boards
        if board.signs is not None
        for part in board.signs.parts.values()
    ]
    looks = [station.worker.reader.looked.age for station in stations if station.worker.reader is not None]
    hangs = any(station.hangs for station in stations)
    return Health(
        live=live and error is None and not hangs,
        ready=live and all(_is_ready(line) for line in lines),
        lag=max([0, *behind]),
        watermark_age=max(looks, default=timedelta(0)),
        partitions={str(station): station.state for station in stations},
        error=None if error is None else str(error) or type(error).__name__,
    )


def _is_ready(line: Any) -> bool:
    board = line.board
    seen = board.signs is not None or (board.posts > 0 and not line.stations)  # no subscription, no sign
    return bool(board.ready and not board.down and seen and not board.stop.asked)
