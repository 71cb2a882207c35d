"""Finds what `--app module:attribute` names: a bus, or a callable that returns one.

The current directory is importable, as with other servers and workers that are told where an application is. Nothing
is guessed: the attribute is looked up, and called if it is not a bus itself. Used by the commands that run handlers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import iscoroutine
from pathlib import Path
from types import ModuleType
from typing import Any

from message_bus.bus.abc import AsyncMessageBusABC, MessageBusABC
from message_bus.errors import SettingsError
from message_bus.relay.wiring import AnyRelay

AnyBus = MessageBusABC | AsyncMessageBusABC


def load_bus(app: str) -> AnyBus:
    """Import the bus that `app` names; a callable is called without arguments and returns it.

    Raises: SettingsError with what is wrong; its `__cause__` is what the application's own code raised, if it did.
    """
    found = find(app, AnyBus)
    if not isinstance(found, AnyBus):
        raise _problem(
            app,
            f"is of type {type(found).__name__} (name a MessageBus or AsyncMessageBus, or a function that returns one)",
        )
    return found


def load_relay_or_bus(app: str) -> AnyRelay | AnyBus:
    """The same for a command that takes a relay, ready made, too."""
    found = find(app, AnyRelay | AnyBus)
    if not isinstance(found, AnyRelay | AnyBus):
        raise _problem(
            app, f"is of type {type(found).__name__} (name a Relay or a bus, or a function that returns one)"
        )
    return found


def find(app: str, kinds: Any) -> object:
    """What `--app` names: a thing of one of these kinds, or what a function returns. Raises: SettingsError."""
    module_name, _, path = app.partition(":")
    if not module_name or not path:
        raise _problem(app, "is not of the form module:attribute (such as --app shop.wiring:bus)")
    found = _import(app, module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise _problem(
                app, f"{_name_of(found)} has no attribute {name!r} (check the part after the colon)"
            )
        found = getattr(found, name)
    return _call(app, found) if callable(found) and not isinstance(found, kinds) else found


def _import(app: str, module_name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise _problem(
                app,
                f"no module named {error.name!r} (looked in {here} and where Python looks; set PYTHONPATH, or cd)",
            ) from error
        raise _problem(
            app, f"importing {module_name!r} raised {_said(error)} (--debug shows where)"
        ) from error


def _call(app: str, factory: object) -> object:
    assert callable(factory)
    try:
        made = factory()
    except Exception as error:
        raise _problem(app, f"calling it raised {_said(error)} (--debug shows where)") from error
    if iscoroutine(made):
        made.close()  # so that nobody warns that it was never awaited
        raise _problem(
            app, f"{app.rpartition(':')[2]} is async (write a plain function that returns the bus)"
        )
    return made


def _problem(app: str, problem: str) -> SettingsError:
    return SettingsError(f"--app {app}", [problem])


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _name_of(found: object) -> str:
    return f"module {found.__name__!r}" if isinstance(found, ModuleType) else f"a {type(found).__name__}"
