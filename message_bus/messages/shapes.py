"""The types of a message's fields, walked before its codec is compiled.

msgspec would meet a type that it does not know only with the first payload; here it is refused at
definition, with the field's name and what to do. The walk also finds the classes that msgspec must not
fill by itself, and those whose encoding belongs to the user.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Literal, NewType, Union, cast, get_args, get_origin

import msgspec
import msgspec.inspect as known_types

from message_bus.errors import MessageDefinitionError
from message_bus.messages import foreign
from message_bus.messages.finishing import finish, is_message_class

Hints = dict[str, Any]

_ANNOTATED: Any = typing.Annotated
_UNION: Any = Union
_SCALARS: frozenset[type] = frozenset({str, int, float, bool, bytes, type(None)})
_MAPPINGS: frozenset[Any] = frozenset({dict, collections.abc.Mapping, collections.abc.MutableMapping})
_CONTAINERS: frozenset[Any] = _MAPPINGS | {
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Collection,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Set,
    collections.abc.MutableSet,
}
_NOT_KEYS = (
    known_types.BoolType,
    known_types.NoneType,
    known_types.CollectionType,
    known_types.TupleType,
    known_types.DictType,
    known_types.DataclassType,
    known_types.StructType,
    known_types.CustomType,
)
_REGISTER = "register it with message_bus.types.serializer"
_OVERRIDE = "or override serialize() and deserialize()"


class Unfit(Exception):
    """A type that no codec knows; the text says why, and what to do."""


@dataclasses.dataclass(slots=True)
class Survey:
    """What a walk over the types of a class has found.

    `hints`: the types of the fields of every dataclass met; `uses`: which classes these name; `special`:
    those msgspec must not fill by itself; `overridden`: those that say themselves what they look like in
    JSON.
    """

    root: type
    hints: dict[type, Hints] = dataclasses.field(default_factory=dict[type, Hints])
    uses: dict[type, set[type]] = dataclasses.field(default_factory=dict[type, set[type]])
    special: set[type] = dataclasses.field(default_factory=set[type])
    overridden: set[type] = dataclasses.field(default_factory=set[type])

    def is_assembled(self, cls: type) -> bool:
        """Must instances be put together by us, because this class or one inside it is special?"""
        seen: set[type] = set()
        waiting = [cls]
        while waiting:
            current = waiting.pop()
            if current in self.special:
                return True
            if current not in seen:
                seen.add(current)
                waiting.extend(self.uses.get(current, ()))
        return False


def survey(root: type) -> Survey:
    """Walk over the fields of a class and the dataclasses inside. Raises: MessageDefinitionError."""
    found = Survey(root)
    _visit(found, root, "")
    return found


def map_types(hint: Any, replace: Callable[[type], Any]) -> Any:
    """Return `hint` with each class in it replaced; `hint` itself if nothing changed."""
    origin: Any = get_origin(hint)
    if origin is None:
        if isinstance(hint, NewType):
            base = map_types(hint.__supertype__, replace)
            return hint if base is hint.__supertype__ else base
        return replace(hint) if isinstance(hint, type) else hint
    args = get_args(hint)
    if origin is Literal:
        return hint
    if origin is Final:
        return map_types(args[0], replace)
    if origin is typing.Annotated:
        inner = map_types(args[0], replace)
        return hint if inner is args[0] else _ANNOTATED[(inner, *args[1:])]
    is_union = origin is Union or origin is types.UnionType
    if not is_union and origin not in _CONTAINERS:
        replaced: Any = replace(cast("type", origin))
        return hint if replaced is origin else replaced
    mapped = tuple(arg if arg is Ellipsis else map_types(arg, replace) for arg in args)
    if all(new is old for new, old in zip(mapped, args, strict=True)):
        return hint
    maker: Any = _UNION if is_union else origin
    return maker[mapped]


def blame(found: Survey, rewrite: Callable[[Any], Any], error: Exception) -> MessageDefinitionError:
    """Say which field makes msgspec refuse a class."""
    for cls, hints in found.hints.items():
        for field in dataclasses.fields(cls):
            try:
                msgspec.json.Decoder(rewrite(hints[field.name]))
            except TypeError as its_error:
                path = field.name if cls is found.root else f"{cls.__name__}.{field.name}"
                return _unfit_field(found, path, its_error)
    return MessageDefinitionError(found.root.__name__, f"it cannot be decoded: {error}")


def overrides(cls: type, method: str) -> bool:
    """Does a message class bring its own `serialize` or `deserialize`?"""
    owner = next((base for base in cls.__mro__ if method in base.__dict__), None)
    return owner is not None and "__message_base__" not in owner.__dict__


def _visit(found: Survey, cls: type, prefix: str) -> None:
    if is_message_class(cls):
        finish(cls)
    found.hints[cls] = hints = _hints(found, cls, prefix)
    found.uses[cls] = set()
    _classify(found, cls, prefix)
    for field in dataclasses.fields(cls):
        path = f"{prefix}{field.name}"

        def look_at(leaf: type, path: str = path) -> type:
            _look_at(found, cls, leaf, path)
            return leaf

        try:
            map_types(hints[field.name], look_at)
            _check_keys(hints[field.name])
        except MessageDefinitionError:
            raise
        except (Unfit, TypeError) as error:
            raise _unfit_field(found, path, error) from None


def _classify(found: Survey, cls: type, prefix: str) -> None:
    generated = _has_generated_init(cls)
    if not generated or any(not field.init for field in dataclasses.fields(cls)):
        found.special.add(cls)
    if cls is not found.root and is_message_class(cls):
        if overrides(cls, "deserialize"):
            found.special.add(cls)
        if overrides(cls, "serialize"):
            found.overridden.add(cls)
    if generated:
        fields: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
        for name, field in fields.items():
            if isinstance(field.type, dataclasses.InitVar) or str(field.type).startswith(_INIT_VAR):
                problem = Unfit(f"is an InitVar, which is not stored (make it a field, {_OVERRIDE})")
                raise _unfit_field(found, f"{prefix}{name}", problem)


_INIT_VAR = ("InitVar", "dataclasses.InitVar")


def _look_at(found: Survey, user: type, leaf: type, path: str) -> None:
    if leaf in _SCALARS or leaf in _CONTAINERS:
        return
    is_ours = is_message_class(leaf) or hasattr(leaf, "__dataclass_fields__")
    if foreign.is_registered(leaf):
        found.uses[user].add(leaf)
        if is_ours or issubclass(leaf, enum.Enum) or _is_known(leaf):
            found.special.add(leaf)
            found.overridden.add(leaf)
    elif is_ours:
        found.uses[user].add(leaf)
        if leaf not in found.hints:
            _visit(found, leaf, f"{path}.")
    elif not _is_known(leaf):
        remedy = "say typing.Any" if leaf is object else _REGISTER
        raise Unfit(f"has type {leaf.__name__}, which no codec knows ({remedy}, {_OVERRIDE})")


def _is_known(leaf: type) -> bool:
    return not isinstance(known_types.type_info(leaf), known_types.CustomType)


def _check_keys(hint: Any) -> None:
    args = get_args(hint)
    for arg in args:
        if arg is not Ellipsis:
            _check_keys(arg)
    if args and get_origin(hint) in _MAPPINGS and isinstance(known_types.type_info(args[0]), _NOT_KEYS):
        name = getattr(args[0], "__name__", str(args[0]))
        raise Unfit(
            f"has keys of type {name}, which JSON cannot have (use str, int, UUID, Enum, {_OVERRIDE})"
        )


def _has_generated_init(cls: type) -> bool:
    init = inspect.unwrap(getattr(cls, "__init__"))  # noqa: B009  (of a class, not of an instance)
    return isinstance(init, types.FunctionType) and init.__code__.co_filename == "<string>"


def _unfit_field(found: Survey, path: str, error: Exception) -> MessageDefinitionError:
    text = str(error)
    if isinstance(error, Unfit):
        reason = text
    elif "unions" in text:
        reason = (
            "has a union that JSON cannot tell apart: at most one dataclass, one list, one dict and "
            "one of str, UUID, Decimal, Enum, bytes, datetime and the like "
            f"(use one type, or a field for each, {_OVERRIDE})"
        )
    elif text.startswith("Enums must"):
        reason = f"has an Enum whose values are neither all str nor all int ({_REGISTER}, {_OVERRIDE})"
    else:
        reason = f"has a type that no codec knows: {text} (change it, {_OVERRIDE})"
    return MessageDefinitionError(found.root.__name__, f"field {path!r} {reason}", field=path)


def _hints(found: Survey, cls: type, prefix: str) -> Hints:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        problem = error
    unknown = getattr(problem, "name", None)
    for field in dataclasses.fields(cls):
        text = field.type if isinstance(field.type, str) else repr(field.type)
        if isinstance(unknown, str) and unknown in text:
            reason = Unfit(
                f"has an annotation whose name {unknown!r} cannot be found "
                "(define it at the top of the module, and not under TYPE_CHECKING)"
            )
            raise _unfit_field(found, f"{prefix}{field.name}", reason) from None
    told = f"the annotations of {cls.__name__!r} cannot be evaluated: {problem}"
    raise MessageDefinitionError(found.root.__name__, told) from problem
