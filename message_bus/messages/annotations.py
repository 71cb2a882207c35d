"""What a class statement says of its fields, read without making anything of the class yet.

`class OrderPlaced(Event): order_id = 3` has no field: without an annotation the value belongs to the class, and would
neither be stored nor sent. That is refused where it is written. Called by `finishing` only.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_origin

from message_bus.errors import MessageDefinitionError

_WRITTEN_OUT = (bool, int, float, str)
_PLAIN = (
    *(*_WRITTEN_OUT, bytes, type(None), list, tuple, dict, set, frozenset, enum.Enum, decimal.Decimal),
    *(dt.date, dt.time, dt.timedelta, uuid.UUID, dataclasses.Field),
)
_LONGEST = 20


def annotations_of(cls: type) -> Mapping[str, Any]:
    """The annotations of this very class, as far as their names can be found."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    own: Mapping[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063  (unfinished classes, too)
    return own


def own_fields(cls: type) -> Iterator[tuple[str, Any]]:
    """The fields that this very class declares, by name."""
    return ((name, hint) for name, hint in annotations_of(cls).items() if not _is_class_var(hint))


def refuse_forgotten_annotations(cls: type) -> None:
    """Raise MessageDefinitionError if a plain value in the class has no annotation, and so is no field.

    Methods, properties and other descriptors, nested classes, names with an underscore in front and objects that no
    field would hold are left alone; so is another value for what a base class has and is no field of it.
    """
    annotated = annotations_of(cls)
    forgotten = {
        name: value
        for name, value in cls.__dict__.items()
        if not name.startswith("_")
        and name not in annotated
        and isinstance(value, _PLAIN)
        and not _is_attribute_of_a_base(cls, name)
    }
    if forgotten:
        names = ", ".join(forgotten)
        name, value = next(iter(forgotten.items()))
        one = len(forgotten) == 1
        raise MessageDefinitionError(
            cls.__name__,
            f"{names} {'has' if one else 'have'} no annotation, so {'it is no field' if one else 'they are no fields'} "
            f"(write {name}: {_declared(value)}; a ClassVar for a constant)",
            field=name,
        )


def _is_class_var(hint: Any) -> bool:
    text = hint if isinstance(hint, str) else ""
    return hint is ClassVar or get_origin(hint) is ClassVar or "ClassVar" in text.partition("[")[0]


def _is_attribute_of_a_base(cls: type, name: str) -> bool:
    for base in cls.__mro__[1:]:
        making = base.__dict__.get("__message_making__")
        if name in (annotated := annotations_of(base)) and not (making is not None and making.own_init):
            return _is_class_var(annotated[name])
        if name in base.__dict__:
            return True
    return False


def _declared(value: object) -> str:
    if type(value) in _WRITTEN_OUT and len(repr(value)) <= _LONGEST:
        return f"{type(value).__name__} = {value!r}"
    if isinstance(value, list | dict | set):
        return f"{type(value).__name__} = field(default_factory={type(value).__name__})"
    return (
        "... = ..."
        if value is None or isinstance(value, dataclasses.Field)
        else f"{type(value).__name__} = ..."
    )
