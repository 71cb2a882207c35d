"""Measures what importing the package adds: `python -m tests.architecture.bench_import` prints ratios.

The floor is `import sqlalchemy.orm`, which every user has paid already. Each variant is a fresh interpreter; they take
turns; its processor time counts (not the clock, which other processes stretch), the least of all rounds. Not collected
by pytest.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime

BUDGET = 0.25
ROUNDS = 15
NOTHING = "pass"
FLOOR = "import sqlalchemy.orm"
VARIANTS = {
    "import message_bus": f"{FLOOR}, message_bus",
    "what an application imports": f"{FLOOR}\nfrom message_bus import Command, Event, MessageBus, MessageBusTables",
    "with everything process_outbox loads": f"{FLOOR}\nimport message_bus.core, message_bus.delivery.process",
}


def _seconds(code: str) -> float:
    process = subprocess.Popen([sys.executable, "-c", code])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"exit status {status}: {code}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the machine, the date and each ratio."""
    codes = {"nothing": NOTHING, "floor": FLOOR, **VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(ROUNDS):
        for name, code in codes.items():
            times[name].append(_seconds(code))
    least = {name: min(each) for name, each in times.items()}
    floor = least["floor"] - least["nothing"]
    print(f"{platform.platform()}, CPython {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}")
    print(f"floor: {FLOOR}: {floor * 1e3:.0f} ms; budget: at most {BUDGET:.2f} of it more")
    for name in VARIANTS:
        print(f"{name:40} + {(least[name] - least['floor']) / floor:.2f}")


if __name__ == "__main__":
    main()
