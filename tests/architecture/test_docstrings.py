"""Docstrings of the public face: one imperative line, then only what a signature cannot show."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import message_bus
from tests.architecture import public_api

ROOT = Path(__file__).parents[2]
LONGEST_MODULE_DOCSTRING = 12
# First words that end in s and are imperative all the same.
IMPERATIVE = {
    "access",
    "address",
    "bypass",
    "discuss",
    "dismiss",
    "focus",
    "pass",
    "press",
    "process",
    "toss",
}
NOT_IMPERATIVE = {
    "a",
    "an",
    "if",
    "it",
    "its",
    "the",
    "there",
    "these",
    "this",
    "what",
    "when",
    "whether",
    "which",
}
RAISES = re.compile(r"Raises:(?P<what>.*?)(?:\n\s*\n|\Z)", re.DOTALL)
ERROR_NAME = re.compile(r"(?<![\w.`])(?:[A-Z][a-z]+){2,}(?!\w)|(?<![\w.`])[A-Z]\w*Error(?!\w)")


def _functions(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, documented thing, kind) for a public name and everything public about it."""
    if inspect.isfunction(value):
        yield name, value, "function"
    elif isinstance(value, type) and value.__module__.partition(".")[0] == "message_bus":
        yield name, value, "class"
        for member, what in public_api.members(value):
            if member.startswith("__") and member != "__call__":
                continue  # what Python calls is told by Python
            if isinstance(what, classmethod | staticmethod):
                yield f"{name}.{member}", what.__func__, "function"
            elif inspect.isfunction(what):
                yield f"{name}.{member}", what, "function"
            elif isinstance(what, property) or hasattr(what, "func"):
                yield f"{name}.{member}", what, "property"


@cache
def documented() -> dict[str, tuple[Any, str]]:
    """Everything that needs a docstring, under its public name."""
    found: dict[str, tuple[Any, str]] = {}
    seen: set[int] = set()
    for module in public_api.MODULES:
        for name, value in public_api.public_names(module):
            if id(value) not in seen:
                seen.add(id(value))
                for path, what, kind in _functions(name, value):
                    found[path if module == "message_bus" else f"{module}.{path}"] = (what, kind)
    return found


def docstrings() -> Iterator[tuple[str, str, str]]:
    """(name, kind, docstring) of everything; where an override has none, the one of the method it overrides."""
    for name, (what, kind) in documented().items():
        yield name, kind, inspect.cleandoc(what.__doc__ or _inherited(name) or "")


def _inherited(name: str) -> str | None:
    owner, _, member = name.rpartition(".")
    cls = documented()[owner][0] if owner in documented() else None
    if not isinstance(cls, type):
        return None
    overridden = (vars(base).get(member) for base in cls.__mro__[1:])
    return next((what.__doc__ for what in overridden if what is not None and what.__doc__), None)


def refuse(problems: Sequence[str]) -> None:
    """Fail with all problems at once, each in a line."""
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_first_line_is_a_sentence() -> None:
    """Every public name, method and property says in one line what it is for."""
    problems: list[str] = []
    for name, _, text in docstrings():
        first, _, rest = text.partition("\n")
        if not first:
            problems.append(f"{name} has no docstring")
        elif not first.endswith((".", ":", ".)", "?")):
            problems.append(f"{name}: the first line is no sentence: {first!r}")
        elif rest and not rest.startswith("\n"):
            problems.append(f"{name}: the first line goes on in the second: {first!r}")
    refuse(problems)


def test_functions_are_imperative() -> None:
    """A function's first line says what to do: "Return the row", neither "Returns the row" nor "The row"."""
    problems: list[str] = []
    for name, kind, text in docstrings():
        word = re.split(r"[^\w`'-]", text, maxsplit=1)[0]
        third_person = re.search(r"[^s]s\Z", word) and word.lower() not in IMPERATIVE
        if kind == "function" and (third_person or word.lower() in NOT_IMPERATIVE or not word[:1].isupper()):
            problems.append(f"{name}: {word!r} is not imperative")
    refuse(problems)


def test_raises_names_errors_that_exist() -> None:
    """`Raises:` names errors of message_bus or Python."""
    problems = [
        f"{name}: there is no {error}"
        for name, _, text in docstrings()
        for section in RAISES.finditer(text)
        for error in ERROR_NAME.findall(section["what"])
        if not hasattr(message_bus, error) and not hasattr(builtins, error)
    ]
    refuse(problems)


def test_modules_say_what_they_are_for() -> None:
    """Every module has a docstring, and it is short; indented examples, diagrams and proofs do not count."""
    problems: list[str] = []
    for path in sorted((ROOT / "message_bus").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        prose = [line for line in text.splitlines() if not line.startswith("    ")]
        if not prose:
            problems.append(f"{path.relative_to(ROOT)}: no docstring")
        elif len(prose) > LONGEST_MODULE_DOCSTRING:
            problems.append(f"{path.relative_to(ROOT)}: {len(prose)} lines")
    refuse(problems)


def test_every_error_is_documented() -> None:
    """Each error of the tree has a docstring of its own, not its base's."""
    tree = [value for value in vars(message_bus.errors).values() if isinstance(value, type)]
    errors = [value for value in tree if issubclass(value, message_bus.MessageBusError)]
    assert errors
    assert [error.__name__ for error in errors if not (vars(error).get("__doc__") or "").strip()] == []
