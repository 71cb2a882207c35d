"""What is wrong with a payload, in words that hold names of types and fields and never a value.

msgspec's own texts may quote the payload (`Invalid enum value 'x'`): each becomes a `Misfit`, the path of a
field and a reason. Pure; called by the codec and by definitions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from message_bus.errors import InvalidMessage, MessageDecodeError, ValidationError

MISSING = "missing"

_AT = re.compile(r" - at `(?P<key>key` in `)?\$(?P<path>[^`]*)`\Z")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.?(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
# Texts that speak of types alone; any other might quote the payload.
_DECODING = (
    "Expected `",
    "Invalid RFC3339",
    "Invalid UUID",
    "Invalid ISO8601",
    "Invalid base64",
    "Invalid decimal string",
)
_ENCODING = ("values of type", "keys of type", "Only dicts with", "Enums must contain")
_NOWHERE = object()


class Misfit(ValueError):
    """A payload does not fit: `field` is the path to what is wrong, None for the whole of it."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def misfit_of(error: Exception) -> Misfit:
    """Say what an error of decoding means."""
    if isinstance(error, Misfit):
        return error
    if isinstance(error, ValidationError):
        return Misfit(error.field, error.message)
    if not isinstance(error, msgspec.MsgspecError):
        return Misfit(None, _refusal(error))
    if not isinstance(error, msgspec.ValidationError):
        return Misfit(None, "the payload is not valid JSON")
    text, path, of_key = _split(str(error))
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        cause = misfit_of(cause)
    if isinstance(cause, Misfit):
        return Misfit(_join(path, cause.field), cause.reason)
    if isinstance(cause, Exception):
        return Misfit(path or None, _refusal(cause))
    if missing := _MISSING_FIELD.match(text):
        return Misfit(_join(path, missing["name"]), MISSING)
    reason = _reason(text)
    return Misfit(path or None, f"a key does not fit ({reason})" if of_key else reason)


def decode_error(name: str, error: Exception) -> MessageDecodeError:
    """Say why a payload cannot be decoded, without quoting it."""
    if isinstance(error, MessageDecodeError):
        return error
    misfit = misfit_of(error)
    if misfit.field is None:
        return MessageDecodeError(name, misfit.reason)
    verb = "is missing" if misfit.reason == MISSING else f"does not fit: {misfit.reason}"
    return MessageDecodeError(name, f"field {misfit.field!r} {verb}", field=misfit.field)


def encode_error(name: str, error: Exception, field: str | None = None) -> InvalidMessage:
    """Say why a value cannot be encoded, without quoting it."""
    text = str(error)
    if isinstance(error, UnicodeEncodeError):
        reason = "a text with a lone surrogate, which no database takes (decode input with errors='replace')"
    elif isinstance(error, RecursionError):
        reason = "it contains itself, or is nested too deeply"
    elif text.startswith(_ENCODING):
        reason = f"{text[0].lower()}{text[1:]}"
    else:
        reason = f"it cannot be encoded ({type(error).__name__})"
    return InvalidMessage(name, reason if field is None else f"{field}: {reason}", field=field)


def user_error(error: BaseException) -> Exception | None:
    """The error of the user's own code behind an error of decoding, None if the payload alone is to blame."""
    if isinstance(error, MessageDecodeError | Misfit | msgspec.MsgspecError):
        return None if error.__cause__ is None else user_error(error.__cause__)
    if isinstance(error, UnicodeError) or not isinstance(error, Exception):
        return None
    return error


def value_at(message: object, path: str) -> tuple[bool, Any]:
    """Return (True, value) for what `message` has at a misfit's path, (False, None) if nothing is there."""
    value: Any = message
    for step in _STEP.finditer(path):
        if step["any"]:
            return False, None
        if step["index"] is not None:
            items = cast("list[Any]", value) if isinstance(value, list | tuple) else []
            value = items[int(step["index"])] if int(step["index"]) < len(items) else _NOWHERE
        elif isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(step["name"], _NOWHERE)
        else:
            value = getattr(value, step["name"], _NOWHERE)
        if value is _NOWHERE:
            return False, None
    return True, value


def is_not_finite(value: object) -> bool:
    """Is this a number that JSON does not have?"""
    return isinstance(value, float) and not math.isfinite(value)


def _split(text: str) -> tuple[str, str, bool]:
    at = _AT.search(text)
    return (text[: at.start()], at["path"].lstrip("."), bool(at["key"])) if at else (text, "", False)


def _refusal(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "the payload is not valid UTF-8"
    return f"refused by the class ({type(error).__name__})"


def _reason(text: str) -> str:
    if text.startswith(_DECODING):
        return text[0].lower() + text[1:]
    if text.startswith(("Invalid enum value", "Invalid value")):
        return "not one of the allowed values"
    return "a value that its type does not allow"


def _join(path: str, inner: str | None) -> str | None:
    if not path or inner is None:
        return path or inner
    return f"{path}{inner}" if inner.startswith("[") else f"{path}.{inner}"
