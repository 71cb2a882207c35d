"""What commands print for people: tables, times, spans. Whatever comes from a database is made harmless for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from message_bus.admin.findings import spelled
from message_bus.cli.manners import colour_of, coloured


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row under the heading, its columns below each other."""
    columns = list(zip(heading, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(cells).rstrip() for cells in _padded([heading, *rows], widths)]


def _padded(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[list[str]]:
    for row in rows:
        yield [
            coloured(harmless(cell).ljust(width), colour_of(cell))
            for cell, width in zip(row, widths, strict=True)
        ]


def short(text: str, longest: int) -> str:
    """The first line, at most so many characters; an ellipsis if there was more."""
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= longest and line == text.strip() else f"{line[: longest - 1]}…"


def harmless(text: str) -> str:
    """The text without control characters: they could move the cursor, or worse."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def instant(at: datetime) -> str:
    """A time in UTC, to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def ago(at: datetime, now: datetime) -> str:
    """How long ago that was."""
    return f"{spelled(max(now - at, timedelta(0)))} ago"
