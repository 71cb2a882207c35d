"""Tells relays of this process that messages have just been committed here, so that they need not look.

A relay hangs up a bell while it lives; the late writing rings after each commit that wrote messages, event stores
after each that saved events. A lost ring loses nothing: a relay looks by itself, only later.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session

from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG

Bell = Callable[[], object]
# replaced, never changed: commits of other threads may be going through it
_bells: tuple[tuple[str | None, Bell], ...] = ()
_SAVED = "message_bus.events_saved"  # in Session.info


def hang(bell: Bell, log: str | None = None) -> None:
    """Call `bell`, from whatever thread commits to this log (None: to any), from now on."""
    global _bells  # noqa: PLW0603  (a bell that hung on an engine would not hear the other engines of the process)
    _bells = (*_bells, (log, bell))


def take_down(bell: Bell) -> None:
    """Call it no more."""
    global _bells  # noqa: PLW0603
    _bells = tuple(each for each in _bells if each[1] != bell)


def ring(log: str = OUTBOX_LOG) -> None:
    """Call all of this log; they return at once and never raise."""
    for of_log, bell in _bells:
        if of_log in (None, log):
            bell()


def ring_after_commits(session: Session) -> None:
    """Ring for the event log after the next commit of this session."""
    session.info[_SAVED] = True
    if not event.contains(session, "after_commit", _after_commit):
        event.listen(session, "after_commit", _after_commit)


def _after_commit(session: Session) -> None:
    if session.get_nested_transaction() is None and session.info.pop(_SAVED, None):
        ring(EVENT_LOG)
