"""Dead letters as lines for people. What handlers raised and what users wrote is made harmless for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from message_bus.admin.letters import ChosenLetter, DeadLetter, DeadLetterReport
from message_bus.cli.lines import harmless, instant, short, table
from message_bus.storage.tables import DEAD

_LONGEST_ERROR: Final = 72
_LONGEST_KEY: Final = 32
_MOST_SHOWN: Final = 20
_GONE: Final = "(gone)"


def lines_of_letters(
    letters: Sequence[DeadLetter], *, count: int, payload: bool = False, state: str = DEAD
) -> list[str]:
    """A table with one line per letter (with `payload` a second one), and how many there are.

    Other states than dead stand in a column of their own, with the next attempt.
    """
    only_dead = state == DEAD
    rows = [
        (
            str(letter.id or _GONE),
            letter.subscription,
            letter.message or _GONE,
            short(letter.key or "", _LONGEST_KEY),
            *(() if only_dead else (letter.state,)),
            str(letter.attempts),
            instant(letter.failed_at),
            *(() if only_dead else (instant(letter.next_attempt_at) if letter.next_attempt_at else "",)),
            short(letter.error or "", _LONGEST_ERROR),
        )
        for letter in letters
    ]
    own = ("attempts", "died at") if only_dead else ("state", "attempts", "since", "next attempt")
    lines = table(("id", "subscription", "message", "key", *own, "error"), rows)
    if payload:
        heading, *others = lines
        pairs = zip(others, letters, strict=True)
        lines = [heading, *(each for line, letter in pairs for each in (line, f"  {_json(letter.payload)}"))]
    total = _counted(count) if only_dead else _counted_in(state, count)
    if count > len(letters):
        total = f"the first {len(letters):,} of {total} (--limit shows more)"
    return [*(lines if letters else []), total]


def lines_of_letter(letter: DeadLetter, *, payload: bool = False) -> list[str]:
    """All about one letter, its traceback last."""
    about = {
        "id": str(letter.id or _GONE),
        "message": f"{letter.message} ({letter.type})" if letter.message else _GONE,
        "subscription": letter.subscription,
        "log": letter.log,
        "position": str(letter.position),
        "key": letter.key or "none",
        "registered at": instant(letter.created_at) if letter.created_at else _GONE,
        "died at": instant(letter.failed_at),
        "attempts": str(letter.attempts),
        "error": letter.error or "",
    }
    if payload:
        about |= {"payload": _json(letter.payload), "meta": _json(letter.meta)}
    width = max(map(len, about))
    lines = [f"{name.ljust(width)}  {harmless(value)}" for name, value in about.items()]
    if letter.traceback:
        lines += ["traceback", *(f"  {harmless(line)}" for line in letter.traceback.splitlines())]
    return lines


def lines_of_report(
    report: DeadLetterReport, *, question: bool = False, per_second: float | None = None
) -> list[str]:
    """What is about to be done (`question`), would be done (a dry run), or was done."""
    if not report.letters and not report.left:
        return ["no dead letter fits: nothing to do"]
    lines: list[str] = []
    if question or report.dry_run:
        lines = [f"{'about to' if question else 'would'} {report.action} {_counted(report.count)}:"]
        lines += [f"  {line}" for line in table(("id", "subscription", "message", "key"), _rows(report))]
        if report.count > _MOST_SHOWN:
            lines.append(f"  ... and {report.count - _MOST_SHOWN:,} more")
    elif report.letters:
        done = "replayed" if report.action == "replay" else "discarded"
        lines = [
            f"{done} {_counted(report.count)} of {', '.join(report.subscriptions)}{_when(report, per_second)}"
        ]
    if report.left:
        lines.append(f"{_counted(report.left)} left alone: the message or the subscription is gone (discard)")
    return lines


def _when(report: DeadLetterReport, per_second: float | None) -> str:
    if report.action == "discard":
        return ""
    if per_second is None or report.count == 1:
        return ": tried by the next run"
    return f": tried by the next runs, within {(report.count - 1) / per_second:,.0f} s"


def _rows(report: DeadLetterReport) -> list[tuple[str, ...]]:
    return [_row(letter) for letter in report.letters[:_MOST_SHOWN]]


def _row(letter: ChosenLetter) -> tuple[str, ...]:
    return (
        str(letter.id or _GONE),
        letter.subscription,
        letter.message or _GONE,
        short(letter.key or "", _LONGEST_KEY),
    )


def _counted(count: int) -> str:
    return f"{count:,} dead {'letter' if count == 1 else 'letters'}"


def _counted_in(state: str, count: int) -> str:
    what = "not delivered" if state == "all" else state
    return f"{count:,} {'message' if count == 1 else 'messages'} {what}"


def _json(value: Any) -> str:
    return harmless(json.dumps(value, ensure_ascii=False))
