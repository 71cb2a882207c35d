"""The public face is pinned: a name, a signature or a default changes only together with public_api.txt."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

import message_bus
from tests.architecture import public_api

ROOT = Path(__file__).parents[2]
# What the documents of the two ancestors import, and whole sets of names that checks rely on.
SEED_PATHS = {
    "message_bus": "MessageBus AsyncMessageBus MessageBusABC AsyncMessageBusABC Command Event Message",
    "message_bus.core": "MessageBus AsyncMessageBus MessageBusABC AsyncMessageBusABC",
    "message_bus.types": "Message serializer",
    "message_bus.commands": "Command",
    "message_bus.events": "Event",
    "message_bus.command_handlers.base": "CommandHandlerABC AsyncCommandHandlerABC CommandHandler",
    "message_bus.event_handlers.base": "EventHandlerABC AsyncEventHandlerABC",
    "message_bus.outbox_handlers": "DispatchOutboxHandler",
    "message_bus.outbox_handlers.base": "OutboxHandlerABC AsyncOutboxHandlerABC",
    "message_bus.repositories.outbox": "OutBoxRepoABC AsyncOutBoxRepoABC",
}


def test_the_public_face_is_as_written_down() -> None:
    """Every public name, signature, base, field and method is what public_api.txt says."""
    old, new = public_api.FILE.read_text().splitlines(), public_api.written().splitlines()
    difference = "\n".join(unified_diff(old, new, "public_api.txt", "message_bus", lineterm="", n=4))
    if difference:
        pytest.fail(
            f"the public face has changed:\n\n{difference}\n\n"
            f"If applications may rely on this from now on, rewrite the file: {public_api.COMMAND}",
            pytrace=False,
        )


def test_writing_is_repeatable() -> None:
    """A fresh interpreter with another hash seed writes the same text."""
    program = "from tests.architecture import public_api; print(public_api.written(), end='')"
    texts = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {public_api.written()}


def test_the_paths_of_the_ancestors() -> None:
    """What the ancestors' documents import is there, and it is the same thing under every path."""
    for module, names in SEED_PATHS.items():
        found = dict(public_api.public_names(module))
        assert set(names.split()) <= set(found), module
        for name in names.split():
            assert name == "serializer" or getattr(message_bus, name) is found[name]


def test_every_public_name_is_announced_three_times() -> None:
    """The lazy table, `__all__` and the imports for type checkers in `message_bus/__init__.py` name the same things."""
    lazy = set(message_bus._MODULE_OF)
    assert lazy == set(message_bus.__all__) - {"__version__"}
    assert len(message_bus.__all__) == len(set(message_bus.__all__))
    (for_checkers,) = (
        node for node in ast.parse(inspect.getsource(message_bus)).body if isinstance(node, ast.If)
    )
    imports = [node for node in for_checkers.body if isinstance(node, ast.ImportFrom)]
    assert {f"{node.module}.{alias.name}" for node in imports for alias in node.names} == {
        f"message_bus.{module}.{name}" for name, module in message_bus._MODULE_OF.items()
    }


def test_every_error_is_public() -> None:
    """Whoever may meet an error can name it: the whole tree is importable from message_bus."""
    errors = {
        name
        for name, value in vars(message_bus.errors).items()
        if isinstance(value, type) and issubclass(value, message_bus.MessageBusError)
    }
    assert errors <= set(message_bus.__all__)


def test_public_classes_hide_their_room() -> None:
    """An error's module is message_bus, so that tracebacks show the path that users import it from."""
    for name, value in public_api.public_names("message_bus"):
        if isinstance(value, type) and issubclass(value, message_bus.MessageBusError):
            assert value.__module__ == "message_bus", name
