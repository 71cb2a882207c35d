# ruff: noqa: D103  (what the tests are made of)
"""Methods and steps that could never be called as they would be are refused when they are put together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import AggregateRoot, AsyncSaga, Event, Projection, Saga, SagaStep, SettingsError, when

ROWS = sa.Table("signature_rows", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


class Opened(Event, name="signatures.Opened"):
    """What the methods take."""


def nothing(self: Any) -> None: ...
def too_many(self: Any, event: Any, context: Any, session: Any) -> None: ...
def keyword_only(self: Any, event: Any, *, context: Any) -> None: ...
def event_only(self: Any, event: Any) -> None: ...
def event_and_context(self: Any, event: Any, context: Any) -> None: ...
def event_and_default(self: Any, event: Any, context: Any = None) -> None: ...
def anything(self: Any, *args: Any) -> None: ...


def projection_with(method: Callable[..., Any]) -> type[Projection]:
    """A projection with one method."""
    return type("P", (Projection,), {"tables": {"rows": ROWS}, "opened": when(Opened)(method)})


def aggregate_with(method: Callable[..., Any]) -> type[AggregateRoot]:
    """An aggregate with one handler."""
    return type("A", (AggregateRoot,), {"opened": when(Opened)(method)})


@pytest.mark.parametrize("method", [nothing, too_many, keyword_only])
def test_a_projection_refuses_what_it_could_not_call(method: Callable[..., Any]) -> None:
    """At the class statement, not with the first event."""
    with pytest.raises(
        SettingsError, match=rf"{method.__name__!r} must take \(self, event\) or \(self, event, context\)"
    ):
        projection_with(method)


@pytest.mark.parametrize("method", [event_only, event_and_context, event_and_default, anything])
def test_a_projection_takes_what_it_can_call(method: Callable[..., Any]) -> None:
    """The context may be left out, have a default, or be swallowed; and what is made of the class is called."""
    projection = projection_with(method)()
    assert projection.call(Opened(), None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [nothing, event_and_context, keyword_only])
def test_an_aggregate_refuses_what_it_could_not_call(method: Callable[..., Any]) -> None:
    """Handlers of aggregates take the event alone."""
    with pytest.raises(SettingsError, match=rf"{method.__name__!r} must take \(self, event\)$"):
        aggregate_with(method)


@pytest.mark.parametrize("method", [event_only, event_and_default, anything])
def test_an_aggregate_takes_what_it_can_call(method: Callable[..., Any]) -> None:
    """What it takes it can apply."""
    aggregate = aggregate_with(method)()
    aggregate.apply(Opened())
    assert aggregate.version == 1


def test_a_handler_found_by_its_name_is_judged_as_well() -> None:
    """With an event in its annotation an `on_...` method is one, and needs nothing but the event."""
    with pytest.raises(SettingsError, match=r"'on_opened' must take \(self, event\)"):

        class Account(AggregateRoot):
            def on_opened(self, event: Opened, context: Any) -> None: ...


def test_a_method_of_a_base_is_judged_with_its_class() -> None:
    """A mixin is no projection by itself; the class that is made of it is refused."""

    class Mixin:
        @when(Opened)
        def opened(self) -> None: ...

    with pytest.raises(SettingsError, match="'opened' must take"):
        type("P", (Projection, Mixin), {"tables": {"rows": ROWS}})


@pytest.mark.parametrize("saga", [Saga, AsyncSaga])
@pytest.mark.parametrize("action", [lambda: None, lambda context, more: None, lambda *, context: None])
def test_a_saga_refuses_steps_that_do_not_take_the_context(saga: Any, action: Callable[..., Any]) -> None:
    """Of actions and compensations alike: they are called with one SagaContext."""
    with pytest.raises(SettingsError, match=r"step 'a': its action must take \(context\)"):
        saga("s", [SagaStep(action, name="a")])
    with pytest.raises(SettingsError, match=r"step 'a': its compensation must take \(context\)"):
        saga("s", [SagaStep(lambda context: None, action, name="a")])


@pytest.mark.parametrize(
    "action",
    [
        lambda context: None,
        lambda context, more=1: None,
        lambda *args: None,
        functools.partial(print, "x"),
        print,
        dict,
    ],
)
def test_a_saga_takes_whatever_can_be_called_with_the_context(action: Callable[..., Any]) -> None:
    """Partials, built-in functions and classes too: what has no signature to judge is taken as it is."""
    Saga("s", [SagaStep(action, name="a")])
