"""The stable hash of a message's key.

It chooses the partition of a subscription and is stored with every row, so it must never change: not between
processes (as `hash()` does), not between versions of this package.
"""

from __future__ import annotations

from zlib import crc32


def key_hash(key: str) -> int:
    """Return the CRC-32 of the key's UTF-8 bytes: 0 to 2**32 - 1."""
    return crc32(key.encode())
