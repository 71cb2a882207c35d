"""The pure half: what may be concluded from looks, by hand-picked cases and against a model that forgets
nothing.
"""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import errors
from message_bus.storage import settled as module
from message_bus.storage.settled import Look, Remembered, check_checkpoint, pause_before_next_look

NOBODY: frozenset[str] = frozenset()


def writers(*names: str) -> frozenset[str]:
    """Virtual transactions of these names."""
    return frozenset(names)


def test_without_writers_everything_drawn_is_settled() -> None:
    """Nobody holds the lock, so whoever drew a position has ended."""
    assert Remembered().observe(7, NOBODY, "1") == 7


def test_a_writer_holds_back_what_may_be_its_own() -> None:
    """The writer may have drawn any position up to the look's, and later ones are not known to this look."""
    remembered = Remembered()
    assert remembered.observe(7, writers("a"), "1") == 0
    assert remembered.observe(9, writers("b"), "1") == 7  # a is gone; b may hold 8 or 9
    assert remembered.observe(9, NOBODY, "1") == 9


def test_a_writer_seen_only_later_does_not_hold_back_an_earlier_look() -> None:
    """W5: whoever came after a look drew positions above it."""
    remembered = Remembered()
    remembered.observe(5, writers("a"), "1")
    remembered.observe(6, writers("a", "b"), "1")
    assert remembered.observe(8, writers("b", "c"), "1") == 5


def test_a_writer_that_was_gone_in_between_is_not_remembered_again() -> None:
    """W5: a lock given up and taken anew covers positions above the older look (after ROLLBACK TO, for one)."""
    remembered = Remembered()
    remembered.observe(5, writers("a"), "1")
    remembered.observe(6, writers("b"), "1")
    assert remembered.observe(7, writers("a", "b"), "1") == 5


def test_keeping_only_the_newest_look_settles_nothing_under_overlapping_writers() -> None:
    """W5: without the oldest entries, six writers that always overlap hold the watermark for ever; with them
    it follows.
    """
    looks = [(10 * n, writers(*(str(k) for k in range(n, n + 6)))) for n in range(1, 40)]
    remembered = Remembered()
    newest: tuple[int, frozenset[str]] = (0, NOBODY)
    naive = followed = 0
    for high, open_now in looks:
        followed = remembered.observe(high, open_now, "1")
        if not newest[1] & open_now:
            naive = newest[0]
        newest = (high, open_now)
        assert len(remembered) <= 6
    assert naive == 0
    assert followed == 10 * (39 - 6)


def test_looks_that_can_only_settle_together_are_one_entry() -> None:
    """W5: a thousand looks beside one long writer cost one entry, and the newest of them settles with the
    first.
    """
    remembered = Remembered()
    for high in range(1, 1_001):
        remembered.observe(high, writers("long"), "1")
    assert len(remembered) == 1
    assert remembered.observe(1_001, writers("other"), "1") == 1_000


def test_more_than_sixty_four_entries_are_thinned_in_the_middle() -> None:
    """W5: with hundreds of open writers the memory stays small; the oldest still settles first, the newest is
    kept.
    """
    remembered = Remembered()
    for n in range(1, 301):
        remembered.observe(n, writers(*map(str, range(1, n + 1))), "1")
        assert len(remembered) <= module.MOST_ENTRIES
    still_open = set(map(str, range(1, 301)))
    assert remembered.observe(300, frozenset(still_open - {"1"}), "1") == 1
    assert remembered.observe(300, NOBODY, "1") == 300


@pytest.mark.parametrize(
    ("high", "incarnation"),
    [pytest.param(101, "2", id="another incarnation"), pytest.param(97, "1", id="a sequence that went back")],
)
def test_what_was_seen_before_a_crash_is_forgotten(high: int, incarnation: str) -> None:
    """W4: after a crash positions are handed out again, and the writers of that time are gone without having
    committed.
    """
    remembered = Remembered()
    remembered.observe(90, NOBODY, "1")
    remembered.observe(100, writers("3/7"), "1")
    assert not remembered.recalls(high, incarnation)
    assert remembered.observe(high, writers("3/1"), incarnation) == 0


def test_without_w4_a_crash_settles_positions_that_are_drawn_again() -> None:
    """W4: the same history as seen by a reader that does not ask for the incarnation: 98 is settled, but not
    committed.
    """
    remembered = Remembered()
    remembered.observe(
        100, writers("3/7"), "always the same"
    )  # drew 98 to 100; the server crashes; 98 is drawn again,
    remembered.observe(
        105, writers("3/1"), "always the same"
    )  # and the sequence has passed 100 at the next look
    assert remembered.settled == 100


def test_ones_own_writes_are_settled_for_oneself_only() -> None:
    """W2: who looks from inside the writing transaction sees its rows; whoever else shares the memory does
    not.
    """
    remembered = Remembered()
    own = writers("me")
    assert remembered.observe(5, own, "1", own=own) == 5
    assert remembered.settled == 0
    assert remembered.observe(5, own, "1") == 0  # another connection of the process looks
    assert remembered.observe(6, own | {"you"}, "1", own=own) == 5
    assert remembered.observe(6, NOBODY, "1") == 6


def test_age_counts_from_the_look_that_first_saw_the_oldest_unsettled_position() -> None:
    """W10: entries that are merged keep the earlier time; nothing unsettled is no age; own writes do not
    count.
    """
    remembered = Remembered()
    remembered.observe(5, writers("a"), "1", now=100.0)
    remembered.observe(6, writers("a"), "1", now=103.0)
    assert remembered.age(110.0) == timedelta(seconds=10)
    assert remembered.age(110.0, own=writers("a")) == timedelta(0)
    remembered.observe(8, writers("b"), "1", now=111.0)
    assert remembered.age(112.0) == timedelta(seconds=1)
    remembered.observe(8, NOBODY, "1", now=113.0)
    assert remembered.age(114.0) == timedelta(0)


class _Model:
    """A server with its writers, and a reader that keeps every look it ever took: the best that can be known."""

    def __init__(self) -> None:
        self.high = 0
        self.begun = 0
        self.open: dict[str, list[int]] = {}
        self.looks: list[tuple[int, frozenset[str]]] = []

    def write(self, which: int) -> None:
        names = sorted(self.open)
        if which >= len(names):
            self.begun += 1
            name = f"3/{self.begun}"
            self.open[name] = []
        else:
            name = names[which]
        self.high += 1
        self.open[name].append(self.high)

    def end(self, which: int) -> None:
        if self.open:
            names = sorted(self.open)
            del self.open[names[which % len(names)]]

    def look(self) -> tuple[int, frozenset[str]]:
        now = frozenset(self.open)
        self.looks = [(high, old & now) for high, old in self.looks]
        self.looks.append((self.high, now))
        return self.high, now

    def best(self, own: frozenset[str] = NOBODY) -> int:
        return max((high for high, left in self.looks if left <= own), default=0)

    def unfinished(self, own: frozenset[str] = NOBODY) -> int:
        """The smallest position of a transaction that is still open."""
        return min(
            (p for name, held in self.open.items() if name not in own for p in held), default=self.high + 1
        )


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("look"), st.integers(0, 9)),
    ),
    max_size=80,
)


@given(steps)
def test_memory_is_sound_and_forgets_nothing_that_counts(history: list[tuple[str, int]]) -> None:
    """Whatever happens: nothing of an open writer is ever settled, and merging costs no position that could
    be known.
    """
    model, remembered = _Model(), Remembered()
    for step, which in history:
        if step == "write":
            model.write(which)
        elif step == "end":
            model.end(which)
        else:
            high, now = model.look()
            own = frozenset(sorted(now)[:1]) if which % 3 == 0 else NOBODY
            mine = remembered.observe(high, now, "1", own=own)
            assert remembered.settled < model.unfinished()
            assert mine < model.unfinished(own)
            assert remembered.settled == model.best()
            assert mine == model.best(own)
            assert len(remembered) <= len(now)
    model.open.clear()
    assert remembered.observe(*model.look(), "1") == model.high


@given(steps, st.integers(2, 5))
def test_a_thinned_memory_is_still_sound(history: list[tuple[str, int]], most: int) -> None:
    """W5: thinning may delay what settles, never the other way round, and once all writers have ended nothing
    is missing.
    """
    model, remembered = _Model(), Remembered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_ENTRIES", most)
        for step, which in history:
            if step == "write":
                model.write(which)
            elif step == "end":
                model.end(which)
            else:
                assert remembered.observe(*model.look(), "1") <= model.best()
                assert remembered.settled < model.unfinished()
        model.open.clear()
        assert remembered.observe(*model.look(), "1") == model.high


def test_one_look_is_enough_when_all_is_settled() -> None:
    """W6: nothing to wait for."""
    assert pause_before_next_look(Look(5, 5), goal=5, waited=0.0) is None


def test_a_step_does_not_chase_what_is_written_after_it_began() -> None:
    """W6: the goal is where the log stood at the first look; writers that never pause must not keep a step
    for ever.
    """
    assert pause_before_next_look(Look(5, 900), goal=5, waited=0.0) is None


def test_looking_again_slows_down_and_ends_after_the_given_time() -> None:
    """W6: pauses grow from 2 ms to 100 ms; the last ends exactly at the bound; the simulated clock decides."""
    waited, pauses = 0.0, []
    while (pause := pause_before_next_look(Look(4, 5), goal=5, waited=waited)) is not None:
        pauses.append(pause)
        waited += pause
    assert waited == pytest.approx(2.0)
    assert pauses[0] == 0.002
    assert max(pauses) == 0.1
    assert 20 < len(pauses) < 40
    assert pause_before_next_look(Look(4, 5), goal=5, waited=0.3, patience=timedelta(seconds=0.2)) is None


def test_a_checkpoint_ahead_of_the_sequence_is_an_error_with_its_repair() -> None:
    """W8: after a restore or a setval the next rows would be passed over; the error says what to run."""
    look = Look(20, 20, catch_up="SELECT setval('app.outbox_position_seq', {position})")
    check_checkpoint(look, 20)
    with pytest.raises(
        errors.PositionBehind, match=r"SELECT setval\('app.outbox_position_seq', 33\)"
    ) as caught:
        check_checkpoint(look, 33, log="outbox")
    assert (caught.value.log, caught.value.sequence, caught.value.checkpoint) == ("outbox", 20, 33)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_look_says_how_many_positions_are_not_settled() -> None:
    """W6: what a step reports when its patience is over."""
    assert Look(settled=5, high=9).unsettled == 4
