"""How heartbeats end: a beat in hand is awaited, because one that is cut off may leave a connection locked."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from message_bus._compat import AsyncTicker

OFTEN = timedelta(milliseconds=1)


class Beat:
    """Says when it has begun, ends when it may, knows whether it was cut off."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.over = asyncio.Event()
        self.ended = self.cut_off = 0

    async def __call__(self) -> bool:
        """One beat."""
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cut_off += 1
            self.over.set()
            raise
        self.ended += 1
        return True


class Leaving:
    """Somebody who leaves as soon as a beat is in hand."""

    def __init__(self, beat: Beat) -> None:
        self.beat = beat
        self.leaves = asyncio.Event()
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        async with AsyncTicker(self.beat, OFTEN):
            await self.beat.begun.wait()
            self.leaves.set()  # without a pause in between it waits at the end of the block next


async def test_a_beat_in_hand_is_awaited() -> None:
    """Who leaves waits for it (S7): cancelled between BEGIN and COMMIT it would keep the database locked on SQLite."""
    beat = Beat()
    leaving = Leaving(beat)
    await leaving.leaves.wait()
    done, _ = await asyncio.wait((leaving.task,), timeout=0.05)
    assert not done
    beat.may_end.set()
    await leaving.task
    assert (beat.ended, beat.cut_off) == (1, 0)


async def test_nobody_waits_for_the_next_beat() -> None:
    """Between two beats the end is at once."""
    beat = Beat()
    async with asyncio.timeout(5), AsyncTicker(beat, timedelta(hours=1)):
        pass
    assert not beat.begun.is_set()


async def test_who_is_cancelled_takes_the_beat_along() -> None:
    """After the drain timeout nothing waits for a beat that hangs (G11)."""
    beat = Beat()
    leaving = Leaving(beat)
    await leaving.leaves.wait()
    leaving.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving.task
    await beat.over.wait()
    assert (beat.ended, beat.cut_off) == (0, 1)


async def test_a_beat_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network is gone: whoever leaves goes on, also if nobody cancels it (a single process_outbox, G11)."""
    monkeypatch.setattr(AsyncTicker, "longest_beat", 0.01)
    beat = Beat()
    async with asyncio.timeout(5):
        await Leaving(beat).task
    assert (beat.ended, beat.cut_off) == (0, 1)
