"""What becomes history: the rows that tell what has happened to messages, as they are written with what they tell.

Pure. What was handled at its first attempt is not told, and neither is an attempt that is only about to be made, or was taken
back: nothing has happened yet. `AsyncRecorder` writes the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from message_bus.delivery.jobs import Change, Crashed, Failed, Held, Revived, Settled, Unwanted
from message_bus.delivery.verdicts import Dead
from message_bus.storage import history_table as history


class Remembered:
    """The history rows of one commit, for one subscription of one log."""

    def __init__(self, subscription: str, log: str) -> None:
        self.any_held = False
        self._rows: list[dict[str, Any]] = []
        self._of = {"of_subscription": subscription, "of_log": log, "by": None}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The parameters of `history_statements.remember`; with `of_key` if any was held."""
        return [{"of_key": None, **row} for row in self._rows] if self.any_held else self._rows

    def add(self, change: Change, *, error: str | None = None) -> None:
        """Remember this change, if it is worth it. `error`: of an attempt that failed, as it is stored."""
        match change:
            case Failed(job=job, verdict=verdict):
                what = history.DIED if isinstance(verdict, Dead) else history.FAILED
                self._row(job.position, job.message.id, what, attempt=job.attempts + 1, error=error)
            case Crashed(position=position, message_id=message_id, verdict=Dead(reason=reason)):
                self._row(position, message_id, history.DIED, error=reason)
            case Crashed(position=position, message_id=message_id, crashes=crashes):
                self._row(position, message_id, history.CRASHED, attempt=crashes)
            case Held(job=job):
                self.any_held = True
                self._row(job.position, job.message.id, history.HELD_BEHIND)
                self._rows[-1]["of_key"] = job.message.key
            case Settled(job=job, handled=handled):
                what = history.HANDLED if handled else history.PASSED_OVER
                self._row(job.position, job.message.id, what, attempt=job.attempts + 1)
            case Unwanted(position=position, message_id=message_id):
                self._row(position, message_id, history.UNWANTED)
            case Revived(position=position, message_id=message_id):
                self._row(position, message_id, history.REVIVED)
            case _:
                pass

    def _row(
        self,
        position: int,
        message_id: UUID | None,
        what: str,
        *,
        attempt: int | None = None,
        error: str | None = None,
    ) -> None:
        self._rows.append(
            {
                **self._of,
                "at_position": position,
                "of_message": message_id,
                "happened": what,
                "at_attempt": attempt,
                "with_error": error,
            }
        )


def decided(action: str, letters: Iterable[Any], *, by: str | None) -> list[dict[str, Any]]:
    """The history rows of dead letters that an operator has replayed or discarded."""
    return [
        {
            "of_subscription": letter.subscription,
            "of_log": letter.log,
            "by": by,
            "at_position": letter.position,
            "of_message": letter.id,
            "happened": action,
            "at_attempt": None,
            "with_error": None,
        }
        for letter in letters
    ]
