"""The stable hash of a message's key, and how long a key may be.

It chooses the partition of a subscription and is stored with every row, so it must never change: not between
processes (as `hash()` does), not between versions of this package.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

LONGEST_KEY: Final = 1_000
"""Bytes. A key is part of an index, and the rows of PostgreSQL's must not have more than 2,704: it would take the message,
and then not what is to be recorded when it fails or has to wait."""


def key_hash(key: str) -> int:
    """Return the CRC-32 of the key's UTF-8 bytes: 0 to 2**32 - 1."""
    return crc32(key.encode())


def is_too_long(key: str) -> bool:
    """Whether this is no key for messages: it has more than `LONGEST_KEY` bytes."""
    return len(key) > LONGEST_KEY or (not key.isascii() and len(key.encode(errors="replace")) > LONGEST_KEY)
