"""What somebody may write who wishes us ill, as Hypothesis strategies."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

CURATED: Final = (
    "'; DROP TABLE message_bus_outbox; --",
    '"; DROP TABLE message_bus_outbox; --',
    "x' OR '1'='1",
    "%(name)s",
    ":subscription",
    "%s%s%n",
    "{0.__class__}",
    "$(reboot)",
    "`reboot`",
    "\x1b[2J\x1b[1;31mowned\x1b[0m",
    "\x1b]0;owned\x07",
    "\x9b31m",
    "one\ntwo\r\nthree",
    "right\u202eleft",
    "nul\x00",
    "surrogate\ud800",
    "../../etc/passwd",
    "os.system",
    "__import__('os')",
    "builtins:eval",
    "🜁" * 40,
    "a" * 5_000,
)
"""Quotes, placeholders, terminal control sequences, line ends, what no database takes, what is looked up elsewhere."""

anything: Final = st.sampled_from(CURATED) | st.text(st.characters(), max_size=60)
"""Text with everything in it, also NUL and lone surrogates."""

storable: Final = anything.filter(lambda text: "\x00" not in text and _is_unicode(text))
"""The same, as far as a database takes it."""

names: Final = storable.filter(bool)
"""Names that are not empty."""

values: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4),
    max_leaves=12,
)
"""What may stand in a field, as Python has it."""


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
