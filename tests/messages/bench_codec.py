"""How much a message costs over msgspec and over a plain dataclass; run it as a script.

Both sides are measured in turns in one run, and the best turn of each counts: only the ratios mean something.
"""

from __future__ import annotations

import platform
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from message_bus.messages import Event, definition_of


class OrderPlaced(Event):
    order_id: int
    customer: UUID
    placed_at: datetime
    total: Decimal
    lines: list[str]
    paid: bool
    note: str | None = None


@dataclass
class Plain:
    order_id: int
    customer: UUID
    placed_at: datetime
    total: Decimal
    lines: list[str]
    paid: bool
    note: str | None = None


@dataclass(frozen=True)
class Figure:
    """One path: seconds per call of the floor and of ours."""

    floor: float
    ours: float

    @property
    def ratio(self) -> float:
        """How many times the floor ours takes."""
        return self.ours / self.floor


VALUES: dict[str, Any] = {
    "order_id": 4711,
    "customer": UUID("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b"),
    "placed_at": datetime(2025, 11, 1, 12, 30, tzinfo=UTC),
    "total": Decimal("129.90"),
    "lines": ["apple", "pear", "plum"],
    "paid": True,
    "note": "leave it at the door",
}


def _measure(floor: Callable[[], object], ours: Callable[[], object], *, turns: int, calls: int) -> Figure:
    best = [float("inf"), float("inf")]
    for _ in range(turns):
        for side, function in enumerate((floor, ours)):
            best[side] = min(best[side], timeit.timeit(function, number=calls) / calls)
    return Figure(*best)


def measure(*, turns: int = 150, calls: int = 2_000) -> Mapping[str, Figure]:
    """Return the figures of encoding, decoding, checking (against encode + decode) and making a message of 7 fields."""
    plain, message = Plain(**VALUES), OrderPlaced(**VALUES)
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Plain).decode
    definition = definition_of(OrderPlaced)
    payload = encode(plain)
    paths: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (lambda: encode(plain), lambda: definition.encode(message)),
        "decode": (lambda: decode(payload), lambda: definition.decode(payload)),
        "check": (lambda: decode(encode(plain)), lambda: definition.check(message)),
        "make": (lambda: Plain(**VALUES), lambda: OrderPlaced(**VALUES)),
    }
    return {name: _measure(*pair, turns=turns, calls=calls) for name, pair in paths.items()}


def main() -> None:
    """Print machine, date and figures."""
    print(
        f"{platform.platform()}, Python {platform.python_version()}, msgspec {msgspec.__version__}, {time.ctime()}"
    )
    for name, figure in measure().items():
        print(
            f"{name:8} floor {figure.floor * 1e9:6.0f} ns   ours {figure.ours * 1e9:6.0f} ns   {figure.ratio:.2f} x"
        )


if __name__ == "__main__":
    main()
