# ruff: noqa: D103  (what the classes under test are made of)
"""What snapshots hold of an aggregate: every value comes back as what it was, or is refused when it is stored."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import AggregateRoot, Event, InMemoryEventStore, InvalidSnapshot, Snapshot
from message_bus.eventsourcing.aggregates.snapshotting import is_due, is_usable, snapshot_of
from tests.eventsourcing.orders import (
    Line,
    LineAdded,
    Order,
    OrderPaid,
    OrderPlaced,
    OrderShippedEvent,
    Stage,
    an_order,
    state_of,
)


class Colour(StrEnum):
    RED = "red"


class Note(Event):
    text: str
    at: date


@dataclass(frozen=True)
class Point:
    x: int
    y: Decimal


class Odd:
    pass


class Anything(AggregateRoot):
    """An attribute of every kind that messages may have."""

    RATES: ClassVar[dict[str, int]] = {"full": 19}
    amount: Decimal
    ident: UUID | None
    at: datetime
    day: date
    took: timedelta
    colour: Colour
    point: Point
    points: list[Point]
    by_day: dict[date, Decimal]
    pair: tuple[int, str]
    names: frozenset[str]
    raw: bytes
    note: Note
    whatever: Any


VALUES: dict[str, Any] = {
    "amount": Decimal("10.50"),
    "ident": UUID(int=7),
    "at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "day": date(2026, 1, 2),
    "took": timedelta(hours=1, microseconds=3),
    "colour": Colour.RED,
    "point": Point(1, Decimal("0.1")),
    "points": [Point(2, Decimal(3))],
    "by_day": {date(2026, 1, 2): Decimal(1)},
    "pair": (1, "a"),
    "names": frozenset({"a", "b"}),
    "raw": b"\x00\xff",
    "note": Note(text="hi", at=date(2026, 1, 2)),
    "whatever": {"deep": [1, None, 2.5, "x"]},
    "unannotated": {"plain": [True, None, "x"]},
}


def snapshot(aggregate: AggregateRoot) -> Snapshot:
    aggregate.aggregate_id = "a-1"
    taken = snapshot_of(aggregate)
    return Snapshot(
        taken.aggregate_id, taken.aggregate_type, taken.version, json.loads(json.dumps(taken.state))
    )


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_attribute_comes_back(name: str) -> None:
    """Through real JSON, by its annotation; without one if it is plain."""
    thing = Anything()
    setattr(thing, name, VALUES[name])
    again = Anything.from_snapshot(snapshot(thing))
    assert getattr(again, name) == VALUES[name]
    assert type(getattr(again, name)) is type(VALUES[name])


def test_all_of_it_at_once() -> None:
    """Id and version included; private attributes and class constants are not part of it."""
    thing = Anything()
    vars(thing).update(VALUES, _cache=Odd())
    thing._history.version = 7
    again = Anything.from_snapshot(snapshot(thing))
    assert {name: getattr(again, name) for name in VALUES} == VALUES
    assert (again.version, again.stored_version, again.aggregate_id) == (7, 7, "a-1")
    assert not {"_cache", "_history", "RATES"} & set(thing.to_dict())


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("total", Decimal(1), "total is a Decimal that would come back as something else .*total: Decimal"),
        ("at", VALUES["at"].isoformat, "at is a builtin_function_or_method that cannot be stored"),
        ("tags", {"a"}, "tags is a set that would come back"),
        ("pairs", [(1, 2)], "pairs is a list that would come back"),
        ("day", "tomorrow", "day does not fit its annotation"),
        ("points", [Odd()], "points is a list that cannot be stored"),
        (
            "whatever",
            defaultdict(int),
            "whatever is a defaultdict that would come back.*annotate what is in it",
        ),
        ("whatever", [Decimal(1)], "whatever is a list that would come back"),
        ("ratio", float("nan"), "ratio is a float that would come back"),
        ("numbers", {1: "one"}, "numbers is a dict that would come back"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(name: str, value: Any, text: str) -> None:
    """When the snapshot is taken, with the attribute's name and never its value."""
    if name == "at":
        vars(thing := AggregateRoot())["at"] = value
    else:
        vars(thing := Anything())[name] = value
    with pytest.raises(InvalidSnapshot, match=text) as caught:
        thing.to_dict()
    assert caught.value.field == name


def test_a_number_of_another_kind_is_the_same_number() -> None:
    """An int where a Decimal or float is annotated: it becomes one."""
    thing = Anything()
    vars(thing)["amount"] = 3
    assert Anything.from_snapshot(snapshot(thing)).amount == Decimal(3)


def test_an_annotation_that_nobody_can_evaluate_is_named() -> None:
    """With the advice to import it."""

    class Lost(AggregateRoot):
        thing: "NoSuchThing"  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(InvalidSnapshot, match="cannot be evaluated"):
        Lost().to_dict()


def test_a_snapshot_that_does_not_fit_the_class_is_refused() -> None:
    """With the attribute's name."""
    wrong = Snapshot("a-1", "Anything", 1, {"amount": "not a number"})
    with pytest.raises(InvalidSnapshot, match="amount does not fit") as caught:
        Anything.from_snapshot(wrong)
    assert "not a number" not in str(caught.value)


def test_the_state_aliases_nothing() -> None:
    """Neither the aggregate's objects in what to_dict returns, nor the snapshot's in the aggregate."""
    thing = Anything()
    thing.whatever = {"deep": [1]}
    thing.points = []
    state = thing.to_dict()
    state["whatever"]["deep"].append(2)
    assert thing.whatever == {"deep": [1]}
    taken = snapshot(thing)
    again = Anything.from_snapshot(taken)
    again.whatever["deep"].append(3)
    again.points.append(Point(1, Decimal(1)))
    assert taken.state == {"whatever": {"deep": [1]}, "points": []}


def test_a_class_may_store_what_it_likes() -> None:
    """to_dict and from_snapshot overridden; id and version come from the snapshot through super()."""

    class Compact(AggregateRoot):
        odd: Odd | None = None

        def to_dict(self) -> dict[str, Any]:
            return {"has": self.odd is not None}

        @classmethod
        def from_snapshot(cls, snapshot: Snapshot) -> Compact:
            made = super().from_snapshot(Snapshot(snapshot.aggregate_id, "Compact", snapshot.version, {}))
            made.odd = Odd() if snapshot.state["has"] else None
            return made

    compact = Compact("c-1")
    compact.odd = Odd()
    again = Compact.from_snapshot(snapshot_of(compact))
    assert isinstance(again.odd, Odd)
    assert again.aggregate_id == "c-1"


# --- when and which ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "version", "every", "due"),
    [
        (0, 99, 100, False),
        (0, 100, 100, True),
        (0, 250, 100, True),
        (100, 199, 100, False),
        (100, 200, 100, True),
        (150, 199, 100, False),
        (0, 151, 100, True),  # what should have been taken at 100 is made up for
        (5, 6, 1, True),
        (0, 1_000, None, False),
    ],
)
def test_when_a_snapshot_is_due(last: int, version: int, every: int | None, due: bool) -> None:
    """As soon as a multiple of `every` lies between the last one and now."""
    assert is_due(last=last, version=version, every=every) is due


def test_which_snapshot_is_used() -> None:
    """One of this aggregate, this type, and this form of the state."""
    right = {"aggregate_id": "o-1", "aggregate_type": "Order", "version": 1, "state": {}}
    assert is_usable(Snapshot(**right), Order, "o-1")
    for wrong in ({"aggregate_id": "o-2"}, {"aggregate_type": "Basket"}, {"schema_version": 2}):
        assert not is_usable(Snapshot(**{**right, **wrong}), Order, "o-1")


# --- snapshot and tail -------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
amounts = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000)
events = st.one_of(
    st.builds(LineAdded, line=st.builds(Line, sku=texts, price=amounts, tags=st.tuples(texts, texts))),
    st.builds(OrderPaid, amount=amounts),
    st.builds(OrderShippedEvent, carrier=texts),
)
instants = st.none() | st.datetimes(timezones=st.just(UTC))
first = st.builds(OrderPlaced, order_id=st.just("o-1"), customer=st.none() | st.uuids(), placed_at=instants)


@given(first=first, rest=st.lists(events, max_size=12), data=st.data())
def test_any_split_into_snapshot_and_tail_gives_the_same_state(
    first: OrderPlaced, rest: list[Event], data: st.DataObject
) -> None:
    """All events replayed, or a snapshot after any of them and what follows: the same, also applied one by one."""
    store = InMemoryEventStore()
    store.save("o-1", [first, *rest])
    whole = Order.from_events(store.load("o-1"))
    cut = data.draw(st.integers(0, len(rest) + 1), label="events in the snapshot")
    before = Order.from_events(store.load("o-1")[:cut], "o-1")
    store.save_snapshot(snapshot_of(before))
    taken = store.load_snapshot("o-1")
    assert taken is not None
    again = Order.from_snapshot(taken)
    again.replay(store.load("o-1", from_version=taken.version))
    by_hand = Order.from_snapshot(taken)
    for event in store.load("o-1", from_version=taken.version):
        by_hand.apply(event)
    assert state_of(again) == state_of(by_hand) == state_of(whole)
    assert again.version == by_hand.version == whole.version == len(rest) + 1
    assert again.uncommitted_events == by_hand.uncommitted_events == []


@given(rest=st.lists(events, max_size=8))
def test_what_was_applied_is_what_is_replayed(rest: list[Event]) -> None:
    """An aggregate that was just made and one that is rebuilt from its events are the same."""
    order = an_order()
    for event in rest:
        order.apply(event)
    assert state_of(Order.from_events(order.uncommitted_events)) == state_of(order)
    assert order.stage in Stage
