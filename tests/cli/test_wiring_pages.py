"""The how-to pages about `describe` and `schema`, followed word for word: files saved, commands typed, output compared."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from message_bus.admin import describe
from tests.cli.test_describe import RISKS
from tests.cli.wired_app import make_relay
from tests.docs.pages import Walk, text_of

DESCRIBE, SCHEMAS = "docs/how-to/describe.md", "docs/how-to/message-schemas.md"


@pytest.mark.slow
@pytest.mark.parametrize("page", [DESCRIBE, SCHEMAS])
def test_a_page_word_for_word(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says is printed is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # shop.py is saved several times within a second
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    Walk(tmp_path, module).follow(page, commands=True)


def test_every_warning_is_in_the_table() -> None:
    """And no other."""
    table = text_of(DESCRIBE).partition("| code |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)} == {each[0] for each in RISKS}


def test_every_key_is_in_the_table() -> None:
    """Every field of the values that `--json` prints."""
    text = text_of(DESCRIBE).partition("## For programs")[2].partition("In Python")[0]
    described = describe(make_relay())
    values = [
        described,
        described.messages[0],
        described.subscriptions[0],
        described.subscriptions[0].settings[0],
    ]
    missing = {name for value in values for name in vars(value) if f"`{name}`" not in text}
    assert missing == set()


def test_every_change_is_in_the_table() -> None:
    """Every code of a break."""
    sources = (
        Path("message_bus/messages/schemas") / f"{name}.py" for name in ("compatibility", "differences")
    )
    kinds = "field|required-field|type|value|limit|message|former-name|version|upcaster|kind"
    codes = {code for each in sources for code in re.findall(rf'"((?:{kinds})-[a-z-]+)"', each.read_text())}
    assert "field-removed" in codes
    quiet = {"message-added", "version-raised", "field-optional"}
    assert {code for code in codes - quiet if f"`{code}" not in text_of(SCHEMAS)} == set()
