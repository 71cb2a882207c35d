"""The pure half of a dispatch: order of the queue, its limit, dropped emissions, which error decides."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus.bus.dispatch import MAX_NESTING, Cascade, Emission, decisive, name_of, nesting
from message_bus.errors import CascadeLimitExceeded, Reject, RetryLater, Unavailable
from message_bus.messages.message import Event, Message
from tests.bus.shop import OrderPaid, OrderPlaced, PlaceOrder


def cascade() -> Cascade:
    """The state of a dispatch that has just begun."""
    return Cascade(Emission(PlaceOrder()))


@given(st.lists(st.lists(st.booleans(), max_size=4), max_size=30))
def test_the_queue_is_breadth_first_and_forgets_only_what_failed(handlers: list[list[bool]]) -> None:
    """Whatever handlers emit and however they end: kept emissions are taken once each, in the order of emission.

    Each inner list is one handled message: one handler per item, which emits one message and then succeeds or fails.
    """
    state, kept, taken, number = cascade(), [], [], 0
    for handler in handlers:
        for succeeds in handler:
            mark = len(state.emissions)
            number += 1
            state.emit(OrderPlaced(number))
            if succeeds:
                kept.append(OrderPlaced(number))
            else:
                state.drop(mark)
        if (message := state.take(limit=1_000)) is not None:
            taken.append(message)
    while (message := state.take(limit=1_000)) is not None:
        taken.append(message)
    assert taken == kept
    assert state.emitted() == kept


@given(st.integers(1, 50))
def test_exactly_the_limit_is_taken(limit: int) -> None:
    """`limit` emitted messages are handled; one more is an error that names it."""
    state = cascade()
    for number in range(limit + 1):
        state.emit(OrderPlaced(number))
    for number in range(limit):
        assert state.take(limit) == OrderPlaced(number)
    with pytest.raises(CascadeLimitExceeded) as caught:
        state.take(limit)
    assert (caught.value.limit, caught.value.message_name) == (limit, "OrderPlaced")


def test_what_is_taken_all_at_once_is_not_taken_again() -> None:
    """The outbox has it then; and the message that emitted it is still in hand."""
    state = cascade()
    root = state.in_hand
    state.emit(OrderPlaced(1))
    assert state.take_all() == [OrderPlaced(1)]
    assert state.take_all() == []
    assert state.take(limit=1) is None
    assert state.in_hand is root
    assert state.emitted() == [OrderPlaced(1)]


def test_emissions_dropped_after_they_were_taken_make_room_for_the_next() -> None:
    """A handler whose emissions could not be registered has failed; the next handler's are taken all the same."""
    state = cascade()
    state.emit(OrderPlaced(1))
    state.take_all()
    state.drop(0)
    state.emit(OrderPlaced(2))
    assert state.take_all() == [OrderPlaced(2)]


def test_a_long_chain_of_emissions_gets_its_envelopes_without_recursion() -> None:
    """Each emission of a chain of five thousand has its predecessor as its cause, and all have one correlation."""
    state = cascade()
    chain: list[Emission] = []
    for _ in range(5_000):
        state.emit(OrderPlaced())
        state.take(limit=10_000)
        assert state.in_hand is not None
        chain.append(state.in_hand)
    last = state.envelope()
    assert last is not None
    envelopes = [each.envelope for each in chain]
    for before, after in pairwise(envelopes):
        assert before is not None
        assert after is not None
        assert after.causation_id == str(before.id)
        assert after.correlation_id == last.correlation_id
    assert state.envelope() is last


@pytest.mark.parametrize(("max_cascade", "deepest"), [(3, 3), (10_000, MAX_NESTING)])
def test_nesting_is_bounded(max_cascade: int, deepest: int) -> None:
    """By `max_cascade`, and by what Python's stack carries."""
    state: Cascade | None = None
    for depth in range(deepest + 1):
        assert nesting(state, PlaceOrder(), max_cascade) == depth
        state = Cascade(None, depth=depth)
    with pytest.raises(CascadeLimitExceeded):
        nesting(state, PlaceOrder(), max_cascade)


UNAVAILABLE, REJECT, LATER, OTHER = Unavailable("db"), Reject("bad"), RetryLater(5), ValueError()


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([OTHER], OTHER),
        ([OTHER, UNAVAILABLE, REJECT, LATER], UNAVAILABLE),
        ([OTHER, LATER, REJECT], REJECT),
        ([OTHER, LATER], LATER),
        ([LATER, OTHER], LATER),
    ],
)
def test_of_several_errors_the_one_that_steers_decides(errors: list[Exception], chosen: Exception) -> None:
    """An outage outweighs a rejection, that a wish for later, that anything else."""
    assert decisive(OrderPaid(), errors) is chosen


def test_errors_that_do_not_steer_are_grouped() -> None:
    """All of them are kept."""
    group = decisive(OrderPaid(), [OTHER, OTHER])
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (OTHER, OTHER)
    assert group.message == "2 event handlers failed handling 'OrderPaid'"


def test_the_name_of_a_message_is_that_of_its_rows() -> None:
    """A class may have a name of its own; one that cannot be encoded still has its class name."""

    class Renamed(Event, name="orders.renamed"):
        pass

    class Unencodable(Event):
        connection: Cascade

    assert name_of(Renamed) == "orders.renamed"
    unencodable: Message = Unencodable.__new__(Unencodable)
    assert name_of(unencodable) == "Unencodable"
