"""The validators: what they let pass, what they refuse, and their error."""

from __future__ import annotations

import enum
import math
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import message_bus
from message_bus import (
    MessageBusError,
    ValidationError,
    WiringError,
)
from message_bus.messages.validation import (
    validate_in_range,
    validate_max_length,
    validate_min_length,
    validate_non_negative,
    validate_not_empty,
    validate_one_of,
    validate_positive,
)

NAN = (math.nan, Decimal("NaN"), Decimal("sNaN"))
NO_NUMBERS = (None, "1", "", b"1", True, False, [1], {1}, 1j, object(), timedelta(1), date(2026, 1, 1), int)
NO_LENGTH = (None, 5, 5.0, object(), str, iter("abcde"))


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Word(enum.StrEnum):
    YES = "yes"


class Unsized:
    def __len__(self) -> int:
        raise TypeError("no length")


def refused(validate: Callable[..., None], *args: Any) -> ValidationError:
    """The error of a validator that must refuse, about the field "quantity"."""
    with pytest.raises(ValidationError) as caught:
        validate(*args, "quantity")
    assert caught.value.field == "quantity"
    assert str(caught.value) == f"quantity: {caught.value.message}"
    assert caught.value.message.startswith("must ")
    assert caught.value.__context__ is None
    return caught.value


class TestNotEmpty:
    @pytest.mark.parametrize(
        "value",
        ["x", " x ", "\ufeff", b" ", [None], (0,), {"": 0}, {0}, range(1), 0, 0.0, False, uuid4(), Size],
    )
    def test_passes(self, value: object) -> None:
        """Whatever holds something, and whatever has no length, is not empty."""
        validate_not_empty(value, "quantity")

    @pytest.mark.parametrize(
        "value", [None, "", " ", "\t\r\n", "\u00a0\u2003", b"", [], (), {}, set(), range(0), Unsized()]
    )
    def test_refuses(self, value: object) -> None:
        """None, blank texts and empty collections are refused."""
        assert refused(validate_not_empty, value).message == "must not be empty"


class TestNumbers:
    @pytest.mark.parametrize("value", [1, 1e-300, 10**400, math.inf, Decimal("0.01"), Fraction(1, 3)])
    def test_positive_passes(self, value: object) -> None:
        """Every kind of number above zero passes both validators."""
        validate_positive(value, "quantity")
        validate_non_negative(value, "quantity")

    @pytest.mark.parametrize("value", [0, 0.0, -0.0, Decimal(0), Decimal("-0"), Fraction(0)])
    def test_zero(self, value: object) -> None:
        """Zero is not positive, and not negative either."""
        validate_non_negative(value, "quantity")
        assert refused(validate_positive, value).message == "must be a number greater than 0"

    @pytest.mark.parametrize("value", [-1, -1e-300, -math.inf, Decimal("-0.01"), Fraction(-1, 3)])
    def test_negative(self, value: object) -> None:
        """Numbers below zero are refused by both."""
        refused(validate_positive, value)
        assert refused(validate_non_negative, value).message == "must be a number of at least 0"

    @pytest.mark.parametrize("value", [*NAN, *NO_NUMBERS])
    def test_what_is_no_number(self, value: object) -> None:
        """NaN, None, texts, booleans and everything else are refused with the same error, never a TypeError."""
        refused(validate_positive, value)
        refused(validate_non_negative, value)
        refused(validate_in_range, value, 0, 2)


class TestLengths:
    @pytest.mark.parametrize("value", ["abc", " ab", b"abc", [1, 2, 3], (1, 2, 3), {1, 2, 3}, range(3)])
    def test_by_len(self, value: object) -> None:
        """Texts count their characters, collections their items; both bounds are inclusive."""
        validate_min_length(value, 3, "quantity")
        validate_max_length(value, 3, "quantity")
        assert refused(validate_min_length, value, 4).message == "must have a length of at least 4"
        assert refused(validate_max_length, value, 2).message == "must have a length of at most 2"

    @pytest.mark.parametrize("value", [*NO_LENGTH, Unsized()])
    def test_what_has_no_length(self, value: object) -> None:
        """What cannot be measured fits no bound, not even the widest."""
        refused(validate_min_length, value, 0)
        refused(validate_max_length, value, 1_000)


class TestInRange:
    @pytest.mark.parametrize(
        ("low", "high"),
        [
            (1, 3),
            (1.5, math.inf),
            (Decimal(1), Decimal("1.1")),
            (date(2026, 1, 1), date(2026, 12, 31)),
            (timedelta(0), timedelta(1)),
            ("a", "m"),
        ],
    )
    def test_bounds_are_inclusive(self, low: Any, high: Any) -> None:
        """Both bounds pass, for everything that has an order."""
        validate_in_range(low, low, high, "quantity")
        validate_in_range(high, low, high, "quantity")
        refused(validate_in_range, low, high, high)
        assert refused(validate_in_range, high, low, low).message == f"must be between {low} and {low}"

    def test_what_cannot_be_compared(self) -> None:
        """A naive time does not fit between aware ones, and a text not between numbers."""
        now = datetime.now(UTC)
        validate_in_range(now, now, now, "quantity")
        refused(validate_in_range, now.replace(tzinfo=None), now, now)
        refused(validate_in_range, "2", 1, 3)


class TestOneOf:
    @pytest.mark.parametrize(
        ("value", "allowed"),
        [
            ("EUR", ("EUR", "USD")),
            ("EUR", {"EUR": 1}),
            (2, range(3)),
            (None, [None]),
            ([1], [[1]]),
            (Size.SMALL, Size),
            (Size.SMALL, [Size.SMALL]),
            ("yes", Word),
            ("b", "abc"),
            (2, (each for each in (1, 2))),
        ],
    )
    def test_passes(self, value: object, allowed: Any) -> None:
        """Membership, for every kind of collection."""
        validate_one_of(value, allowed, "quantity")

    @pytest.mark.parametrize(
        ("value", "allowed", "told"),
        [
            ("GBP", ("EUR", "USD"), "must be one of 'EUR', 'USD'"),
            ("GBP", {"USD", "EUR"}, "must be one of 'EUR', 'USD'"),
            (None, {1: "one"}, "must be one of 1"),
            ([1], {1}, "must be one of 1"),
            ("s", Size, "must be one of <Size.SMALL: 's'>, <Size.LARGE: 'l'>"),
            ("ab", "abc", "must be one of 'a', 'b', 'c'"),
            ("", "abc", "must be one of 'a', 'b', 'c'"),
            (3, (each for each in (1, 2)), "must be one of 1, 2"),
            (1, [], "must be one of nothing"),
            (-1, range(10), "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
            (-1, range(100), "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 90 more"),
        ],
    )
    def test_refuses(self, value: object, allowed: Any, told: str) -> None:
        """The text names what is allowed, ten at most; an unhashable value is no TypeError."""
        assert refused(validate_one_of, value, allowed).message == told


class TestProperties:
    @given(st.integers() | st.floats() | st.decimals() | st.fractions())
    def test_numbers_agree_with_their_order(self, value: Any) -> None:
        """A number passes exactly if it compares as wanted; NaN never does."""
        is_nan = (
            value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value)
        )
        assert passes(validate_positive, value) == (not is_nan and value > 0)
        assert passes(validate_non_negative, value) == (not is_nan and value >= 0)

    @given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False))
    def test_a_range_is_its_bounds(self, value: float, low: float, high: float) -> None:
        """A number is in a range exactly if it is neither below nor above."""
        assert passes(validate_in_range, value, low, high) == (low <= value <= high)

    @given(st.text() | st.lists(st.none()) | st.binary(), st.integers(0, 8))
    def test_lengths_meet(self, value: Any, length: int) -> None:
        """Every length fits a minimum or the maximum below it, never both."""
        assert passes(validate_min_length, value, length) != passes(validate_max_length, value, length - 1)

    @given(st.text())
    def test_not_empty_is_not_blank(self, value: str) -> None:
        """A text is empty exactly if nothing is left of it without white space."""
        assert passes(validate_not_empty, value) == bool(value.strip())

    @given(
        st.none() | st.booleans() | st.text() | st.binary() | st.complex_numbers() | st.dates() | st.uuids()
        | st.lists(st.integers()) | st.dictionaries(st.text(), st.text()) | st.floats() | st.decimals()
    )  # fmt: skip
    def test_nothing_else_is_ever_raised(self, value: Any) -> None:
        """Whatever they are given, validators return None or raise ValidationError."""
        for validate, *bounds in (
            (validate_not_empty,),
            (validate_positive,),
            (validate_non_negative,),
            (validate_min_length, 2),
            (validate_max_length, 2),
            (validate_in_range, 1, 2),
            (validate_one_of, {1, 2}),
            (validate_one_of, [Decimal(1), "2"]),
        ):
            passes(validate, value, *bounds)

    @given(st.from_regex(r"secret-[0-9]{6}", fullmatch=True), st.text(max_size=20))
    def test_the_value_is_never_told(self, secret: str, around: str) -> None:
        """Neither text nor traceback holds what was refused."""
        value = f"{around}{secret}{around}"
        for validate, *bounds in (
            (validate_positive,),
            (validate_non_negative,),
            (validate_min_length, 1_000),
            (validate_max_length, 2),
            (validate_in_range, 1, 2),
            (validate_in_range, "a", "b"),
            (validate_one_of, ("EUR", "USD")),
        ):
            if validate is validate_in_range and bounds[0] == "a":
                value = f"~{value}"
            error = refused(validate, value, *bounds)
            assert secret not in "".join(traceback.format_exception(error))
            assert secret not in repr(error.__dict__)


def passes(validate: Callable[..., None], *args: Any) -> bool:
    """Does the validator let it pass?"""
    try:
        validate(*args, "quantity")
    except ValidationError:
        return False
    return True


class TestError:
    def test_family(self) -> None:
        """It is a wiring error and a ValueError, importable from the package."""
        assert ValidationError.__mro__[1:3] == (WiringError, MessageBusError)
        assert issubclass(ValidationError, ValueError)
        assert ValidationError.__module__ == "message_bus"

    def test_without_a_field(self) -> None:
        """A rule about several fields names none."""
        error = ValidationError("the end lies before the start")
        assert (str(error), error.message, error.field) == (error.message, error.message, None)

    @pytest.mark.parametrize("field", ["period", None])
    def test_pickling(self, field: str | None) -> None:
        """Text and attributes survive pickling."""
        error = pickle.loads(pickle.dumps(ValidationError("must be odd", field)))  # noqa: S301
        assert type(error) is ValidationError
        assert (error.message, error.field) == ("must be odd", field)
        assert str(error) == ("must be odd" if field is None else "period: must be odd")

    def test_all_are_public(self) -> None:
        """The package hands on the error and every validator."""
        from message_bus.messages import validation

        names = [name for name in vars(validation) if name.startswith("validate_")]
        assert len(names) == 7
        for name in names:
            assert getattr(message_bus, name) is getattr(validation, name)
            assert name in message_bus.__all__
