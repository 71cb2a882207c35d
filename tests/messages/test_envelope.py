"""Envelopes, ids and key hashes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
import uuid
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus.errors import NotAMessage
from message_bus.messages import Command, Envelope, Event, child_headers, key_hash, new_envelope, uuid7
from message_bus.messages.ids import _Uuid7


class ProcessOrder(Command, name="orders.process", version=3, key="order_id"):
    order_id: int


class OrderProcessed(Event):
    order_id: int


class TestEnvelope:
    def test_what_the_class_says(self) -> None:
        """Type, name, version and key come from the message's class."""
        envelope = new_envelope(ProcessOrder(7))
        assert (envelope.type, envelope.name, envelope.version, envelope.key) == (
            "COMMAND",
            "orders.process",
            3,
            "7",
        )
        assert (envelope.position, envelope.created_at, dict(envelope.meta)) == (None, None, {})

    def test_what_the_caller_says(self) -> None:
        """Id, key, meta and headers may be given."""
        given_id = uuid4()
        envelope = new_envelope(
            OrderProcessed(1),
            id=given_id,
            key="",
            meta={"a": 1},
            headers={"correlation_id": "mine", "x": "y"},
        )
        assert (envelope.id, envelope.key, envelope.meta) == (given_id, "", {"a": 1})
        assert envelope.headers == {"correlation_id": "mine", "x": "y"}

    def test_a_message_without_parent_begins_a_story(self) -> None:
        """Its correlation id is its own id; nothing caused it."""
        envelope = new_envelope(OrderProcessed(1))
        assert envelope.correlation_id == str(envelope.id)
        assert envelope.causation_id is None
        assert child_headers(None) == {}

    def test_correlation_and_causation_are_inherited(self) -> None:
        """Children share the correlation id; each one's causation id is its parent's id."""
        parent = new_envelope(ProcessOrder(1))
        child = new_envelope(OrderProcessed(1), parent=parent)
        grandchild = new_envelope(OrderProcessed(1), parent=child)
        assert child.correlation_id == grandchild.correlation_id == str(parent.id)
        assert child.causation_id == str(parent.id)
        assert grandchild.causation_id == str(child.id)

    def test_a_parent_without_correlation(self) -> None:
        """The id of a parent that carries no correlation id begins the story."""
        parent = Envelope(message=ProcessOrder(1), id=uuid4(), type="COMMAND", name="orders.process")
        assert child_headers(parent) == {"correlation_id": str(parent.id), "causation_id": str(parent.id)}

    def test_it_cannot_be_changed(self) -> None:
        """An envelope is a value."""
        envelope = new_envelope(OrderProcessed(1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            envelope.key = "x"  # type: ignore[misc]
        with pytest.raises(TypeError):
            envelope.headers["x"] = "y"  # type: ignore[index]
        assert dataclasses.replace(envelope, position=5).position == 5

    def test_only_messages_are_put_in(self) -> None:
        """What is no message gets no envelope."""
        with pytest.raises(NotAMessage):
            new_envelope("x")  # type: ignore[arg-type]


def _ids_of_a_child(sender: object) -> None:
    sender.send([uuid7() for _ in range(50)])  # type: ignore[attr-defined]


class TestUuid7:
    def test_layout(self) -> None:
        """Version 7, RFC 9562's variant, and the time of its making."""
        before = time.time_ns() // 1_000_000
        made = uuid7()
        assert made.version == 7
        assert made.variant == uuid.RFC_4122
        assert before <= made.int >> 80 <= time.time_ns() // 1_000_000 + 1

    def test_monotonic(self) -> None:
        """Each id is greater than the one before."""
        ids = [uuid7() for _ in range(20_000)]
        assert ids == sorted(set(ids))

    def test_safe_for_threads(self) -> None:
        """Threads never get the same id, and each sees its own rise."""
        made: list[list[UUID]] = [[] for _ in range(8)]

        def work(own: list[UUID]) -> None:
            own.extend(uuid7() for _ in range(2_000))

        threads = [threading.Thread(target=work, args=(own,)) for own in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(own == sorted(own) for own in made)
        assert len({one for own in made for one in own}) == 16_000

    def test_a_clock_that_steps_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ids go on rising while the clock is behind."""
        now = time.time_ns()
        clock = [now, now - timedelta(hours=1) // timedelta(microseconds=1) * 1000, now + 2_000_000]
        monkeypatch.setattr(time, "time_ns", lambda: clock[0])
        generate = _Uuid7()
        ids = []
        for _ in list(clock):
            ids += [generate(), generate()]
            clock.append(clock.pop(0))
        assert ids == sorted(set(ids))

    def test_a_counter_that_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After 2**42 ids of one millisecond the next millisecond is begun early."""
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now)
        generate = _Uuid7()
        first = generate()
        generate._counter = (1 << 42) - 1
        second = generate()
        assert second > first
        assert second.int >> 80 == (first.int >> 80) + 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_has_ids_of_its_own(self) -> None:
        """A child does not count on where its parent does."""
        uuid7()
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_ids_of_a_child, args=(sender,))
        child.start()
        ours = [uuid7() for _ in range(50)]
        theirs = receiver.recv()
        child.join()
        receiver.close()
        sender.close()
        assert not {one.int >> 32 for one in ours} & {one.int >> 32 for one in theirs}


class TestKeyHash:
    @pytest.mark.parametrize(
        ("key", "expected"), [("", 0), ("a", 3904355907), ("order-1", 3769860079), ("ключ", 212833818)]
    )
    def test_it_never_changes(self, key: str, expected: int) -> None:
        """The hash is stored with rows: these values must stay for ever."""
        assert key_hash(key) == expected

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_it_is_a_non_negative_bigint(self, key: str) -> None:
        """The database's CHECK holds for every key."""
        assert 0 <= key_hash(key) < 2**32
