"""Why a message must not be registered: what its author reads now instead of a dead letter later.

Called with a message that has been encoded but cannot be decoded again, or that comes back changed. Texts
name fields and types; that a value is None, or not finite, is the one thing said of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from message_bus.errors import InvalidMessage, MessageDecodeError
from message_bus.messages.misfits import is_not_finite, value_at

_NOT_FINITE = "is not a finite number, and JSON has no other"


def unreadable(name: str, message: object, error: MessageDecodeError) -> InvalidMessage:
    """Say what about `message` makes its payload unreadable."""
    field, told = error.field, str(error).partition(": ")[2]
    if field is None:
        return InvalidMessage(name, told)
    found, value = value_at(message, field)
    if found and value is None:
        reason = f"{field} is None (flush the session first)"
    elif found and is_not_finite(value):
        reason = f"{field} {_NOT_FINITE}"
    elif not found and told.endswith("is missing"):
        reason = f"it has no attribute {field!r} (set self.{field} in __init__, decoding asks for it)"
    else:
        reason = told
    return InvalidMessage(name, reason, field=field)


def refuse_not_finite(name: str, message: Any) -> None:
    """Refuse NaN and infinity, which JSON turns into null and a field of `float | None` takes for None.

    Raises: InvalidMessage naming the field.
    """
    for field in dataclasses.fields(message):
        if _holds_not_finite(getattr(message, field.name, None)):
            raise InvalidMessage(name, f"{field.name} {_NOT_FINITE}", field=field.name)


def _holds_not_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_not_finite(item) for item in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_not_finite(item) for item in cast("list[Any]", value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds_not_finite(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return is_not_finite(value)
