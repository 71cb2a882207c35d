"""The reference names everything public, once, and everything that it names is there."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from typing import Final

import pytest

import message_bus
from tests.docs.pages import ROOT

REFERENCE: Final = ROOT / "docs/reference"
_ENTRY: Final = re.compile(
    r"^\.\. auto(?:class|exception|function|data):: (?P<module>[\w.]+)\.(?P<name>\w+)$", re.MULTILINE
)


def entries() -> list[tuple[str, str]]:
    """Module and name of each entry."""
    return [
        (found["module"], found["name"])
        for page in sorted(REFERENCE.glob("*.rst"))
        for found in _ENTRY.finditer(page.read_text(encoding="utf-8"))
    ]


def test_every_public_name_has_one_entry() -> None:
    """`message_bus.__all__`, no more and no less: a new name is added to the page of its topic."""
    named = Counter(name for module, name in entries() if module == "message_bus")
    assert sorted(named) == sorted(message_bus.__all__)
    assert [name for name, times in named.items() if times > 1] == []


@pytest.mark.parametrize("module", ["message_bus.admin", "message_bus.testing"])
def test_every_name_of_a_public_module_has_one_entry(module: str) -> None:
    """Beside the names that `message_bus` has as well."""
    wanted = set(import_module(module).__all__) - set(message_bus.__all__)
    assert sorted(name for where, name in entries() if where == module) == sorted(wanted)


def test_every_entry_is_there() -> None:
    """What an entry names can be imported under that name."""
    for module, name in entries():
        assert hasattr(import_module(module), name), f"{module}.{name}"


def test_every_page_is_reached() -> None:
    """The index leads to every page of the reference; the commands are one, made of the commands themselves."""
    index = (REFERENCE / "index.rst").read_text(encoding="utf-8")
    pages = {page.stem for page in REFERENCE.glob("*.rst")} - {"index"}
    assert set(re.findall(r"^   ([\w-]+)$", index, re.MULTILINE)) == pages
    assert ".. click:: message_bus.cli.main:main" in (REFERENCE / "commands.rst").read_text(encoding="utf-8")
