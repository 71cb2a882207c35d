"""A type name from a row is looked up in the bus's registry: nothing is imported, evaluated or unpickled."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given

import message_bus
from message_bus import Event, UnknownMessageType
from message_bus.messages.registry import Registry
from tests.delivery.world import Noted, World
from tests.trust import hostile

PACKAGE = Path(message_bus.__file__).parent
FORBIDDEN = {"pickle", "cPickle", "dill", "marshal", "shelve", "yaml", "jsonpickle"}
LOOK_UP_BY_NAME = {
    "message_bus/__init__.py",  # our own names, made on demand; here and in the next two
    "message_bus/admin/__init__.py",
    "message_bus/testing/__init__.py",
    "message_bus/cli/main.py",  # our own commands
    "message_bus/cli/application.py",  # --app, which whoever deploys the application gives
}


class Known(Event, name="known"):
    """The only type that the registry knows."""

    n: int


@given(hostile.anything)
def test_a_name_that_is_not_registered_is_unknown(name: str) -> None:
    """Whatever the name says: the registry has no such class, and no module is imported on the way."""
    registry = Registry()
    registry.register(Known)
    before = set(sys.modules)
    assert registry.get(name) is None
    assert name not in registry
    with pytest.raises(UnknownMessageType):
        registry.decode(name, 1, b"{}")
    assert set(sys.modules) - before <= {"unicodedata"}


@pytest.mark.sqlite
@pytest.mark.parametrize("name", ["os.system", "antigravity:fly", "builtins.eval", "__main__"])
def test_a_row_with_such_a_name_is_a_dead_letter(world: World, name: str) -> None:
    """G7: nothing is imported to find out what it is; the row is kept and says what is missing."""
    world.settings(max_attempts=1)
    world.register(Noted(n=1))
    world.write(sa.update(world.tables.outbox).values(message=name))
    assert world.process().dead == 1
    assert "antigravity" not in sys.modules
    [(error,)] = world.rows(sa.select(world.tables.delivery.c.error))
    assert error.startswith("UnknownMessageType: unknown message type")


@cache
def _imports_and_calls() -> list[tuple[str, str]]:
    """(file, what) of every import and every call by name in the package."""
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE.parent))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    found += [(file, f"import {each.name.partition('.')[0]}") for each in names]
                case ast.ImportFrom(module=str(module)):
                    found.append((file, f"import {module.partition('.')[0]}"))
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                    found.append((file, name if isinstance(node.func, ast.Name) else f".{name}"))
                case _:
                    pass
    return found


def test_nothing_is_pickled_or_evaluated() -> None:
    """No module of the package imports a pickler, or calls eval, exec or compile."""
    picklers = {f"import {each}" for each in FORBIDDEN}
    evaluating = {"eval", "exec", "compile", "__import__"}
    assert [each for each in _imports_and_calls() if each[1] in picklers | evaluating] == []


def test_only_who_starts_an_application_names_modules() -> None:
    """`import_module` is called for the package's own modules and for `--app`, nowhere else."""
    callers = {file for file, what in _imports_and_calls() if what.lstrip(".") == "import_module"}
    assert callers <= LOOK_UP_BY_NAME
