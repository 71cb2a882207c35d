"""One rule taken out: a line of the tables that `rules_taken_out` works through."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Without:
    """One rule taken out. `file` lies in message_bus, `tests` (words) in tests; `old` is replaced wherever it stands."""

    rule: str
    what: str
    file: str
    old: str
    new: str
    tests: str


def without(rule: str, what: str, file: str, old: str, new: str, tests: str) -> Without:
    """One line, as it stands in the tables."""
    return Without(rule=rule, what=what, file=file, old=old, new=new, tests=tests)
