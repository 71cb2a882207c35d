"""The state of an aggregate as a snapshot stores it: public attributes to JSON-ready values and back.

An attribute that its class annotates may be whatever messages may hold: dataclasses, Decimal, UUID, datetime, enums, sets
and so on. One without annotation must be plain JSON, for nobody could tell what "10.50" was. What would come back as
something else is refused when it is stored. Pure; nothing that goes in is aliased by what comes out.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from message_bus.errors import InvalidSnapshot
from message_bus.messages import foreign

Hints = Mapping[str, Any]

_CONTAINERS: Final = (list, tuple, dict, set, frozenset)
_OVERRIDE: Final = "or override to_dict() and from_snapshot()"
_encode: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=foreign.encode).encode
_decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode


def hints_of(cls: type) -> dict[str, Any]:
    """The types of the attributes that a class and its bases annotate. Raises: InvalidSnapshot."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        reason = f"an annotation of the class cannot be evaluated ({type(error).__name__})"
        raise InvalidSnapshot(
            cls.__name__, f"{reason} (import what it names at the top of the module)"
        ) from error
    return {
        name: hint for name, hint in hints.items() if ClassVar not in (hint, typing.get_origin(hint))
    }  # fmt: skip


def attributes_of(instance: object) -> dict[str, object]:
    """The public attributes of an instance."""
    slots = [
        name
        for base in type(instance).__mro__
        for name, member in vars(base).items()
        if inspect.ismemberdescriptor(member) and hasattr(instance, name)
    ]
    found = {name: getattr(instance, name) for name in slots} | getattr(instance, "__dict__", {})
    return {name: value for name, value in found.items() if not name.startswith("_")}


def to_json(owner: str, attributes: Mapping[str, object], hints: Hints) -> dict[str, Any]:
    """Return the attributes as JSON would give them back. Raises: InvalidSnapshot naming the one that cannot be stored."""
    return {name: _stored(owner, name, value, hints) for name, value in attributes.items()}


def from_json(owner: str, state: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    """Return the attributes that `to_json` made `state` of. Raises: InvalidSnapshot naming the one that does not fit."""
    return {name: _restored(owner, name, value, hints) for name, value in state.items()}


def _stored(owner: str, name: str, value: object, hints: Hints) -> Any:
    kind = type(value).__name__
    try:
        plain = _decode(_encode(value))
    except Exception as error:
        reason = f"{name} is a {kind} that cannot be stored ({type(error).__name__})"
        raise InvalidSnapshot(owner, f"{reason} (make it a dataclass, {_OVERRIDE})", field=name) from error
    if not is_like(value, _restored(owner, name, plain, hints)):
        hint = "annotate what is in it" if name in hints else f"annotate it in the class: {name}: {kind}"
        reason = f"{name} is a {kind} that would come back as something else"
        raise InvalidSnapshot(owner, f"{reason} ({hint}, {_OVERRIDE})", field=name)
    return plain


def _restored(owner: str, name: str, plain: Any, hints: Hints) -> Any:
    own = _decode(_encode(plain))  # a copy: a hint like dict would hand the very object on
    if name not in hints:
        return own
    try:
        return msgspec.convert(own, hints[name], dec_hook=foreign.decode, str_keys=True)
    except Exception as error:
        reason = f"{name} does not fit its annotation ({type(error).__name__})"
        raise InvalidSnapshot(owner, f"{reason} (correct the annotation, {_OVERRIDE})", field=name) from error


def is_like(value: Any, restored: Any) -> bool:
    """Is it the same, in containers of the same types? Of objects that know no equality the type is compared."""
    if isinstance(value, _CONTAINERS):
        if type(value) is not type(restored) or len(value) != len(restored):
            return False
        if isinstance(value, dict):
            other: Any = restored
            return all(key in other and is_like(item, other[key]) for key, item in value.items())
        if isinstance(value, set | frozenset):
            return bool(value == restored)
        return all(is_like(item, again) for item, again in zip(value, restored, strict=True))
    if type(value) is type(restored) and dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return all(is_like(getattr(value, name, None), getattr(restored, name, None)) for name in names)
    identity: Any = object.__eq__
    knows_no_equality = type(value) is type(restored) and type(value).__eq__ is identity
    return knows_no_equality or bool(value == restored)


__all__ = ["Hints", "attributes_of", "from_json", "hints_of", "is_like", "to_json"]
