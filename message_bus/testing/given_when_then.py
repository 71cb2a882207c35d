"""`AggregateScenario`: tests of aggregates that read like their rules. Needs neither a store nor pytest.

AggregateScenario(Order).given(OrderPlaced("o-1")).when(lambda order: order.ship()).then(OrderShipped("o-1"))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Generic, Self, TypeVar

from message_bus.errors import SettingsError
from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
from message_bus.eventsourcing.aggregates.state import attributes_of, is_like
from message_bus.messages import Event, Message, definition_of

A = TypeVar("A", bound=AggregateRoot)

_NOTHING = "    nothing"


class AggregateScenario(Generic[A]):
    """What has happened to an aggregate before: `given` it, then ask what comes of a call.

    `aggregate_id`: what it is called unless a handler sets another id. Every step is a new object, so a scenario may be kept
    and gone on with in several tests.
    """

    def __init__(
        self, aggregate_class: type[A], aggregate_id: str = "aggregate-1", *, history: Sequence[Event] = ()
    ) -> None:
        self._class = aggregate_class
        self._aggregate_id = aggregate_id
        self._history = tuple(history)

    def given(self, *events: Event) -> AggregateScenario[A]:
        """Return the scenario in which these events have happened as well, after those that were given before.

        They are encoded and decoded, as a store would.

        Raises: InvalidMessage for an event that cannot be stored.
        """
        history = (*self._history, *map(_stored, events))
        return AggregateScenario(self._class, self._aggregate_id, history=history)

    def when(self, work: Callable[[A], Any]) -> AggregateOutcome[A]:
        """Call `work` with the aggregate; what comes of it, an error included, is for `then...` to judge.

        Raises: SettingsError for what cannot be called, as an event.
        """
        if not callable(work) or isinstance(work, type):
            given = work.__name__ if isinstance(work, type) else type(work).__name__
            problem = f"when was given {given!r}, not a function of the aggregate (write .when(lambda order: order.ship()))"
            raise SettingsError("AggregateScenario", [problem])
        aggregate = self._rebuilt(self._history)
        outcome = AggregateOutcome(aggregate, lambda new: self._rebuilt([*self._history, *new]))
        try:
            outcome.result = work(aggregate)
        except Exception as error:  # noqa: BLE001  (then_raises judges it, the others raise it again)
            outcome.error = error
        return outcome

    def _rebuilt(self, events: Iterable[Event]) -> A:
        return self._class.from_events(map(_stored, events), self._aggregate_id)


class AggregateOutcome(Generic[A]):
    """What came of the call: `aggregate`, the `result` that it returned, the `error` that it raised."""

    def __init__(self, aggregate: A, rebuild: Callable[[Sequence[Event]], A]) -> None:
        self.aggregate = aggregate
        self.result: Any = None
        self.error: Exception | None = None
        self._rebuild = rebuild

    @property
    def events(self) -> list[Event]:
        """The events that were applied."""
        return self.aggregate.uncommitted_events

    def then(self, *events: Event) -> Self:
        """Check that exactly these events were applied, in this order, and that they alone have made the state.

        Raises: AssertionError, showing both sides field by field, or the attribute that was changed without an event;
        the error that was raised in place of events; InvalidMessage for an event that cannot be stored.
        """
        self._raise_error()
        if self.events != list(events):
            raise AssertionError(compared(events, self.events))
        self._refuse_other_changes()
        return self

    def then_nothing(self) -> Self:
        """Check that no event was applied, and the state is as it was. Raises: as `then`."""
        return self.then()

    def then_raises(self, error: type[Exception], match: str | None = None) -> Self:
        """Check that an error of this type was raised, whose text has a match of the regular expression `match`.

        Raises: AssertionError; an error of another type as it is.
        """
        if self.error is None:
            shown = rendered(self.events)
            raise AssertionError(
                f"{error.__name__} should have been raised, but these were applied:\n{shown}"
            )
        if not isinstance(self.error, error):
            raise self.error
        if match is not None and re.search(match, str(self.error)) is None:
            text = f"{error.__name__} should match {match!r}, but its text is {str(self.error)!r}"
            raise AssertionError(text) from self.error
        return self

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _refuse_other_changes(self) -> None:
        """What a method changes itself is gone after the next load: only events are stored."""
        name = type(self.aggregate).__name__
        now, replayed = attributes_of(self.aggregate), attributes_of(self._rebuild(self.events))
        lost = [
            each
            for each in (now | replayed)
            if each not in now or each not in replayed or not is_like(now[each], replayed[each])
        ]
        if lost:
            names = ", ".join(f"{name}.{each}" for each in lost)
            raise AssertionError(
                f"{names}: not the same after a replay of the events (change the state in handlers of events only, and by "
                "nothing but the event)"
            )


def compared(expected: Sequence[Message], actual: Sequence[Message]) -> str:
    """Both sides, with a mark at each field that differs."""
    left: list[str] = []
    right: list[str] = []
    for wanted, found in zip_longest(expected, actual):
        left += [] if wanted is None else _lines(wanted, found)
        right += [] if found is None else _lines(found, wanted)
    return "\n".join(["expected", *(left or [_NOTHING]), "but there came", *(right or [_NOTHING])])


def rendered(messages: Sequence[Message]) -> str:
    """Messages, with their fields by name."""
    return "\n".join([line for each in messages for line in _lines(each, each)] or [_NOTHING])


def _lines(message: Message, other: Message | None) -> list[str]:
    same_type = type(message) is type(other)
    lines = [f"{'    ' if same_type else '  ! '}{type(message).__name__}"]
    for field in dataclasses.fields(message) if dataclasses.is_dataclass(message) else ():
        value: Any = getattr(message, field.name, None)
        differs = same_type and value != getattr(other, field.name, None)
        lines.append(f"{'  ! ' if differs else '    '}    {field.name} = {value!r}")
    return lines


def _stored(event: Event) -> Event:
    definition = definition_of(type(event))
    again = definition.decode(definition.check(event))
    assert isinstance(again, Event)
    return again


__all__ = ["AggregateOutcome", "AggregateScenario", "compared", "rendered"]
