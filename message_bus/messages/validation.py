"""Validators for a message's `__post_init__`: each says nothing, or raises a `ValidationError` that names the field.

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")

They judge whatever they are given: None, a text where a number is wanted and NaN are refused like any other value that
does not fit. Their texts say what is expected and never hold the value. They are not a schema language: for more
than this, write an `if` and raise `ValidationError` yourself. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

from message_bus.errors import ValidationError

_SHOWN: Final = 10  # of the allowed values, in a text


def validate_not_empty(value: object, field: str) -> None:
    """Refuse None, an empty or blank text and an empty collection. What has no length is not empty.

    Raises: ValidationError.
    """
    what: Any = value.strip() if isinstance(value, str) else value
    if what is None or (hasattr(what, "__len__") and not _holds(lambda: len(what) > 0)):
        raise ValidationError("must not be empty", field)


def validate_positive(value: object, field: str) -> None:
    """Refuse what is not a number greater than 0.

    Raises: ValidationError.
    """
    number: Any = value
    if isinstance(value, bool) or not _holds(lambda: number > 0):
        raise ValidationError("must be a number greater than 0", field)


def validate_non_negative(value: object, field: str) -> None:
    """Refuse what is not a number of at least 0.

    Raises: ValidationError.
    """
    number: Any = value
    if isinstance(value, bool) or not _holds(lambda: number >= 0):
        raise ValidationError("must be a number of at least 0", field)


def validate_min_length(value: object, min_length: int, field: str) -> None:
    """Refuse what is shorter than `min_length`: the characters of a text, the items of a collection.

    Raises: ValidationError.
    """
    sized: Any = value
    if not _holds(lambda: len(sized) >= min_length):
        raise ValidationError(f"must have a length of at least {min_length}", field)


def validate_max_length(value: object, max_length: int, field: str) -> None:
    """Refuse what is longer than `max_length`: the characters of a text, the items of a collection.

    Raises: ValidationError.
    """
    sized: Any = value
    if not _holds(lambda: len(sized) <= max_length):
        raise ValidationError(f"must have a length of at most {max_length}", field)


def validate_in_range(value: object, min_value: Any, max_value: Any, field: str) -> None:
    """Refuse what is less than `min_value` or greater than `max_value`: numbers, dates, all that has an order.

    Raises: ValidationError.
    """
    if isinstance(value, bool) or not _holds(lambda: min_value <= value <= max_value):
        raise ValidationError(f"must be between {min_value} and {max_value}", field)


def validate_one_of(value: object, allowed_values: Iterable[object], field: str) -> None:
    """Refuse what is not among `allowed_values`: a collection, or an Enum class for its members.

    Raises: ValidationError.
    """
    # `in` would look for a part of a text, and what it does with an Enum class depends on the version of Python.
    allowed: Collection[object]
    if isinstance(allowed_values, Collection) and not isinstance(allowed_values, str | type):
        allowed = allowed_values
    else:
        allowed = tuple(allowed_values)
    if not _holds(lambda: value in allowed):
        shown = [repr(each) for each in allowed]
        if isinstance(allowed, AbstractSet):
            shown.sort()
        more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        raise ValidationError(f"must be one of {', '.join(shown[:_SHOWN] + more) or 'nothing'}", field)


def _holds(condition: Callable[[], object]) -> bool:
    """Is the condition true? What cannot be measured or compared does not fit."""
    try:
        return bool(condition())
    except (TypeError, ValueError, ArithmeticError):
        return False
