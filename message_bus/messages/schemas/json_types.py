"""The JSON Schema of a field's type: what our codec writes for it.

Walks the types as `msgspec.inspect` describes them. msgspec's own generator is not asked, because in it a `datetime` cannot
be told from a `str`, nor a `dict` by number from one by name, and a comparison could not see one become the other. Called
by `json_schema.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec.inspect as known

from message_bus.messages import foreign

Make = Callable[[], dict[str, Any]]
Reference = Callable[[type, Make | None], dict[str, Any]]
"""Gives the `$ref` of a class: of a dataclass (None), or of one whose schema is made here when it is first met."""

_NUMBER: Final = (
    ("minimum", "ge"),
    ("exclusiveMinimum", "gt"),
    ("maximum", "le"),
    ("exclusiveMaximum", "lt"),
    ("multipleOf", "multiple_of"),
)
_TEXT: Final = (("minLength", "min_length"), ("maxLength", "max_length"), ("pattern", "pattern"))
_ITEMS: Final = (("minItems", "min_length"), ("maxItems", "max_length"))
_ENTRIES: Final = (("minProperties", "min_length"), ("maxProperties", "max_length"))
_WHOLE: Final = r"^-?[0-9]+$"
_DECIMAL: Final = r"^-?[0-9.]+([eE][-+]?[0-9]+)?$"


class TypeWalk:
    """Turns types into schemas; classes with fields are left to `reference`."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def schema_of(self, hint: Any) -> dict[str, Any]:
        """The schema of a type, as it stands in an annotation."""
        return self._of(known.type_info(hint))

    def _of(self, kind: known.Type) -> dict[str, Any]:
        match kind:
            case known.Metadata():
                return {**self._of(kind.type), **(kind.extra_json_schema or {})}
            case known.UnionType():
                return {"anyOf": [self._of(each) for each in kind.types]}
            case known.LiteralType():
                return {"enum": list(kind.values)}
            case known.CollectionType() | known.TupleType():
                return self._array(kind)
            case known.DictType():
                return {"type": "object", **self._entries(kind), **_limits(kind, _ENTRIES)}
            case known.EnumType():
                values = sorted(each.value for each in kind.cls)
                return self._reference(kind.cls, lambda: {"enum": values})
            case known.DataclassType():
                return self._reference(kind.cls, None)
            case known.NamedTupleType() | known.TypedDictType() | known.StructType():
                return self._reference(kind.cls, lambda: self._fields(kind))
            case known.CustomType():
                return self._custom(kind.cls)
            case _:
                return _scalar(kind)

    def _array(self, kind: known.CollectionType | known.TupleType) -> dict[str, Any]:
        if isinstance(kind, known.TupleType):
            size = len(kind.item_types)
            places = {"prefixItems": [self._of(each) for each in kind.item_types]} if size else {}
            return {"type": "array", **places, "items": False, "minItems": size, "maxItems": size}
        items = self._of(kind.item_type)
        unique = isinstance(kind, known.SetType | known.FrozenSetType)
        return {
            "type": "array",
            **({"items": items} if items else {}),
            **({"uniqueItems": True} if unique else {}),
            **_limits(kind, _ITEMS),
        }

    def _entries(self, kind: known.DictType) -> dict[str, Any]:
        names, values = self._name(kind.key_type), self._of(kind.value_type)
        return {
            **({"propertyNames": names} if names else {}),
            **({"additionalProperties": values} if values else {}),
        }

    def _name(self, kind: known.Type) -> dict[str, Any]:
        """The schema of a key of a dict, which JSON writes as a text."""
        match kind:
            case known.Metadata():
                return {**self._name(kind.type), **(kind.extra_json_schema or {})}
            case known.IntType():
                return {"pattern": _WHOLE}
            case known.FloatType():
                return {"pattern": _DECIMAL}
            case known.EnumType():
                return {"enum": sorted(str(each.value) for each in kind.cls)}
            case known.LiteralType():
                return {"enum": [str(each) for each in kind.values]}
            case known.UnionType():
                names = [self._name(each) for each in kind.types]
                return {"anyOf": names} if all(names) else {}
            case known.CustomType():
                return {}
            case _:
                return {name: value for name, value in _scalar(kind).items() if name != "type"}

    def _fields(self, kind: known.NamedTupleType | known.TypedDictType | known.StructType) -> dict[str, Any]:
        schemas = {each.encode_name: self._of(each.type) for each in kind.fields}
        required = [each.encode_name for each in kind.fields if each.required]
        if isinstance(kind, known.NamedTupleType) or getattr(kind, "array_like", False):
            return {
                "type": "array",
                "prefixItems": list(schemas.values()),
                "items": False,
                "minItems": len(required),
                "maxItems": len(schemas),
            }
        tag_field = getattr(kind, "tag_field", None)
        tag = {tag_field: {"enum": [getattr(kind, "tag", None)]}} if tag_field is not None else {}
        closed = {"additionalProperties": False} if getattr(kind, "forbid_unknown_fields", False) else {}
        return {"type": "object", "properties": {**tag, **schemas}, "required": [*tag, *required], **closed}

    def _custom(self, cls: type) -> dict[str, Any]:
        """A class that msgspec leaves to us: one that is assembled here, or of functions of the user's."""
        stands_for: type = getattr(cls, "stands_for", cls)
        if stands_for is not cls and not foreign.is_registered(stands_for):
            return self._reference(stands_for, None)
        return {
            "title": stands_for.__name__,
            "$comment": "written by a function registered for it: any JSON fits",
        }


def _scalar(kind: known.Type) -> dict[str, Any]:
    match kind:
        case known.NoneType():
            return {"type": "null"}
        case known.BoolType():
            return {"type": "boolean"}
        case known.IntType():
            return {"type": "integer", **_limits(kind, _NUMBER)}
        case known.FloatType():
            return {"type": "number", **_limits(kind, _NUMBER)}
        case known.StrType():
            return {"type": "string", **_limits(kind, _TEXT)}
        case known.BytesType() | known.ByteArrayType() | known.MemoryViewType():
            return {"type": "string", "contentEncoding": "base64"}
        case known.DateTimeType():
            return _zoned("date-time", "date-time-local", kind.tz)
        case known.TimeType():
            return _zoned("time", "time-local", kind.tz)
        case known.DateType():
            return {"type": "string", "format": "date"}
        case known.TimeDeltaType():
            return {"type": "string", "format": "duration"}
        case known.UUIDType():
            return {"type": "string", "format": "uuid"}
        case known.DecimalType():
            return {"type": "string", "format": "decimal"}
        case _:
            return {}  # Any


def _zoned(aware: str, naive: str, zone: bool | None) -> dict[str, Any]:
    """A time of which Python does not say whether it has a zone; the names are those of the OpenAPI format registry."""
    if zone is None:
        return {"type": "string", "anyOf": [{"format": aware}, {"format": naive}]}
    return {"type": "string", "format": aware if zone else naive}


def _limits(kind: Any, names: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    found = ((keyword, getattr(kind, attribute)) for keyword, attribute in names)
    return {keyword: value for keyword, value in found if value is not None}
