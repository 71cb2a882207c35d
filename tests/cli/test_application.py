"""What `--app` finds, and how it says what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from message_bus import SettingsError
from message_bus.cli.application import load_bus
from tests.cli import app


@pytest.mark.parametrize("path", ["bus", "async_bus", "nested.bus"])
def test_a_bus_is_found_where_the_name_leads(path: str) -> None:
    """The attribute is the bus, also as an attribute of something in the module."""
    assert load_bus(f"tests.cli.app:{path}") in (app.bus, app.async_bus)


def test_a_callable_is_called() -> None:
    """A function without arguments may return the bus."""
    found = load_bus("tests.cli.app:make_bus")
    assert isinstance(found, type(app.bus))
    assert found is not app.bus


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tests.cli.app", "is not of the form module:attribute"),
        (":bus", "is not of the form module:attribute"),
        ("tests.cli.app:", "is not of the form module:attribute"),
        ("tests.cli.missing:bus", "no module named 'tests.cli.missing'"),
        ("no_such_package.app:bus", "no module named 'no_such_package'"),
        ("tests.cli.broken:bus", "importing 'tests.cli.broken' raised ModuleNotFoundError"),
        ("tests.cli.app:missing", "module 'tests.cli.app' has no attribute 'missing'"),
        ("tests.cli.app:nested.missing", "a SimpleNamespace has no attribute 'missing'"),
        ("tests.cli.app:no_bus", "is of type int (name a MessageBus or AsyncMessageBus"),
        ("tests.cli.app:raises", "calling it raised KeyError: 'SHOP_SETTINGS'"),
        ("tests.cli.app:returns_nothing", "is of type NoneType"),
        ("tests.cli.app:make_async", "make_async is async (write a plain function that returns the bus)"),
    ],
)
def test_what_is_wrong_is_said(name: str, problem: str) -> None:
    """Each way to name no bus has its own error, which repeats the name."""
    with pytest.raises(SettingsError) as caught:
        load_bus(name)
    assert str(caught.value).startswith(f"--app {name}: ")
    assert problem in str(caught.value)


def test_the_current_directory_is_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application in the current directory needs no installation."""
    (tmp_path / "shop_in_this_directory.py").write_text(
        "from message_bus import MessageBus\nbus = MessageBus()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    assert load_bus("shop_in_this_directory:bus") is sys.modules.pop("shop_in_this_directory").bus
