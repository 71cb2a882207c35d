"""Tells relays of this process that messages have just been committed here, so that they need not look.

A relay hangs up a bell while it lives; the late writing rings after each commit that wrote messages. A lost ring loses
nothing: a relay looks by itself, only later.
"""

from __future__ import annotations

from collections.abc import Callable

Bell = Callable[[], object]
_bells: tuple[Bell, ...] = ()  # replaced, never changed: commits of other threads may be going through it


def hang(bell: Bell) -> None:
    """Call `bell`, from whatever thread commits, from now on."""
    global _bells  # noqa: PLW0603  (a bell that hung on an engine would not hear the other engines of the process)
    _bells = (*_bells, bell)


def take_down(bell: Bell) -> None:
    """Call it no more."""
    global _bells  # noqa: PLW0603
    _bells = tuple(each for each in _bells if each != bell)


def ring() -> None:
    """Call all of them; they return at once and never raise."""
    for bell in _bells:
        bell()
