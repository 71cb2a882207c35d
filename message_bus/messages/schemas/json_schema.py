"""What messages look like in JSON, as JSON Schema 2020-12: `message_schemas(registry)`. For other teams, and for `check`.

    Registry ──► {"messages": {name: {kind, version, key, renamed_from, upcasters, by_hand, schema}}}

A schema says what our codec writes, and `required` what reading cannot do without. What a user's own functions write
(an overridden `serialize()`, types registered with dataclasses-serialization) is not known: any JSON fits there. Two
exports are compared in `compatibility.py`. Called by `admin.message_schemas` and the command line.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from message_bus.messages.assembly import Assembler
from message_bus.messages.codec import to_json
from message_bus.messages.definition import MessageDefinition, definition_of
from message_bus.messages.finishing import is_message_class, making_of
from message_bus.messages.message import Message
from message_bus.messages.registry import Registry
from message_bus.messages.schemas.json_types import Make, TypeWalk
from message_bus.messages.shapes import overrides, survey

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
FORMAT: Final = 1
"""The layout of an export; raised when an older package could not read it."""

_BY_HAND: Final = "written by its own serialize() or deserialize(): any object fits"
_EMPTY: Final[Mapping[Any, Any]] = {list: [], tuple: [], set: [], frozenset: [], dict: {}}


def message_schemas(*registries: Registry) -> dict[str, Any]:
    """Return the JSON Schemas of all commands and events of these registries, by name, ready for `json.dumps`.

    Of several registries the upcasters are put together. The same classes give the same document, in the same order.

    Raises: SettingsError if a name means two classes; MessageDefinitionError.
    """
    everything = Registry()
    for registry in registries:
        everything.register(*registry)
    definitions = sorted((definition_of(cls) for cls in everything), key=lambda each: each.name)
    return {
        "$schema": DIALECT,
        "message_bus": FORMAT,
        "messages": {each.name: _entry(each, registries) for each in definitions},
    }


def schema_of(cls: type[Message]) -> dict[str, Any]:
    """Return the JSON Schema of one message class: complete, so that it can be used by itself.

    Raises: NotAMessage; MessageDefinitionError.
    """
    definition_of(cls)
    if is_by_hand(cls):
        return {"$schema": DIALECT, **_titled(cls), "type": "object", "$comment": _BY_HAND}
    return _Schemas(cls).document()


def is_by_hand(cls: type) -> bool:
    """Whether a message class says itself what it looks like in JSON."""
    return is_message_class(cls) and (overrides(cls, "serialize") or overrides(cls, "deserialize"))


def key_name(cls: type[Message]) -> str | None:
    """What a message class is ordered by: the name of a field, a function as `name()`, None for nothing."""
    keys = (making_of(base).key for base in cls.__mro__ if is_message_class(base))
    key = next((key for key in keys if key is not None), None)
    return key if key is None or isinstance(key, str) else f"{getattr(key, '__name__', type(key).__name__)}()"


def steps_of(definition: MessageDefinition, registries: Iterable[Registry]) -> list[tuple[int, int]]:
    """The upcasters of one message in any of these registries, as pairs of versions."""
    steps = {
        (step.from_version, step.to_version)
        for registry in registries
        if definition.cls in registry
        for step in registry._chain_of(definition).steps
    }
    return sorted(steps)


def _entry(definition: MessageDefinition, registries: Iterable[Registry]) -> dict[str, Any]:
    return {
        "kind": definition.kind.lower(),
        "version": definition.version,
        "key": key_name(definition.cls),
        "renamed_from": list(definition.renamed_from),
        "upcasters": [list(step) for step in steps_of(definition, registries)],
        "by_hand": is_by_hand(definition.cls),
        "schema": schema_of(definition.cls),
    }


class _Schemas:
    """The schema of one message, with those of the classes inside of it under `$defs`."""

    def __init__(self, root: type) -> None:
        self._root = root
        self._assemblers = {root: (survey(root), Assembler(survey(root)))}
        self._names: dict[type, str] = {}
        self._defs: dict[str, dict[str, Any]] = {}
        self._walk = TypeWalk(self._reference)

    def document(self) -> dict[str, Any]:
        """The whole of it."""
        root = {"$schema": DIALECT, **self._object(self._root)}
        return {**root, "$defs": dict(sorted(self._defs.items()))} if self._defs else root

    def _reference(self, cls: type, make: Make | None) -> dict[str, Any]:
        """A reference to a class that has a schema of its own: what `make` gives, or that of a dataclass."""
        if cls is self._root:
            return {"$ref": "#"}
        if is_by_hand(cls):
            return {"title": cls.__name__, "$comment": _BY_HAND}
        name = self._names.get(cls)
        if name is None:
            name = self._names[cls] = self._free_name(cls)
            self._defs[name] = {}  # it may be inside of itself
            self._defs[name] = self._object(cls) if make is None else {**_titled(cls), **make()}
        return {"$ref": f"#/$defs/{name}"}

    def _free_name(self, cls: type) -> str:
        wanted = (cls.__name__, f"{cls.__module__}.{cls.__qualname__}")
        tries = [re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in wanted]
        tries += [f"{tries[1]}_{number}" for number in range(2, len(self._defs) + 3)]
        return next(name for name in tries if name not in self._defs)

    def _object(self, cls: type) -> dict[str, Any]:
        found, assembler = self._assembler_of(cls)
        draft = assembler.plan(cls).draft
        required = {each.name for each in msgspec.structs.fields(draft) if each.required}
        properties: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            hint = assembler.rewrite(found.hints[cls][field.name])
            properties[field.name] = {**self._walk.schema_of(hint), **_default(field)}
        return {
            **_titled(cls),
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
        }

    def _assembler_of(self, cls: type) -> Any:
        found, assembler = self._assemblers[self._root]
        if cls in found.hints:
            return found, assembler
        if cls not in self._assemblers:  # inside of a NamedTuple, TypedDict or Struct, where no survey looks
            inner = survey(cls)
            self._assemblers[cls] = (inner, Assembler(inner))
        return self._assemblers[cls]


def _titled(cls: type) -> dict[str, str]:
    text = cls.__dict__.get("__doc__")
    written = isinstance(text, str) and not text.startswith(f"{cls.__name__}(")  # what dataclass makes up
    return {
        "title": cls.__name__,
        **({"description": inspect.cleandoc(text)} if written and text else {}),
    }


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """The default of a field, if it is known without calling anything of the user's, and has a form in JSON."""
    if field.default is not dataclasses.MISSING:
        try:
            value = msgspec.json.decode(to_json(field.default))
        except Exception:  # noqa: BLE001  (what a value's own functions may raise)
            return {}
        return {"default": value} if value is not None or field.default is None else {}  # JSON has no NaN
    factory: Any = field.default_factory
    return {"default": _EMPTY[factory]} if isinstance(factory, type) and factory in _EMPTY else {}
