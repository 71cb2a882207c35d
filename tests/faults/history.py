"""What handlers have recorded, held against what was written. Pure: a history in, a result out.

Of each message and each reader (subscription) there must be one effect: `lost` are those without, `duplicated` those of
which a transactional reader has more (G5), `disordered` those that came for the first time after a later one of their
key (G3), `invented` those that nobody has committed, `vanished` those whose commit was answered and which are not there
(G1). A concurrent reader may repeat messages, but only after an interruption (a crash, a lost connection) that came
after the first time, and at most the batch that was in hand; all others are `unexplained`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Message = tuple[str, str, int]
"""Type, key, number: what is the same however often, and under whatever id, a message was written."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One row that a handler has written. `at`: seconds by the clock that interruptions are told by."""

    reader: str
    message: Message
    position: int
    at: float = 0.0
    attempt: int = 1
    pid: int = 0

    @property
    def key(self) -> str:
        """The key of its message."""
        return self.message[1]


@dataclass(frozen=True, slots=True)
class Interruption:
    """Something was killed, cut off or frozen between these two instants, or was it all the time."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Reader:
    """A subscription. `batch`: how many messages it may repeat after one interruption; transactional: none, ever."""

    name: str
    transactional: bool = True
    batch: int = 0


@dataclass(frozen=True, kw_only=True)
class History:
    """All that was recorded in one run. `effects` are in the order in which they were written.

    `written`: what is committed, each once. `acknowledged`: what a writer was told is committed.
    `excused`: messages that a reader need not have delivered: dead letters, discarded ones, ones before its start.
    `out_of_turn`: messages of a reader that may come whenever they like: replayed dead letters.
    """

    scenario: str
    seed: int
    readers: Sequence[Reader]
    written: Sequence[Message]
    effects: Sequence[Effect]
    acknowledged: Collection[Message] = ()
    excused: Mapping[str, Collection[Message]] = field(default_factory=dict)
    out_of_turn: Mapping[str, Collection[Message]] = field(default_factory=dict)
    interruptions: Sequence[Interruption] = ()
    seconds: float = 0.0


Found = tuple[str, Message]
"""A reader and a message."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the checker found. All is well if `problems` is empty."""

    scenario: str
    seed: int
    seconds: float
    written: int
    delivered: int
    repeats: int
    lost: tuple[Found, ...] = ()
    duplicated: tuple[Found, ...] = ()
    disordered: tuple[Found, ...] = ()
    invented: tuple[Found, ...] = ()
    unexplained: tuple[Found, ...] = ()
    vanished: tuple[Message, ...] = ()

    @property
    def line(self) -> str:
        """The run in one line."""
        also = "".join(
            f", {len(found)} {name}"
            for name, found in (
                ("unexplained", self.unexplained),
                ("invented", self.invented),
                ("vanished", self.vanished),
            )
            if found
        )
        return (
            f"{self.scenario}: seed {self.seed}, written {self.written}, delivered {self.delivered}, lost {len(self.lost)},"
            f" duplicated {len(self.duplicated)}, order violations {len(self.disordered)}, repeats {self.repeats}{also};"
            f" {self.seconds:.1f} s"
        )

    @property
    def problems(self) -> list[str]:
        """Each contradiction of a guarantee, in words."""
        said = (
            (self.lost, "was not delivered (G2)"),
            (self.duplicated, "had its effect more than once (G5)"),
            (self.disordered, "came after a later message of its key (G3)"),
            (self.invented, "was delivered, but never committed (G1)"),
            (self.unexplained, "was repeated without an interruption, or beyond the batch in hand"),
        )
        return [
            *(
                f"{_name(message)}: its commit was answered, it is not there (G1)"
                for message in self.vanished
            ),
            *(f"{reader}: {_name(message)} {what}" for found, what in said for reader, message in found),
        ]


def _name(message: Message) -> str:
    kind, key, number = message
    return f"{kind} {number} of {key!r}"


def check(history: History) -> Result:
    """Compare what was written with what was recorded."""
    effects: dict[str, list[Effect]] = {reader.name: [] for reader in history.readers}
    for effect in history.effects:
        effects.setdefault(effect.reader, []).append(effect)
    counts = {name: Counter(each.message for each in mine) for name, mine in effects.items()}
    written = set(history.written)
    return Result(
        scenario=history.scenario,
        seed=history.seed,
        seconds=history.seconds,
        written=len(written),
        delivered=sum(len(written & set(mine)) for mine in counts.values()),
        repeats=sum(
            counts[reader.name].total() - len(counts[reader.name])
            for reader in history.readers
            if not reader.transactional
        ),
        lost=tuple(
            (reader.name, message)
            for reader in history.readers
            for message in history.written
            if not counts[reader.name][message] and message not in history.excused.get(reader.name, ())
        ),
        duplicated=tuple(
            (reader.name, message)
            for reader in history.readers
            if reader.transactional
            for message, count in counts[reader.name].items()
            if count > 1
        ),
        disordered=tuple(
            (name, each.message)
            for name, mine in effects.items()
            for each in _disordered(mine, history.out_of_turn.get(name, ()))
        ),
        invented=tuple((name, message) for name, mine in counts.items() for message in mine if message not in written),
        unexplained=tuple(
            (reader.name, each.message)
            for reader in history.readers
            if not reader.transactional
            for each in _unexplained(effects[reader.name], reader.batch, history.interruptions)
        ),
        vanished=tuple(message for message in sorted(history.acknowledged) if message not in written),
    )  # fmt: skip


def _disordered(effects: Sequence[Effect], out_of_turn: Collection[Message]) -> Iterator[Effect]:
    """What came for the first time when a later message of its key had been there already."""
    seen: set[Message] = set(out_of_turn)
    last: dict[str, int] = defaultdict(int)
    for each in effects:
        if each.message in seen:
            continue
        seen.add(each.message)
        if each.position < last[each.key]:
            yield each
        last[each.key] = max(last[each.key], each.position)


def _unexplained(
    effects: Sequence[Effect], batch: int, interruptions: Sequence[Interruption]
) -> Iterator[Effect]:
    """Repetitions that no interruption between the two times explains, or more of them than it may cause."""
    by_message: dict[Message, list[Effect]] = defaultdict(list)
    for each in effects:
        by_message[each.message].append(each)
    left = dict.fromkeys(range(len(interruptions)), batch)
    repetitions = [pair for each in by_message.values() for pair in pairwise(each)]
    for before, after in sorted(repetitions, key=lambda pair: pair[1].at):
        causes = [
            number
            for number, each in enumerate(interruptions)
            if before.at <= each.ended and each.began <= after.at and left[number]
        ]
        if causes:
            # the one that ended first is of use to the fewest others
            left[min(causes, key=lambda number: interruptions[number].ended)] -= 1
        else:
            yield after
