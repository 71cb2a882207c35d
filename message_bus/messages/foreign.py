"""The types that users have registered with dataclasses-serialization's `JSONSerializer`.

Such a type keeps the JSON its functions give it, whether msgspec would know the type (a `date` as
"31.12.2025") or not. This module never imports dataclasses-serialization: who has registered something has
imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

from message_bus.messages.misfits import Misfit

# What JSONSerializer brings along; msgspec treats these the same way, only faster.
_BUILT_IN = (dict, list, (str, int, float, bool, type(None)))

# msgspec asks for these only when they are keys of a dict.
_KNOWN_AS_VALUES = frozenset({bool, type(None), tuple, frozenset})


def is_registered(cls: type) -> bool:
    """Has the user registered this class, or a base of it?"""
    serializer = _serializer()
    if serializer is None:
        return False
    for known in serializer.deserialization_functions.lookup:
        if known in _BUILT_IN or known is object:
            continue
        bases = cast("Sequence[Any]", known if isinstance(known, tuple) else (known,))
        if any(isinstance(base, type) and issubclass(cls, base) for base in bases):
            return True
    return False


def encode(value: Any) -> Any:
    """Return what JSON knows instead of a value of a registered type. Raises: TypeError for others."""
    cls: type = value.__class__
    if not is_registered(cls):
        if cls in _KNOWN_AS_VALUES:
            raise TypeError(f"keys of type {cls.__name__} cannot be encoded (use str, int, UUID, Enum)")
        raise TypeError(
            f"values of type {cls.__name__} cannot be encoded (register it with message_bus.types.serializer)"
        )
    return _serializer().serialize(value)


def decode(cls: type, data: Any) -> Any:
    """Return the value of a registered type that `encode` made `data` of. Raises: Misfit."""
    try:
        return _serializer().deserialize(cls, data)
    except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
        reason = f"the deserializer registered for {cls.__name__} raised {type(error).__name__}"
    # Its text may quote the payload: neither that nor the error it hangs on may get out.
    raise Misfit(None, reason)


def _serializer() -> Any:
    module = sys.modules.get("dataclasses_serialization.json")
    return getattr(module, "JSONSerializer", None)
