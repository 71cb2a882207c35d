"""Where the time of the engine goes: `python -m tests.delivery.profile_engine [a100 a1000 b100 b1] [--top 40]`.

First the processor time of this process per message, beside that of the loops written by hand: unlike rates it means
something on a busy machine, too. Then a profile by sampling: what was on the stack, and at its top, in microseconds per
message. The server runs without fsync, since only this side is looked at. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import sqlalchemy as sa

from tests.relay.bench_ground import fill, own_database
from tests.relay.bench_rate import Ours, insert, nothing, raw_inserts, raw_loop, session_inserts
from tests.servers import PostgreSQL

_ROWS = 20_000
_INTERVAL = 0.001  # seconds of processor time; the kernel may make it longer


@dataclass
class Samples:
    """What was running whenever the timer went off."""

    on_stack: Counter[str] = field(default_factory=Counter[str])
    at_top: Counter[str] = field(default_factory=Counter[str])

    def take(self, signum: int, frame: FrameType | None) -> None:
        """Note the stack."""
        names: list[str] = []
        while frame is not None:
            code = frame.f_code
            path = "/".join(code.co_filename.split("/")[-3:])
            names.append(f"{path}:{code.co_firstlineno} {code.co_qualname}")
            frame = frame.f_back
        self.at_top[names[0]] += 1
        self.on_stack.update(set(names))

    def of(self, way: Callable[[], object]) -> float:
        """Call it, watched; the seconds of processor time it took."""
        before = signal.signal(signal.SIGPROF, self.take)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
        try:
            return _seconds(way)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)


def _seconds(way: Callable[[], object]) -> float:
    begun = time.process_time()
    way()
    return time.process_time() - begun


def _profile(way: Callable[[], object], messages: int, top: int) -> None:
    samples, rounds = Samples(), 6
    seconds = sum(samples.of(way) for _ in range(rounds))
    total = sum(samples.at_top.values())
    each = seconds / rounds / messages * 1e6 / total
    print(f"  {total} samples")
    for title, counted in (("on the stack", samples.on_stack), ("at its top", samples.at_top)):
        print(f"  {title}:")
        for name, count in counted.most_common(top):
            print(f"  {count * each:8.2f} us {count / total:5.0%}  {name}")


def main() -> None:
    """Measure, then profile."""
    parser = argparse.ArgumentParser(description="Where the time of the engine goes.")
    parser.add_argument("which", nargs="*", default=["a100", "a1000", "b100", "b1"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top", type=int, default=40)
    given = parser.parse_args()
    server = PostgreSQL.start(settings={"fsync": "off"})
    try:
        with own_database(sa.make_url(server.url)) as engine:
            plain = sa.create_engine(engine.url)
            fill(engine, _ROWS)
            for which in given.which:
                _look_at(which, engine, plain, given.rounds, given.top)
            plain.dispose()
    finally:
        server.remove()


def _look_at(which: str, engine: sa.Engine, plain: sa.Engine, rounds: int, top: int) -> None:
    per_commit = int(which[1:])
    messages = _ROWS if which[0] == "a" else 5_000 if per_commit > 1 else 1_000
    ours = Ours(engine, nothing if which[0] == "a" else insert, per_commit=per_commit)
    floors = (raw_loop,) if which[0] == "a" else (raw_inserts, session_inserts)
    ways: dict[str, Callable[[], object]] = {
        each.__name__: partial(each, plain, messages, per_commit=per_commit) for each in floors
    }
    ways["ours"] = partial(ours.run, messages)
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            least[name] = min(least[name], _seconds(way))
    found = ", ".join(f"{name} {seconds / messages * 1e6:.1f}" for name, seconds in least.items())
    print(f"\n{which}: us of processor time per message: {found}")
    if top:
        _profile(ways["ours"], messages, top)


if __name__ == "__main__":
    sys.exit(main())
