# ruff: noqa: D102, D103  (what the classes under test are made of)
"""`@when`: which method takes which message."""

from __future__ import annotations

import pytest

from message_bus import Command, Event, NotAMessage, SettingsError
from message_bus.eventsourcing.when import handlers_of, when


class Placed(Event):
    pass


class Paid(Event):
    pass


class Ship(Command):
    pass


class Base:
    @when(Placed)
    def placed(self, message: Placed) -> str:
        return "placed"

    @when(Paid, Ship)
    def rest(self, message: Paid | Ship) -> str:
        return "rest"

    def unmarked(self, message: Placed) -> None: ...


def names(cls: type) -> dict[str, str]:
    return {message.__name__: function.__qualname__ for message, function in handlers_of(cls).items()}


def test_marked_methods_take_their_types() -> None:
    """One or several types to a method; what is not marked takes none."""
    assert names(Base) == {"Placed": "Base.placed", "Paid": "Base.rest", "Ship": "Base.rest"}
    assert handlers_of(Base)[Placed](Base(), Placed()) == "placed"


def test_a_marked_method_is_an_ordinary_one() -> None:
    """It may be called directly."""
    assert Base().placed(Placed()) == "placed"


def test_marks_are_inherited() -> None:
    """A class that adds a method keeps those of its base; so do several bases."""

    class Derived(Base):
        pass

    class Mixed(Derived, dict[str, str]):
        pass

    assert names(Derived) == names(Mixed) == names(Base)


def test_a_method_defined_again_is_called_marked_or_not() -> None:
    """An override without a mark keeps the types; one with a mark has those of its own mark only."""

    class Unmarked(Base):
        def rest(self, message: Paid | Ship) -> str:
            return "again"

    class Marked(Base):
        @when(Paid)
        def rest(self, message: Paid | Ship) -> str:
            return "again"

    assert names(Unmarked)["Ship"] == f"{Unmarked.__qualname__}.rest"
    assert "Ship" not in names(Marked)


def test_another_method_for_the_type_takes_it_over() -> None:
    """The derived class's choice wins, whatever the method is called."""

    class Derived(Base):
        @when(Paid)
        def paid(self, message: Paid) -> None: ...

    assert names(Derived) == {
        "Placed": "Base.placed",
        "Paid": f"{Derived.__qualname__}.paid",
        "Ship": "Base.rest",
    }


def test_a_method_set_to_none_takes_nothing() -> None:
    """So a derived class can stop taking a type."""

    class Derived(Base):
        placed = None  # type: ignore[assignment]

    assert set(names(Derived)) == {"Paid", "Ship"}


def test_two_decorators_are_one_with_two_types() -> None:
    """`@when(A)` above `@when(B)`."""

    class Twice:
        @when(Placed)
        @when(Paid)
        def both(self, message: Event) -> None: ...

    assert set(names(Twice)) == {"Placed", "Paid"}


def test_two_methods_for_one_type_are_refused() -> None:
    """With both names, when the handlers are asked for."""

    class Torn:
        @when(Placed)
        def one(self, message: Placed) -> None: ...

        @when(Placed)
        def two(self, message: Placed) -> None: ...

    with pytest.raises(SettingsError, match="'one' and 'two' both take 'Placed'"):
        handlers_of(Torn)


def test_types_are_taken_exactly() -> None:
    """A derived message type is another type."""

    class PlacedByPhone(Placed):
        pass

    assert PlacedByPhone not in handlers_of(Base)


def test_what_is_no_message_type_is_refused() -> None:
    """At the decorator: nothing, a forgotten pair of parentheses, an object, any class, something that is no method."""
    with pytest.raises(SettingsError, match="no message type"):
        when()
    with pytest.raises(NotAMessage, match=r"write @when\(OrderPlaced\)"):
        when(lambda self, message: None)  # type: ignore[arg-type]
    for wrong in (Placed(), int):
        with pytest.raises(NotAMessage):
            when(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="directly above def"):
        when(Placed)(staticmethod(lambda message: None))


def test_a_static_method_is_refused() -> None:
    """Its mark would be lost, or it would be called with the instance."""

    class Static:
        @staticmethod
        @when(Placed)
        def placed(message: Placed) -> None: ...

    with pytest.raises(SettingsError, match="'placed' is a staticmethod"):
        handlers_of(Static)


def test_the_answer_cannot_be_changed() -> None:
    """It is a view for whoever asks."""
    with pytest.raises(TypeError):
        handlers_of(Base)[Placed] = print  # type: ignore[index]
