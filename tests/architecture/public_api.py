"""Writes down the public face: every public name with its signature, bases, fields and methods, as plain text.

`python -m tests.architecture.public_api` rewrites `public_api.txt`, which `test_public_api.py` compares. Annotations
are taken as they are written, so the text is the same under every supported Python and SQLAlchemy.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from abc import ABC
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_overloads

import message_bus

FILE = Path(__file__).with_name("public_api.txt")
COMMAND = "python -m tests.architecture.public_api"
WIDTH = 120

# What an application may import from. Everything else may move.
MODULES = (
    "message_bus",
    "message_bus.admin",
    "message_bus.testing",
    "message_bus.core",
    "message_bus.types",
    "message_bus.commands",
    "message_bus.events",
    "message_bus.command_handlers.base",
    "message_bus.event_handlers.base",
    "message_bus.outbox_handlers",
    "message_bus.outbox_handlers.base",
    "message_bus.repositories.outbox",
)
# Names with an underscore that users call; and those that they override, in classes whose names end like this.
CALLED = {"__call__", "__enter__", "__aenter__", "__iter__", "__len__", "__contains__"}
OVERRIDDEN = {"_handle", "_before_handle", "_after_handle", "_add"}
BASES = ("HandlerABC", "RepoABC")
# Classes that only the package makes instances of: their constructor may change.
GIVEN = {"AsyncCallNext", "CallNext", "Message"}
HEAD = f"""\
# The public face of message_bus. Whoever changes a line of this file changes what applications rely on.
# Written by `{COMMAND}`.
"""


def main() -> None:
    """Rewrite the file."""
    FILE.write_text(written())
    print(f"{FILE.name}: {len(FILE.read_text().splitlines())} lines")


def written() -> str:
    """The public face as text."""
    return "\n\n".join([HEAD, *(_module(name) for name in MODULES)]).rstrip() + "\n"


def public_names(module_name: str) -> list[tuple[str, Any]]:
    """The public names of a module with what they mean: its `__all__`, or what message_bus takes from it."""
    module = import_module(module_name)
    names = getattr(module, "__all__", None)
    if names is None:
        here = {
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name
        }
        names = here.intersection(message_bus.__all__)
    return [(name, getattr(module, name)) for name in sorted(names)]


def owners(cls: type) -> list[type]:
    """The class, and its bases of this package that are not public themselves: their members count as its own."""
    private = [base for base in cls.__mro__[1:] if _is_private(base)]
    elsewhere = {each for base in cls.__mro__[1:] if _is_public(base) for each in base.__mro__}
    return [cls, *(base for base in private if base not in elsewhere)]


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class offers itself or through bases that are not public, sorted: names and plain values."""
    found: dict[str, Any] = {}
    for owner in owners(cls):
        for name, value in vars(owner).items():
            hook = name in OVERRIDDEN and cls.__name__.endswith(BASES)
            if name in CALLED or hook or not name.startswith(("_", "test_")) or _is_option(name, value):
                found.setdefault(name, value)
    return iter(sorted(found.items()))


def _is_option(name: str, value: Any) -> bool:
    """Does this take the class keywords of those who derive?"""
    if name != "__init_subclass__" or not isinstance(value, classmethod):
        return False
    return any(
        each.kind is each.KEYWORD_ONLY for each in inspect.signature(value.__func__).parameters.values()
    )


def _is_public(cls: type) -> bool:
    return cls in _public_classes()


def _is_private(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "message_bus" and not _is_public(cls)


@cache
def _public_classes() -> frozenset[type]:
    values = [value for module in MODULES for _, value in public_names(module)]
    return frozenset(value for value in values if isinstance(value, type))


# --- modules and names ----------------------------------------------------------------------------------------


def _module(module_name: str) -> str:
    lines = [module_name, "=" * len(module_name), ""]
    for name, value in public_names(module_name):
        if module_name != "message_bus" and name in message_bus.__all__:
            assert getattr(message_bus, name) is value, f"{module_name}.{name} is not message_bus.{name}"
            lines.append(f"{name}: as in message_bus")
        else:
            lines += [*_name(name, value), ""]
    return "\n".join(lines).rstrip()


def _name(name: str, value: Any) -> list[str]:
    source = _source_of(name)
    if source is not None:
        return [f"{name} = {source}"]
    module = getattr(value, "__module__", "") or ""
    if isinstance(value, type) and module.startswith("message_bus"):
        return list(_class(name, value))
    if inspect.isfunction(value):
        return _function(name, value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return [
        f"{name}: {named.__qualname__ if named.__module__ == 'builtins' else f'{named.__module__}.{named.__qualname__}'}"
    ]


def _source_of(name: str) -> str | None:
    """How an alias is written in the module that message_bus takes it from."""
    where = message_bus._MODULE_OF.get(name)
    if where is None:
        return None
    for node in ast.parse(inspect.getsource(import_module(f"message_bus.{where}"))).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert node.value is not None
            return ast.unparse(node.value)
    return None


# --- classes ----------------------------------------------------------------------------------------------------


def _class(name: str, cls: type) -> Iterator[str]:
    yield f"{_kind(cls)} {name}{_bases(cls)}"
    constructor = next(
        (owner.__dict__["__init__"] for owner in owners(cls) if "__init__" in vars(owner)), None
    )
    if inspect.isfunction(constructor) and name not in GIVEN and not getattr(cls, "_is_protocol", False):
        yield from _indented(_signature(name, constructor, bound=True, result=False))
    hints = _hints(cls)
    shown = _constructor_fields(cls)
    for attribute in sorted({*hints, *_assigned(cls)} - shown):
        hint = hints.get(attribute)
        yield f"    {attribute}" if hint is None else f"    {attribute}: {hint}"
    for member, value in members(cls):
        if member not in hints and member not in shown and not inspect.ismemberdescriptor(value):
            yield from _indented(_member(member, value))


def _kind(cls: type) -> str:
    words = ["class"]
    if dataclasses.is_dataclass(cls) and "__dataclass_params__" in vars(cls):
        words.insert(0, "frozen dataclass" if vars(cls)["__dataclass_params__"].frozen else "dataclass")
        words.pop()
    if getattr(cls, "_is_protocol", False):
        words = ["protocol"]
    if inspect.isabstract(cls):
        words.insert(0, "abstract")
    return " ".join(words)


def _bases(cls: type) -> str:
    names = list(dict.fromkeys(_public_bases(cls)))
    return f"({', '.join(names)})" if names else ""


def _public_bases(cls: type) -> Iterator[str]:
    """The bases, and in place of one that is not public its own."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        if isinstance(base, type) and _is_private(base):
            yield from _public_bases(base)
        elif base not in (object, ABC):
            yield _base(base)


def _base(base: Any) -> str:
    if inspect.isfunction(base) or (isinstance(base, type) and not getattr(base, "__args__", None)):
        return base.__name__  # NamedTuple is a function
    return str(base).replace("typing.", "").replace("+", "").replace("~", "").replace("-", "")


def _hints(cls: type) -> dict[str, str]:
    """The annotated public attributes that users read or set on instances."""
    hints: dict[str, str] = {}
    for owner in reversed(owners(cls)):
        for name, hint in inspect.get_annotations(owner).items():
            if not name.startswith("_"):
                hints[name] = _annotation(hint)
    return hints


def _constructor_fields(cls: type) -> set[str]:
    """The fields that the signature of a dataclass shows already."""
    if not dataclasses.is_dataclass(cls):
        return set()
    return {field.name for field in dataclasses.fields(cls) if field.init}


def _assigned(cls: type) -> set[str]:
    """The public attributes that `__init__` sets: `self.name = ...`."""
    found: set[str] = set()
    for owner in owners(cls):
        init = vars(owner).get("__init__")
        if not inspect.isfunction(init) or dataclasses.is_dataclass(owner):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
        found |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and not node.attr.startswith("_")
        }
    return found


def _member(name: str, value: Any) -> list[str]:
    if isinstance(value, classmethod | staticmethod):
        kind = "classmethod" if isinstance(value, classmethod) else "staticmethod"
        bound = isinstance(value, classmethod)
        return _function(name, value.__func__, prefix=f"{kind} ", bound=bound)
    if inspect.isfunction(value):
        return _function(name, value, bound=True)
    getter = value.fget if isinstance(value, property) else getattr(value, "func", None)
    if inspect.isfunction(getter):
        writable = "" if getattr(value, "fset", None) is None else "writable "
        hint = _annotation(inspect.signature(getter).return_annotation)
        return [f"{_abstract(getter)}{writable}property {name}: {hint}"]
    if isinstance(value, type):
        return [f"class {name}"]
    if type(value).__name__ == "FixtureFunctionDefinition":
        return [f"fixture {name}"]
    return [f"{name} = {_default(value)}"]


# --- functions ----------------------------------------------------------------------------------------------------


def _function(name: str, function: Callable[..., Any], prefix: str = "", bound: bool = False) -> list[str]:
    variants = get_overloads(function) or [function]
    lines: list[str] = []
    for variant in variants:
        words = f"{_abstract(function)}{prefix}{'async ' if inspect.iscoroutinefunction(function) else ''}"
        lines += _signature(f"{words}def {name}", variant, bound=bound)
    return lines


def _abstract(function: Any) -> str:
    return "abstract " if getattr(function, "__isabstractmethod__", False) else ""


def _signature(start: str, function: Callable[..., Any], *, bound: bool, result: bool = True) -> list[str]:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    end = f") -> {_annotation(signature.return_annotation)}" if result else ")"
    words = list(_parameters(parameters))
    line = f"{start}({', '.join(words)}{end}"
    if len(line) <= WIDTH - 4:
        return [line]
    return [f"{start}(", *(f"    {word}," for word in words), end]


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for number, parameter in enumerate(parameters):
        kind = parameter.kind
        if kind is parameter.KEYWORD_ONLY and not starred:
            yield "*"
        starred = starred or kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        text = f"{stars}{parameter.name}"
        hinted = parameter.annotation is not parameter.empty
        if hinted:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f"{' = ' if hinted else '='}{_default(parameter.default)}"
        yield text
        following = parameters[number + 1].kind if number + 1 < len(parameters) else None
        if kind is parameter.POSITIONAL_ONLY and following is not parameter.POSITIONAL_ONLY:
            yield "/"


def _annotation(hint: Any) -> str:
    if hint is inspect.Signature.empty:
        return "?"
    hint = getattr(hint, "__forward_arg__", hint)  # what NamedTuple makes of a text
    return hint if isinstance(hint, str) else inspect.formatannotation(hint)


def _default(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple):
        return f"({', '.join(map(_default, value))}{',' if len(value) == 1 else ''})"
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text or "\n" in text or len(text) > WIDTH else text


def _indented(lines: list[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


if __name__ == "__main__":
    main()
